"""HybridRetriever: dense and sparse retrieval as LlamaIndex's retriever, with the reasons for each node."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index_twinvec.filters import from_llama_index
from llama_index_twinvec.model import meet
from llama_index_twinvec.nodes import provenance_of, to_node
from llama_index_twinvec.vector_stores import TwinVecVectorStore
from twinvec import EmbeddingBatch, Role, SparseBatch, Task
from twinvec.vectors import Float32
from twinvec_stores import Result, SearchOptions


class ExplainedNode(NodeWithScore):
    """A found node, with the reasons beside its own metadata.

    ``metadata["_twinvec"]`` shows them. ``node`` is as it was stored: its hash stays the same, so that the results of
    several queries merge, and no reason gets into a prompt.

    Attributes:
        explanation: dense_score, sparse_score, dense_rank, sparse_rank and terms, see ``twinvec_stores.Explanation``;
            and ``provenance`` where TwinVec ingested the text from a file.
    """

    explanation: dict[str, Any] = Field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the node's metadata and, under "_twinvec", why it was found."""
        return {**self.node.metadata, "_twinvec": self.explanation}


class HybridRetriever(BaseRetriever):
    """Retrieve nodes by meaning and by words at once; one forward pass for each query.

    Examples:
        >>> retriever = HybridRetriever(store, similarity_top_k=8, fusion="rrf")
        >>> retriever.retrieve("How do I sort a list?")[0].metadata["_twinvec"]["terms"]
        (('sort', 1.9, 2.1), ('list', 1.2, 1.4))
    """

    def __init__(
        self,
        vector_store: TwinVecVectorStore,
        *,
        similarity_top_k: int = 10,
        filters: MetadataFilters | None = None,
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
            vector_store: where to.
            similarity_top_k: nodes to return.
            filters: only nodes that match.
            task: instruction, in the place of the embedding model's own.
            explain: return ``ExplainedNode``s.
            callback_manager: see BaseRetriever.
            object_map: see BaseRetriever.
            objects: see BaseRetriever.
            verbose: see BaseRetriever.
            search: more fields of ``twinvec_stores.SearchOptions``: mode, fusion (default: the store's), fetch_k,
                score_threshold, mmr, exact.

        Raises:
            ConfigurationError: an option that cannot be honoured.
            FilterError: a filter that cannot be translated.
        """
        chosen = None if filters is None else from_llama_index(filters)
        self._options = {
            "fusion": vector_store.fusion,
            **search,
            "k": similarity_top_k,
            "filter": chosen,
            "explain": explain,
        }
        self._halves = SearchOptions(**self._options).parts(vector_store.client.config)
        self._store = vector_store
        self._task = vector_store.embedding.task if task is None else task
        vector_store.embedding.embedder.prompt_for(Role.QUERY, self._task)
        super().__init__(callback_manager=callback_manager, object_map=object_map, objects=objects, verbose=verbose)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        dense, sparse = self._lacking(query_bundle)
        embed = self._store.embedding.embedder.embed_queries
        batch = embed(_texts(query_bundle), task=self._task, dense=dense, sparse=sparse) if dense or sparse else None
        found = self._store.index.search_vectors(*_vectors(query_bundle, batch), **self._options)
        return [_node(result) for result in found[0]]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        dense, sparse = self._lacking(query_bundle)
        await meet()
        embed = self._store.embedding.embedder.aembed_queries
        batch = (
            await embed(_texts(query_bundle), task=self._task, dense=dense, sparse=sparse) if dense or sparse else None
        )
        found = await self._store.index.asearch_vectors(*_vectors(query_bundle, batch), **self._options)
        return [_node(result) for result in found[0]]

    def _lacking(self, bundle: QueryBundle) -> tuple[bool, bool]:
        """Return which halves have to be computed: a bundle may bring its dense one."""
        dense, sparse = self._halves
        return dense and bundle.embedding is None, sparse


def _texts(bundle: QueryBundle) -> list[str]:
    """Return the query, and what is to be embedded in its place for the dense half (HyDE)."""
    return [bundle.query_str, *(bundle.custom_embedding_strs or [])]


def _vectors(bundle: QueryBundle, batch: EmbeddingBatch | None) -> tuple[Float32 | None, SparseBatch | None]:
    dense = None if bundle.embedding is None else np.array([bundle.embedding], np.float32)
    if batch is None:
        return dense, None
    if dense is None and batch.dense is not None:
        dense = (batch.dense[1:] if len(batch) > 1 else batch.dense).mean(axis=0, keepdims=True)
    return dense, None if batch.sparse is None else batch.sparse[:1]


def _node(result: Result) -> NodeWithScore:
    node = to_node(result.record)
    if result.explanation is None:
        return NodeWithScore(node=node, score=result.score)
    origin = provenance_of(result.record)
    explanation = asdict(result.explanation) | ({"provenance": origin} if origin else {})
    return ExplainedNode(node=node, score=result.score, explanation=explanation)
