"""A short-lived memo of rows.

Vector stores ask for the dense half of some texts, then for the sparse half of the same texts. The memo answers the
second call, so that both cost one forward pass.
"""

from __future__ import annotations

from collections import OrderedDict

from twinvec.cache.rows import Key, Row

_OVERHEAD = 400  # bytes of objects and dictionary slots per row, besides arrays and text


class Memo:
    """The most recently used rows within a byte limit. Its owner guards it: no lock.

    Attributes:
        hits, misses: counters.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.hits = self.misses = 0
        self._max_bytes = max_bytes
        self._bytes = 0
        self._rows: OrderedDict[Key, Row] = OrderedDict()

    def get(self, key: Key) -> Row | None:
        """Return the row of a text, None where it is not kept."""
        row = self._rows.get(key)
        if row is None:
            self.misses += 1
        else:
            self.hits += 1
            self._rows.move_to_end(key)
        return row

    def put(self, key: Key, row: Row) -> None:
        """Keep a row; the least recently used ones make room. A row larger than the limit is not kept."""
        if (old := self._rows.pop(key, None)) is not None:
            self._bytes -= _size(key, old)
        self._rows[key] = row
        self._bytes += _size(key, row)
        self.limit(self._max_bytes)

    def limit(self, max_bytes: int) -> None:
        """Set the byte limit; the least recently used rows over it are forgotten."""
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
