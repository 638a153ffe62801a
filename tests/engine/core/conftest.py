"""One core for every caller. Fakes replace only the forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reference.gte import build_gte
from twinvec import Embedder
from twinvec.compute.encoder import Encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gte(tmp_path_factory.mktemp("core"), seed=11)


@pytest.fixture(autouse=True, params=[False, True], ids=["waiting", "working ahead"])
def asynchronous(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test runs with a device whose thread waits for it, and with one that gets the next batch meanwhile."""
    monkeypatch.setattr(Encoder, "asynchronous", request.param)
    return bool(request.param)


@pytest.fixture
def embedder(folder: Path) -> Iterator[Embedder]:
    with Embedder(folder, dtype="float32", memo_bytes=0) as made:
        yield made
