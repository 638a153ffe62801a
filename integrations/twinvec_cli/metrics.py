"""Retrieval metrics as defined by trec_eval (and thus by BEIR and pytrec_eval)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def ndcg_at_k(ranking: Sequence[str], grades: Mapping[str, int], k: int = 10) -> float:
    """Return the normalised discounted cumulative gain of one query, from 0 to 1.

    DCG = sum over ranks r = 1..k of grade / log2(r + 1), divided by the DCG of the best possible ranking
    (trec_eval's ndcg_cut: the gain is the grade itself).

    Args:
        ranking: document ids, best first, without duplicates.
        grades: grade of each judged document; other documents, and grades below 1, count as not relevant.
        k: number of ranks that count.

    Returns:
        0.0 if nothing is relevant.
    """
    ideal = _dcg(sorted((max(grade, 0) for grade in grades.values()), reverse=True)[:k])
    return _dcg([max(grades.get(document, 0), 0) for document in ranking[:k]]) / ideal if ideal else 0.0


def recall_at_k(ranking: Sequence[str], grades: Mapping[str, int], k: int = 10) -> float:
    """Return the fraction of relevant documents (grade of at least 1) among the first k; 0.0 if there are none."""
    relevant = {document for document, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranking[:k])) / len(relevant) if relevant else 0.0


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
