"""The contract of an engine as a state machine, compared with dictionaries after every step."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from twinvec.vectors import SparseBatch, SparseVector
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import And, Eq, Exists, Filter, HasId, In, Ne, Not, Or, Range
from twinvec_stores.filters.matching import matches
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import DenseQuery, Record, RecordBatch, SparseQuery, StoreQuery
from twinvec_stores.testing.engine import EngineUnderTest

_ALL_IDS = [*"abcdefgh", "a#0", "é", "1"]
_IDS = st.sampled_from(_ALL_IDS)
_UNITS = [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)]
_WEIGHTS = st.sampled_from([0.25, 0.5, 1.0, 2.0])  # their products and sums are exact in float32
_VALUES = st.sampled_from([0, 1, 2, -1, 2**53 + 1]) | st.sampled_from(["x", "X", "é"]) | st.booleans()
_METADATA = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(-2, 3) | st.just(2**60),
        "kw": st.sampled_from(["x", "y", ""]),
        "free": _VALUES | st.none() | st.lists(_VALUES, max_size=2),
        "deep": st.fixed_dictionaries({}, optional={"n": st.integers(0, 2)}),
    },
)
_FIELDS = st.sampled_from(["n", "kw", "free", "deep.n", "nothing"])
_LEAVES: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Eq, _FIELDS, _VALUES),
    st.builds(Ne, _FIELDS, _VALUES),
    st.builds(In, _FIELDS, st.lists(_VALUES, max_size=2)),
    st.builds(Exists, _FIELDS),
    st.builds(HasId, st.lists(_IDS, max_size=2)),
    st.builds(lambda field, low: Range(field, gte=low), _FIELDS, st.integers(-2, 3)),
    st.builds(lambda field, high: Range(field, lt=high), _FIELDS, st.integers(-2, 3)),
)
_FILTERS: st.SearchStrategy[Filter] = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda parts: And(*parts), st.lists(inner, max_size=2)),
        st.builds(lambda parts: Or(*parts), st.lists(inner, max_size=2)),
        st.builds(Not, inner),
    ),
    max_leaves=3,
)
_RECORDS = st.builds(
    lambda id, text, metadata, dense, sparse: Record(
        id, text, metadata, {"document": id}, np.array(dense, np.float32), _row(sparse)
    ),
    _IDS,
    st.sampled_from(["", "text", "é\n"]),
    _METADATA,
    st.sampled_from(_UNITS),
    st.dictionaries(st.integers(0, 5), _WEIGHTS, max_size=3),
)


def _row(weights: Mapping[int, float]) -> SparseVector:
    return SparseBatch.from_dicts([weights])[0]


class StoreStateMachine(RuleBasedStateMachine, EngineUnderTest):
    """Random writes, deletions, searches and pages, through the methods of the store or their async twins.

    Attributes:
        config: configuration of the store; the tests write these dimensions and fields.
    """

    config: ClassVar[StoreConfig] = StoreConfig(
        fingerprint="contract", dim=2, idf=True, fields={"n": "integer", "kw": "keyword"}
    )
    store: HybridStore

    @initialize(through_async=st.booleans())
    def begin(self, through_async: bool) -> None:
        """Open an empty store."""
        self._folder = Path(tempfile.mkdtemp())
        self._loop = asyncio.new_event_loop() if through_async else None
        self.store = self.open_store(self.config, self._folder / "store")
        self.records: dict[str, Record] = {}

    @rule(records=st.lists(_RECORDS, max_size=4))
    def upsert(self, records: list[Record]) -> None:
        """Write; of equal ids the last wins."""
        if records:
            self._call("upsert", RecordBatch.of(records))
        self.records |= {record.id: record for record in records}

    @rule(ids=st.lists(_IDS, max_size=3))
    def delete(self, ids: list[str]) -> None:
        """Delete by ids, some of which are missing."""
        self._call("delete", ids)
        for id in ids:
            self.records.pop(id, None)

    @rule(condition=_FILTERS)
    def delete_where(self, condition: Filter) -> None:
        """Delete by a filter."""
        self._call("delete", filter=condition)
        for id in self._matching(condition):
            del self.records[id]

    @rule()
    def flush(self) -> None:
        """Flush, which changes nothing."""
        self._call("flush")

    @rule()
    def reopen(self) -> None:
        """Close twice, and open again."""
        if self.persistent:
            self._call("close")
            self._call("close")
            self.store = self.open_store(self.config, self._folder / "store")

    @rule(condition=_FILTERS, limit=st.integers(1, 4))
    def count_and_scroll(self, condition: Filter, limit: int) -> None:
        """Count the matches, and read them in pages."""
        expected = self._matching(condition)
        assert self._call("count", condition) == len(expected)
        found: list[str] = []
        cursor, done = None, False
        while not done:
            page, cursor = self._call("scroll", cursor, limit=limit, filter=condition)
            assert len(page) <= limit
            found += [record.id for record in page]
            done = cursor is None
        assert sorted(found) == sorted(expected)

    @rule(dense=st.sampled_from(_UNITS), condition=_FILTERS, limit=st.integers(1, 5), exact=st.booleans())
    def search_dense(self, dense: tuple[float, float], condition: Filter, limit: int, exact: bool) -> None:
        """Rank by the dot product, ties by id."""
        vector = np.array(dense, np.float32)
        scores = {id: float(vector @ self.records[id].dense) for id in self._matching(condition)}  # type: ignore[operator]
        self._check_ranking(DenseQuery(vector), scores, condition, limit, exact)

    @rule(weights=st.dictionaries(st.integers(0, 6), _WEIGHTS, max_size=3), condition=_FILTERS, limit=st.integers(1, 5))
    def search_sparse(self, weights: dict[int, float], condition: Filter, limit: int) -> None:
        """Rank records that share a key by the sum of products, ties by id."""
        scores = {}
        for id in self._matching(condition):
            row = self._sparse(id)
            if common := weights.keys() & row.keys():
                scores[id] = sum(weights[key] * row[key] for key in common)
        self._check_ranking(SparseQuery(_row(weights)), scores, condition, limit, exact=False)

    @rule(condition=_FILTERS)
    def frequencies(self, condition: Filter) -> None:
        """Count the records with each sparse key."""
        found = self._call("document_frequencies", np.arange(7, dtype=np.int32), filter=condition).tolist()
        rows = [self._sparse(id) for id in self._matching(condition)]
        assert found == [sum(key in row for row in rows) for key in range(7)]

    @invariant()
    def records_are_those_written(self) -> None:
        """Compare every record with what was written, vectors bit for bit."""
        if not hasattr(self, "records"):
            return
        found = self._call("get", _ALL_IDS, with_vectors=True)
        assert [record.id for record in found] == [id for id in _ALL_IDS if id in self.records]
        assert self._call("count") == len(self.records)
        for record in found:
            written = self.records[record.id]
            assert (record.text, record.metadata) == (written.text, written.metadata)
            assert record.provenance == written.provenance
            assert record.dense is not None
            assert record.sparse is not None
            np.testing.assert_array_equal(record.dense, written.dense)
            assert record.sparse.to_dict() == self._sparse(record.id)

    def teardown(self) -> None:
        """Close the store, and remove the folder."""
        if hasattr(self, "records"):
            self._call("close")
            shutil.rmtree(self._folder)
            if self._loop is not None:
                self._loop.close()

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        if self._loop is None:
            return getattr(self.store, method)(*args, **options)
        return self._loop.run_until_complete(getattr(self.store, f"a{method}")(*args, **options))

    def _check_ranking(
        self, query: StoreQuery, scores: Mapping[str, float], condition: Filter, limit: int, exact: bool
    ) -> None:
        (hits,) = self._call("search", [query], limit=limit, filter=condition, exact=exact)
        expected = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]
        assert [(hit.id, hit.score) for hit in hits] == expected

    def _matching(self, condition: Filter) -> Sequence[str]:
        return [id for id, record in self.records.items() if matches(condition, id, dict(record.metadata))]

    def _sparse(self, id: str) -> dict[int, Any]:
        row = self.records[id].sparse
        return {} if row is None else row.to_dict()
