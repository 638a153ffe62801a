"""HybridRetriever: dense and sparse retrieval as LlamaIndex's retriever, with explanations for each node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from llama_index_twinvec.embeddings import TwinVecEmbedding
from llama_index_twinvec.filters import from_llama_index
from llama_index_twinvec.model import meet
from llama_index_twinvec.queries import read_query
from llama_index_twinvec.vector_stores import TwinVecVectorStore
from twinvec import Role, Task
from twinvec.errors import ConfigurationError
from twinvec.flows import awaiting, blocking, call
from twinvec.overriding import heard
from twinvec_stores import SearchOptions
from twinvec_stores.search.options import Mode

_REASONS = "_twinvec"
_MODES = {
    (True, True): VectorStoreQueryMode.HYBRID,
    (True, False): VectorStoreQueryMode.DEFAULT,
    (False, True): VectorStoreQueryMode.SPARSE,
}


class ExplainedNode(NodeWithScore):
    """A found node, with an explanation beside its own metadata.

    ``metadata["_twinvec"]`` shows the explanation; anything written to ``metadata`` becomes part of the node's.
    ``node`` itself is as stored: its hash is unchanged, so that results of several queries merge, and explanations
    never get into a prompt.

    Attributes:
        explanation: dense_score, sparse_score, dense_rank, sparse_rank and terms, see ``twinvec_stores.Explanation``;
            and ``provenance`` if TwinVec ingested the text from a file.
    """

    explanation: dict[str, Any] = Field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the node's metadata and, under "_twinvec", why it was found."""
        return _Metadata(self.node.metadata, self.explanation)


class _Metadata(dict[str, Any]):
    """A node's metadata together with the explanation; changes also apply to the node."""

    def __init__(self, own: dict[str, Any], reasons: dict[str, Any]) -> None:
        super().__init__(own)
        super().__setitem__(_REASONS, reasons)
        self.own = own

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.own[key] = value

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self.own.pop(key, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def update(self, *given: Any, **more: Any) -> None:
        for key, value in dict(*given, **more).items():
            self[key] = value

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, *default: Any) -> Any:
        self.own.pop(key, None)
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        key = next(reversed(self))
        return key, self.pop(key)

    def clear(self) -> None:
        super().clear()
        self.own.clear()

    def __ior__(self, other: Any) -> _Metadata:  # type: ignore[override, misc]
        self.update(other)
        return self


class HybridRetriever(BaseRetriever):
    """Retrieve nodes by meaning and by words at once, with one forward pass per query.

    It calls the embedding model and the store through LlamaIndex's own methods, so that subclasses of both, embedding
    events and the embeddings cache take effect.

    Examples:
        >>> retriever = HybridRetriever(store, similarity_top_k=8, fusion="rrf")
        >>> retriever.retrieve("How do I sort a list?")[0].metadata["_twinvec"]["terms"]
        (('sort', 1.9, 2.1), ('list', 1.2, 1.4))
    """

    def __init__(
        self,
        vector_store: TwinVecVectorStore | VectorStoreIndex,
        *,
        similarity_top_k: int = 10,
        mode: Mode | None = None,
        alpha: float | None = None,
        sparse_top_k: int | None = None,
        hybrid_top_k: int | None = None,
        mmr_threshold: float | None = None,
        similarity_cutoff: float | None = None,
        filters: MetadataFilters | None = None,
        doc_ids: list[str] | None = None,
        node_ids: list[str] | None = None,
        task: Task | str | None = None,
        explain: bool = True,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
        **search: Any,
    ) -> None:
        """Search a store.

        Args:
            vector_store: the store to search, or an index over it.
            similarity_top_k: number of nodes to return; with ``hybrid_top_k``, candidates of the dense half.
            mode: "hybrid", "dense" or "sparse"; None: everything the store has.
            alpha: weight of the dense half, from 0 to 1, instead of the fusion's own weights.
            sparse_top_k: candidates of the sparse half.
            hybrid_top_k: number of nodes to return.
            mmr_threshold: weight of relevance versus diversity, from 0 to 1; None: no diversity.
            similarity_cutoff: only return nodes with at least this cosine with the query: ``min_dense``.
            filters: only return matching nodes.
            doc_ids: only return nodes of these documents; an empty list: none.
            node_ids: only return these nodes; an empty list: none.
            task: instruction instead of the embedding model's own.
            explain: return ``ExplainedNode``s.
            callback_manager: see BaseRetriever; it is also notified of the query's embedding.
            object_map: see BaseRetriever.
            objects: see BaseRetriever.
            verbose: see BaseRetriever.
            search: further fields of ``twinvec_stores.SearchOptions``: fusion (default: the store's), fetch_k,
                score_threshold, min_dense, min_sparse, group_by, group_size, expand (into the metadata "window"),
                exact.

        Raises:
            ConfigurationError: an option cannot be honoured.
            FilterError: a filter cannot be translated.
        """
        store = vector_store.vector_store if isinstance(vector_store, VectorStoreIndex) else vector_store
        if not isinstance(store, TwinVecVectorStore):
            raise ConfigurationError(f"HybridRetriever searches a TwinVecVectorStore, not {type(store).__name__}")
        if filters is not None:
            from_llama_index(filters)
        halves = SearchOptions(mode=mode).parts(store.client.config)
        if alpha is not None and halves != (True, True):
            raise ConfigurationError("alpha weights both halves, but this search has only one")
        self._store = store
        self._query = VectorStoreQuery(
            mode=_MODES[halves],
            similarity_top_k=similarity_top_k,
            alpha=alpha,
            sparse_top_k=sparse_top_k,
            hybrid_top_k=hybrid_top_k,
            filters=filters,
            doc_ids=doc_ids,
            node_ids=node_ids,
        )
        self._options = {**search, "explain": explain}
        if similarity_cutoff is not None:
            self._options["min_dense"] = similarity_cutoff
        if mmr_threshold is not None:
            self._options["mmr"] = mmr_threshold
        asked = read_query(replace(self._query, query_str=""), store.fusion, **self._options)
        SearchOptions(**asked.options).parts(store.client.config)
        self._model = _for_task(store.embedding, task)
        if callback_manager is not None:  # an index puts its own into the model
            self._model = self._model.model_copy(update={"callback_manager": callback_manager})
        if task is not None:
            store.index.embedder.prompt_for(Role.QUERY, task)
            self._options["task"] = task
        super().__init__(callback_manager=callback_manager, object_map=object_map, objects=objects, verbose=verbose)

    @blocking
    async def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        await meet()
        if self._query.node_ids == []:  # a store would take it to mean "any", as VectorStoreIndex does
            return []
        row, strings = query_bundle.embedding, query_bundle.embedding_strs
        if row is None and strings and self._query.mode != VectorStoreQueryMode.SPARSE:
            embed = self._model.get_agg_embedding_from_queries, self._model.aget_agg_embedding_from_queries
            row = await call(*embed, strings)
        query = replace(self._query, query_str=query_bundle.query_str, query_embedding=row)
        return _nodes(await call(self._store.query, self._store.aquery, query, **self._options))

    _aretrieve = heard(awaiting(_retrieve))


def _for_task(model: BaseEmbedding, task: Task | str | None) -> BaseEmbedding:
    if task is None:
        return model
    if not isinstance(model, TwinVecEmbedding):
        raise ConfigurationError(f"task=: {type(model).__name__} does not support tasks")
    return model.with_task(task)


def _nodes(result: VectorStoreQueryResult) -> list[NodeWithScore]:
    nodes = result.nodes or []
    scores: Any = result.similarities or [None] * len(nodes)
    explanations = getattr(result, "explanations", None)
    if explanations is None:
        return [NodeWithScore(node=node, score=score) for node, score in zip(nodes, scores, strict=True)]
    rows = zip(nodes, scores, explanations, strict=True)
    return [ExplainedNode(node=node, score=score, explanation=why) for node, score, why in rows]
