"""What an ingest does to a store, and what it says about it."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stores_ingest.conftest import Lines
from stores_ingest.holding import assert_equal, documents, held, texts
from twinvec import Embedder
from twinvec.errors import (
    ConfigurationError,
    FingerprintMismatchError,
    IngestError,
    StoreMismatchError,
    TruncationWarning,
)
from twinvec_stores import Eq, HybridStore, MemoryStore, RecordBatch, StoreConfig
from twinvec_stores.ingestion import Document, Failure, IngestReport, aingest, ingest

LONG = "The capital of Russia is Moscow. Gravity is a force. How to sort a list in python? " * 3


def counts(report: IngestReport) -> tuple[int, int, int, int, int]:
    return report.new, report.changed, report.unchanged, report.failed, report.deleted


def fresh(embedder: Embedder) -> MemoryStore:
    return MemoryStore(StoreConfig.for_embedder(embedder))


def test_vectors_are_those_of_the_model(embedder: Embedder, store: HybridStore) -> None:
    ingest([Document("a", "the capital", {"n": 1}), Document("b", LONG)], embedder, store)
    batch = embedder.embed_documents(["the capital", LONG])
    assert batch.dense is not None
    expected = MemoryStore(store.config)
    expected.upsert(RecordBatch(["a", "b"], ["the capital", LONG], batch.dense, batch.sparse, [{"n": 1}, {}]))
    for id, record in held(store).items():
        other = held(expected)[id]
        assert (record.text, record.metadata) == (other.text, other.metadata)
        assert record.dense is not None
        assert other.dense is not None
        assert abs(record.dense - other.dense).max() < 1e-5
        assert set(record.provenance) == {"document", "hash"}
        assert record.provenance["document"] == id


def test_only_what_has_changed_is_embedded(embedder: Embedder, store: HybridStore) -> None:
    first = [Document(str(i), f"the capital {i}", {"n": i}) for i in range(50)]
    assert counts(ingest(first, embedder, store)) == (50, 0, 0, 0, 0)
    before = embedder.stats()
    assert counts(ingest(first, embedder, store)) == (0, 0, 50, 0, 0)
    assert embedder.stats()["memo_misses"] == before["memo_misses"]
    second = [
        Document("1", "other text", {"n": 1}),
        Document("2", "the capital 2", {"n": "x"}),
        *first[3:],
        Document("new", "x"),
    ]
    report = ingest(second, embedder, store)
    assert counts(report) == (1, 2, 47, 0, 0)
    assert report.records == 3
    assert "0" in held(store)
    report = ingest(second, embedder, store, prune=True)
    assert (counts(report), report.pruned) == ((0, 0, 50, 0, 1), True)
    expected = fresh(embedder)
    ingest(second, embedder, expected)
    assert_equal(store, expected)


def test_chunks_carry_their_documents_id(embedder: Embedder, store: HybridStore) -> None:
    given = [Document("a", LONG, {"n": 1}), Document(None, "no name"), Document("c", "short")]
    ingest(given, embedder, store, chunk_tokens=20, document_field="source")
    for record in held(store).values():
        assert record.metadata["source"] == record.provenance["document"]
    assert store.count(Eq("source", "a")) > 1
    store.delete(filter=Eq("source", "a"))
    assert len(held(store)) == 2
    assert counts(ingest(given, embedder, store, chunk_tokens=20)) == (1, 2, 0, 0, 0), "the field is metadata"


def test_pruning_keeps_what_names_a_document_but_was_not_ingested(embedder: Embedder, store: HybridStore) -> None:
    batch = embedder.embed_documents(["a node"])
    own = RecordBatch(["x"], ["a node"], batch.dense, batch.sparse, [{}], [{"document": "elsewhere"}])
    store.upsert(own)
    ingest([Document("a", "one"), Document("b", "two")], embedder, store)
    assert ingest([Document("a", "one")], embedder, store, prune=True).deleted == 1
    assert set(held(store)) == {"a", "x"}


@pytest.mark.parametrize("before", [None, 20, 40, 400])
@pytest.mark.parametrize("after", [None, 20, 40, 400])
def test_chunks_of_an_older_version_leave_nothing_behind(
    embedder: Embedder, store: HybridStore, before: int | None, after: int | None
) -> None:
    old = [Document("a", LONG * 3), Document("b", LONG), Document("c", "short"), Document("d", LONG)]
    new = [Document("a", LONG), Document("b", LONG * 2), Document("c", LONG), Document("d", LONG)]
    ingest(old, embedder, store, chunk_tokens=before)
    report = ingest(new, embedder, store, chunk_tokens=after)
    expected = fresh(embedder)
    assert ingest(new, embedder, expected, chunk_tokens=after).records == expected.count()
    assert_equal(store, expected)
    unchanged = 1 if before == after else 0
    assert counts(report) == (0, 4 - unchanged, unchanged, 0, 0)
    assert counts(ingest(new, embedder, store, chunk_tokens=after)) == (0, 0, 4, 0, 0)


def test_chunks_are_records_with_their_place(embedder: Embedder, store: HybridStore) -> None:
    report = ingest([Document("a", LONG, {"n": 1}), Document("b", "x")], embedder, store, chunk_tokens=30)
    found = held(store)
    n = report.records - 1
    assert n > 2
    assert set(found) == {"b#0", *(f"a#{i}" for i in range(n))}
    for i in range(n):
        record = found[f"a#{i}"]
        origin = record.provenance
        assert LONG[origin["start"] : origin["end"]] == record.text
        assert (origin["document"], origin["chunk"], origin["chunks"]) == ("a", i, n)
        assert record.metadata == {"n": 1}
    assert len({record.provenance["hash"] for record in found.values()}) == 2


@given(
    versions=st.lists(
        st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["x", "y z", LONG, LONG[:100], " "]), min_size=1),
        min_size=1,
        max_size=4,
    ),
    chunks=st.lists(st.sampled_from([None, 25, 60]), min_size=4, max_size=4),
    size=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_last_version_is_what_counts(
    embedder: Embedder, versions: list[dict[str, str]], chunks: list[int | None], size: int
) -> None:
    """Whatever came before: after an ingest with prune the store is as if it were the first one."""
    store = fresh(embedder)
    for version, chunk in zip(versions, chunks, strict=False):
        good = {id: text for id, text in version.items() if text.strip()}
        known = documents(store)
        report = ingest(
            (Document(id, text) for id, text in version.items()),
            embedder,
            store,
            chunk_tokens=chunk,
            prune=True,
            prune_share=1,
            batch_size=size,
        )
        assert report.new == len(good.keys() - known)
        assert report.changed + report.unchanged == len(good.keys() & known)
        assert report.failed == len(version) - len(good)
        assert report.deleted == len(known - version.keys())
        kept = known & (version.keys() - good.keys())  # bad rows leave alone what the store has
        assert documents(store) == good.keys() | kept
        expected = fresh(embedder)
        ingest((Document(id, text) for id, text in good.items()), embedder, expected, chunk_tokens=chunk)
        store.delete([id for id, record in held(store).items() if record.provenance["document"] in kept])
        assert_equal(store, expected)


def test_ids_that_look_like_chunks(embedder: Embedder, store: HybridStore) -> None:
    """ "a#1" may be a document, too; no record may ever be taken for another document's."""
    rows = [Document("a", LONG), Document("a#1", "one"), Document("a#0", "nought")]
    ingest(rows, embedder, store)
    report = ingest(rows[:1], embedder, store, chunk_tokens=30)
    assert counts(report) == (0, 0, 0, 1, 0)
    assert report.failures[0].reason == "its record 'a#0' is a part of another document, 'a#0'"
    ingest([Document("a", LONG), Document("a#1", "one")], embedder, store, prune=True)
    ingest([Document("a", LONG), Document("a#1", "one")], embedder, store, chunk_tokens=30)
    expected = fresh(embedder)
    ingest([Document("a", LONG), Document("a#1", "one")], embedder, expected, chunk_tokens=30)
    assert_equal(store, expected)


def test_prune_leaves_alone_what_was_never_ingested(embedder: Embedder, store: HybridStore) -> None:
    batch = embedder.embed_documents(["by hand", "too"])
    store.upsert(RecordBatch(["hand", "b"], ["by hand", "too"], batch.dense, batch.sparse))
    report = ingest([Document("a", LONG), Document("b", "x")], embedder, store, chunk_tokens=30)
    assert counts(report) == (2, 0, 0, 0, 0)
    assert counts(ingest(["only"], embedder, store, prune=True, prune_share=1)) == (1, 0, 0, 0, 2)
    assert set(texts(store).values()) == {"by hand", "too", "only"}


@pytest.mark.parametrize("chunks", [None, 20])
def test_prune_is_refused_where_more_than_its_share_would_go(
    embedder: Embedder, store: HybridStore, chunks: int | None
) -> None:
    """A share is of documents, however many records they have."""
    rows = [Document("long", LONG), *(Document(str(i), f"text {i}") for i in range(9))]
    ingest(rows, embedder, store, chunk_tokens=chunks)
    before = texts(store)
    report = ingest(rows[:4], embedder, store, chunk_tokens=chunks, prune=True)
    assert (report.deleted, report.pruned) == (0, False)
    assert "6 of 10 documents" in report.not_pruned
    assert "not pruned" in str(report)
    report = ingest(rows[1:], embedder, store, chunk_tokens=chunks, prune=True, prune_share=0)
    assert (report.deleted, report.pruned) == (0, False)
    assert texts(store) == before
    report = ingest(rows[5:], embedder, store, chunk_tokens=chunks, prune=True)
    assert (report.deleted, report.pruned, report.not_pruned) == (5, True, "")
    report = ingest(rows[-1:], embedder, store, chunk_tokens=chunks, prune=True, prune_share=0.8)
    assert (report.deleted, sorted(texts(store).values())) == (4, ["text 8"])


@pytest.mark.parametrize("share", [-0.1, 1.1, "half", True, float("nan")])
def test_a_share_is_a_number_from_0_to_1(embedder: Embedder, memory: MemoryStore, share: Any) -> None:
    with pytest.raises(ConfigurationError, match="prune_share"):
        ingest([], embedder, memory, prune=True, prune_share=share)


def test_prune_needs_to_know_every_row(embedder: Embedder, memory: MemoryStore) -> None:
    ingest([Document("a", "x"), Document("b", "y"), Document("c", "z")], embedder, memory)
    report = ingest([Document("a", ""), Document("b", "y")], embedder, memory, prune=True)
    assert (counts(report), report.pruned) == ((0, 0, 1, 1, 1), True)
    assert sorted(texts(memory)) == ["a", "b"]  # the bad row's document is still wanted
    report = ingest([Document("b", "y"), 5], embedder, memory, prune=True)
    assert (report.deleted, report.pruned) == (0, False)
    report = ingest([], embedder, memory, prune=True)
    assert (report.deleted, report.pruned) == (0, False)
    assert sorted(texts(memory)) == ["a", "b"]


def test_a_bad_row_does_not_take_its_id(embedder: Embedder, memory: MemoryStore) -> None:
    report = ingest([Document("a", ""), Document("a", "x"), Document("a", "y")], embedder, memory)
    assert [(f.where, f.reason) for f in report.failures] == [
        ("item 1", "the text is empty"),
        ("item 3", "the id 'a' was read before: item 2"),
    ]
    assert texts(memory) == {"a": "x"}


def test_duplicates_are_found_across_windows(embedder: Embedder, memory: MemoryStore) -> None:
    rows = [Document(str(i % 60), f"the {i}") for i in range(100)]
    report = ingest(rows, embedder, memory, batch_size=7)
    assert counts(report) == (60, 0, 0, 40, 0)
    assert report.failures[-1] == Failure("item 100", "39", "the id '39' was read before: item 40")


def test_truncated_documents_are_counted_once(short: Embedder) -> None:
    store = fresh(short)
    with pytest.warns(TruncationWarning, match="2 documents were cut") as warned:
        report = ingest([LONG, "x", LONG + "!"], short, store, batch_size=1)
    assert len(warned) == 1
    assert Path(warned[0].filename) == Path(__file__)
    assert report.truncated == 2
    assert "truncated  2 documents were cut at the model's limit: see chunk_tokens" in str(report)


def test_stop_at_the_first_bad_row(embedder: Embedder, store: HybridStore, lines: Lines) -> None:
    rows: list[Any] = [{"id": str(i), "text": f"the {i}"} for i in range(20)]
    rows[13] = "no json"
    path = lines("rows.jsonl", rows)
    for _ in range(2):
        with pytest.raises(IngestError, match=r"rows\.jsonl, line 14: not JSON"):
            ingest(path, embedder, store, on_error="stop", batch_size=4)
        assert sorted(texts(store), key=int) == [str(i) for i in range(13)]
    rows[13] = {"id": "13", "text": "the 13"}
    report = ingest(lines("rows.jsonl", rows), embedder, store, on_error="stop", batch_size=4)
    assert counts(report) == (7, 0, 13, 0, 0)


def test_stop_at_a_text_that_cannot_be_embedded(gte_folder: Path) -> None:
    with Embedder(gte_folder, dtype="float32", max_length=16, on_overflow="error") as strict:
        store = fresh(strict)
        rows = [Document(str(i), LONG if i == 13 else f"the {i}") for i in range(20)]
        with pytest.raises(IngestError, match=r"item 14: the text has .* tokens with its prompt, the limit is 16"):
            ingest(rows, strict, store, on_error="stop", batch_size=8)
        assert sorted(texts(store), key=int) == [str(i) for i in range(13)]


def test_texts_that_cannot_be_embedded_fail_alone(gte_folder: Path) -> None:
    with Embedder(gte_folder, dtype="float32", max_length=16, on_overflow="error") as strict:
        store = fresh(strict)
        rows = [Document(str(i), LONG if i % 3 == 0 else f"the {i}") for i in range(100)]
        report = ingest(rows, strict, store)
        assert counts(report) == (66, 0, 0, 34, 0)
        assert sorted(map(int, texts(store))) == [i for i in range(100) if i % 3]
        assert all(f.id == str(3 * i) and "the text has" in f.reason for i, f in enumerate(report.failures))


def test_failures_are_kept_up_to_a_thousand(embedder: Embedder, memory: MemoryStore) -> None:
    report = ingest((Document(str(i), " " * i) for i in range(1500)), embedder, memory)
    assert report.failed == 1500
    assert [failure.id for failure in report.failures] == [str(i) for i in range(1000)]
    assert str(report).endswith("item 10: the text is empty\n           and 1,490 more")


def test_the_report_can_be_read() -> None:
    failure = Failure("rows.jsonl, line 3", None, "not JSON")
    report = IngestReport(1200, 3, 17_000, 1, 5, 4711, 0, 12.34, (failure,), True)
    assert str(report) == (
        "documents  1,200 new, 3 changed, 17,000 unchanged, 1 failed, 5 deleted\n"
        "records    4,711 written\n"
        "time       12.3 s, 1,475 documents/s\n"
        "failed     rows.jsonl, line 3: not JSON"
    )


def test_progress_is_drawn(
    embedder: Embedder, memory: MemoryStore, lines: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines("rows.jsonl", [{"id": str(i), "text": f"the {i}"} for i in range(30)])
    ingest(path, embedder, memory, batch_size=10)
    assert capsys.readouterr().err == ""
    ingest(path, embedder, memory, batch_size=10, show_progress=True)
    drawn = capsys.readouterr().err
    assert "Ingesting: 100%" in drawn
    assert "30 documents, " in drawn
    assert "0 failed" in drawn
    ingest(iter(["x"]), embedder, memory, show_progress=True)
    assert "| 1/1 [" in capsys.readouterr().err  # such an iterator knows how many are left
    ingest((text for text in ["y"]), embedder, memory, show_progress=True)
    assert "1doc [" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, 'on_error=\'ignore\' is neither "skip" nor "stop"'),
        ({"batch_size": 0}, "batch_size=0 must be"),
        ({"overlap_tokens": 3}, "overlap_tokens needs chunk_tokens"),
    ],
)
def test_options_that_make_no_sense(
    embedder: Embedder, memory: MemoryStore, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ingest(["x"], embedder, memory, **options)


def test_another_models_store_is_refused(embedder: Embedder, short: Embedder, memory: MemoryStore) -> None:
    with pytest.raises(FingerprintMismatchError):
        ingest(["x"], short, memory)
    dense_only = MemoryStore(StoreConfig(fingerprint=embedder.spec.fingerprint, dim=embedder.dim, sparse=False))
    with pytest.raises(StoreMismatchError):
        ingest(["x"], embedder, dense_only)


def test_one_ingest_into_a_store_at_a_time(embedder: Embedder, store: HybridStore) -> None:
    def items() -> Iterator[str]:
        yield "one"
        with pytest.raises(IngestError, match=r"another ingest into .* is running"):
            ingest(["other"], embedder, store)
        yield "two"

    assert ingest(items(), embedder, store).new == 2
    assert ingest(["other"], embedder, store).new == 1


def test_memory_stays_bounded(embedder: Embedder, memory: MemoryStore) -> None:
    ahead = []

    def items() -> Iterator[Document]:
        for i in range(3000):
            ahead.append(i - memory.count())
            yield Document(str(i), f"the capital {i % 50}")

    assert ingest(items(), embedder, memory, batch_size=50).new == 3000
    assert max(ahead) <= 5 * 50


def test_characters_bound_memory_too(embedder: Embedder, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinvec_stores.ingestion.windows._CHARACTERS", 1000)
    ahead = []

    def items() -> Iterator[Document]:
        for i in range(200):
            ahead.append(i - memory.count())
            yield Document(str(i), "the capital " * 20 + str(i))

    assert ingest(items(), embedder, memory).new == 200
    assert max(ahead) <= 5 * 5


async def test_async_twin(embedder: Embedder, memory: MemoryStore, short: Embedder) -> None:
    report = await aingest(["one", Document("a", LONG)], embedder, memory, chunk_tokens=30, overlap_tokens=5)
    assert report.new == 2
    with pytest.warns(TruncationWarning):
        await aingest([LONG], short, fresh(short))


async def test_cancelling_stops_the_threads(embedder: Embedder, memory: MemoryStore) -> None:
    loop, written, closed = asyncio.get_running_loop(), asyncio.Event(), []

    def items() -> Iterator[Document]:
        try:
            i = 0
            while True:
                yield Document(str(i), f"the {i % 20}")
                i += 1
                if memory.count():
                    loop.call_soon_threadsafe(written.set)
        finally:
            closed.append(True)

    task = asyncio.create_task(aingest(items(), embedder, memory, batch_size=10))
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == [True]
    assert not [t for t in threading.enumerate() if t.name.startswith("twinvec-ingest")]
    stored = memory.count()
    rows = [Document(str(i), f"the {i % 20}") for i in range(stored + 5)]
    assert counts(ingest(rows, embedder, memory)) == (5, 0, stored, 0, 0)


def test_both_twins_have_the_same_signature() -> None:
    assert inspect.signature(ingest) == inspect.signature(aingest)
