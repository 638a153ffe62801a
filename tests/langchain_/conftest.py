"""Tiny checkpoints, and LangChain's classes over them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from langchain_.gate import Gate
from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore
from reference.giga import build_giga_0826
from reference.gte import build_gte
from reference.sentence_layouts import build_multilingual_e5, build_sentence_transformer
from twinvec import Embedder


@pytest.fixture(scope="session")
def gte_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """No prompts; dense and sparse from one pass."""
    return str(build_gte(tmp_path_factory.mktemp("gte"), seed=41))


@pytest.fixture(scope="session")
def giga_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Instructions; no sparse half."""
    return str(build_giga_0826(tmp_path_factory.mktemp("giga"), seed=41))


@pytest.fixture(scope="session")
def e5_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The prompts "query: " and "passage: "."""
    return str(build_multilingual_e5(tmp_path_factory.mktemp("e5"), with_prompts=True))


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """No prompts; what sentence-transformers loads as it is."""
    return str(build_sentence_transformer(tmp_path_factory.mktemp("bert"), "bert", max_seq_length=64, seed=41))


@pytest.fixture
def own_folder(tmp_path: Path) -> str:
    """A model that no fixture holds open: models of equal content are shared in a process."""
    return str(build_gte(tmp_path / "own", seed=45))


@pytest.fixture(scope="session")
def gte(gte_folder: str) -> Iterator[TwinVecEmbeddings]:
    made = TwinVecEmbeddings(model=gte_folder, dtype="float32")
    yield made
    made.embedder.close()


@pytest.fixture(scope="session")
def giga(giga_folder: str) -> Iterator[TwinVecEmbeddings]:
    made = TwinVecEmbeddings(model=giga_folder, dtype="float32", sparse="bm25")
    yield made
    made.embedder.close()


@pytest.fixture
def store(gte: TwinVecEmbeddings) -> TwinVecVectorStore:
    return TwinVecVectorStore(gte)


@pytest.fixture
def gate(gte: TwinVecEmbeddings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds the forward passes of ``gte``."""
    assert isinstance(gte.embedder, Embedder)
    backbone = gte.embedder._core.model.encoder.backbone
    gate = Gate(backbone.forward)
    monkeypatch.setattr(backbone, "forward", gate)
    yield gate
    gate.open.set()
