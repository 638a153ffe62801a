"""Rows as the model gives them, and a short-lived memo of them.

Vector stores ask for the dense half of some texts, then for the sparse half of the same texts. The memo answers the
second call, so that both cost one forward pass.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from twinvec.vectors import Float32, SparseVector

_OVERHEAD = 400  # bytes of objects and dictionary slots per row, besides arrays and text


class Key(NamedTuple):
    """What decides a row of one model. The role acts through the prompt alone."""

    prompt: str
    text: str
    max_length: int


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One text as the model gives it, before a caller's dims and sparse keys are applied.

    Attributes:
        dense: float32 [all dims], not normalised; None for a model that is only sparse.
        sparse: by token id; None for a model without a sparse half.
        tokens: that the model saw.
        full_length: tokens before the cut at the maximum length.
    """

    dense: Float32 | None
    sparse: SparseVector | None
    tokens: int
    full_length: int

    @property
    def nbytes(self) -> int:
        """Return the bytes of the arrays."""
        dense = 0 if self.dense is None else self.dense.nbytes
        return dense + (0 if self.sparse is None else self.sparse.indices.nbytes + self.sparse.values.nbytes)


class Memo:
    """The most recently used rows within a byte limit. Thread safe.

    Attributes:
        hits, misses: counters.
        max_bytes: the limit; callers that share a model raise it to the highest they ask for.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.hits = self.misses = 0
        self.max_bytes = max_bytes
        self._bytes = 0
        self._rows: OrderedDict[Key, Row] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Row | None:
        """Return the row of a text, None where it is not kept."""
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                self.misses += 1
            else:
                self.hits += 1
                self._rows.move_to_end(key)
            return row

    def put(self, key: Key, row: Row) -> None:
        """Keep a row; the least recently used ones make room. A row larger than the limit is not kept."""
        with self._lock:
            if (old := self._rows.pop(key, None)) is not None:
                self._bytes -= _size(key, old)
            self._rows[key] = row
            self._bytes += _size(key, row)
            while self._bytes > self.max_bytes:
                self._bytes -= _size(*self._rows.popitem(last=False))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._rows.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._rows)


def _size(key: Key, row: Row) -> int:
    return row.nbytes + 4 * (len(key.text) + len(key.prompt)) + _OVERHEAD
