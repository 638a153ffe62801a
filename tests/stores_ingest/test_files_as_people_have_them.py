"""Tables with semicolons, quotes that are not closed, front matter, documents of frameworks, folders of all sorts."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import Document as LlamaIndexDocument
from typer.testing import CliRunner

from twinvec import Embedder
from twinvec.errors import ConfigurationError, IngestError
from twinvec_cli.main import app
from twinvec_stores import EmbeddedStore, MemoryStore, ingest
from twinvec_stores.ingestion.chunking import Chunker


def stored(store: MemoryStore) -> dict[str, tuple[str, dict[str, object]]]:
    return {r.id: (r.text, dict(r.metadata)) for page in store.scroll_all() for r in page}


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
def test_the_delimiter_is_seen(embedder: Embedder, memory: MemoryStore, tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    rows = [["id", "text", "n", ""], ["1", "an apple", "5", ""], ["2", "a fig", "", ""]]
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows))
    report = ingest(path, embedder, memory)
    assert report.failed == 0
    assert stored(memory) == {"1": ("an apple", {"n": "5"}), "2": ("a fig", {"n": ""})}


@pytest.mark.parametrize(
    ("header", "row", "metadata"),
    [
        ('id;text;"price, euro"', "1;apple;2,5", {"price, euro": "2,5"}),
        ("id\ttext\ta;b,c", "1\tapple\tx", {"a;b,c": "x"}),
        ('"id"|"text"|"a,b"', "1|apple|x", {"a,b": "x"}),
        ('"id","text","a;b;c"', "1,apple,x", {"a;b;c": "x"}),
    ],
)
def test_the_delimiter_beside_names_with_others(
    embedder: Embedder, memory: MemoryStore, tmp_path: Path, header: str, row: str, metadata: dict[str, str]
) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n")
    assert ingest(tmp_path / "a.csv", embedder, memory).failed == 0
    assert stored(memory) == {"1": ("apple", metadata)}


def test_a_value_without_a_column_is_told(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text,\n1,an apple,lost?\n")
    report = ingest(path, embedder, memory)
    assert "a column without a name" in report.failures[0].reason


def test_a_quote_that_is_not_closed_is_told_with_its_lines(
    embedder: Embedder, memory: MemoryStore, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,apple\n2,"fig\n3,pear\n4,plum\n')
    report = ingest(path, embedder, memory)
    assert list(stored(memory)) == ["1"]
    assert "swallowed lines 3 to 5" in report.failures[0].reason
    path.write_text('id,text\n1,apple\n2,"fig')
    assert "a quote is not closed" in ingest(path, embedder, memory).failures[0].reason


@pytest.mark.parametrize(
    ("content", "text", "title"),
    [
        ("---\ntitle: Apples\n---\n# Apples\n", "# Apples\n", "Apples"),
        ("---\r\ntitle: Apples\r\n---\r\nRed\r\n", "Red\r\n", "Apples"),
        ("---\nnot: [closed\n---\nx", "---\nnot: [closed\n---\nx", None),
        ("---\nwords between two lines\n---\nx", "---\nwords between two lines\n---\nx", None),
        ("a\n---\ntitle: x\n---\n", "a\n---\ntitle: x\n---\n", None),
        ("---\n---\n# Apples\n", "# Apples\n", None),
        ("---\n\n---\n# Apples\n", "# Apples\n", None),
        ("---\n# Apples\n---\nred\n", "---\n# Apples\n---\nred\n", None),  # lines around a heading
        ("---\ntitle: |-\n  a --- b\n---\nred\n", "red\n", "a --- b"),
    ],
)
def test_front_matter(
    embedder: Embedder, memory: MemoryStore, tmp_path: Path, content: str, text: str, title: str | None
) -> None:
    (tmp_path / "a.md").write_bytes(content.encode())
    ingest(tmp_path, embedder, memory)
    found, metadata = stored(memory)["a.md"]
    assert (found, metadata.get("title"), metadata["source"]) == (text, title, "a.md")


def test_a_source_of_its_own_stays(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\nsource: the almanac\n---\nApples")
    (tmp_path / "b.csv").write_text("id,text,source\n1,Pears,the almanac\n")
    ingest(tmp_path, embedder, memory)
    assert [metadata["source"] for _, metadata in stored(memory).values()] == ["the almanac"] * 2


def test_a_page_nested_too_deeply_is_a_bad_row(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<div>" * 20_000 + "apple")
    (tmp_path / "b.html").write_text("<p>pear</p>")
    report = ingest(tmp_path, embedder, memory)
    assert (report.new, [failure.id for failure in report.failures]) == (1, ["a.html"])


def test_documents_of_frameworks(embedder: Embedder, memory: MemoryStore) -> None:
    report = ingest(
        [
            LangChainDocument(page_content="Paris", metadata={"a": 1}, id="x"),
            LlamaIndexDocument(text="Rome", metadata={"b": 2}, id_="y"),
            LangChainDocument(page_content="without a name"),
        ],
        embedder,
        memory,
    )
    assert report.new == 3
    found = stored(memory)
    assert (found["x"], found["y"]) == (("Paris", {"a": 1}), ("Rome", {"b": 2}))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_folder_of_all_sorts(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("apple")
    os.mkfifo(tmp_path / "b.txt")
    os.symlink("loop.txt", tmp_path / "loop.txt")
    for name in ("c.png", "d.png", "e"):
        (tmp_path / name).write_text("x")
    report = ingest(tmp_path, embedder, memory)
    assert (report.new, report.failed) == (1, 0)
    assert report.passed_over == {".png": 2, "not a regular file": 2, "without a suffix": 1}
    assert report.files == 6
    assert "skipped    5 of 6 files: 2 not a regular file, 2 .png" in str(report)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(IngestError, match=r"none of its files can be read .*2 \.png"):
        ingest(tmp_path, embedder, memory)
    with pytest.raises(IngestError, match="not a regular file"):
        ingest(tmp_path / "b.txt", embedder, memory)


def test_no_chunk_is_white_space_alone(embedder: Embedder) -> None:
    text = "the capital" + " \n" * 2000 + "of china"
    spans = Chunker(embedder, 10).split([text])[0]
    parts = [text[span.start : span.end] for span in spans]
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(part.strip() for part in parts)


def test_why_it_did_not_prune_is_told(embedder: Embedder, memory: MemoryStore) -> None:
    ingest([{"id": "a", "text": "x"}], embedder, memory)
    report = ingest([{"id": "b", "text": "y"}, 17], embedder, memory, prune=True)
    assert not report.pruned
    assert "so their documents are unknown" in str(report)
    assert memory.count() == 2


def pdf(*pages: str) -> bytes:
    """A small PDF, written from the format's specification."""
    kids = " ".join(f"{3 + 2 * i} 0 R" for i in range(len(pages)))
    bodies = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>"]
    font = "<< /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    for i, text in enumerate(pages):
        drawn = f"BT /F 12 Tf 20 100 Td ({text}) Tj ET"
        bodies.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents {4 + 2 * i} 0 R /Resources {font} >>"
        )
        bodies.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    content, places = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        places.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(bodies) + 1
    ending = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    ending += f"startxref\n{len(content)}\n%%EOF"
    return content + ending.encode()


PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>The
 page</title><style>p {}</style></head><body><nav>Home</nav><h1>Fruit</h1><p>Apples &amp; pears.</p>
<h2>Figs</h2><ul><li>one</li></ul><script>alert(1)</script></body></html>"""


def test_pages_become_text_with_headings_and_a_title(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "b.HTM").write_bytes("<meta charset=windows-1251><p>Москва</p>".encode("windows-1251"))
    (tmp_path / "c.rst").write_text("Fruit\n=====\n\nApples.\n")
    (tmp_path / "d.pdf").write_bytes(pdf("Apples are red", "Pears are green"))
    report = ingest(tmp_path, embedder, memory)
    assert report.failed == 0
    found = stored(memory)
    assert found["a.html"][1] == {"title": "The page", "source": "a.html"}
    assert found["a.html"][0].split("\n\n") == ["# Fruit", "Apples & pears.", "## Figs", "* one\n"]
    assert found["b.HTM"][0].strip() == "Москва"
    assert found["c.rst"] == ("Fruit\n=====\n\nApples.\n", {"source": "c.rst"})
    assert found["d.pdf"][0].split("\n\n") == ["Apples are red", "Pears are green"]


@pytest.mark.parametrize("content", [b"no", pdf("Apples")[:200], pdf("x")[:-40], pdf(" ")])
def test_a_pdf_that_cannot_be_read_is_told(
    embedder: Embedder, memory: MemoryStore, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.pdf").write_bytes(content)
    for name in ("b.txt", "c.txt"):
        (tmp_path / name).write_text("pear")
    report = ingest(tmp_path, embedder, memory)
    assert (report.new + report.failed, report.failed <= 1) == (3, True)
    for failure in report.failures:
        assert ("PDF" in failure.reason or "OCR" in failure.reason, failure.id) == (True, "a.pdf")
    (tmp_path / "c.txt").unlink()  # what cannot be read keeps nothing else from being pruned
    assert ingest(tmp_path, embedder, memory, prune=True).deleted == 1


@pytest.mark.parametrize(("name", "module", "extra"), [("a.pdf", "pypdf", "pdf"), ("a.html", "bs4", "html")])
def test_the_extra_that_is_missing_is_named(
    embedder: Embedder,
    memory: MemoryStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    module: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_text("x")
    report = ingest(tmp_path, embedder, memory)
    assert f"twinvec[{extra}]" in report.failures[0].reason


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", '{"id": "1", "text": "apple"}\n'),
        ("a.csv.gz", "id;text\n1;apple\n"),
        ("a.tsv.GZ", "id\ttext\n1\tapple\n"),
        ("1.txt.gz", "apple"),
        ("1.md.gz", "apple"),
        ("1.html.gz", "<p>apple</p>"),
    ],
)
def test_compressed_files(embedder: Embedder, memory: MemoryStore, tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()))
    report = ingest(path, embedder, memory)
    assert (report.new, report.failed) == (1, 0)
    assert [text.strip() for text, _ in stored(memory).values()] == ["apple"]
    path.write_bytes(path.read_bytes()[:-9])
    if "txt" in name or "html" in name or "md" in name:  # one document of a folder, perhaps
        assert "damaged or incomplete" in ingest(path, embedder, memory).failures[0].reason
    else:
        with pytest.raises(IngestError, match="damaged or incomplete"):
            ingest(path, embedder, memory)


def test_quotes_are_letters_in_a_tsv_unless_they_are_around_cells(
    embedder: Embedder, memory: MemoryStore, tmp_path: Path
) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\t"Stop" he said\n2\t5" nails\n3\t"open\n4\tlast\n')
    assert ingest(path, embedder, memory).new == 4
    assert {id: text for id, (text, _) in stored(memory).items()} == {
        "1": '"Stop" he said',
        "2": '5" nails',
        "3": '"open',
        "4": "last",
    }
    path.write_text('id\ttext\n1\t"a ""word"" and\ta tab"\n')
    other = MemoryStore(memory.config)
    assert ingest(path, embedder, other).failed == 1  # a cell with a tab looks like two, of which one is not closed
    path.write_text('"id"\t"text"\n"1"\t"a ""word"" here"\n')
    ingest(path, embedder, other)
    assert stored(other)["1"][0] == 'a "word" here'


def test_a_given_delimiter(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,x~text\n1~apple, red\n")
    ingest(path, embedder, memory, delimiter="~", id_field="id,x")
    assert stored(memory) == {"1": ("apple, red", {})}
    for wrong in ("", ";;", 7):
        with pytest.raises(ConfigurationError, match="delimiter="):
            ingest(path, embedder, memory, delimiter=wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_newcomers_folder_with_one_command(gte_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text("apple")
    (folder / "b.md").write_text("---\ntitle: Figs\n---\n# Figs\n\nSweet.\n")
    (folder / "more" / "c.pdf").write_bytes(pdf("Pears are green"))
    (folder / "more" / "d.html").write_text(PAGE)
    (folder / "more" / "e.txt").write_bytes("Fübar".encode("latin-1"))
    (folder / "empty.md").write_text("\n")
    (folder / "f.png").write_bytes(b"x")
    os.mkfifo(folder / "g.txt")
    (folder / "h.csv").write_text("id;text;price\n1;plum;1,5\n2;lime;2\n3;too;many;cells\n")
    arguments = ["ingest", str(folder), "-s", str(tmp_path / "s"), "-m", str(gte_folder), "--json"]
    ended = CliRunner().invoke(app, [*arguments, "--chunk-tokens", "50", "--chunk-context", "headings"])
    assert ended.exit_code == 1, ended.stderr
    report = json.loads(ended.stdout)
    assert report["new"] == 6  # a, b, c, d, and two rows
    assert {Path(failure["where"].split(",")[0]).name for failure in report["failures"]} == {
        "e.txt",
        "empty.md",
        "h.csv",
    }
    assert report["failed"] == 3
    assert report["passed_over"] == {".png": 1, "not a regular file": 1}
    assert report["files"] == 9
    with EmbeddedStore(tmp_path / "s") as store:
        records = [record for page in store.scroll_all() for record in page]
    assert {record.provenance["document"] for record in records} == {
        "a.txt",
        "b.md",
        "more/c.pdf",
        "more/d.html",
        "h.csv/1",
        "h.csv/2",
    }
    assert len(records) == report["records"]


def test_rows_of_the_tables_in_a_folder(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "more").mkdir()
    (tmp_path / "a.csv").write_text("id;text;source\n1;apple;own\n2;fig;\n")
    (tmp_path / "more" / "a.csv").write_text("id,text\n1,plum\n")
    (tmp_path / "more" / "b.csv").write_text("text\nlime\n")
    (tmp_path / "b.jsonl").write_text('{"_id": 1, "text": "pear", "metadata": {"n": 5}}\n{"text": "pear"}\n')
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(b"id\ttext\n1\tkiwi\n"))
    parquet.write_table(pyarrow.table({"id": [1], "text": ["date"]}), tmp_path / "d.parquet")
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    report = ingest(tmp_path, embedder, memory)
    assert (report.new, report.failed) == (8, 0)
    assert report.passed_over == {".tsv without a column 'text'": 1}
    found = stored(memory)
    assert found["a.csv/1"] == ("apple", {"source": "own"})
    assert found["a.csv/2"] == ("fig", {"source": ""})
    assert found["more/a.csv/1"] == ("plum", {"source": "more/a.csv"})
    assert found["b.jsonl/1"] == ("pear", {"source": "b.jsonl", "n": 5})
    assert {found["c.tsv.gz/1"][0], found["d.parquet/1"][0]} == {"kiwi", "date"}
    hashed = {id.rpartition("/")[0]: text for id, (text, _) in found.items() if len(id.rpartition("/")[2]) == 32}
    assert hashed == {"more/b.csv": "lime", "b.jsonl": "pear"}
    (tmp_path / "a.csv").write_text("id;text;source\n2;a fig;\n")
    again = ingest(tmp_path, embedder, memory, prune=True, document_field="document")
    assert (again.changed, again.deleted) == (7, 1)
    assert {id: metadata["document"] for id, (_, metadata) in stored(memory).items()} == {
        id: id for id in found.keys() - {"a.csv/1"}
    }


def test_a_bad_table_in_a_folder_is_one_bad_row(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    bad = {
        "cut.csv.gz": gzip.compress(b"id,text\n")[:-9],
        "empty.csv": b"",
        "no.parquet": b"PAR1 no",
        "wide.csv": "id,text\n".encode("utf-16"),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "z.csv").write_text(f"id,text\n1,\n{'x' * 1000},apple\n2,fig\n")
    report = ingest(tmp_path, embedder, memory, prune=True)
    assert list(stored(memory)) == ["z.csv/2"]
    assert {Path(f.where.split(",")[0]).name: f.id for f in report.failures if f.id != "z.csv/1"} == {
        **dict.fromkeys(bad),
        "z.csv": None,
    }
    assert report.failed == len(bad) + 2
    assert "rows could not be read" in report.not_pruned
    assert [f.reason for f in report.failures if f.id == "z.csv/1"] == ["the text is empty"]
    assert all(str(tmp_path) not in failure.reason for failure in report.failures)
    (tmp_path / "z.csv").unlink()
    for name in bad:
        (tmp_path / name).unlink()
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(IngestError, match=r"none of its files can be read \(1 \.csv without a column 'text'\)"):
        ingest(tmp_path, embedder, memory)
    with pytest.raises(IngestError, match=r"no column 'text' \(its columns: a, b\); see text_field"):
        ingest(tmp_path / "numbers.csv", embedder, memory)


def test_rows_of_a_data_frame(embedder: Embedder, memory: MemoryStore) -> None:
    """What ``df.to_dict("records")`` gives: numpy's scalars, NaN, NaT, Timestamps."""

    class Timestamp(datetime.datetime):
        pass

    class NaTType(datetime.datetime):
        def __eq__(self, other: object) -> bool:
            return False

        def __ne__(self, other: object) -> bool:
            return True

        __hash__ = datetime.datetime.__hash__

    nat = NaTType(2000, 1, 1)
    name = uuid.uuid4()
    rows = [
        {
            "id": np.int64(7),
            "text": "apple",
            "n": np.float64("nan"),
            "day": Timestamp(2025, 1, 2),
            "ok": np.bool_(True),
        },
        {"id": name, "text": "fig", "n": np.float32(0.5), "day": nat, "tags": {"b", "a"}, "many": np.array([1, 2])},
        {"id": 3, "text": "left out", "n": 1, "day": None},
    ]
    assert ingest(rows, embedder, memory).failed == 0
    found = {id: metadata for id, (_, metadata) in stored(memory).items()}
    assert found["7"] == {"n": None, "day": "2025-01-02T00:00:00", "ok": True}
    assert found[str(name)] == {"n": 0.5, "day": None, "tags": ["a", "b"], "many": [1, 2]}
    other = MemoryStore(memory.config)
    ingest(rows, embedder, other, metadata_fields=["day"])
    assert {id: set(metadata) for id, (_, metadata) in stored(other).items()} == {id: {"day"} for id in found}
