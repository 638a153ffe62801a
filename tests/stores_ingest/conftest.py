"""A tiny model, stores of both kinds, and what a store holds as plain values."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from reference.gte import build_gte
from reference.sentence_layouts import build_sentence_transformer
from stores import milvus, postgres
from twinvec import Embedder
from twinvec_stores import EmbeddedStore, HybridStore, MemoryStore, StoreConfig

Lines = Callable[[str, Sequence[Any]], Path]


@pytest.fixture(scope="session")
def gte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gte(tmp_path_factory.mktemp("gte"), dtype="float32", layers=1, hidden=32, heads=2)


@pytest.fixture(scope="session")
def embedder(gte_folder: Path) -> Iterator[Embedder]:
    with Embedder(gte_folder, dtype="float32") as embedder:
        yield embedder


@pytest.fixture(scope="session")
def short(gte_folder: Path) -> Iterator[Embedder]:
    """The same model, cutting texts at 16 tokens."""
    with Embedder(gte_folder, dtype="float32", max_length=16) as embedder:
        yield embedder


@pytest.fixture(scope="session")
def tokenizers(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Embedder]]:
    """Models with the three kinds of tokenizers, and one that puts a prompt before documents."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("bert", "llama")}
    for name, folder in folders.items():
        build_sentence_transformer(folder, name)
    with (
        Embedder(folders["bert"], dtype="float32") as wordpiece,
        Embedder(folders["llama"], dtype="float32") as bytes_,
        Embedder(folders["bert"], dtype="float32", prompts={"document": "passage: "}) as prompted,
    ):
        yield {"unigram": embedder, "wordpiece": wordpiece, "bytes": bytes_, "prompted": prompted}


@pytest.fixture
def memory(embedder: Embedder) -> MemoryStore:
    return MemoryStore(StoreConfig.for_embedder(embedder))


@pytest.fixture(params=["memory", "embedded", "postgres", pytest.param("milvus", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, embedder: Embedder, tmp_path: Path) -> Iterator[HybridStore]:
    config = StoreConfig.for_embedder(embedder)
    makes: dict[str, Callable[[], HybridStore]] = {
        "memory": lambda: MemoryStore(config),
        "embedded": lambda: EmbeddedStore(tmp_path / "store", config),
        "postgres": lambda: postgres.new_store(config),
        "milvus": lambda: milvus.new_store(config),
    }
    with makes[request.param]() as store:
        yield store


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    """Write a file of JSON lines; strings and bytes are taken as they are."""

    def write(name: str, rows: Sequence[Any]) -> Path:
        path = tmp_path / name
        raw = [row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else _json(row) for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in raw))
        return path

    return write


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("twinvec-ingest")] == []


def _json(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()
