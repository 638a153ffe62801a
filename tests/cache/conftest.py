"""A persistent cache for one test, and one for a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from twinvec.cache import VectorCache


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[VectorCache]:
    with VectorCache(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorCache]:
    """For properties: each example uses namespaces or keys of its own, or clears."""
    with VectorCache(tmp_path_factory.mktemp("cache")) as opened:
        yield opened
