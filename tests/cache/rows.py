"""Keys and rows for tests of the persistent cache."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from twinvec.cache import VectorCache
from twinvec.cache.rows import Key, Row
from twinvec.vectors import SparseVector

FILE = "vectors.sqlite3"
FLOATS = st.floats(width=32)
DENSE = hnp.arrays(np.float32, st.integers(0, 40), elements=FLOATS)
SPARSE = st.dictionaries(st.integers(0, 2**31 - 1), st.floats(2.0**-100, 2.0**100, width=32), max_size=20).map(
    lambda row: SparseVector(np.array(sorted(row), np.int32), np.array([row[k] for k in sorted(row)], np.float32))
)
COUNTS = st.integers(0, 2**32 - 1)
ROWS = st.builds(Row, st.none() | DENSE, st.none() | SPARSE, COUNTS, COUNTS)


def key_of(number: int, prompt: str = "query: ") -> Key:
    return Key(prompt, f"text {number}", 512)


def row_of(key: Key, dims: int = 1024) -> Row:
    """Return the one right row of a key, so that any process can tell a wrong one."""
    rng = np.random.default_rng(zlib.crc32(repr(key).encode()))
    indices = np.unique(rng.integers(0, 30_000, 20)).astype(np.int32)
    sparse = SparseVector(indices, rng.random(len(indices), np.float32) + np.float32(0.1))
    return Row(rng.standard_normal(dims, np.float32), sparse, int(rng.integers(600)), int(rng.integers(9000)))


def rows_of(numbers: Sequence[int], prompt: str = "query: ") -> list[tuple[Key, Row]]:
    return [(key, row_of(key)) for key in (key_of(number, prompt) for number in numbers)]


def same(a: Row | None, b: Row | None) -> bool:
    """Whether all bits are equal."""
    if a is None or b is None:
        return a is b
    arrays = [(a.dense, b.dense)]
    if a.sparse is not None and b.sparse is not None:
        arrays += [(a.sparse.values, b.sparse.values)]
        if not np.array_equal(a.sparse.indices, b.sparse.indices) or a.sparse.indices.dtype != b.sparse.indices.dtype:
            return False
    elif a.sparse is not b.sparse:
        return False
    for x, y in arrays:
        if x is None or y is None:
            if x is not y:
                return False
        elif x.dtype != y.dtype or x.tobytes() != y.tobytes():
            return False
    return (a.tokens, a.full_length) == (b.tokens, b.full_length)


def present(cache: VectorCache, numbers: Sequence[int], prompt: str = "query: ") -> list[bool]:
    """Whether each row is there; a wrong one fails the test."""
    keys = [key_of(number, prompt) for number in numbers]
    found = cache.get_many("model", keys)
    assert all(row is None or same(row, row_of(key)) for key, row in zip(keys, found, strict=True))
    return [row is not None for row in found]
