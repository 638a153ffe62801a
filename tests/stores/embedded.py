"""What tests of the embedded store share."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout

from stores.oracle import Row, batch, dense_query, row
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.filters.conditions import And, Eq
from twinvec_stores.protocol import HybridStore

CONFIG = StoreConfig(fingerprint="one", model="models/one", dim=4, idf=True, fields={"i": "integer"})
ROWS = [Row(f"r{i}", f"text {i}", {"i": i}, {"file": "a.txt"}, sparse={i % 3: 1.0}) for i in range(5)]
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def filled(folder: Path, config: StoreConfig = CONFIG) -> EmbeddedStore:
    store = EmbeddedStore(folder, config)
    store.upsert(batch(ROWS, config))
    return store


def contents(store: HybridStore) -> list[Row]:
    rows = [row(r) for page in store.scroll_all(with_vectors=True) for r in page]
    return sorted(rows, key=lambda r: r.id)


def is_locked(folder: Path) -> bool:
    try:
        FileLock(folder / "lock").acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


CALLS: dict[str, Callable[[Any], Any]] = {
    "upsert": lambda store: store.upsert(batch(ROWS, CONFIG)),
    "delete": lambda store: store.delete(["r0"]),
    "delete_where": lambda store: store.delete(filter=And()),
    "get": lambda store: store.get(["r0"]),
    "count": lambda store: store.count(),
    "count_where": lambda store: store.count(Eq("i", 1)),
    "scroll": lambda store: store.scroll(),
    "scroll_all": lambda store: list(store.scroll_all()),
    "search": lambda store: store.search([dense_query(1, 0, 0, 0)], limit=1),
    "document_frequencies": lambda store: store.document_frequencies(np.array([1], np.int32)),
    "info": lambda store: store.info(),
    "flush": lambda store: store.flush(),
    "optimize": lambda store: store.optimize(),
    "aupsert": lambda store: asyncio.run(store.aupsert(batch(ROWS, CONFIG))),
    "asearch": lambda store: asyncio.run(store.asearch([dense_query(1, 0, 0, 0)], limit=1)),
    "aoptimize": lambda store: asyncio.run(store.aoptimize()),
}
