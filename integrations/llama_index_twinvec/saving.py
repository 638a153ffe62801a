"""In-memory stores as files, pickles and copies; other stores already have a location of their own."""

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

_OF_STORAGE = f"{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}"  # the name StorageContext.persist gives a store's file


def save(store: HybridStore, path: str, fs: Any) -> None:
    """Write an in-memory store to a file; for others, return once everything written would survive a power failure.

    Raises:
        ConfigurationError: see ``TwinVecVectorStore.persist``.
    """
    if not _in_memory(store):
        store.flush()
        return
    if fs is not None or not path or path.endswith(_OF_STORAGE):
        raise ConfigurationError(
            "this store is in memory, and StorageContext cannot read such a file: create it with path=, which "
            "is persistent, or call persist with the path of a local file and from_persist_path later"
        )
    export_store(store, path)


def recipe(store: HybridStore) -> tuple[Callable[..., HybridStore], tuple[Any, ...]]:
    """Return how to make a copy: an in-memory store is duplicated, others are opened at the same location."""
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
