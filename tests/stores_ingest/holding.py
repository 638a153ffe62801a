"""What a store holds, as plain values that can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from twinvec.vectors import Float32
from twinvec_stores import HybridStore, Record


def held(store: HybridStore) -> dict[str, Record]:
    """Return all records by id, with vectors."""
    records = [record for page in store.scroll_all(limit=1000, with_vectors=True) for record in page]
    assert len({record.id for record in records}) == len(records) == store.count()
    return {record.id: record for record in records}


def texts(store: HybridStore) -> dict[str, str]:
    return {id: record.text for id, record in sorted(held(store).items())}


def documents(store: HybridStore) -> set[str]:
    return {record.provenance["document"] for record in held(store).values()}


def assert_equal(actual: HybridStore, expected: HybridStore) -> None:
    """Compare record by record, vectors to what other companions in a batch may change."""
    for dense, other, weights, wanted in vectors_of(actual, expected):
        np.testing.assert_allclose(dense, other, atol=1e-5)
        for key in weights.keys() | wanted.keys():
            assert abs(weights.get(key, 0) - wanted.get(key, 0)) < 1e-4


def assert_same(actual: HybridStore, expected: HybridStore) -> None:
    """Compare record by record, every bit of the vectors."""
    for dense, other, weights, wanted in vectors_of(actual, expected):
        np.testing.assert_array_equal(dense, other)
        assert weights == wanted


def vectors_of(
    actual: HybridStore, expected: HybridStore
) -> Iterator[tuple[Float32, Float32, dict[int, float], dict[int, float]]]:
    """Compare all but the vectors, and yield these: both dense ones, and both sparse ones."""
    left, right = held(actual), held(expected)
    assert left.keys() == right.keys()
    for id, record in left.items():
        other = right[id]
        assert plain(record) == plain(other)
        assert record.dense is not None
        assert other.dense is not None
        assert record.sparse is not None
        assert other.sparse is not None
        yield record.dense, other.dense, record.sparse.to_dict(), other.sparse.to_dict()


def plain(record: Record) -> dict[str, Any]:
    return {"text": record.text, "metadata": dict(record.metadata), "provenance": dict(record.provenance)}
