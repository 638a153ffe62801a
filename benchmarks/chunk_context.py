"""What a chunk's context changes, on long documents of two kinds; rankings are of documents (``group_by``).

"subjects": long descriptions of the packages installed here, found by their one-line summaries, which are left out of
them: short questions about what a page is about. "details": a folder in BEIR's layout whose documents join several
answers, found by the questions of one of them. With ``--pages`` both are questions about the pages of a file of
``manual_pages.py``. Nothing is tuned here.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twinvec import Embedder
from twinvec.errors import TruncationWarning
from twinvec_stores import Document, HybridIndex, MemoryStore, StoreConfig, ingest

_LEAST, _MOST = 3000, 5000  # characters of a package's description
_MODES = ("hybrid", "dense", "sparse")
_WAYS: dict[str, dict[str, Any]] = {
    "truncated": {},
    "chunks": {},
    "headings": {"chunk_context": "headings"},
    "document": {"chunk_context": "document"},
    "late": {"chunk_context": "late"},
}
Scores = np.ndarray[Any, np.dtype[np.float64]]


class Questions(NamedTuple):
    """Questions of one kind, and the id of the one document that answers each."""

    queries: list[str]
    answers: list[str]


class Collection(NamedTuple):
    """Documents, and kinds of questions about them."""

    documents: list[Document]
    questions: dict[str, Questions]


def subjects(most: int) -> Collection:
    """Return the long descriptions of installed packages, the first so many by name, and their summaries."""
    found: dict[str, tuple[Document, str]] = {}
    for distribution in distributions():
        facts: Any = distribution.metadata
        name, summary = facts["Name"], facts["Summary"]
        body = facts.get_payload() or facts["Description"]
        if isinstance(body, str) and summary and _LEAST < len(body) < _MOST and "# " in body:
            found[name.lower()] = Document(name, body.replace(summary, "")), summary
    chosen = [found[name] for name in sorted(found)[:most]]
    documents = [document for document, _ in chosen]
    answers = [str(document.id) for document in documents]
    return Collection(documents, {"subjects": Questions([summary for _, summary in chosen], answers)})


def pages(path: Path) -> Collection:
    """Return the pages of a file of ``manual_pages.py``, and both questions that each answers."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    documents = [Document(row["id"], row["text"], {"title": row["title"]}) for row in rows]
    asked = {kind: [row[name] for row in rows] for kind, name in (("details", "detail"), ("subjects", "query"))}
    answers = [row["id"] for row in rows]
    return Collection(documents, {kind: Questions(queries, answers) for kind, queries in asked.items()})


def details(folder: Path, most: int) -> Collection:
    """Return a collection in BEIR's layout: its first so many documents, and the questions that they answer."""
    rows, questions = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("corpus", "queries")
    )
    pairs = [line.split("\t") for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    text = {row["_id"]: row["text"] for row in questions}
    documents = [Document(row["_id"], row["text"]) for row in rows[:most]]
    known = {document.id for document in documents}
    pairs = [pair for pair in pairs if pair[1] in known]
    asked = Questions([text[query] for query, *_ in pairs], [answer for _, answer, *_ in pairs])
    return Collection(documents, {"details": asked})


def scores(index: HybridIndex, questions: Questions, mode: Any) -> Scores:
    """Return the nDCG@10 of each query, by document, where one is relevant."""
    found = index.search_many(questions.queries, k=10, mode=mode, group_by="document")
    names = [[result.record.provenance["document"] for result in results] for results in found]
    ranks = [ids.index(name) if name in ids else None for name, ids in zip(questions.answers, names, strict=True)]
    return np.array([0.0 if rank is None else 1 / np.log2(rank + 2) for rank in ranks])


def interval(differences: Scores) -> list[float]:
    """Return the paired bootstrap's 95% interval of a mean."""
    draw = np.random.default_rng(0)
    means = [differences[draw.integers(0, len(differences), len(differences))].mean() for _ in range(10_000)]
    return [round(float(value), 4) for value in np.percentile(means, [2.5, 97.5])]


def measure(collection: Collection, embedder: Embedder, chunk_tokens: int, ways: Sequence[str]) -> dict[str, Any]:
    """Return each way's scores, and the intervals of its differences from truncated documents and plain chunks."""
    found: dict[str, Any] = {
        kind: {"documents": len(collection.documents), "queries": len(questions.queries)}
        for kind, questions in collection.questions.items()
    }
    measured: dict[tuple[str, str], dict[str, Scores]] = {}
    for name in ways:
        index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
        start, tokens = time.monotonic(), embedder.stats()["tokens"]
        chunks = None if name == "truncated" else chunk_tokens
        report = ingest(collection.documents, embedder, index.store, chunk_tokens=chunks, **_WAYS[name])
        cost = {"records": report.records, "tokens": embedder.stats()["tokens"] - tokens}
        for kind, questions in collection.questions.items():
            own = measured[kind, name] = {mode: scores(index, questions, mode) for mode in _MODES}
            row = found[kind][name] = {**cost, "ndcg@10": {m: round(float(rows.mean()), 4) for m, rows in own.items()}}
            for other in ("truncated", "chunks"):
                if other != name and (against := measured.get((kind, other))) is not None:
                    row[f"minus {other}, 95%"] = {m: interval(rows - against[m]) for m, rows in own.items()}
            print(kind, name, json.dumps(row), f"{time.monotonic() - start:.0f} s", flush=True)
    return found


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--name", required=True, help="of the model, for the file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--details", type=Path, help="a folder in BEIR's layout")
    source.add_argument("--pages", type=Path, help="both kinds of questions, in place of those")
    parser.add_argument("--ways", nargs="+", choices=list(_WAYS), default=list(_WAYS))
    parser.add_argument("--documents", type=int, nargs=2, default=(116, 150), help="of details and of subjects")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--chunk-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=json.loads)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "chunk-context.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", TruncationWarning)  # it is one of the ways
    options = {"prompts": arguments.prompts, "max_length": arguments.max_length, "dtype": arguments.dtype}
    with Embedder(arguments.model, sparse="bm25", **options) as embedder:
        result: dict[str, Any] = {
            "model": arguments.name,
            "max_length": embedder.max_length,
            "dtype": embedder.spec.dtype,
            "chunk_tokens": arguments.chunk_tokens,
        }
        long, short = arguments.documents
        if arguments.pages is not None:
            collections = [pages(arguments.pages)]
        else:
            collections = [details(arguments.details, long), subjects(short)]
        for collection in collections:
            result |= measure(collection, embedder, arguments.chunk_tokens, arguments.ways)
            arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
