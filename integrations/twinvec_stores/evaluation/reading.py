"""Questions in common formats: BEIR folders, TREC qrels, tables, LlamaIndex and LangSmith data sets."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twinvec.errors import ConfigurationError
from twinvec_stores.evaluation.questions import Questions

_ID = ("_id", "id", "query_id", "query-id", "qid")
_TEXT = ("text", "query", "question", "input")
_DOCUMENT = ("document", "document_id", "corpus-id", "doc_id", "docid", "documents", "document_ids", "ids", "relevant")
_GRADE = ("score", "grade", "relevance", "rel")
_TREC_COLUMNS = 4
Grades = dict[str, dict[str, int]]


def read_questions(path: str | os.PathLike[str], qrels: str | os.PathLike[str] | None = None) -> Questions:
    """Read judged questions.

    Args:
        path: one of

            - a folder in BEIR format: ``queries.jsonl`` and ``qrels/test.tsv``, or the only file in ``qrels``;
            - ``.jsonl``: one object per line with ``_id`` and ``text`` (or query, question); other keys become fields.
              The documents are in ``qrels``, or in the line: ``"documents": ["id", ...]``. LangSmith's examples have
              them in ``outputs`` and the question in ``inputs``;
            - ``.json``: LlamaIndex's ``EmbeddingQAFinetuneDataset``, or a list of LangSmith examples;
            - ``.csv``, ``.tsv``: one line per pair, with the columns question and document, and optionally grade; other
              columns become fields.

            Questions without an id are numbered.
        qrels: judgements for a ``.jsonl``: TREC's four columns (question, 0, document, grade), or BEIR's three.

    Raises:
        ConfigurationError: the content is invalid; names file and line.
        OSError: a file cannot be read.
    """
    where = Path(path)
    if where.is_dir():
        return Questions(*_jsonl(where / "queries.jsonl", need_documents=False, judged=_qrels(_qrels_of(where))))
    if qrels is not None and where.suffix not in (".jsonl", ".ndjson"):
        raise ConfigurationError(f"{where}: qrels are for a .jsonl of questions; this format contains its judgements")
    if where.suffix in (".jsonl", ".ndjson"):
        judged = None if qrels is None else _qrels(Path(qrels))
        return Questions(*_jsonl(where, need_documents=qrels is None, judged=judged))
    if where.suffix == ".json":
        return _json(where)
    if where.suffix in (".csv", ".tsv"):
        return _table(where)
    raise ConfigurationError(f"{where}: questions must be a BEIR folder, .jsonl, .json, .csv or .tsv")


def _qrels_of(folder: Path) -> Path:
    if (usual := folder / "qrels" / "test.tsv").exists():
        return usual
    found = sorted((folder / "qrels").glob("*.tsv"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ConfigurationError(f"{folder}/qrels has no test.tsv ({names}): pass the file as qrels")
    return found[0]


def _qrels(path: Path) -> Grades:
    grades: Grades = {}
    for number, line in enumerate(_lines(path), 1):
        parts = line.split("\t") if line.count("\t") in (2, 3) else line.split()
        if len(parts) not in (_TREC_COLUMNS - 1, _TREC_COLUMNS):
            raise ConfigurationError(f"{path}, line {number}: {len(parts)} columns; qrels have 3 (BEIR) or 4 (TREC)")
        question, document, grade = parts[0], parts[-2], parts[-1].strip()
        if number == 1 and not _is_whole(grade):  # the header
            continue
        _judge(grades, question, document, _whole(grade, f"{path}, line {number}"), f"{path}, line {number}")
    return grades


def _jsonl(
    path: Path, *, need_documents: bool, judged: Grades | None
) -> tuple[dict[str, str], Grades, dict[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            rows.append((where, json.loads(line)))
        except ValueError as error:
            raise ConfigurationError(f"{where}: not JSON ({error})") from None
    return _questions(rows, need_documents=need_documents, judged=judged)


def _json(path: Path) -> Questions:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path}: not JSON ({error})") from None
    if isinstance(data, dict) and {"queries", "relevant_docs"} <= set(data):
        return Questions(data["queries"], {id: dict.fromkeys(found, 1) for id, found in data["relevant_docs"].items()})
    if isinstance(data, list):
        rows = [(f"{path}, example {number}", row) for number, row in enumerate(data, 1)]
        return Questions(*_questions(rows, need_documents=True, judged=None))
    raise ConfigurationError(
        f"{path}: neither a LlamaIndex EmbeddingQAFinetuneDataset (queries, relevant_docs) nor a list of examples"
    )


def _questions(
    rows: list[tuple[str, Any]], *, need_documents: bool, judged: Grades | None
) -> tuple[dict[str, str], Grades, dict[str, dict[str, Any]]]:
    texts: dict[str, str] = {}
    grades: Grades = dict(judged or {})
    fields: dict[str, dict[str, Any]] = {}
    for where, row in rows:
        if not isinstance(row, dict):
            raise ConfigurationError(f"{where}: must be an object, not {type(row).__name__}")
        flat = _flat(row)
        text = _take(flat, _TEXT)
        if not isinstance(text, str):
            raise ConfigurationError(f"{where}: no text ({', '.join(_TEXT)}); its keys: {', '.join(row)}")
        id = str(_take(flat, _ID) or f"q{len(texts) + 1}")
        if id in texts:
            raise ConfigurationError(f"{where}: the question {id!r} occurs twice")
        texts[id] = text
        documents = _take(flat, _DOCUMENT)
        if need_documents:
            grades[id] = _documents(documents, where)
        fields[id] = {name: value for name, value in flat.items() if isinstance(value, (str, int, float, bool))}
    return texts, grades, fields


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a LangSmith example's inputs, outputs and metadata merged with its own keys."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= value if name in ("inputs", "outputs", "metadata") and isinstance(value, dict) else {name: value}
    return flat


def _documents(found: Any, where: str) -> dict[str, int]:
    if isinstance(found, dict):  # id -> grade
        return {str(id): _whole(grade, where) for id, grade in found.items()}
    listed = found if isinstance(found, list) else [] if found is None else [found]
    ids = [_take(dict(item), _ID) if isinstance(item, dict) else item for item in listed]
    if not ids or not all(isinstance(id, (str, int)) for id in ids):
        raise ConfigurationError(
            f"{where}: lacks the ids of the documents that answer it ({', '.join(_DOCUMENT)}), or qrels"
        )
    return {str(id): 1 for id in ids}


def _table(path: Path) -> Questions:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    texts: dict[str, str] = {}
    grades: Grades = {}
    fields: dict[str, dict[str, Any]] = {}
    numbers: dict[str, str] = {}  # text -> id, for questions without one
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise ConfigurationError(f"{where}: more cells than columns")
            text, document = _take(row, _TEXT), _take(row, _DOCUMENT)
            if not text or not document:
                raise ConfigurationError(f"{where}: needs a question and a document; columns: {', '.join(row)}")
            id = _take(row, _ID) or numbers.setdefault(text, f"q{len(numbers) + 1}")
            grade = _take(row, _GRADE)
            if texts.setdefault(id, text) != text:
                raise ConfigurationError(f"{where}: the question {id!r} has two texts")
            _judge(grades, id, document, 1 if not grade else _whole(grade, where), where)
            fields[id] = row
    return Questions(texts, grades, fields)


def _take(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Remove and return the value under the first of some names that the row has."""
    return next((row.pop(name) for name in names if name in row), None)


def _judge(grades: Grades, question: str, document: str, grade: int, where: str) -> None:
    judged = grades.setdefault(question, {})
    if judged.setdefault(document, grade) != grade:
        raise ConfigurationError(f"{where}: question {question!r} has two grades for the document {document!r}")


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not _is_whole(str(value)):
        raise ConfigurationError(f"{where}: the grade {value!r} is not an integer")
    return int(value)


def _is_whole(text: str) -> bool:
    return text.strip().removeprefix("-").isascii() and text.strip().removeprefix("-").isdigit()


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        try:
            yield from (line.rstrip("\r\n") for line in file if line.strip())
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path}: not UTF-8 ({error})") from None
