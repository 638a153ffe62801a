"""The same random queries on every engine, against products in float64."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from stores.conftest import Make
from stores.oracle import Row, batch, dense_query, sparse_query
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.postgres import searching
from twinvec_stores.filters.conditions import Eq
from twinvec_stores.records import Hit, StoreQuery
from twinvec_stores.search.fusion import Fusion

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact", "ignore:Payload indexes")
QUERIES = int(os.environ.get("TWINVEC_TEST_QUERIES", "20"))  # make fuzz-queries: 2,000
CONFIG = StoreConfig(fingerprint="f", dim=48, fields={"third": "integer"})
RECORDS, KEYS, LIMIT, TOLERANCE = 500, 60, 50, 1e-5
_ASKED_AT_ONCE = 5
Scores = NDArray[np.float64]


def test_random_queries_find_the_same_on_every_engine(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    dense = generator.normal(size=(RECORDS, 48)).astype(np.float32)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    weights = sparse_rows(generator, RECORDS, 0.3)
    driver = make(CONFIG)
    rows = [
        Row(f"{i:03}", metadata={"third": i % 3}, dense=tuple(dense[i].tolist()), sparse=as_dict(weights[i]))
        for i in range(RECORDS)
    ]
    driver.call("upsert", batch(rows, CONFIG))
    for start in range(0, QUERIES, _ASKED_AT_ONCE):
        vectors = generator.normal(size=(min(_ASKED_AT_ONCE, QUERIES - start), 48))
        terms = sparse_rows(generator, len(vectors), 0.1)
        asked: list[StoreQuery] = [dense_query(*vector) for vector in vectors]
        asked += [sparse_query(as_dict(row)) for row in terms]
        third = start // _ASKED_AT_ONCE % 4  # 3: no filter
        filter = None if third == 3 else Eq("third", third)
        monkeypatch.setattr(searching, "_MANY", 0 if third % 2 == 0 else RECORDS)  # PostgreSQL has a way for each
        found = driver.call("search", asked, limit=LIMIT, filter=filter, exact=start % (2 * _ASKED_AT_ONCE) == 0)
        chosen = np.array([third in (3, i % 3) for i in range(RECORDS)])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        products = [np.where(chosen, scores, -np.inf) for scores in vectors @ dense.astype(np.float64).T]
        shared = np.where(chosen & ((terms > 0) @ (weights > 0).T), terms @ weights.T, -np.inf)
        for i, (near, alike) in enumerate(zip(products, shared, strict=True)):
            halves = found[i], found[len(vectors) + i]
            assert_same(halves[0], near)
            assert_same(halves[1], alike)
            assert_fused_alike(halves, (best(near), best(alike)))


def sparse_rows(generator: np.random.Generator, n: int, share: float) -> Scores:
    """Return weights as float32 holds them, most of them 0."""
    drawn = generator.exponential(size=(n, KEYS)) * (generator.random((n, KEYS)) < share)
    return drawn.astype(np.float32).astype(np.float64)


def as_dict(weights: Scores) -> dict[int, float]:
    return {key: weight for key, weight in enumerate(weights.tolist()) if weight}


def best(scores: Scores) -> list[Hit]:
    order = sorted(np.flatnonzero(scores > -np.inf).tolist(), key=lambda i: (-scores[i], i))
    return [Hit(f"{i:03}", float(scores[i])) for i in order[:LIMIT]]


def assert_same(hits: Sequence[Hit], scores: Scores) -> None:
    """The scores are those of the best, and the ids are theirs, in any order of near ties."""
    expected = [hit.score for hit in best(scores)]
    assert len({hit.id for hit in hits}) == len(hits) == len(expected)
    assert [hit.score for hit in hits] == pytest.approx(expected, abs=TOLERANCE)
    assert [scores[int(hit.id)] for hit in hits] == pytest.approx(expected, abs=TOLERANCE)


def assert_fused_alike(found: tuple[list[Hit], list[Hit]], expected: tuple[list[Hit], list[Hit]]) -> None:
    scores, wanted = (dict(Fusion().fuse(*halves)) for halves in (found, expected))
    shared = scores.keys() & wanted.keys()
    assert len(shared) >= len(wanted) - 2  # a near tie at the end of each half
    assert [scores[id] for id in shared] == pytest.approx([wanted[id] for id in shared], abs=TOLERANCE)
