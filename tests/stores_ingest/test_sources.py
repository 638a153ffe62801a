"""What can be read, and what is said about what cannot."""

from __future__ import annotations

import datetime
import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from stores_ingest.conftest import Lines
from stores_ingest.holding import held, texts
from twinvec import Embedder
from twinvec.errors import ConfigurationError, IngestError
from twinvec_stores import MemoryStore, StoreConfig
from twinvec_stores.ingestion import Document, IngestReport, ingest, readers, tables
from twinvec_stores.ingestion.readers import NOT_UTF8

pa: Any = importlib.import_module("pyarrow")  # it has no types
pq: Any = importlib.import_module("pyarrow.parquet")


def failures(report: IngestReport) -> list[tuple[str, str | None, str]]:
    """Failures without the folder's name."""
    assert report.failed == len(report.failures)
    return [(Path(failure.where).name, failure.id, failure.reason) for failure in report.failures]


# JSON lines


def test_json_lines(embedder: Embedder, memory: MemoryStore, lines: Lines) -> None:
    rows = [
        b'\xef\xbb\xbf{"id": "a", "text": "the capital", "title": "", "year": 2020, "tags": ["x"], "none": null}\r',
        "",
        {"id": 7, "text": "гравитация", "metadata": {"kind": "b", "year": 1}, "year": 2},
        {"_id": "c", "text": " query ", "metadata": "just a string"},
        {"id": "d", "_id": "e", "text": "как"},
    ]
    report = ingest(lines("rows.jsonl", rows), embedder, memory)
    assert (report.new, report.failed) == (4, 0)
    records = held(memory)
    assert {id: (record.text, record.metadata) for id, record in records.items()} == {
        "a": ("the capital", {"title": "", "year": 2020, "tags": ["x"], "none": None}),
        "7": ("гравитация", {"kind": "b", "year": 2}),
        "c": (" query ", {"metadata": "just a string"}),
        "d": ("как", {"_id": "e"}),
    }


def test_bad_json_lines(embedder: Embedder, memory: MemoryStore, lines: Lines) -> None:
    rows: list[Any] = [
        {"id": "first", "text": "the capital"},
        '{"id": "open"',
        b'{"id": "x", "text": "\xff"}',
        "[1, 2]",
        {"id": "no text", "body": "x", "other": 1},
        {"id": "number", "text": 5},
        {"id": "blank", "text": " \n\t"},
        {"id": "", "text": "x"},
        {"id": 1.5, "text": "x"},
        {"id": True, "text": "x"},
        {"id": "й" * 501, "text": "x"},
        '{"id": "half", "text": "a\\ud800b"}',
        '{"id": "\\ud800", "text": "ab"}',
        '{"id": "infinite", "text": "x", "score": Infinity}',
        '{"id": "key", "text": "x", "\\ud800": 1}',
        '{"id": "key", "\\ud800": 1}',
        {"id": "large", "text": "x", "n": 2**70},
        "[" * 100_000,
        {"id": "first", "text": "again"},
        {"id": "last", "text": "query"},
    ]
    report = ingest(lines("rows.jsonl", rows), embedder, memory)
    assert texts(memory) == {"first": "the capital", "last": "query"}
    found = failures(report)
    expected = [
        ("rows.jsonl, line 2", None, "not JSON ("),
        ("rows.jsonl, line 3", None, "byte 21 is not UTF-8"),
        ("rows.jsonl, line 4", None, "not a JSON object but a list"),
        ("rows.jsonl, line 5", "no text", "no field 'text' (its fields: id, body, other); see text_field"),
        ("rows.jsonl, line 6", "number", "the text must be a string, not int"),
        ("rows.jsonl, line 7", "blank", "the text is empty"),
        ("rows.jsonl, line 8", None, "the id must have 1 to 1000 bytes, not 0"),
        ("rows.jsonl, line 9", None, "the id must be a string, an integer or a UUID, not float"),
        ("rows.jsonl, line 10", None, "the id must be a string, an integer or a UUID, not bool"),
        ("rows.jsonl, line 11", None, "the id must have 1 to 1000 bytes, not 1002"),
        ("rows.jsonl, line 12", "half", "the text has a lone surrogate (U+D800 at character 1), which is not text"),
        ("rows.jsonl, line 13", None, "the id has a lone surrogate (U+D800 at character 0), which is not text"),
        ("rows.jsonl, line 14", "infinite", "metadata['score'] is inf, which JSON cannot hold"),
        (
            "rows.jsonl, line 15",
            "key",
            "metadata: key '\\ud800' has a lone surrogate (U+D800 at character 0), which is not text",
        ),
        ("rows.jsonl, line 16", "key", "no field 'text' (its fields: id, \\ud800); see text_field"),
        ("rows.jsonl, line 17", "large", "metadata['n'] is an integer outside 64 bits: keep it as a string"),
        ("rows.jsonl, line 18", None, "not JSON ("),
        ("rows.jsonl, line 19", "first", "the id 'first' was read before: "),
    ]
    assert len(found) == len(expected)
    for (where, id, reason), (wanted_where, wanted_id, wanted_reason) in zip(found, expected, strict=True):
        assert (where, id) == (wanted_where, wanted_id)
        assert reason.startswith(wanted_reason), (where, reason)
    assert found[-1][2].endswith("rows.jsonl, line 1")


def test_fields_can_be_chosen(embedder: Embedder, memory: MemoryStore, lines: Lines) -> None:
    rows = [
        {"key": "a", "body": "the capital", "id": 1, "text": "t", "metadata": {"lang": "en", "other": 0}},
        {"body": "no key"},
    ]
    path = lines("rows.ndjson", rows)
    report = ingest(path, embedder, memory, text_field="body", id_field="key", metadata_fields=["lang", "id"])
    assert failures(report) == [
        ("rows.ndjson, line 2", None, "no field 'key' for the id (its fields: body); see id_field")
    ]
    assert held(memory)["a"].metadata == {"lang": "en", "id": 1}
    with pytest.raises(ConfigurationError, match="list of names"):
        ingest(path, embedder, memory, metadata_fields="lang")


def test_declared_fields_are_checked(embedder: Embedder, lines: Lines) -> None:
    store = MemoryStore(StoreConfig.for_embedder(embedder, fields={"year": "integer"}))
    rows = [{"id": "a", "text": "x", "year": "1990"}, {"id": "b", "text": "y", "year": 1990}]
    report = ingest(lines("rows.jsonl", rows), embedder, store)
    assert failures(report) == [
        ("rows.jsonl, line 1", "a", "metadata field year is declared as integer, but holds '1990'")
    ]


def test_lines_without_end_are_given_up(
    embedder: Embedder, memory: MemoryStore, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (readers, tables):
        monkeypatch.setattr(module, "MAX_BYTES", 2**20)
    long = {"id": "long", "text": "x" * 2**22}
    path = lines("rows.jsonl", [{"id": "a", "text": "the"}, long, {"id": "b", "text": "query"}])
    report = ingest(path, embedder, memory)
    assert failures(report) == [("rows.jsonl, line 2", None, "the line is longer than 1 MiB")]
    assert sorted(texts(memory)) == ["a", "b"]
    path.write_bytes(b"x" * 2**22)
    assert ingest(path, embedder, memory).failed == 1
    table = path.with_name("rows.csv")
    table.write_bytes(b"id,text\na,the\n" + b"x" * 2**22)
    with pytest.raises(IngestError, match=r"rows\.csv, line 3: longer than 1 MiB, so this is not a table"):
        ingest(table, embedder, memory)


def test_utf_16_is_no_source(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.csv"):
        (tmp_path / name).write_bytes('{"text": "x"}\n'.encode("utf-16"))
        with pytest.raises(IngestError, match="UTF-16: convert it"):
            ingest(tmp_path / name, embedder, memory)


# tables


def test_csv(embedder: Embedder, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"year": "integer", "score": "float", "open": "bool", "lang": "keyword"}
    store = MemoryStore(StoreConfig.for_embedder(embedder, fields=fields))
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,text,year,score,open,lang,other\r\n"
        b'a,"two\r\nlines, ""quoted""",1990,0.5,true,en,7\r\n'
        b"\r\n"
        b"b,query,,,FALSE,,\r\n"
        b"c,too,few\r\n"
        b"d,\xff,1,1,true,en,7\r\n"
        b"e,text,old,1,true,en,7\r\n"
        b'f,"open"quote,1,1,true,en,7\r\n'
        b"g,last,2,3,true,en,7"
    )
    report = ingest(path, embedder, store)
    records = held(store)
    assert sorted(records) == ["a", "b", "g"]
    assert records["a"].text == 'two\r\nlines, "quoted"'
    assert records["a"].metadata == {"year": 1990, "score": 0.5, "open": True, "lang": "en", "other": "7"}
    assert records["b"].metadata == {"open": False, "lang": "", "other": ""}
    assert failures(report) == [
        ("rows.csv, line 6", None, "3 cells, the header has 7"),
        ("rows.csv, line 7", None, NOT_UTF8),
        ("rows.csv, line 8", "e", "metadata field year is declared as integer, but holds 'old'"),
        ("rows.csv, line 9", None, "not readable as a table (',' expected after '\"')"),
    ]


def test_tsv_with_long_cells(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    long = "слово " * 30_000  # above the csv module's own limit
    (tmp_path / "rows.tsv").write_text(f"_id\ttext\na\tthe capital, of\nb\t{long}\n", encoding="utf-8")
    with pytest.warns(match="1 documents were cut"):
        report = ingest(tmp_path / "rows.tsv", embedder, memory)
    assert report.new == 2
    assert texts(memory) == {"a": "the capital, of", "b": long}


@pytest.mark.parametrize("content", [b"", b"\n", b"id,id\n", b"id,\xff\n", b'"id"x,text\n'])
def test_tables_need_a_header(embedder: Embedder, memory: MemoryStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(IngestError, match=r"rows\.csv: (the first line must name|its header cannot)"):
        ingest(tmp_path / "rows.csv", embedder, memory)


def test_parquet(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    n = 300
    columns = {
        "id": list(range(n)),
        "text": [None if i == 5 else f"the capital {i}" for i in range(n)],
        "day": [datetime.date(2020, 1, 1 + i % 28) for i in range(n)],
        "tags": [["a", "b"] if i % 2 else None for i in range(n)],
        "nested": [{"x": i, "y": None} for i in range(n)],
        "raw": [b"\x00" if i == 17 else None for i in range(n)],
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=100)
    report = ingest(tmp_path / "rows.parquet", embedder, memory)
    assert failures(report) == [
        ("rows.parquet, row 6", "5", "no field 'text' (its fields: id, day, tags, nested); see text_field"),
        (
            "rows.parquet, row 18",
            "17",
            "metadata['raw'] has the type bytes, which has no form in JSON: leave it out, or convert it",
        ),
    ]
    records = held(memory)
    assert len(records) == n - 2
    assert records["1"].metadata == {"day": "2020-01-02", "tags": ["a", "b"], "nested": {"x": 1, "y": None}}
    assert records["299"].text == "the capital 299"


def test_a_bad_value_in_parquet_spoils_one_row(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    """Bytes that are no text, and a time that Python has no datetime for."""
    binary = pa.array([b"good", b"\xff\xfe", b"fine", b"of the year 33658"], pa.binary())
    when = pa.array([0, 0, 0, 10**12], pa.timestamp("s"))
    table = pa.table({"id": ["a", "b", "c", "d"], "text": binary.view(pa.string()), "when": when})
    pq.write_table(table, tmp_path / "rows.parquet")
    report = ingest(tmp_path / "rows.parquet", embedder, memory)
    assert sorted(texts(memory)) == ["a", "c"]
    assert [failure.where.rpartition(", ")[2] for failure in report.failures] == ["row 2", "row 4"]
    assert all(failure.reason.startswith("a value cannot be read") for failure in report.failures)


def test_parquet_that_is_none(
    embedder: Embedder, memory: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(IngestError, match="cannot be read as parquet"):
        ingest(tmp_path / "rows.parquet", embedder, memory)

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigurationError, match=r"pip install 'twinvec\[parquet\]'"):
        ingest(tmp_path / "rows.parquet", embedder, memory)


# folders


def test_folder(embedder: Embedder, memory: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "texts"
    (root / "b" / ".hidden").mkdir(parents=True)
    (root / "z").mkdir()
    (root / "folder.txt").mkdir()
    files = {
        "a.txt": b"\xef\xbb\xbfone\r\n two",
        "b/c.MD": "Москва".encode(),
        "b/d.markdown": b"# three",
        "z/e.txt": b"four",
        "b/.hidden/f.txt": b"no",
        ".g.txt": b"no",
        "h.png": b"no",
        "z/bad.txt": b"\xff",
        "z/empty.txt": b"\n",
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    (root / "z" / "loop").symlink_to(root)
    (root / "z" / "link.txt").symlink_to(root / "a.txt")
    (root / "z" / "gone.txt").symlink_to(root / "nothing.txt")
    (root / os.fsdecode(b"\xfe.txt")).write_bytes(b"x")
    monkeypatch.setattr("twinvec_stores.ingestion.texts.MAX_BYTES", 100)
    (root / "z" / "long.txt").write_bytes(b"x" * 101)
    report = ingest(root, embedder, memory)
    assert texts(memory) == {
        "a.txt": "one\r\n two",
        "b/c.MD": "Москва",
        "b/d.markdown": "# three",
        "z/e.txt": "four",
        "z/link.txt": "one\r\n two",
    }
    assert all(record.metadata == {"source": id} for id, record in held(memory).items())
    assert [(where, id) for where, id, _ in failures(report)] == [
        ("bad.txt", "z/bad.txt"),
        ("empty.txt", "z/empty.txt"),
        ("gone.txt", "z/gone.txt"),
        ("long.txt", "z/long.txt"),
        ("\\udcfe.txt", None),
    ]


def test_several_paths(embedder: Embedder, memory: MemoryStore, lines: Lines, tmp_path: Path) -> None:
    first = lines("first.jsonl", [{"id": "a", "text": "the"}])
    (tmp_path / "note.md").write_text("query")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("capital")
    report = ingest([first, str(tmp_path / "note.md"), folder, first], embedder, memory)
    assert texts(memory) == {"a": "the", "a.txt": "capital", "note.md": "query"}
    assert failures(report)[0][2].startswith("the id 'a' was read before: ")
    with pytest.raises(ConfigurationError, match=r"first\.jsonl' is a file: pass pathlib"):
        ingest([str(first), "a text"], embedder, memory)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere.jsonl", IngestError, "there is no file or folder nowhere.jsonl"),
        (Path(__file__), IngestError, r"unknown kind of file; supported are folders and \.jsonl"),
        (b"bytes", ConfigurationError, "a bytes is not a source"),
        ({"text": "x"}, ConfigurationError, "a dict is not a source"),
        (Document("a", "x"), ConfigurationError, "a Document is not a source"),
        (5, ConfigurationError, "a int is not a source"),
        (type("Frame", (list,), {"columns": ["text"]})(), ConfigurationError, "a Frame is not a source.*to_dict"),
    ],
)
def test_what_is_no_source(
    embedder: Embedder, memory: MemoryStore, source: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ingest(source, embedder, memory)


# iterables


def test_iterables(embedder: Embedder, memory: MemoryStore) -> None:
    items = [
        Document("a", "the capital", {"n": 1}),
        {"id": "b", "text": "query"},
        "just a text",
        Document(None, "no name"),
        Document("c", "", {}),
        Document("d", "x", {"bad": object()}),
        Document("e", "x", "bad"),  # type: ignore[arg-type]
        17,
        "just a text",
    ]
    report = ingest(iter(items), embedder, memory)
    assert sorted(texts(memory).values()) == ["just a text", "no name", "query", "the capital"]
    nameless = next(id for id, text in texts(memory).items() if text == "just a text")
    assert failures(report) == [
        ("item 5", "c", "the text is empty"),
        ("item 6", "d", "metadata['bad'] has the type object, which has no form in JSON: leave it out, or convert it"),
        ("item 7", "e", "metadata must be a dict, not str"),
        ("item 8", None, "a int is not a document: pass strings, dicts or Documents"),
        ("item 9", nameless, f"the id {nameless!r} was read before: item 3"),
    ]
    again = ingest(iter(items), embedder, memory)
    assert (again.new, again.unchanged) == (0, 4)


def test_an_id_of_the_content_is_stable_and_tells_metadata_apart(embedder: Embedder, memory: MemoryStore) -> None:
    report = ingest([Document(None, "x"), Document(None, "x", {"a": 1, "b": 2})], embedder, memory)
    assert (report.new, memory.count()) == (2, 2)
    assert ingest([Document(None, "x", {"b": 2, "a": 1})], embedder, memory).unchanged == 1


def test_a_generator_is_closed(embedder: Embedder, memory: MemoryStore) -> None:
    closed = []

    def items() -> Any:
        try:
            yield "one"
            yield Document("bad", "")
            yield from ("more" for _ in range(10_000))
        finally:
            closed.append(True)

    with pytest.raises(IngestError):
        ingest(items(), embedder, memory, on_error="stop")
    assert closed == [True]
