"""Retrieval measures, computed by ir-measures (``pip install 'twinvec[eval]'``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twinvec.errors import ConfigurationError
from twinvec_stores.evaluation.statistics import Floats

DEFAULT = ("nDCG@10", "R@10", "RR@10", "Success@5")
_WORDS = {"ndcg": "nDCG", "recall": "R", "mrr": "RR", "success": "Success", "precision": "P", "map": "AP"}


class Measures:
    """Measures by name: nDCG@10, R@10 (or recall@10), RR@10 (or MRR@10), Success@5, P@5, AP@100 ...

    Raises:
        ConfigurationError: a name is unknown, or lacks its cutoff.
    """

    def __init__(self, names: Sequence[str] = DEFAULT) -> None:
        self._library = _library()
        self._measures = [self._parse(name) for name in names]
        if not self._measures:
            raise ConfigurationError("no measures")
        self.names = [str(measure) for measure in self._measures]
        self.depth = max(int(measure["cutoff"]) for measure in self._measures)

    def score(
        self, grades: Mapping[str, Mapping[str, int]], rankings: Mapping[str, Sequence[str]], asked: Sequence[str]
    ) -> dict[str, Floats]:
        """Return measure -> float64 [len(asked)], one score per question.

        Args:
            grades: question id -> document id -> grade.
            rankings: question id -> document ids, best first.
            asked: the questions, in the order of the scores.
        """
        # the ranking's own order, whatever its scores: trec_eval breaks ties by descending id
        run = {id: {document: float(-rank) for rank, document in enumerate(rankings[id])} for id in asked}
        judged = {id: dict(grades[id]) for id in asked}
        found = {(str(m.measure), m.query_id): m.value for m in self._library.iter_calc(self._measures, judged, run)}
        return {name: np.array([found.get((name, id), 0.0) for id in asked]) for name in self.names}

    def _parse(self, name: str) -> Any:
        word, _, cutoff = name.partition("@")
        try:
            measure = self._library.parse_measure(f"{_WORDS.get(word.lower(), word)}@{cutoff}" if cutoff else word)
            if int(measure["cutoff"]) < 1:
                raise ValueError
        except (NameError, ValueError, TypeError, KeyError, SyntaxError):
            raise ConfigurationError(f"{name!r} is not a measure with a cutoff, such as {', '.join(DEFAULT)}") from None
        return measure


def _library() -> Any:
    try:
        import ir_measures
    except ModuleNotFoundError:
        raise ConfigurationError("measures come from ir-measures: pip install 'twinvec[eval]'") from None
    return ir_measures
