"""Sparse rows computed along with dense ones, kept until a store asks for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from twinvec import BaseEmbedder, SparseBatch, SparseVector, Task
from twinvec.flows import awaiting, blocking, call

_MAX_BYTES = 256 * 2**20
_OVERHEAD = 400  # bytes of objects and dictionary slots per row


class WaitingRows:
    """The sparse rows of documents whose dense rows were requested first. Thread safe.

    LlamaIndex embeds all nodes of a pipeline before the store sees the first one, which exceeds the core's memo. Rows
    taken by a store are removed; beyond 256 MiB, the oldest rows are dropped.
    """

    def __init__(self, embedder: BaseEmbedder, task: Task | str | None) -> None:
        """Keep what this model computes for documents."""
        self._embedder, self._task = embedder, task
        self._rows: OrderedDict[str, SparseVector] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, texts: Sequence[str], rows: SparseBatch) -> None:
        """Store the rows of some texts."""
        with self._lock:
            for text, row in zip(texts, rows, strict=True):
                self._drop(text)
                self._rows[text] = row.copy()
                self._bytes += _size(text, row)
            while self._bytes > _MAX_BYTES:
                self._drop(next(iter(self._rows)))

    def __contains__(self, text: str) -> bool:
        with self._lock:
            return text in self._rows

    @blocking
    async def documents(self, texts: Sequence[str]) -> SparseBatch:
        """Return the sparse rows of documents, computing those that are not here."""
        found = self._take(texts)
        if missing := [text for text in dict.fromkeys(texts) if text not in found]:
            methods = self._embedder.embed_documents, self._embedder.aembed_documents
            rows = (await call(*methods, missing, task=self._task, dense=False)).sparse
            assert rows is not None
            found.update(zip(missing, rows, strict=True))
        return SparseBatch.stack([found[text] for text in texts])

    adocuments = awaiting(documents)

    def _take(self, texts: Sequence[str]) -> dict[str, SparseVector]:
        with self._lock:
            return {text: row for text in texts if (row := self._drop(text)) is not None}

    def _drop(self, text: str) -> SparseVector | None:
        row = self._rows.pop(text, None)
        if row is not None:
            self._bytes -= _size(text, row)
        return row


def _size(text: str, row: SparseVector) -> int:
    return _OVERHEAD + 4 * len(text) + row.indices.nbytes + row.values.nbytes
