"""Tiny models for tests of the Embedder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reference.gte import build_gte
from twinvec import Embedder


@pytest.fixture(scope="module")
def gte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gte(tmp_path_factory.mktemp("gte"))


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint than the fixture ``gte`` holds open: models of equal content are shared in a process."""
    return build_gte(tmp_path_factory.mktemp("own"), seed=7)


@pytest.fixture(scope="module")
def gte(gte_folder: Path) -> Iterator[Embedder]:
    with Embedder(gte_folder, dtype="float32", token_budget=64, memo_bytes=0) as embedder:
        yield embedder
