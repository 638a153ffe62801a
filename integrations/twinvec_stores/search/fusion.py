"""Fusion: merging a dense and a sparse ranking into one, and diversity within it. Pure functions of scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from twinvec.errors import ConfigurationError
from twinvec.vectors import Float32
from twinvec_stores.records import Hit

Method = Literal["rrf", "weighted", "relative", "dbsf"]

_WEIGHTS: dict[Method, tuple[float, float]] = {
    "rrf": (1.0, 1.0),
    "weighted": (1.0, 0.3),
    "relative": (0.65, 0.35),
    "dbsf": (1.0, 1.0),
}


@dataclass(frozen=True)
class Fusion:
    """How to merge a dense and a sparse ranking; ties are broken by id.

    Attributes:
        method: what each ranking contributes to a record's score, before its weight:

            - "rrf": 1 / (rrf_k + rank), rank from 1 (Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion
              outperforms Condorcet and individual Rank Learning Methods").
            - "weighted": the score itself (``compute_scores`` of the GTE multilingual reference script). A record found
              by only one ranking is scored for the other one, too.
            - "relative": the score, shifted and scaled so that the worst of the ranking is 0 and the best is 1; 1 if
              all are equal.
            - "dbsf": (score - low) / (high - low) with low, high = mean -+ 3 sample standard deviations of the
              ranking's scores; 0.5 if all are equal (distribution-based score fusion, as in Qdrant).

            A record missing from a ranking gets 0 from it (with "weighted" none is missing).
        dense_weight: factor of the dense contributions; None: the method's default.
        sparse_weight: factor of the sparse contributions; None: the method's default. The defaults are 1 and 1, except
            for "weighted": 1 and 0.3, the example on GTE's model card (its script has 0.1), and "relative": 0.65 and
            0.35, chosen by one half of the questions about nine Russian, Chinese and English collections, and measured
            on the other; see docs/numbers.md.
        rrf_k: for "rrf": the larger it is, the less the top ranks stand out.
    """

    method: Method = "relative"
    dense_weight: float | None = None
    sparse_weight: float | None = None
    rrf_k: int = 60

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigurationError(f"fusion {self.method!r} is not one of {', '.join(get_args(Method))}")
        for name, weight in zip(("dense_weight", "sparse_weight"), _WEIGHTS[self.method], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, weight)
        for name in ("dense_weight", "sparse_weight", "rrf_k"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ConfigurationError(f"{name}={value!r} must be a number of at least 0")
        if self.dense_weight == self.sparse_weight == 0:
            raise ConfigurationError("dense_weight and sparse_weight must not both be 0")

    def fuse(self, dense: Sequence[Hit], sparse: Sequence[Hit]) -> list[Hit]:
        """Return all records of both rankings, best first.

        Args:
            dense: best first, without duplicate ids.
            sparse: the same for the other half.
        """
        scores: dict[str, float] = {}
        assert self.dense_weight is not None
        assert self.sparse_weight is not None
        for ranking, weight in ((dense, self.dense_weight), (sparse, self.sparse_weight)):
            for hit, part in zip(ranking, self.scaled([hit.score for hit in ranking]), strict=True):
                scores[hit.id] = scores.get(hit.id, 0.0) + weight * part
        return ranked(Hit(id, score) for id, score in scores.items())

    def scaled(self, scores: list[float]) -> list[float]:
        """Return what each record of a ranking contributes before weighting, in the ranking's order."""
        if self.method == "weighted" or not scores:
            return scores
        if self.method == "rrf":
            return [1 / (self.rrf_k + rank) for rank in range(1, len(scores) + 1)]
        if self.method == "relative":
            low, high = min(scores), max(scores)
            return [(score - low) / (high - low) if high > low else 1.0 for score in scores]
        mean = math.fsum(scores) / len(scores)
        deviation = (
            math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) if len(scores) > 1 else 0.0
        )
        return [0.5 + (score - mean) / (6 * deviation) if deviation > 0 else 0.5 for score in scores]


def ranked(hits: Iterable[Hit]) -> list[Hit]:
    """Return hits best first, ties by id."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))


def diversify(relevance: Sequence[float], vectors: Float32, k: int, relevance_weight: float) -> list[int]:
    """Choose k rows that are relevant and different from each other, best first.

    Maximal marginal relevance (Carbonell and Goldstein 1998): the next row is the one with the highest
    relevance_weight * relevance - (1 - relevance_weight) * (highest cosine with a row chosen before).

    Args:
        relevance: score of each row; ties go to the earlier row.
        vectors: float32 [n, dim] of length 1.
        k: number of rows to choose; all if there are fewer.
        relevance_weight: 1 for relevance only, 0 for diversity only.

    Returns:
        Positions of the chosen rows.
    """
    gain = relevance_weight * np.asarray(relevance, dtype=np.float64)
    nearest = np.full(len(gain), -np.inf)
    chosen: list[int] = []
    while len(chosen) < min(k, len(gain)):
        penalty = (1 - relevance_weight) * nearest if chosen else 0.0
        value = gain - penalty
        value[chosen] = -np.inf
        best = int(np.argmax(value))
        chosen.append(best)
        nearest = np.maximum(nearest, vectors.astype(np.float64) @ vectors[best])
    return chosen
