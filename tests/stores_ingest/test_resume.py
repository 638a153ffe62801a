"""Runs that end in the middle: whatever the point, the next run makes the store what it should be."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stores_ingest.conftest import Lines
from stores_ingest.holding import assert_equal, held, texts
from twinvec import Embedder
from twinvec.flows import threaded
from twinvec_stores import EmbeddedStore, MemoryStore, RecordBatch, StoreConfig
from twinvec_stores.ingestion import IngestReport, ingest
from twinvec_stores.records import Record

LONG = "The capital of Russia is Moscow. Gravity is a force. How to sort a list in python? "


class Killed(BaseException):
    """The end of a process, which no handler may take for an error."""


class MortalStore(MemoryStore):
    """Writes record by record, and dies before a given write; deletions and flushes count, too."""

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        self.writes_left: int | None = None

    async def _flush(self) -> None:
        self._age()

    @threaded
    def _upsert(self, batch: RecordBatch) -> None:
        for record in batch:
            self._age()
            super()._upsert(RecordBatch.of([record])).blocking()

    @threaded
    def _delete(self, ids: list[str]) -> None:
        self._age()
        super()._delete(ids).blocking()

    def _age(self) -> None:
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                raise Killed


def stored(config: StoreConfig, records: Sequence[Record]) -> MortalStore:
    store = MortalStore(config)
    if records:
        store.upsert(RecordBatch.of(records))
    return store


def adds_up(resumed: IngestReport, whole: IngestReport) -> bool:
    """Whether a resumed run tells of every row, of each bad one as an uninterrupted run does."""
    documents = [report.new + report.changed + report.unchanged for report in (resumed, whole)]
    return documents[0] == documents[1] and resumed.failures == whole.failures


OLD: list[dict[str, Any]] = [
    {"id": "same", "text": LONG},
    {"id": "grows", "text": LONG},
    {"id": "shrinks", "text": LONG * 3},
    {"id": "to one", "text": LONG},
    {"id": "from one", "text": "short"},
    {"id": "goes", "text": LONG},
]
NEW: list[Any] = [
    {"id": "comes", "text": LONG * 2},
    {"id": "same", "text": LONG},
    {"id": "grows", "text": LONG * 4},
    "no json",
    {"id": "shrinks", "text": LONG},
    {"id": "to one", "text": "short"},
    {"id": "comes", "text": "twice"},
    {"id": "from one", "text": LONG},
    {"id": "one more", "text": "x", "n": 1},
]


@pytest.mark.parametrize(("before", "after"), [(30, 30), (30, None), (None, 30), (30, 50), (None, None)])
def test_a_run_that_dies_at_any_write(embedder: Embedder, lines: Lines, before: int | None, after: int | None) -> None:
    """Then the next run is the same again, or the source went back to what it was, or the chunks are others."""
    config = StoreConfig.for_embedder(embedder)
    old, new = lines("old.jsonl", OLD), lines("new.jsonl", [row for row in NEW if row != "no json"])
    run = functools.partial(ingest, embedder=embedder, batch_size=4, prune=True, prune_share=1)
    first = MortalStore(config)
    run(old, store=first, chunk_tokens=before)
    nexts = [(new, after), (old, before), (old, after), (new, before)]
    expected = []
    for path, chunk in nexts:
        clean = stored(config, list(held(first).values()))
        expected.append((clean, run(path, store=clean, chunk_tokens=chunk)))
    for writes in range(1000):
        died = stored(config, list(held(first).values()))
        died.writes_left = writes
        try:
            run(new, store=died, chunk_tokens=after)
            break
        except Killed:
            died.writes_left = None
        for (path, chunk), (clean, report) in zip(nexts, expected, strict=True):
            again = stored(config, list(held(died).values()))
            resumed = run(path, store=again, chunk_tokens=chunk)
            assert_equal(again, clean)
            assert adds_up(resumed, report)
    assert writes >= 9


def test_failures_before_the_end_are_in_the_report_of_the_next_run(embedder: Embedder, lines: Lines) -> None:
    path = lines("new.jsonl", NEW)
    clean, died = (MortalStore(StoreConfig.for_embedder(embedder)) for _ in range(2))
    report = ingest(path, embedder, clean, batch_size=2, chunk_tokens=30)
    died.writes_left = clean.count()
    with pytest.raises(Killed):
        ingest(path, embedder, died, batch_size=2, chunk_tokens=30)
    died.writes_left = None
    resumed = ingest(path, embedder, died, batch_size=2, chunk_tokens=30)
    assert adds_up(resumed, report)
    assert [(Path(f.where).name, f.id) for f in resumed.failures] == [
        ("new.jsonl, line 4", None),
        ("new.jsonl, line 7", "comes"),
    ]
    assert resumed.failures[1].reason.endswith("new.jsonl, line 1")
    assert_equal(died, clean)


def die(path: Path, embedder: Embedder, store: EmbeddedStore, after: int, **options: Any) -> None:
    """Ingest until a number of upserts are done."""
    upserts = 0

    def upsert(batch: RecordBatch) -> None:
        nonlocal upserts
        if upserts == after:
            raise Killed
        upserts += 1
        EmbeddedStore.upsert(store, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "upsert", upsert)
        with pytest.raises(Killed):
            ingest(path, embedder, store, batch_size=10, **options)


@pytest.fixture
def rows(lines: Lines) -> Path:
    return lines("rows.jsonl", [{"id": str(i), "text": f"the {i}"} for i in range(100)])


@pytest.fixture
def folder_store(embedder: Embedder, tmp_path: Path) -> EmbeddedStore:
    return EmbeddedStore(tmp_path / "store", StoreConfig.for_embedder(embedder))


def test_what_a_killed_run_has_stored_is_not_embedded_again(
    embedder: Embedder, folder_store: EmbeddedStore, rows: Path
) -> None:
    with folder_store as store:
        die(rows, embedder, store, after=4)
        assert len(texts(store)) == 40
        before = embedder.stats()["texts"]
        report = ingest(rows, embedder, store, batch_size=10)
        assert embedder.stats()["texts"] - before <= 60  # fewer where the memo still has some
        assert (report.new, report.unchanged, report.records) == (60, 40, 60)
        again = ingest(rows, embedder, store, batch_size=10)
        assert (again.new, again.unchanged) == (0, 100)


def test_all_kinds_of_sources_are_resumed(embedder: Embedder, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    for i in range(30):
        (folder / str(i % 3)).mkdir(parents=True, exist_ok=True)
        (folder / str(i % 3) / f"{i}.txt").write_text(f"the {i}")
    table = tmp_path / "rows.csv"
    table.write_text("id,text\n" + "".join(f'{i},"the\n{i}"\n' for i in range(1000, 1030)))
    source = [rows, folder, table]
    config = StoreConfig.for_embedder(embedder)
    clean = MortalStore(config)
    report = ingest(source, embedder, clean, batch_size=7)
    for writes in (5, 105, 145):
        died = MortalStore(config)
        died.writes_left = writes
        with pytest.raises(Killed):
            ingest(source, embedder, died, batch_size=7)
        died.writes_left = None
        resumed = ingest(source, embedder, died, batch_size=7)
        assert adds_up(resumed, report)
        assert_equal(died, clean)
