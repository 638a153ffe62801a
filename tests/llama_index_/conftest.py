"""Tiny checkpoints, LlamaIndex's classes over them, and what watches them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from llama_index.core import MockEmbedding, Settings
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import MockLLM
from llama_index_instrumentation import get_dispatcher
from pydantic import Field
from qdrant_client import AsyncQdrantClient, QdrantClient

from llama_index_twinvec import TwinVecEmbedding, TwinVecVectorStore
from reference.giga import build_giga_0826
from reference.gte import build_gte
from reference.sentence_layouts import build_multilingual_e5
from twinvec import BaseEmbedder, Embedder


@pytest.fixture(scope="session", autouse=True)
def offline() -> Iterator[None]:
    """Nothing that LlamaIndex takes by default may ask a network."""
    before = Settings._llm, Settings._embed_model
    Settings.llm, Settings.embed_model = MockLLM(), MockEmbedding(embed_dim=8)
    yield
    Settings._llm, Settings._embed_model = before


@pytest.fixture(scope="session")
def gte_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """No prompts; dense and sparse from one pass."""
    return str(build_gte(tmp_path_factory.mktemp("gte"), seed=51))


@pytest.fixture(scope="session")
def giga_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Instructions; no sparse half."""
    return str(build_giga_0826(tmp_path_factory.mktemp("giga"), seed=51))


@pytest.fixture(scope="session")
def e5_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The prompts "query: " and "passage: "; what sentence-transformers loads as it is."""
    return str(build_multilingual_e5(tmp_path_factory.mktemp("e5"), with_prompts=True))


@pytest.fixture(scope="session")
def gte(gte_folder: str) -> Iterator[Embedder]:
    with Embedder(gte_folder, dtype="float32") as made:
        yield made


@pytest.fixture(scope="session")
def giga(giga_folder: str) -> Iterator[Embedder]:
    with Embedder(giga_folder, dtype="float32") as made:
        yield made


@pytest.fixture
def own(tmp_path: Path) -> Iterator[TwinVecEmbedding]:
    """A model that nobody else holds, so that its counters and its memo start from nothing."""
    made = TwinVecEmbedding(model_name=str(build_gte(tmp_path / "own", seed=52)), dtype="float32")
    yield made
    made.embedder.close()


@pytest.fixture
def embedding(gte: Embedder) -> TwinVecEmbedding:
    return TwinVecEmbedding(embedder=gte)


@pytest.fixture
def store(embedding: TwinVecEmbedding) -> Iterator[TwinVecVectorStore]:
    with TwinVecVectorStore(embedding) as made:
        yield made


def local_clients() -> tuple[QdrantClient, AsyncQdrantClient]:
    """Two clients of one local engine."""
    client, async_client = QdrantClient(":memory:"), AsyncQdrantClient(":memory:")
    cast(Any, async_client)._client.collections = cast(Any, client)._client.collections
    return client, async_client


class Recorder(BaseEventHandler):
    """Keeps the events of LlamaIndex's instrumentation."""

    events: list[Any] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    root, made = get_dispatcher(), Recorder()
    root.add_event_handler(made)
    yield made
    root.event_handlers.remove(made)


class Gate:
    """Stands in for a forward pass: holds the device until it is opened."""

    def __init__(self, forward: Callable[[Any], Any]) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self._forward = forward

    def __call__(self, batch: Any) -> Any:
        self.entered.set()
        assert self.open.wait(60)
        return self._forward(batch)


@pytest.fixture
def gate(gte: Embedder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds the forward passes of ``gte``, which remembers no texts of other tests."""
    gte._core.clear_memo()
    backbone = gte._core.model.encoder.backbone
    made = Gate(backbone.forward)
    monkeypatch.setattr(backbone, "forward", made)
    yield made
    made.open.set()


async def passes_of_64(gate: Gate, embedder: BaseEmbedder, call: Callable[[str], Awaitable[object]]) -> int:
    """Return the forward passes of 64 concurrent calls, of which 63 come while the device is at work."""
    before = embedder.stats()
    first = asyncio.ensure_future(call("the first question"))
    assert await asyncio.to_thread(gate.entered.wait, 60)
    rest = [asyncio.ensure_future(call(f"question number {i}")) for i in range(63)]
    while embedder.stats()["queued"] < 63:
        await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(first, *rest)
    after = embedder.stats()
    assert after["texts"] - before["texts"] == 64
    return int(after["forwards"] - before["forwards"])
