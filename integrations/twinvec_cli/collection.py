"""A retrieval collection in BEIR layout, and the one that ships with the package."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FAQ = Path(__file__).parent / "data" / "faq"


@dataclass(frozen=True)
class Collection:
    """Documents, queries, and which document answers which query.

    Attributes:
        documents: id -> text.
        queries: id -> text.
        qrels: query id -> document id -> grade.
    """

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]

    @classmethod
    def read(cls, folder: Path = FAQ) -> Collection:
        """Read ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/test.tsv``."""
        qrels: dict[str, dict[str, int]] = {}
        with (folder / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
        return cls(_texts(folder / "corpus.jsonl"), _texts(folder / "queries.jsonl"), qrels)


def _texts(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {row["_id"]: row["text"] for row in rows}
