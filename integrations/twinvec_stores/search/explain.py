"""Search results, and why each of them was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from twinvec import SparseBatch, SparseVector
from twinvec.flows import on_thread
from twinvec_stores.records import Hit, Record

if TYPE_CHECKING:
    from twinvec_stores.search.searching import Found, Searching


@dataclass(frozen=True)
class Explanation:
    """Why a record was found.

    Attributes:
        dense_score: cosine with the query; None if the mode is "sparse".
        sparse_score: dot product over common terms, with idf if the store has it; None if the mode is "dense".
        dense_rank: position in the dense ranking, from 1; None if it is not among the first ``fetch_k``.
        sparse_rank: position in the sparse ranking, from 1.
        rerank_score: the reranker's score, if there was one.
        rerank_rank: position in the reranker's order, from 1.
        terms: (term, weight in the query, weight in the record) of the common terms, most important first.
    """

    dense_score: float | None = None
    sparse_score: float | None = None
    dense_rank: int | None = None
    sparse_rank: int | None = None
    rerank_score: float | None = None
    rerank_rank: int | None = None
    terms: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True)
class Result:
    """One record found.

    Attributes:
        record: the record, with its text, metadata and provenance.
        score: score in the ranking, with ``rerank`` that of the reranker; higher is better. Comparable within one query
            and one way of searching.
        explanation: if requested.
        context: with ``expand``, a chunk's text together with that of its neighbours.
        fused_score: with ``rerank``, the score before reranking.
    """

    record: Record
    score: float
    explanation: Explanation | None = None
    context: str | None = None
    fused_score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types, omitting what it does not have."""
        record, why = self.record, self.explanation
        optional = {
            "provenance": record.provenance or None,
            "explanation": None if why is None else {**asdict(why), "terms": [list(term) for term in why.terms]},
            "context": self.context,
            "fused_score": self.fused_score,
        }
        facts = {"id": record.id, "score": self.score, "text": record.text, "metadata": record.metadata}
        return {**facts, **{name: value for name, value in optional.items() if value is not None}}


async def explain(
    searching: Searching, found: Found, hits: Sequence[Hit], records: Mapping[str, Record]
) -> dict[str, Explanation]:
    """Explain, as a flow, why hits were found; the records come with their vectors."""
    query, ids = found.query, [hit.id for hit in hits]
    scores = [
        {} if half is None else dict(await searching.completed(half, ranking, ids))
        for half, ranking in ((query.dense, found.dense), (query.sparse, found.sparse))
    ]
    ranks = [{hit.id: rank for rank, hit in enumerate(ranking, 1)} for ranking in (found.dense, found.sparse)]
    reranked = {hit.id: (hit.score, rank) for rank, hit in enumerate(found.best, 1) if found.fused is not None}
    explained = {}
    for id in ids:
        rerank_score, rerank_rank = reranked.get(id, (None, None))
        row = records[id].sparse
        terms: tuple[tuple[str, float, float], ...] = ()
        if query.sparse is not None and row is not None:
            terms = await _terms(searching, query.sparse.vector, row)
        explained[id] = Explanation(
            dense_score=scores[0].get(id),
            sparse_score=scores[1].get(id, 0.0) if query.sparse is not None else None,
            dense_rank=ranks[0].get(id),
            sparse_rank=ranks[1].get(id),
            rerank_score=rerank_score,
            rerank_rank=rerank_rank,
            terms=terms,
        )
    return explained


async def _terms(
    searching: Searching, query: SparseVector, record: SparseVector
) -> tuple[tuple[str, float, float], ...]:
    keys, in_query, in_record = np.intersect1d(query.indices, record.indices, return_indices=True)
    weights = list(zip(query.values[in_query].tolist(), record.values[in_record].tolist(), strict=True))
    order = sorted(range(len(keys)), key=lambda i: -weights[i][0] * weights[i][1])
    rows = SparseBatch.from_dicts([{int(keys[i]): 1.0} for i in order])
    names = await on_thread(searching.embedder.token_weights, rows)
    return tuple((next(iter(name)), *weights[i]) for name, i in zip(names, order, strict=True))
