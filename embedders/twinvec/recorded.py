"""Scores that a team records of its own model, to compare with after an upgrade."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twinvec.embedder import Embedder
from twinvec.errors import ConfigurationError
from twinvec.families import Published
from twinvec.reranker import Reranker
from twinvec.verify import SCORES, verify

_QUERIES = ("what is the capital of France?", "как отсортировать список", "中国的首都在哪儿")
_DOCUMENTS = ("Paris is the capital of France.", "Списки сортирует sorted().", "北京是中国的首都", "42")


def record_scores(model: Embedder | Reranker, path: str | os.PathLike[str]) -> None:
    """Write a model's scores of a few texts, for ``read_scores``.

    Raises:
        ConfigurationError: the Embedder does not use all dimensions.
    """
    halves = ["logit"] if isinstance(model, Reranker) else ["dense"] * (model.dim is not None)
    if isinstance(model, Embedder) and model.spec.sparse == "head":
        halves.append("sparse")
    empty = ((0.0,) * len(_DOCUMENTS),) * len(_QUERIES)
    source = f"recorded in {model.spec.dtype}"
    card = Published(source, _QUERIES, _DOCUMENTS, dict.fromkeys(halves, empty), model=str(model.spec.model))
    computed = {half: [] for half in halves}  # type: dict[str, list[float]]
    for row in verify(model, published=[card]).rows:
        computed[row.half].append(row.computed)
    n = len(_DOCUMENTS)
    scores = {half: [row[i : i + n] for i in range(0, n * len(_QUERIES), n)] for half, row in computed.items()}
    text = json.dumps([{**asdict(card), "scores": scores}], indent=1, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def read_scores(path: str | os.PathLike[str]) -> list[Published]:
    """Read scores: a JSON list of objects with the fields of ``Published``.

    Raises:
        ConfigurationError: the file is missing, or is not such a list.
    """
    try:
        cards = [_card(entry) for entry in json.loads(Path(path).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} has no scores to compare with ({type(error).__name__}: {error}): write it with `twinvec verify "
            "--record`, or as a list of objects with queries, documents and scores (dense, sparse: queries x documents)"
        ) from None
    if not cards:
        raise ConfigurationError(f"{path} is empty: there are no scores to compare with")
    return cards


def _card(entry: dict[str, Any]) -> Published:
    scores = {half: tuple(tuple(map(float, row)) for row in rows) for half, rows in entry["scores"].items()}
    queries, documents = tuple(entry["queries"]), tuple(entry["documents"])
    for half, rows in scores.items():
        if half not in SCORES:
            raise ValueError(f"{half!r} is not one of {', '.join(SCORES)}")
        if [len(row) for row in rows] != [len(documents)] * len(queries):
            raise ValueError(f"{half} is not {len(queries)} queries x {len(documents)} documents")
    others = {name: entry[name] for name in ("task", "model", "roles") if name in entry}
    return Published(str(entry.get("source", "expected")), queries, documents, scores, **others)
