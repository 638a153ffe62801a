"""Opening a store to read it, and an index to search it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from twinvec.errors import StoreLockedError
from twinvec_cli.console import note

if TYPE_CHECKING:
    from twinvec_stores import HybridIndex, HybridStore


def readable(location: str, collection: str | None) -> HybridStore:
    """Open a store; if another process, such as an ingest, is writing to it, read what is there so far."""
    from twinvec_stores import open_store

    try:
        return open_store(location, collection=collection)
    except StoreLockedError:
        return open_store(location, collection=collection, read_only=True)


@contextlib.contextmanager
def searched(location: str, *, collection: str | None = None, **options: Any) -> Iterator[HybridIndex]:
    """Open an existing store and its own model; ``options`` are those of ``load_embedder``."""
    from twinvec_stores import HybridIndex, load_embedder, open_store

    with open_store(location, collection=collection) as store:
        note(f"Loading {store.config.model} ...")
        with load_embedder(store, **options) as embedder:
            yield HybridIndex(embedder, store, task=embedder.task)
