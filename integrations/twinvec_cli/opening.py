"""Opening a store to read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinvec.errors import StoreLockedError

if TYPE_CHECKING:
    from twinvec_stores import HybridStore


def readable(location: str, collection: str | None) -> HybridStore:
    """Open a store; if another process, such as an ingest, is writing to it, read what is there so far."""
    from twinvec_stores import open_store

    try:
        return open_store(location, collection=collection)
    except StoreLockedError:
        return open_store(location, collection=collection, read_only=True)
