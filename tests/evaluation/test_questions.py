"""Questions as people have them, and what is wrong with some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twinvec.errors import ConfigurationError
from twinvec_stores.evaluation import Questions, read_questions

TEXTS = {"q1": "Where is Paris?", "q2": "Где Москва?"}
GRADES = {"q1": {"paris": 2, "france": 1}, "q2": {"moscow": 1}}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def jsonl(folder: Path) -> Path:
    return write(
        folder / "queries.jsonl",
        {"_id": "q1", "text": TEXTS["q1"], "metadata": {"lang": "en"}},
        {"_id": "q2", "text": TEXTS["q2"], "metadata": {"lang": "ru"}},
    )


BEIR = "query-id\tcorpus-id\tscore\nq1\tparis\t2\nq1\tfrance\t1\nq2\tmoscow\t1\n"
TREC = "q1 0 paris 2\nq1 0 france 1\nq2 0 moscow 1\n"


def test_beir(tmp_path: Path) -> None:
    jsonl(tmp_path)
    write(tmp_path / "qrels" / "test.tsv", BEIR)
    found = read_questions(tmp_path)
    assert (found.texts, found.grades) == (TEXTS, GRADES)
    assert {id: fields["lang"] for id, fields in found.fields.items()} == {"q1": "en", "q2": "ru"}


@pytest.mark.parametrize("qrels", [TREC, BEIR, BEIR.partition("\n")[2], "\ufeff" + TREC.replace(" ", "\t")])
def test_jsonl_with_judgements(tmp_path: Path, qrels: str) -> None:
    found = read_questions(jsonl(tmp_path), write(tmp_path / "qrels.tsv", qrels))
    assert (found.texts, found.grades) == (TEXTS, GRADES)


def test_llama_index_dataset(tmp_path: Path) -> None:
    relevant = {id: list(documents) for id, documents in GRADES.items()}
    data = {"queries": TEXTS, "corpus": {"paris": "..."}, "relevant_docs": relevant, "mode": "text"}
    found = read_questions(write(tmp_path / "set.json", data))
    assert found.texts == TEXTS
    assert found.grades == {"q1": {"paris": 1, "france": 1}, "q2": {"moscow": 1}}


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_langsmith_examples(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "q1", "inputs": {"question": TEXTS["q1"]}, "outputs": {"documents": ["paris", "france"]}},
        {"id": "q2", "inputs": {"question": TEXTS["q2"]}, "outputs": {"documents": [{"id": "moscow"}]}},
    ]
    rows[1]["metadata"] = {"lang": "ru"}
    path = write(tmp_path / f"set.{kind}", *([json.dumps(rows)] if kind == "json" else rows))
    found = read_questions(path)
    assert (found.texts, found.fields["q2"]["lang"]) == (TEXTS, "ru")
    assert found.grades == {"q1": {"paris": 1, "france": 1}, "q2": {"moscow": 1}}


@pytest.mark.parametrize(("suffix", "comma"), [(".csv", ","), (".tsv", "\t")])
def test_table(tmp_path: Path, suffix: str, comma: str) -> None:
    rows = [("id", "question", "document", "grade", "lang"), ("q1", TEXTS["q1"], "paris", "2", "en")]
    rows += [("q1", TEXTS["q1"], "france", "", "en"), ("q2", TEXTS["q2"], "moscow", "1", "ru")]
    found = read_questions(write(tmp_path / f"set{suffix}", "\n".join(comma.join(row) for row in rows)))
    assert (found.texts, found.grades, found.fields["q2"]) == (TEXTS, GRADES, {"lang": "ru"})


def test_a_question_without_an_id_is_numbered(tmp_path: Path) -> None:
    found = read_questions(write(tmp_path / "set.csv", "question,document\nWhere?,a\nWho?,c\nWhere?,b\n"))
    assert found.texts == {"q1": "Where?", "q2": "Who?"}
    assert found.grades == {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}}


WRONG: dict[str, tuple[str, str, str]] = {
    "not JSON": ("q.jsonl", '{"_id": 1\n', "line 1: not JSON"),
    "a list": ("q.jsonl", "[1]\n", "line 1: must be an object"),
    "no text": ("q.jsonl", '{"_id": "a", "title": "x"}\n', "line 1: no text"),
    "twice": ("q.jsonl", '{"_id": "a", "text": "a", "ids": ["x"]}\n' * 2, "'a' occurs twice"),
    "no documents": ("q.jsonl", '{"text": "a"}\n', "line 1: lacks the ids of the documents"),
    "a grade of words": ("q.csv", "question,document,grade\na,x,good\n", "'good' is not an integer"),
    "a grade of a half": ("q.csv", "question,document,grade\na,x,0.5\n", "'0.5' is not an integer"),
    "two grades": ("q.csv", "question,document,grade\na,x,1\na,x,2\n", "two grades for the document 'x'"),
    "two texts": ("q.csv", "id,question,document\n1,a,x\n1,b,x\n", "'1' has two texts"),
    "too many cells": ("q.csv", "question,document\na,x,y\n", "more cells than columns"),
    "an empty cell": ("q.csv", "question,document\na,\n", "line 2: needs a question and a document"),
    "another kind": ("q.txt", "a", "BEIR folder"),
    "another object": ("q.json", "{}", "neither a LlamaIndex"),
    "nothing relevant": ("q.csv", "question,document,grade\na,x,0\n", "no question has a relevant document"),
    "nothing at all": ("q.jsonl", "", "no question has a relevant document"),
}


@pytest.mark.parametrize(("name", "content", "message"), WRONG.values(), ids=WRONG)
def test_wrong_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_questions(write(tmp_path / name, content))


def test_wrong_judgements_are_named(tmp_path: Path) -> None:
    questions = jsonl(tmp_path)
    for qrels, message in (
        ("q1 0 paris\nq1 paris\n", "line 2: 2 columns"),
        ("q1 0 paris 1\nq1 0 paris high\n", "line 2: the grade 'high'"),
        ("q9 0 paris 1\n", "'q9': judged, but not among the 2 questions"),
        ("q1 0 paris 0\n", "no question has a relevant document"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            read_questions(questions, write(tmp_path / "qrels.txt", qrels))
    with pytest.raises(ConfigurationError, match="qrels are for a"):
        read_questions(tmp_path / "q.csv", tmp_path / "qrels.txt")
    (tmp_path / "qrels").mkdir()
    with pytest.raises(ConfigurationError, match=r"has no test\.tsv"):
        read_questions(tmp_path)


def test_what_a_reader_should_know_is_noted() -> None:
    texts = {"a": "same", "b": "same", "c": "other"}
    notes = Questions(texts, {"a": {"x": 3, "y": -1}, "b": {"x": 1}, "c": {"x": 0}}).notes()
    assert [note.split(":")[0] for note in notes] == [
        "1 of 3 questions have no relevant document",
        "1 grades below 0 count as not relevant",
        "grades go up to 3",
        "1 questions repeat the text of another one",
    ]


@pytest.mark.parametrize(
    ("texts", "grades", "message"),
    [
        ({"a": " "}, {"a": {"x": 1}}, "question 'a' has no text"),
        ({"a": "x"}, {"a": {"x": 0.5}}, "0.5 is not an integer"),
        ({"a": "x"}, {"a": {"x": True}}, "True is not an integer"),
    ],
)
def test_wrong_values_are_named(texts: Any, grades: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Questions(texts, grades)
