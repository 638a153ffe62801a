"""A short-lived memo of rows.

Vector stores ask for the dense half of some texts and then for the sparse half of the same texts. The memo answers the
second request, so that both cost one forward pass.
"""

from __future__ import annotations

from collections import OrderedDict

from twinvec.cache.rows import Key, Row

_OVERHEAD = 400  # bytes per row for objects and dictionary slots, besides arrays and text


class Memo:
    """The most recently used rows within a byte limit. Not locked: its owner guards it.

    Attributes:
        hits, misses: counters.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.hits = self.misses = 0
        self._max_bytes = max_bytes
        self._bytes = 0
        self._rows: OrderedDict[Key, Row] = OrderedDict()

    def get(self, key: Key) -> Row | None:
        """Return the row of a text; None if it is not stored."""
        row = self._rows.get(key)
        if row is None:
            self.misses += 1
        else:
            self.hits += 1
            self._rows.move_to_end(key)
        return row

    def put(self, key: Key, row: Row) -> None:
        """Store a row, evicting the least recently used ones if needed. A row larger than the limit is not stored."""
        if (old := self._rows.pop(key, None)) is not None:
            self._bytes -= _size(key, old)
        self._rows[key] = row
        self._bytes += _size(key, row)
        self.limit(self._max_bytes)

    def limit(self, max_bytes: int) -> None:
        """Set the byte limit; evict the least recently used rows beyond it."""
        self._max_bytes = max_bytes
        while self._bytes > max_bytes:
            self._bytes -= _size(*self._rows.popitem(last=False))

    def clear(self) -> None:
        """Forget everything."""
        self._rows.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._rows)


def _size(key: Key, row: Row) -> int:
    return row.nbytes + 4 * (len(key.text) + len(key.prompt)) + _OVERHEAD
