"""The contract of an engine in plain tests: what random steps rarely meet."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinvec.errors import (
    ConfigurationError,
    FilterError,
    FingerprintMismatchError,
    InvalidRecordError,
    StoreClosedError,
    StoreMismatchError,
)
from twinvec.vectors import SparseBatch
from twinvec_stores.checking import verify_store
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import And, Eq, HasId, Range
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import DenseQuery, Record, RecordBatch, SparseQuery, StoreQuery
from twinvec_stores.testing.engine import EngineUnderTest
from twinvec_stores.tokens import pack_tokens

CONFIG = StoreConfig(fingerprint="one", model="models/one", dim=4, idf=True, fields={"n": "integer", "kw": "keyword"})
_AXIS = (1.0, 0.0, 0.0, 0.0)


def record(
    id: str,
    text: str = "",
    metadata: Mapping[str, Any] | None = None,
    dense: tuple[float, ...] = _AXIS,
    sparse: Mapping[int, float] | None = None,
) -> Record:
    """Return a record of the tests' configuration."""
    row = SparseBatch.from_dicts([sparse or {}])[0]
    return Record(id, text, metadata or {}, {"source": id}, np.array(dense, np.float32), row)


def put(store: HybridStore, *records: Record) -> None:
    """Write records in one batch."""
    store.upsert(RecordBatch.of(records))


def dense_query(*values: float) -> DenseQuery:
    """Return a dense query."""
    return DenseQuery(np.array(values, np.float32))


def sparse_query(weights: Mapping[int, float]) -> SparseQuery:
    """Return a sparse query."""
    return SparseQuery(SparseBatch.from_dicts([weights])[0])


def content(found: Record) -> tuple[Any, ...]:
    """Return everything of a record that was read with its vectors."""
    assert found.dense is not None
    assert found.sparse is not None
    return found.id, found.text, found.metadata, found.provenance, found.dense.tolist(), found.sparse.to_dict()


class StoreTests(EngineUnderTest):
    """Ties, pages, replacing, refusals, closing, damage, threads."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[HybridStore]:
        """Give an empty store."""
        with self.open_store(CONFIG, tmp_path / "store") as store:
            yield store

    def test_ties_go_by_id_however_many_there_are(self, store: HybridStore) -> None:
        ids = [f"{i:03}" for i in range(300)]
        np.random.default_rng(0).shuffle(ids)
        put(store, *(record(id, metadata={"half": int(id) % 2}, sparse={7: 1.0}) for id in ids))
        put(store, record("better", sparse={7: 2.0}), record("worse", dense=(0.5, 0.5, 0.5, 0.5), sparse={7: 0.5}))
        queries: list[StoreQuery] = [dense_query(*_AXIS), sparse_query({7: 1.0})]
        dense, sparse = store.search(queries, limit=5)
        assert [hit.id for hit in dense] == ["000", "001", "002", "003", "004"]
        assert [hit.id for hit in sparse] == ["better", "000", "001", "002", "003"]
        dense, sparse = store.search(queries, limit=30, filter=Eq("half", 1))
        assert [hit.id for hit in dense] == [hit.id for hit in sparse] == [f"{i:03}" for i in range(1, 60, 2)]
        dense, _ = store.search(queries, limit=302)
        assert [hit.id for hit in dense] == [*sorted(ids), "better", "worse"]

    def test_dense_vectors_and_queries_are_brought_to_length_one(self, store: HybridStore) -> None:
        put(store, record("a", dense=(3.0, 0.0, 4.0, 0.0)), record("b", dense=(0.0, 1e-30, 0.0, 0.0)))
        a, b = (found.dense for found in store.get(["a", "b"], with_vectors=True))
        assert a is not None
        assert b is not None
        assert a.tolist() == pytest.approx([0.6, 0, 0.8, 0])
        assert (str(a.dtype), b.tolist()) == ("float32", [0, 1, 0, 0])
        [hits] = store.search([dense_query(1e10, 0, 0, 0)], limit=2)
        assert [(hit.id, type(hit.score)) for hit in hits] == [("a", float), ("b", float)]
        assert [hit.score for hit in hits] == pytest.approx([0.6, 0])

    def test_of_equal_ids_in_one_batch_the_last_is_kept(self, store: HybridStore) -> None:
        put(store, record("a", "1"), record("b", "2", sparse={1: 1.0}), record("a", "3", sparse={2: 1.0}))
        assert store.count() == 2
        assert [found.text for found in store.get(["a", "b"])] == ["3", "2"]
        assert store.document_frequencies(np.array([1, 2], np.int32)).tolist() == [1, 1]

    def test_a_replaced_record_keeps_nothing_of_the_old_one(self, store: HybridStore) -> None:
        put(store, record("a", "old", {"kw": "x", "n": 1}, sparse={5: 1.0}))
        new = record("a", "", {"other": 1}, (0.0, 0.0, 0.0, -1.0))
        put(store, new)
        assert [content(found) for found in store.get(["a"], with_vectors=True)] == [content(new)]
        assert store.count(Eq("kw", "x")) == 0
        assert store.search([sparse_query({5: 1.0})], limit=5) == [[]]
        assert store.document_frequencies(np.array([5], np.int32)).tolist() == [0]

    def test_nothing_is_shared_with_the_caller(self, store: HybridStore) -> None:
        given = record("a", metadata={"list": [1, {"x": 2}]}, sparse={5: 1.0})
        written = content(record("a", metadata={"list": [1, {"x": 2}]}, sparse={5: 1.0}))
        batch = RecordBatch.of([given])
        store.upsert(batch)
        assert batch.dense is not None
        assert batch.sparse is not None
        for _ in range(2):
            given.metadata["list"][1]["x"] = 3
            batch.dense[:], batch.sparse.values[:] = 9, 9
            [found] = store.get(["a"], with_vectors=True)
            assert content(found) == written
            assert found.dense is not None
            found.metadata["list"].append(4)
            found.dense[:] = 9

    def test_nothing_to_do_is_no_error(self, store: HybridStore) -> None:
        store.upsert(RecordBatch([], [], np.zeros((0, 4), np.float32), SparseBatch.from_dicts([])))
        store.delete([])
        store.delete(["nobody"])
        store.delete(filter=HasId([]))
        assert store.get([]) == []
        assert store.search([], limit=3) == []
        assert store.search([dense_query(*_AXIS), sparse_query({1: 1.0}), sparse_query({})], limit=3) == [[], [], []]
        assert store.scroll() == ([], None)
        assert store.document_frequencies(np.zeros(0, np.int32)).tolist() == []
        store.flush()
        store.optimize()
        assert store.info().records == 0

    def test_a_scroll_sees_what_stays_once_while_others_come_and_go(self, store: HybridStore) -> None:
        staying = [f"stays {i}" for i in range(40)]
        put(store, *(record(id) for id in [*staying, *(f"goes {i}" for i in range(40))]))
        seen: list[str] = []
        cursor, step = None, 0
        while step == 0 or cursor is not None:
            page, cursor = store.scroll(cursor, limit=7)
            seen += [found.id for found in page]
            store.delete([f"goes {i}" for i in range(3 * step, 3 * step + 3)])
            put(store, *(record(f"comes {i}") for i in range(3 * step, 3 * step + 3)))
            step += 1
        assert sorted(id for id in seen if id.startswith("stays")) == sorted(staying)
        assert len(seen) == len(set(seen))

    def test_scroll_all_gives_every_page(self, store: HybridStore) -> None:
        put(store, *(record(f"r{i}", metadata={"n": i}) for i in range(23)))
        asked: dict[str, Any] = {"limit": 5, "filter": Range("n", gte=3), "with_vectors": True}

        async def through_async() -> list[list[Record]]:
            return [page async for page in store.ascroll_all(**asked)]

        for pages in (list(store.scroll_all(**asked)), asyncio.run(through_async())):
            assert [len(page) for page in pages] == [5, 5, 5, 5]
            assert {found.id for page in pages for found in page} == {f"r{i}" for i in range(3, 23)}
            assert all(found.dense is not None for page in pages for found in page)

    def test_limits_are_whole_and_positive(self, store: HybridStore) -> None:
        limits: list[Any] = [0, -1, 2**31, 1.5, True, "3", None]
        for limit in limits:
            with pytest.raises(ConfigurationError, match="an integer"):
                store.search([dense_query(*_AXIS)], limit=limit)
            with pytest.raises(ConfigurationError, match="an integer"):
                store.scroll(limit=limit)

    def test_misuse_is_refused(self, store: HybridStore) -> None:
        with pytest.raises(ConfigurationError, match="10000"):
            store.scroll(limit=10_001)
        with pytest.raises(ConfigurationError, match="cursor"):
            store.scroll("no cursor")
        with pytest.raises(ConfigurationError, match="either ids or filter="):
            store.delete()
        with pytest.raises(ConfigurationError, match="either ids or filter="):
            store.delete(["a"], filter=And())
        wrong: Any = {"a": 1}
        for method in (store.count, lambda filter: store.scroll(filter=filter)):
            with pytest.raises(FilterError, match="expected a filter"):
                method(wrong)

    def test_of_a_batch_with_a_bad_record_nothing_is_written(self, store: HybridStore) -> None:
        put(store, record("a", "kept"))
        with pytest.raises(InvalidRecordError):
            put(store, record("a", "new"), record("b", metadata={"n": "no integer"}))
        with pytest.raises(InvalidRecordError):
            put(store, record("a", "new"), record("b", dense=(float("nan"), 0.0, 0.0, 0.0)))
        assert [(found.id, found.text) for found in store.get(["a", "b"])] == [("a", "kept")]

    def test_a_closed_store_says_so(self, store: HybridStore) -> None:
        put(store, record("a"))
        store.close()
        store.close()
        for call in (store.count, store.flush, store.scroll, lambda: store.get(["a"]), lambda: put(store, record("b"))):
            with pytest.raises(StoreClosedError):
                call()

    def test_a_store_is_opened_as_it_was_created(self, tmp_path: Path) -> None:
        if not self.persistent:
            pytest.skip("nothing to open again")
        with self.open_store(CONFIG, tmp_path / "store") as store:
            put(store, record("a"))
            store.set_search({"fusion": "rrf"})
        with pytest.raises(FingerprintMismatchError) as caught:
            self.open_store(replace(CONFIG, fingerprint="two"), tmp_path / "store")
        assert (caught.value.stored, caught.value.given) == ("one", "two")
        with pytest.raises(StoreMismatchError, match="dim=4 instead of 8"):
            self.open_store(replace(CONFIG, dim=8), tmp_path / "store")
        with self.open_store(replace(CONFIG, fields={}), tmp_path / "store") as store:
            assert store.config == replace(CONFIG, search={"fusion": "rrf"})
            assert store.count() == 1

    def test_what_was_written_is_intact(self, store: HybridStore) -> None:
        numbers = [0, -1, 2**53 + 1, 2**63 - 1, -(2**63), 0.1 + 0.2, -0.0, 1e300, 5e-324, 1e16, 123456789.0]
        texts = ["", " ", "é\u0301", "\x00", "a\uffffb", "\U0001f600", '"\\\n', "'; --"]
        values: list[Any] = [*numbers, *texts, None, True, [], {}, [[1, "x"], {"a": []}]]
        odd = {f"key {i}": value for i, value in enumerate(values)}
        put(store, *(record(f"{text}!", text, {"n": i, "kw": text, text: odd}) for i, text in enumerate(texts)))
        put(store, *(record(f"r{i}", metadata={"odd": [value]}, sparse={i: 1 / 3}) for i, value in enumerate(numbers)))
        assert verify_store(store).damages == ()
        assert [found.metadata[texts[3]] for found in store.get(["\x00!"])] == [odd]

    def test_vectors_of_tokens_are_kept_as_they_are(self, tmp_path: Path) -> None:
        try:
            opened = self.open_store(replace(CONFIG, token_pool=2), tmp_path / "store")
        except ConfigurationError as error:
            pytest.skip(str(error))  # an engine may refuse them
        packed = {"a": pack_tokens(np.eye(4, dtype=np.float32), 2), "b": pack_tokens(np.zeros((0, 4), np.float32), 2)}
        with opened as store:
            put(store, *(replace(record(id), tokens=tokens) for id, tokens in packed.items()))
            assert {found.id: found.tokens for found in store.get(["a", "b"], with_vectors=True)} == packed
            assert [found.tokens for found in store.get(["a", "b"])] == [None, None]
            pages = store.scroll_all(limit=1, with_vectors=True)
            assert {found.id: found.tokens for page in pages for found in page} == packed
            assert verify_store(store).damages == ()

    def test_whatever_a_first_pass_reads_the_full_vectors_rank(self, tmp_path: Path) -> None:
        rows = np.random.default_rng(0).normal(size=(40, 4))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        for quantization in ("int8", "binary", "first_dim=2"):
            try:
                opened = self.open_store(replace(CONFIG, quantization=quantization), tmp_path / quantization)
            except ConfigurationError:  # an engine may refuse it
                continue
            with opened as store:
                put(store, *(record(f"{i}", metadata={"n": i}, dense=tuple(row)) for i, row in enumerate(rows[:30])))
                store.optimize()
                put(store, *(record(f"{i}", metadata={"n": i}, dense=tuple(rows[i])) for i in range(20, 40)))
                store.delete(["3"])
                for low, exact in itertools.product((0, 10), (False, True)):
                    [hits] = store.search([dense_query(1, -1, 1, 2)], limit=5, filter=Range("n", gte=low), exact=exact)
                    scores = {str(i): float(rows[i] @ [1, -1, 1, 2]) / 7**0.5 for i in range(low, 40) if i != 3}
                    best = sorted(scores, key=lambda id: -scores[id])[:5]
                    assert [hit.id for hit in hits] == best
                    assert [hit.score for hit in hits] == pytest.approx([scores[id] for id in best], abs=1e-6)
                assert verify_store(store).damages == ()

    def test_threads_write_and_read_at_once(self, store: HybridStore) -> None:
        def write(thread: int) -> None:
            for i in range(5):
                put(store, *(record(f"{j}", f"{thread}", {"n": thread}, sparse={thread: 1.0}) for j in range(8)))
                put(store, record(f"own {thread} {i}", metadata={"n": thread}, sparse={thread: 1.0}))
                assert store.count(And(Eq("n", thread), HasId([f"own {thread} {i}"]))) == 1
                store.search([dense_query(*_AXIS), sparse_query({1: 1.0})], limit=3)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(write, range(4)))
        assert store.count() == 8 + 4 * 5
        shared = [found.text for found in store.get([f"{j}" for j in range(8)])]
        counts = store.document_frequencies(np.arange(4, dtype=np.int32)).tolist()
        assert counts == [5 + shared.count(f"{thread}") for thread in range(4)]
        assert verify_store(store).damages == ()
