"""The third stage of a search: a model that reads query and text together reorders the first candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from twinvec.errors import ConfigurationError
from twinvec.flows import call
from twinvec_stores.records import Hit
from twinvec_stores.search.fusion import ranked

if TYPE_CHECKING:
    from twinvec_stores.search.searching import Found, Searching


async def rerank(searching: Searching, found: Sequence[Found]) -> list[Found]:
    """Return, as a flow, each query's first ``rerank_k`` candidates in the reranker's order; all pairs in one call."""
    reranker, options = searching.options.rerank, searching.options
    assert reranker is not None
    candidates = [each.best[: options.rerank_k] for each in found]
    records = await searching.records(list({hit.id: hit for hits in candidates for hit in hits}.values()))
    candidates = [[hit for hit in hits if hit.id in records] for hits in candidates]
    pairs = [(_words(each), records[hit.id].text) for each, hits in zip(found, candidates, strict=True) for hit in hits]
    scores = iter((await call(reranker.score, reranker.ascore, pairs)).tolist())
    least = options.min_rerank if options.min_rerank is not None else float("-inf")
    return [
        replace(
            each,
            best=ranked([hit for hit in (Hit(hit.id, next(scores)) for hit in hits) if hit.score >= least]),
            fused={hit.id: hit.score for hit in hits},
        )
        for each, hits in zip(found, candidates, strict=True)
    ]


def _words(found: Found) -> str:
    if found.query.text is None:
        raise ConfigurationError("rerank reads the words of a query: pass texts= to search_vectors")
    return found.query.text
