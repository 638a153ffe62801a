"""Questions made from documents: by rule the same every time, without leaks; by any chat model; marked by a person."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel

from twinvec.errors import ConfigurationError
from twinvec_stores import MemoryStore, RecordBatch, StoreConfig
from twinvec_stores.evaluation import MadeQuestions, make_questions, read_questions

TEXTS = {
    "guide/install.md": "# Installation\n\nDownload the archive and unpack it somewhere. Then see "
    "[keeping several machines in step](sync.md) and [the archive](https://example.org/archive).",
    "guide/sync.md": "Copies of a folder travel between computers every night.\n\n## What travels\n\nChanged blocks.",
    "guide/move.md": "Вещи складывают в коробки за неделю. Коробки подписывают.",
    "guide/other.md": "Nothing links here, and nothing is said. See [this](nowhere.md) and [that page](install.md).",
}
TITLES = {"guide/move.md": "Переезд в другой город", "guide/other.md": "Nothing is said"}


def empty() -> MemoryStore:
    return MemoryStore(StoreConfig(fingerprint="x", dim=2, sparse=False))


def put(store: MemoryStore, *rows: tuple[str, str, dict[str, Any], dict[str, Any]]) -> None:
    ids, texts, metadata, provenance = map(list, zip(*rows, strict=True))
    store.upsert(RecordBatch(ids, texts, np.array([[1, 0]] * len(ids), np.float32), None, metadata, provenance))


def store(*, chunked: bool = False) -> MemoryStore:
    store = empty()
    rows: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = []
    for id, text in TEXTS.items():
        metadata = {"title": TITLES[id]} if id in TITLES else {}
        parts = [text[:40], text[40:]] if chunked else [text]
        for i, part in enumerate(parts):
            rows.append(
                (f"{id}#{i}" if chunked else id, part, metadata, {"document": id, "chunk": i} if chunked else {})
            )
    put(store, *reversed(rows))
    return store


def kinds(made: MadeQuestions) -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = {}
    for question in made.kept:
        found.setdefault(question.kind, set()).add((question.text, question.document))
    return found


def test_links_and_titles_that_are_not_the_documents_own_words() -> None:
    made = make_questions(store())
    assert kinds(made) == {
        "link": {("keeping several machines in step", "guide/sync.md"), ("that page", "guide/install.md")},
        "title": {("Переезд в другой город", "guide/move.md")},
    }
    # the title of other.md, two headings, of which one is a single word, and four first sentences
    assert made.dropped == {"has the document's own words": 6, "too short": 1}
    assert {question.overlap for question in made.kept} == {0.0, 0.25}  # one of four words: в


def test_everything_where_leaks_are_wanted() -> None:
    found = kinds(make_questions(store(), max_overlap=1))
    assert found["heading"] == {("What travels", "guide/sync.md")}
    assert ("Copies of a folder travel between computers every night.", "guide/sync.md") in found["first sentence"]
    assert ("Вещи складывают в коробки за неделю.", "guide/move.md") in found["first sentence"]
    assert ("Download the archive and unpack it somewhere.", "guide/install.md") in found["first sentence"]


def test_the_same_for_chunks_and_every_time() -> None:
    made = make_questions(store(), max_overlap=1)
    assert make_questions(store(), max_overlap=1) == made
    assert kinds(make_questions(store(chunked=True)))["link"] == kinds(make_questions(store()))["link"]
    first = make_questions(store(), 2, max_overlap=1)
    assert list(first.kept) == list(made.kept[:2])
    assert {question.document for question in make_questions(store(), 4, max_overlap=1).kept} == set(
        TEXTS
    )  # one of each


def test_links_come_before_titles_whatever_else_their_documents_have() -> None:
    linked = empty()
    put(
        linked,
        ("a.md", "See [the way to the station](b.md)", {"title": "Getting around"}, {}),
        ("b.md", "# Trains and buses\n\nThey leave every ten minutes.", {"title": "Timetables of spring"}, {}),
    )
    for seed in range(4):
        made = make_questions(linked, max_overlap=1, seed=seed)
        assert [(each.kind, each.document) for each in made.kept[:2]] == [("link", "b.md"), ("title", "a.md")]
        assert [each.kind for each in made.kept[2:]] == ["title", "heading", "first sentence"]


def test_what_fits_several_documents_is_left_out() -> None:
    ambiguous = store()
    title = {"title": "Release notes of spring"}
    put(ambiguous, ("a", "Fixed a crash.", title, {}), ("b", "Faster starts.", title, {}))
    made = make_questions(ambiguous)
    assert made.dropped["fits several documents"] == 2
    assert not any(question.document in "ab" for question in made.kept)


def test_by_a_chat_model() -> None:
    answers = ["«How do two laptops stay equal?»", "What does the passage say?", "Why?", ""]
    made = make_questions(store(), model=FakeListChatModel(responses=answers), max_overlap=0.75)
    (question,) = made.kept
    assert (question.text, question.kind) == ("How do two laptops stay equal?", "model")
    assert made.dropped == {"asks about a text": 1, "too short": 2}
    again = make_questions(store(), model=FakeListChatModel(responses=answers), max_overlap=0.75)
    assert again == made
    one = empty()
    put(one, ("a", "Copies of a folder travel every night.", {}, {}))
    copied = make_questions(
        one, model=FakeListChatModel(responses=["When do copies of a folder travel?"]), max_overlap=0.6
    )
    assert (copied.kept, copied.dropped) == ([], {"has the document's own words": 1})


def test_a_marked_sheet_is_read_back(tmp_path: Path) -> None:
    made = make_questions(store())
    made.write(tmp_path / "questions.csv")
    with (tmp_path / "questions.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["question"] for row in rows] == [question.text for question in made.kept]
    assert rows[0]["excerpt"].startswith(TEXTS[rows[0]["document"]][:10])
    read = read_questions(tmp_path / "questions.csv")
    assert {read.texts[id]: next(iter(read.grades[id])) for id in read.asked} == {
        question.text: question.document for question in made.kept
    }
    rows[1]["grade"] = "0"
    with (tmp_path / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        sheet = csv.DictWriter(file, list(rows[0]))
        sheet.writeheader()
        sheet.writerows(rows)
    marked = read_questions(tmp_path / "questions.csv")
    assert len(marked.asked) == len(made.kept) - 1
    assert rows[1]["question"] not in [marked.texts[id] for id in marked.asked]


def test_a_report_says_that_they_are_made() -> None:
    questions = make_questions(store()).to_questions()
    assert any("made from the documents" in note for note in questions.notes())
    assert questions.fields[questions.asked[0]]["made"] == "link"
    with pytest.raises(ConfigurationError, match="no question has a relevant document"):
        make_questions(empty()).to_questions()
