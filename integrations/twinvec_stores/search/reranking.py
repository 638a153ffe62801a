"""The third stage of a search: a model that reads query and text together reorders the first candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from twinvec.errors import ConfigurationError
from twinvec.flows import call
from twinvec_stores.records import Hit
from twinvec_stores.search.fusion import ranked
from twinvec_stores.tokens import unpack_tokens

if TYPE_CHECKING:
    from twinvec.maxsim import MaxSim
    from twinvec_stores.search.searching import Found, Searching


async def rerank(searching: Searching, found: Sequence[Found]) -> list[Found]:
    """Return, as a flow, each query's first ``rerank_k`` candidates in the reranker's order; all pairs in one call."""
    reranker, options = searching.options.rerank, searching.options
    assert reranker is not None
    candidates = [each.best[: options.rerank_k] for each in found]
    maxsim = _reads_kept_tokens(searching)
    chosen = list({hit.id: hit for hits in candidates for hit in hits}.values())
    records = await searching.records(chosen, with_vectors=maxsim is not None)
    candidates = [[hit for hit in hits if hit.id in records] for hits in candidates]
    asked = [(_words(each), records[hit.id]) for each, hits in zip(found, candidates, strict=True) for hit in hits]
    pairs = [(query, record.text) for query, record in asked]
    if maxsim is None:
        values = await call(reranker.score, reranker.ascore, pairs)
    else:
        rows = {id: i for i, id in enumerate(records)}
        tokens = unpack_tokens([record.tokens or b"" for record in records.values()])
        places = [rows[record.id] for _, record in asked]
        values = await call(maxsim.score_tokens, maxsim.ascore_tokens, pairs, tokens, places)
    scores = iter(values.tolist())
    least = options.min_rerank if options.min_rerank is not None else float("-inf")
    return [
        replace(
            each,
            best=ranked([hit for hit in (Hit(hit.id, next(scores)) for hit in hits) if hit.score >= least]),
            fused={hit.id: hit.score for hit in hits},
        )
        for each, hits in zip(found, candidates, strict=True)
    ]


def _reads_kept_tokens(searching: Searching) -> MaxSim | None:
    """Return the reranker if it is MaxSim with the model of the vectors that the store keeps of its texts' tokens."""
    reranker, config = searching.options.rerank, searching.store.config
    if config.token_pool is None:
        return None
    from twinvec.maxsim import MaxSim  # needs torch, which a remote reranker does not

    if type(reranker) is not MaxSim:  # a subclass may read texts in its own way
        return None
    same = (reranker.spec.fingerprint, reranker.embedder.prompt_for("document"))
    return reranker if same == config.identity else None


def _words(found: Found) -> str:
    if found.query.text is None:
        raise ConfigurationError("rerank reads the words of a query: pass texts= to search_vectors")
    return found.query.text
