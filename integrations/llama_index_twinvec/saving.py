"""Stores in memory as files, pickles and copies; other stores keep their own place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.vector_stores.simple import NAMESPACE_SEP
from llama_index.core.vector_stores.types import DEFAULT_PERSIST_FNAME

from twinvec.errors import ConfigurationError
from twinvec_stores import (
    Filter,
    HybridStore,
    MemoryStore,
    Record,
    RecordBatch,
    ScopedStore,
    StoreConfig,
    export_store,
)

_OF_STORAGE = f"{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}"  # what StorageContext.persist calls a store's file


def save(store: HybridStore, path: str, fs: Any) -> None:
    """Write a store in memory to a file; of another, return when everything written survives a loss of power.

    Raises:
        ConfigurationError: see ``TwinVecVectorStore.persist``.
    """
    if not _in_memory(store):
        store.flush()
        return
    if fs is not None or not path or path.endswith(_OF_STORAGE):
        raise ConfigurationError(
            "this store is in memory, and StorageContext reads no such file again: make it with path=, which is "
            "there the next time, or call persist with the path of a local file and from_persist_path later"
        )
    export_store(store, path)


def recipe(store: HybridStore) -> tuple[Callable[..., HybridStore], tuple[Any, ...]]:
    """Return how to make a copy: of a store in memory one of its own, of another the same place."""
    if not _in_memory(store):
        return _same, (store,)
    scope = store.scope if isinstance(store, ScopedStore) else None
    return _filled, (store.config, list(store.scroll_all(with_vectors=True)), scope)


def _in_memory(store: HybridStore) -> bool:
    return store.info().engine == "memory"


def _same(store: HybridStore) -> HybridStore:
    return store


def _filled(config: StoreConfig, pages: Sequence[Sequence[Record]], scope: Filter | None) -> HybridStore:
    made = MemoryStore(config)
    for page in pages:
        made.upsert(RecordBatch.of(page))
    return made if scope is None else ScopedStore(made, scope)
