"""The BM25 part of a call: processed in windows, so that callers take turns and cancelled ones stop."""

from __future__ import annotations

import numpy as np

from twinvec.engine.waiting import Part, tell
from twinvec.text.bm25 import Bm25
from twinvec.text.prompts import Role
from twinvec.vectors import EmbeddingBatch, Int32, SparseBatch
from twinvec.workers import workers

_WINDOW = 64  # texts; a few milliseconds


class Bm25Job(Part):
    """Texts on their way to BM25 rows."""

    def __init__(self, bm25: Bm25, role: Role, texts: list[str], *, urgent: bool) -> None:
        super().__init__(texts)
        self._bm25, self._role = bm25, role
        self._thread = f"twinvec-bm25-{'query' if urgent else 'bulk'}"
        self._parts: list[tuple[SparseBatch, Int32]] = []
        self._weighed = 0
        self._cancelled = False

    @property
    def done(self) -> float:
        """Return the fraction of texts whose row is ready."""
        return self._weighed / max(len(self.given), 1)

    def start(self) -> None:
        """Start, on a thread other than the caller's and the device's."""
        workers(self._thread).run(self._advance)

    def cancel(self) -> None:
        """Stop at the next window."""
        self._cancelled = True

    def _advance(self) -> None:
        if self._cancelled:
            return
        try:
            window = self.given[self._weighed : self._weighed + _WINDOW]
            self._parts.append(self._bm25.weigh(self._role, window))
            self._weighed += len(window)
        except BaseException as error:
            self.error = error
        if self.error is None and self._weighed < len(self.given):
            self.start()
        else:
            tell([self])

    def batch(self) -> EmbeddingBatch:
        """Return the rows."""
        rows, counts = zip(*self._parts, strict=True)
        no_cut = np.zeros(len(self.given), np.bool_)
        return EmbeddingBatch(None, SparseBatch.stack(rows), np.concatenate(counts), no_cut)
