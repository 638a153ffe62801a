"""Tables with semicolons, quotes that are not closed, front matter, documents of frameworks, folders of all sorts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import Document as LlamaIndexDocument

from twinvec import Embedder
from twinvec.errors import IngestError
from twinvec_stores import MemoryStore, ingest
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
    assert "the lines 3 to 5" in report.failures[0].reason


@pytest.mark.parametrize(
    ("content", "text", "title"),
    [
        ("---\ntitle: Apples\n---\n# Apples\n", "# Apples\n", "Apples"),
        ("---\r\ntitle: Apples\r\n---\r\nRed\r\n", "Red\r\n", "Apples"),
        ("---\nnot: [closed\n---\nx", "---\nnot: [closed\n---\nx", None),
        ("---\nwords between two lines\n---\nx", "---\nwords between two lines\n---\nx", None),
        ("a\n---\ntitle: x\n---\n", "a\n---\ntitle: x\n---\n", None),
    ],
)
def test_front_matter(
    embedder: Embedder, memory: MemoryStore, tmp_path: Path, content: str, text: str, title: str | None
) -> None:
    (tmp_path / "a.md").write_bytes(content.encode())
    ingest(tmp_path, embedder, memory)
    found, metadata = stored(memory)["a.md"]
    assert (found, metadata.get("title"), metadata["source"]) == (text, title, "a.md")


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
    for name in ("c.png", "d.png", "e"):
        (tmp_path / name).write_text("x")
    report = ingest(tmp_path, embedder, memory)
    assert (report.new, report.failed) == (1, 0)
    assert report.passed_over == {".png": 2, "no regular file": 1, "without a suffix": 1}
    assert "2 .png" in str(report)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(IngestError, match=r"none of its files is a text .*2 \.png"):
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
    assert "nobody knows whose they were" in str(report)
    assert memory.count() == 2
