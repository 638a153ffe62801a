"""A recorded client, and configurations, for tests of the Qdrant engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from stores.conftest import local_clients
from stores.oracle import Row, batch, dense_query
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.qdrant import QdrantStore
from twinvec_stores.filters.conditions import Eq

CONFIG = StoreConfig(
    fingerprint="one", model="models/one", dim=4, idf=True, fields={"i": "integer", '"a b"': "keyword"}
)
ROWS = [Row(f"r{i}", f"text {i}", {"i": i}, sparse={i % 3: 1.0}) for i in range(5)]


class Recorded:
    """A client that remembers what it was asked; ``answers`` replaces some of what it says."""

    def __init__(self, client: Any, **answers: Callable[..., Any]) -> None:
        self.client = client
        self.answers = answers
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        method = self.answers.get(name) or getattr(self.client, name)

        def call(**arguments: Any) -> Any:
            self.calls.append((name, arguments))
            return method(**arguments)

        return call

    def asked(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.calls if called == name]


def recorded(**answers: Callable[..., Any]) -> Recorded:
    return Recorded(local_clients()[0], **answers)


def open_store(client: Any, config: StoreConfig | None = CONFIG, **options: Any) -> QdrantStore:
    return QdrantStore(client=client, collection="kb", config=config, **options)


CALLS: dict[str, Callable[[QdrantStore], Any]] = {
    "upsert": lambda store: store.upsert(batch(ROWS, CONFIG)),
    "delete": lambda store: store.delete(["nobody"]),
    "delete_where": lambda store: store.delete(filter=Eq("i", 77)),
    "get": lambda store: store.get(["r0"]),
    "count": lambda store: store.count(),
    "scroll": lambda store: store.scroll(),
    "search": lambda store: store.search([dense_query(1, 0, 0, 0)], limit=1),
    "document_frequencies": lambda store: store.document_frequencies(np.array([1], np.int32)),
}
ASYNC_CALLS: dict[str, Callable[[QdrantStore], Any]] = {
    "upsert": lambda store: store.aupsert(batch(ROWS, CONFIG)),
    "delete": lambda store: store.adelete(["nobody"]),
    "delete_where": lambda store: store.adelete(filter=Eq("i", 77)),
    "get": lambda store: store.aget(["r0"]),
    "count": lambda store: store.acount(),
    "scroll": lambda store: store.ascroll(),
    "search": lambda store: store.asearch([dense_query(1, 0, 0, 0)], limit=1),
    "document_frequencies": lambda store: store.adocument_frequencies(np.array([1], np.int32)),
}


def directly(call: Callable[[QdrantStore], Any], store: QdrantStore) -> Any:
    return call(store)


def awaited(call: Callable[[QdrantStore], Any], store: QdrantStore) -> Any:
    async def run() -> Any:
        return await call(store)

    return asyncio.run(run())
