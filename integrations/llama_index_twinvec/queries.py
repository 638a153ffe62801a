"""LlamaIndex's VectorStoreQuery as a search of a HybridIndex."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery, VectorStoreQueryMode

from llama_index_twinvec.filters import from_llama_index
from llama_index_twinvec.nodes import REF_DOC_ID
from twinvec import EmbeddingBatch, SparseBatch
from twinvec.errors import ConfigurationError
from twinvec.vectors import Float32
from twinvec_stores import And, Filter, Fusion, HasId, In, SearchOptions, parse_filter

_MMR_THRESHOLD = 0.5  # LlamaIndex's own default
_WORDS = {  # terms that LlamaIndex does not use
    "k": "similarity_top_k=",
    "top_k": "similarity_top_k=",
    "filter": "filters=",
    "vector_store_query_mode": "mode=",
    "lambda_mult": "mmr_threshold=",
    "rerank_top_k": "hybrid_top_k=",
    "dense_top_k": "similarity_top_k=, together with hybrid_top_k=",
    "embed_model": "the embedding of the store",
}
_MORE = {field.name for field in fields(SearchOptions)} - {"k", "filter", "mode"}


@dataclass(frozen=True)
class Search:
    """The content of a query.

    Attributes:
        text: the query's text.
        dense: its dense row, float32 [1, dim], if the index has computed it.
        lacks_dense, lacks_sparse: the halves that must be computed from the text.
        options: fields of ``SearchOptions``.
    """

    text: str
    dense: Float32 | None
    lacks_dense: bool
    lacks_sparse: bool
    options: Mapping[str, Any]

    @property
    def lacks(self) -> bool:
        """Return whether anything must be computed."""
        return self.lacks_dense or self.lacks_sparse

    def vectors(self, batch: EmbeddingBatch | None) -> tuple[Float32 | None, SparseBatch | None]:
        """Return the dense and the sparse row, after computing missing ones."""
        if batch is None:
            return self.dense, None
        return (batch.dense if self.lacks_dense else self.dense), batch.sparse


def read_query(query: VectorStoreQuery, fusion: Fusion, /, **more: Any) -> Search:
    """Translate a query.

    Args:
        query: LlamaIndex's query.
        fusion: how HYBRID merges both halves; ``alpha`` replaces its weights.
        more: ``vector_store_kwargs``: mmr_threshold (in mode MMR), and the fields of ``SearchOptions`` except k, filter
            and mode, which override the query's settings.

    Raises:
        ConfigurationError: something cannot be honoured; nothing is silently ignored.
        FilterError: a filter cannot be translated.
    """
    query = replace(query, mode=VectorStoreQueryMode(query.mode))
    for name in ("similarity_top_k", "sparse_top_k", "hybrid_top_k"):
        limit = getattr(query, name)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ConfigurationError(f"{name}={limit!r} must be an integer from 1")
    given = more.pop("fusion", fusion)
    options = _mode(query, given if isinstance(given, Fusion) else Fusion(given))
    if options.get("mmr") is not None:
        options["mmr"] = more.pop("mmr_threshold", options["mmr"])
    if foreign := [f"{name}=: use {_WORDS[name]} instead" for name in more if name in _WORDS]:
        raise ConfigurationError("; ".join(foreign))
    unknown = [*sorted(set(more) - _MORE), *(n for n in ("output_fields", "embedding_field") if getattr(query, n))]
    if unknown:
        raise ConfigurationError(f"{', '.join(unknown)}: not supported by this store in mode {query.mode.name}")
    options = {**options, **more, "filter": _filter(query)}
    dense, sparse = options["mode"] != "sparse", options["mode"] != "dense"
    row = np.array([query.query_embedding], np.float32) if dense and query.query_embedding is not None else None
    lacks_dense = dense and row is None
    if query.query_str is None and (lacks_dense or sparse) and not is_filter_only(query):
        raise ConfigurationError(f"mode {query.mode.name} needs query_str, the text of the query")
    return Search(query.query_str or "", row, lacks_dense, sparse, options)


def is_filter_only(query: VectorStoreQuery) -> bool:
    """Return whether a query has neither text nor vector, so that it asks for matching nodes in no order."""
    restricted = query.filters is not None or query.doc_ids is not None or bool(query.node_ids)
    return restricted and not query.query_str and query.query_embedding is None


def scope_of(filters: MetadataFilters | Mapping[str, Any] | Filter) -> Filter:
    """Return a filter from any form of scope: LlamaIndex's, ``{"tenant": "a"}``, or a Filter."""
    if isinstance(filters, MetadataFilters):
        return from_llama_index(filters)
    return parse_filter(filters) if isinstance(filters, Mapping) else filters


def matching(node_ids: list[str] | None, filters: MetadataFilters | None) -> Filter:
    """Return a filter for nodes with these ids, or that match, or both; for all nodes if both are None."""
    parts: list[Filter] = [] if node_ids is None else [HasId(node_ids)]
    return And(*parts, *([] if filters is None else [from_llama_index(filters)]))


def deletion(node_ids: list[str] | None, filters: MetadataFilters | None) -> Filter:
    """Return the filter for ``delete_nodes``.

    Raises:
        ConfigurationError: nothing was given, which would delete everything.
    """
    if node_ids is None and (filters is None or not filters.filters):
        raise ConfigurationError("delete_nodes needs node_ids or filters; clear() deletes everything")
    return matching(node_ids, filters)


def _mode(query: VectorStoreQuery, fusion: Fusion) -> dict[str, Any]:
    top_k = query.similarity_top_k
    if query.mode == VectorStoreQueryMode.DEFAULT:
        return {"mode": "dense", "k": top_k}
    if query.mode == VectorStoreQueryMode.MMR:
        threshold = _MMR_THRESHOLD if query.mmr_threshold is None else query.mmr_threshold
        return {"mode": "dense", "k": top_k, "mmr": threshold}
    if query.mode == VectorStoreQueryMode.SPARSE:
        return {"mode": "sparse", "k": top_k if query.sparse_top_k is None else query.sparse_top_k}
    if query.mode == VectorStoreQueryMode.HYBRID:
        return _hybrid(query, fusion)
    raise ConfigurationError(
        f"mode {query.mode.name} is not supported by this store: use DEFAULT, SPARSE, HYBRID or MMR"
    )


def _hybrid(query: VectorStoreQuery, fusion: Fusion) -> dict[str, Any]:
    """Return the options of HYBRID; with hybrid_top_k, ``similarity_top_k`` is that of the dense half."""
    alpha, mode = query.alpha, "hybrid"
    if alpha is not None:
        if not 0 <= alpha <= 1:
            raise ConfigurationError(f"alpha={alpha} must be a number from 0 (sparse only) to 1 (dense only)")
        mode = "sparse" if alpha == 0 else "dense" if alpha == 1 else "hybrid"
        fusion = replace(fusion, dense_weight=alpha, sparse_weight=1 - alpha)
    return {
        "mode": mode,
        "k": query.similarity_top_k if query.hybrid_top_k is None else query.hybrid_top_k,
        "dense_k": None if query.hybrid_top_k is None else query.similarity_top_k,
        "sparse_k": query.sparse_top_k,
        "fusion": fusion,
    }


def _filter(query: VectorStoreQuery) -> Filter:
    # VectorStoreIndex passes an empty list to mean "any"
    of_nodes = matching(query.node_ids or None, query.filters)
    return of_nodes if query.doc_ids is None else And(of_nodes, In(REF_DOC_ID, query.doc_ids))
