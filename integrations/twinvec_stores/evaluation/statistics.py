"""Paired comparisons: how large a difference is, how certain, and for how many questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
RESAMPLES = 10_000
_BLOCK = 500  # resamples per block: 500 x questions numbers


@dataclass(frozen=True)
class Comparison:
    """The difference between two ways, question by question.

    Attributes:
        difference: difference of the means.
        low, high: ends of its 95% interval (percentile bootstrap over questions).
        p: how often a difference at least as large results from randomly exchanging both ways' scores (two-sided
            permutation test).
        wins, losses, ties: numbers of questions.
    """

    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int
    ties: int

    @property
    def p_value(self) -> str:
        """Return p as it is written: "p 0.012", "p < 0.001"."""
        return f"p {self.p:.3f}" if self.p >= 0.001 else "p < 0.001"

    @property
    def significant(self) -> bool:
        """Return whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def compare(scores: Floats, baseline: Floats, *, seed: int = 0) -> Comparison:
    """Compare two ways by their scores on the same questions.

    Bootstrap after Sakai 2006 ("Evaluating evaluation metrics based on the bootstrap"), permutation after Smucker,
    Allan and Carterette 2007 ("A comparison of statistical significance tests for information retrieval evaluation").

    Args:
        scores: float [n], one score per question.
        baseline: float [n], for the same questions in the same order.
        seed: seed of the 10,000 resamples of each test.
    """
    differences = np.asarray(scores, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    n = len(differences)
    random = np.random.default_rng(seed)
    observed = float(differences.mean())
    means, extreme = [], 0
    for _ in range(RESAMPLES // _BLOCK):
        means.append(differences[random.integers(0, n, (_BLOCK, n))].mean(axis=1))
        signs = random.integers(0, 2, (_BLOCK, n)) * 2 - 1
        extreme += int(np.sum(np.abs((signs * differences).mean(axis=1)) >= abs(observed) - 1e-12))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Comparison(
        difference=observed,
        low=float(low),
        high=float(high),
        p=(extreme + 1) / (RESAMPLES + 1),
        wins=int(np.sum(differences > 0)),
        losses=int(np.sum(differences < 0)),
        ties=int(np.sum(differences == 0)),
    )
