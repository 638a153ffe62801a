"""Runs that end in the middle: whatever the point, the next run makes the store what it should be."""

from __future__ import annotations

import dataclasses
import functools
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stores_ingest.conftest import Lines
from stores_ingest.holding import assert_equal, held, texts
from twinvec import Embedder
from twinvec.errors import ConfigurationError
from twinvec.flows import threaded
from twinvec_stores import EmbeddedStore, MemoryStore, RecordBatch, StoreConfig
from twinvec_stores.ingestion import IngestReport, ingest, readers
from twinvec_stores.ingestion.checkpoints import Checkpoint
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


def without_time(report: IngestReport) -> IngestReport:
    return dataclasses.replace(report, seconds=0)


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


@pytest.mark.parametrize(
    ("before", "after", "commits"),
    [(30, 30, True), (30, 30, False), (30, None, True), (None, 30, True), (30, 50, True), (None, None, False)],
)
def test_a_run_that_dies_at_any_write(
    embedder: Embedder,
    lines: Lines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: int | None,
    after: int | None,
    commits: bool,
) -> None:
    """Then the next run is the same again, or the source went back to what it was, or the chunks are others."""
    if commits:
        monkeypatch.setattr("twinvec_stores.ingestion.ledger._COMMIT_SECONDS", 0)
    config = StoreConfig.for_embedder(embedder)
    old, new = lines("old.jsonl", OLD), lines("new.jsonl", [row for row in NEW if row != "no json"])
    checkpoint = tmp_path / "checkpoint"
    run = functools.partial(ingest, embedder=embedder, batch_size=4, prune=True)
    first = MortalStore(config)
    run(old, store=first, chunk_tokens=before)
    nexts = [(new, after), (old, before), (old, after), (new, before)]
    expected = []
    for path, chunk in nexts:
        clean = stored(config, list(held(first).values()))
        expected.append((clean, without_time(run(path, store=clean, chunk_tokens=chunk))))
    for writes in range(1000):
        died = stored(config, list(held(first).values()))
        died.writes_left = writes
        try:
            run(new, store=died, chunk_tokens=after, checkpoint=checkpoint)
            break
        except Killed:
            died.writes_left = None
        for i, ((path, chunk), (clean, report)) in enumerate(zip(nexts, expected, strict=True)):
            again = stored(config, list(held(died).values()))
            resumed = run(path, store=again, chunk_tokens=chunk, checkpoint=None if i else checkpoint)
            assert_equal(again, clean)
            assert i or without_time(resumed) == report
    assert writes >= 9


def test_failures_before_the_end_are_in_the_report_of_the_next_run(
    embedder: Embedder, lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinvec_stores.ingestion.ledger._COMMIT_SECONDS", 0)
    path, checkpoint = lines("new.jsonl", NEW), tmp_path / "checkpoint"
    clean, died = (MortalStore(StoreConfig.for_embedder(embedder)) for _ in range(2))
    report = ingest(path, embedder, clean, batch_size=2, chunk_tokens=30)
    died.writes_left = clean.count()
    with pytest.raises(Killed):
        ingest(path, embedder, died, batch_size=2, chunk_tokens=30, checkpoint=checkpoint)
    died.writes_left = None
    resumed = ingest(path, embedder, died, batch_size=2, chunk_tokens=30, checkpoint=checkpoint)
    assert without_time(resumed) == without_time(report)
    assert [(Path(f.where).name, f.id) for f in resumed.failures] == [
        ("new.jsonl, line 4", None),
        ("new.jsonl, line 7", "comes"),
    ]
    assert resumed.failures[1].reason.endswith("new.jsonl, line 1")
    assert_equal(died, clean)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of all rows that were parsed, and not just passed over."""
    ids = []

    def parse(line: bytes) -> Any:
        row = json.loads(line)
        ids.append(row["id"])
        return row

    monkeypatch.setattr(readers, "_parse_json", parse)
    monkeypatch.setattr("twinvec_stores.ingestion.ledger._COMMIT_SECONDS", 0)
    return ids


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


def checkpoints(store: EmbeddedStore) -> list[Path]:
    return sorted((store.path / "ingest").iterdir())


def test_a_folder_keeps_its_own_checkpoint(
    embedder: Embedder, folder_store: EmbeddedStore, rows: Path, parsed: list[str]
) -> None:
    with folder_store as store:
        die(rows, embedder, store, after=4)
        assert len(checkpoints(store)) == 1
        assert len(texts(store)) == 40
        parsed.clear()
        report = ingest(rows, embedder, store, batch_size=10)
        assert parsed == [str(i) for i in range(40, 100)]
        assert (report.new, report.unchanged, report.records) == (100, 0, 100)
        assert checkpoints(store) == []
        again = ingest(rows, embedder, store, batch_size=10)
        assert (again.new, again.unchanged) == (0, 100)
    with EmbeddedStore(folder_store.path) as opened:  # the folder is still known as a store's own
        assert len(texts(opened)) == 100


@pytest.mark.parametrize(
    "options", [{"resume": False}, {"chunk_tokens": 50}, {"metadata_fields": []}, {"id_field": "text"}, {"changed": 1}]
)
def test_other_options_and_changed_files_begin_anew(
    embedder: Embedder, folder_store: EmbeddedStore, rows: Path, parsed: list[str], options: dict[str, Any]
) -> None:
    with folder_store as store:
        die(rows, embedder, store, after=4)
        parsed.clear()
        if options.pop("changed", None):
            rows.write_text(rows.read_text() + '{"id": "100", "text": "the 100"}\n')
        report = ingest(rows, embedder, store, batch_size=10, **options)
        assert parsed[:100] == [str(i) for i in range(100)]
        unchanged = 0 if "chunk_tokens" in options or "id_field" in options else 40
        assert report.unchanged == unchanged
        assert checkpoints(store) == []


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "tables", "values", "counts"])
def test_a_damaged_checkpoint_is_ignored(
    embedder: Embedder, folder_store: EmbeddedStore, rows: Path, parsed: list[str], damage: str
) -> None:
    with folder_store as store:
        die(rows, embedder, store, after=4)
        (path,) = checkpoints(store)
        statements = {
            "tables": "DROP TABLE state",
            "values": "UPDATE state SET value = '{}' WHERE name = 'progress'",
            "counts": "UPDATE state SET value = '{\"rows\": \"many\"}' WHERE name = 'progress'",
        }
        if damage in statements:
            connection = sqlite3.connect(path)
            connection.execute(statements[damage])
            connection.commit()
            connection.close()
        else:
            content = path.read_bytes()
            path.write_bytes({"garbage": b"x" * len(content), "cut": content[:5000], "empty": b""}[damage])
        parsed.clear()
        with pytest.warns(match="ignoring the checkpoint"):
            report = ingest(rows, embedder, store, batch_size=10)
        assert len(parsed) == 100
        assert (report.new, report.unchanged) == (60, 40)
        assert len(texts(store)) == 100


def test_a_store_that_lost_its_records_is_filled_anew(
    embedder: Embedder, rows: Path, tmp_path: Path, parsed: list[str]
) -> None:
    store = MortalStore(StoreConfig.for_embedder(embedder))
    store.writes_left = 55
    with pytest.raises(Killed):
        ingest(rows, embedder, store, batch_size=10, checkpoint=tmp_path / "checkpoint")
    empty = MemoryStore(store.config)
    with pytest.warns(match="the store has lost records"):
        report = ingest(rows, embedder, empty, batch_size=10, checkpoint=tmp_path / "checkpoint")
    assert (report.new, empty.count()) == (100, 100)
    assert not (tmp_path / "checkpoint").exists()


def test_a_file_that_is_no_checkpoint_is_left_alone(embedder: Embedder, rows: Path, memory: MemoryStore) -> None:
    content = rows.read_bytes()
    for path in (rows, rows.parent):
        with pytest.raises(ConfigurationError, match="is no checkpoint of an ingest"):
            ingest(rows, embedder, memory, checkpoint=path)
    assert rows.read_bytes() == content


def test_a_file_can_be_read_again_from_any_row(
    embedder: Embedder, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kinds of sources pass over the same rows that they gave before."""
    monkeypatch.setattr("twinvec_stores.ingestion.ledger._COMMIT_SECONDS", 0)
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
            ingest(source, embedder, died, batch_size=7, checkpoint=tmp_path / "checkpoint")
        died.writes_left = None
        resumed = ingest(source, embedder, died, batch_size=7, checkpoint=tmp_path / "checkpoint")
        assert without_time(resumed) == without_time(report)
        assert_equal(died, clean)


def test_progress_goes_on_where_it_was(
    embedder: Embedder, folder_store: EmbeddedStore, rows: Path, parsed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with folder_store as store:
        die(rows, embedder, store, after=5)
        capsys.readouterr()
        ingest(rows, embedder, store, show_progress=True)
        assert "Ingesting:  50%" in capsys.readouterr().err


def test_a_checkpoint_survives_as_it_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "checkpoint"
    checkpoint = Checkpoint(path, ["a"], resume=True)
    assert checkpoint.claim(b"x", "row 1") is None
    assert checkpoint.claim(b"x", "row 2") == "row 1"
    checkpoint.progress.rows = 1
    checkpoint.commit({b"x": "row 1", b"bad": None}, [])
    assert checkpoint.claim(b"y", "row 2") is None
    checkpoint.close()
    checkpoint = Checkpoint(path, ["a"], resume=True)
    assert checkpoint.progress.rows == 1
    assert checkpoint.claim(b"x", "row 2") == "row 1"
    assert checkpoint.claim(b"y", "row 2") is None
    assert checkpoint.claim(b"bad", "row 3") is None
    checkpoint.commit({b"bad": "row 3"}, [])
    checkpoint.commit({b"bad": None}, [])
    assert checkpoint.claim(b"bad", "row 4") == "row 3"
    checkpoint.close()
    assert Checkpoint(path, ["b"], resume=True).progress.rows == 0
