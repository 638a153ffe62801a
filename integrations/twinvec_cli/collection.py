"""A retrieval collection in BEIR format, and the one that ships with TwinVec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

from twinvec.errors import ConfigurationError


@dataclass(frozen=True)
class Collection:
    """Documents, queries, and the documents that answer each query.

    Attributes:
        documents: id -> text.
        queries: id -> text.
        qrels: query id -> document id -> grade.
    """

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]

    @classmethod
    def read(cls, folder: Path) -> Collection:
        """Read ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/test.tsv``."""
        from twinvec_stores.evaluation import read_questions

        questions = read_questions(folder)
        with (folder / "corpus.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return cls({row["_id"]: row["text"] for row in rows}, questions.texts, questions.grades)


def find_faq() -> Path:
    """Return the folder with the answers of the Python and SQLite FAQs: in the checkout, or as installed by pip.

    Raises:
        ConfigurationError: TwinVec was installed without its data.
    """
    checkout = Path(__file__).parents[2] / "benchmarks" / "collections" / "faq"
    installed = (Path(str(file.locate())).parent for file in files("twinvec") or () if file.match("faq/corpus.jsonl"))
    for folder in (checkout, *installed):
        if folder.is_dir():
            return folder
    raise ConfigurationError("the demo's collection is missing: run  pip install --force-reinstall --no-deps twinvec")
