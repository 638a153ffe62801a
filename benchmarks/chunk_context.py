"""What headings before a chunk change: long descriptions of the packages installed here, found by their summaries.

A query is what a person asks about a page's subject, a package's one-line summary; its document is that package's long
description in Markdown, without the summary. Rankings are of documents (``group_by``). Nothing is tuned here.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

from twinvec import Embedder
from twinvec_stores import Document, HybridIndex, MemoryStore, StoreConfig, ingest

_LEAST = 3000  # characters of a long document
_MODES = ("hybrid", "dense", "sparse")
_WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunks": {"chunk_tokens": 128},
    "chunks under headings": {"chunk_tokens": 128, "chunk_context": "headings"},
}


def collection() -> tuple[list[Document], dict[str, str]]:
    """Return documents, and queries by the id of the document that answers them."""
    documents, queries = {}, {}
    for distribution in distributions():
        facts: Any = distribution.metadata
        name, summary = facts["Name"], facts["Summary"]
        body = facts.get_payload() or facts["Description"]
        if isinstance(body, str) and summary and len(body) > _LEAST and "# " in body:
            documents[name] = Document(name, body.replace(summary, ""))
            queries[name] = summary
    return list(documents.values()), queries


def ndcg(rank: int | None) -> float:
    """Return nDCG@10 where one document is relevant."""
    return 0.0 if rank is None else 1 / np.log2(rank + 2)


def scores(index: HybridIndex, queries: dict[str, str], mode: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the nDCG@10 of each query, by document."""
    found = index.search_many(list(queries.values()), k=10, mode=mode, group_by="document")  # type: ignore[arg-type]
    names = [[result.record.provenance["document"] for result in results] for results in found]
    ranks = [ids.index(name) if name in ids else None for name, ids in zip(queries, names, strict=True)]
    return np.array([ndcg(rank) for rank in ranks])


def interval(differences: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """Return the paired bootstrap's 95% interval of a mean."""
    draw = np.random.default_rng(0)
    means = draw.choice(differences, (10_000, len(differences))).mean(axis=1)
    return [round(float(value), 4) for value in np.percentile(means, [2.5, 97.5])]


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "chunk-context.json")
    arguments = parser.parse_args()
    documents, queries = collection()
    measured: dict[str, Any] = {}
    with Embedder(arguments.model, sparse="bm25") as embedder:
        for name, options in _WAYS.items():
            index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
            ingest(documents, embedder, index.store, **options)
            measured[name] = {mode: scores(index, queries, mode) for mode in _MODES}
    result: dict[str, Any] = {"documents": len(documents), "queries": len(queries), "ndcg@10": {}, "against chunks": {}}
    for name, modes in measured.items():
        result["ndcg@10"][name] = {mode: round(float(rows.mean()), 4) for mode, rows in modes.items()}
        if name != "chunks":
            result["against chunks"][name] = {
                mode: interval(rows - measured["chunks"][mode]) for mode, rows in modes.items()
            }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
