"""From LangChain's search arguments to HybridIndex's, and from its results to documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from langchain_twinvec.embeddings import TwinVecEmbeddings
from langchain_twinvec.filters import FilterForm, as_filter
from twinvec import Role
from twinvec.errors import ConfigurationError
from twinvec.vectors import Float32
from twinvec_stores import Fusion, HybridIndex, Result, SearchOptions, StoreConfig

Scored: TypeAlias = "list[tuple[Document, float]]"
EXPLANATION = "_twinvec"  # metadata key
_OPTIONS = {each.name for each in fields(SearchOptions)} - {"k", "filter"} | {"task"}
_FOR_VECTORS = {"fetch_k", "score_threshold", "mmr", "explain", "exact"}


class SearchableStore(VectorStore):
    """The searches of TwinVecVectorStore, which has the documentation."""

    index: HybridIndex
    _embeddings: TwinVecEmbeddings
    _defaults: Mapping[str, Any]

    @property
    def embeddings(self) -> TwinVecEmbeddings:
        """Return the embeddings."""
        return self._embeddings

    def similarity_search(self, query: str, k: int = 4, filter: FilterForm = None, **kwargs: Any) -> list[Document]:
        """Return the best documents for a query, best first; see the class for more arguments."""
        return _documents(self.similarity_search_with_score(query, k, filter, **kwargs))

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> list[Document]:
        """See ``similarity_search``."""
        return _documents(await self.asimilarity_search_with_score(query, k, filter, **kwargs))

    def similarity_search_with_score(self, query: str, k: int = 4, filter: FilterForm = None, **kwargs: Any) -> Scored:
        """Return the best documents with their scores: higher is better, what they mean depends on mode and fusion."""
        return self.similarity_search_many([query], k, filter, **kwargs)[0]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> Scored:
        """See ``similarity_search_with_score``."""
        return (await self.asimilarity_search_many([query], k, filter, **kwargs))[0]

    def similarity_search_many(
        self, queries: Sequence[str], k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> list[Scored]:
        """Search for several queries with one forward pass; see ``similarity_search_with_score``."""
        found = self.index.search_many(queries, **self._arguments(k, filter, kwargs))
        return [_scored(results) for results in found]

    async def asimilarity_search_many(
        self, queries: Sequence[str], k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> list[Scored]:
        """See ``similarity_search_many``."""
        found = await self.index.asearch_many(queries, **self._arguments(k, filter, kwargs))
        return [_scored(results) for results in found]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents nearest to a dense vector."""
        return _documents(self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs))

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> list[Document]:
        """See ``similarity_search_by_vector``."""
        return _documents(await self.asimilarity_search_with_score_by_vector(embedding, k, filter, **kwargs))

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> Scored:
        """Return the documents nearest to a dense vector, with their cosines."""
        arguments = search_arguments(k, filter, kwargs, {}, vectors=True)
        return _scored(self.index.search_vectors(_row(embedding), **arguments)[0])

    async def asimilarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> Scored:
        """See ``similarity_search_with_score_by_vector``."""
        arguments = search_arguments(k, filter, kwargs, {}, vectors=True)
        return _scored((await self.index.asearch_vectors(_row(embedding), **arguments))[0])

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: FilterForm = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents that are relevant and unlike each other.

        Args:
            query: what is looked for.
            k: documents to return.
            fetch_k: candidates to choose from.
            lambda_mult: 1 only relevance, 0 only diversity.
            filter: see the class.
            kwargs: see the class.
        """
        return self.similarity_search(query, k, filter, fetch_k=max(k, fetch_k), mmr=lambda_mult, **kwargs)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: FilterForm = None,
        **kwargs: Any,
    ) -> list[Document]:
        """See ``max_marginal_relevance_search``."""
        return await self.asimilarity_search(query, k, filter, fetch_k=max(k, fetch_k), mmr=lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: FilterForm = None,
        **kwargs: Any,
    ) -> list[Document]:
        """See ``max_marginal_relevance_search``."""
        deep = max(k, fetch_k)
        return self.similarity_search_by_vector(embedding, k, filter, fetch_k=deep, mmr=lambda_mult, **kwargs)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: FilterForm = None,
        **kwargs: Any,
    ) -> list[Document]:
        """See ``max_marginal_relevance_search``."""
        deep = max(k, fetch_k)
        return await self.asimilarity_search_by_vector(embedding, k, filter, fetch_k=deep, mmr=lambda_mult, **kwargs)

    def check_arguments(self, k: int = 4, filter: FilterForm = None, **kwargs: Any) -> SearchOptions:
        """Return what a search with these arguments means.

        Raises:
            TypeError: an unknown argument.
            ConfigurationError: one that cannot be honoured by this store and model.
        """
        arguments = self._arguments(k, filter, kwargs)
        if (task := arguments.pop("task")) is not None:
            self.embeddings.embedder.prompt_for(Role.QUERY, task)
        options = SearchOptions(**arguments)
        options.parts(self.index.store.config)
        return options

    def relevance_function(self, k: int = 4, filter: FilterForm = None, **kwargs: Any) -> Callable[[float], float]:
        """Return what turns the scores of a search with these arguments into relevances from 0 to 1."""
        return _relevance(self.check_arguments(k, filter, **kwargs), self.index.store.config)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return self.relevance_function()

    def _similarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        relevance = self.relevance_function(k=k, **kwargs)
        return [
            (document, relevance(score)) for document, score in self.similarity_search_with_score(query, k, **kwargs)
        ]

    async def _asimilarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        relevance = self.relevance_function(k=k, **kwargs)
        found = await self.asimilarity_search_with_score(query, k, **kwargs)
        return [(document, relevance(score)) for document, score in found]

    def _arguments(self, k: int, filter: FilterForm, given: Mapping[str, Any]) -> dict[str, Any]:
        return search_arguments(k, filter, given, {"task": self.embeddings.task, **self._defaults})


def search_arguments(
    k: int, filter: FilterForm, given: Mapping[str, Any], defaults: Mapping[str, Any], *, vectors: bool = False
) -> dict[str, Any]:
    """Return the arguments of ``HybridIndex.search_many``, or with ``vectors`` of ``search_vectors``.

    Args:
        k: results per query.
        filter: a dict or a filter.
        given: the caller's other arguments; None means the default.
        defaults: the store's.
        vectors: whether a dense vector is searched for instead of a text.

    Raises:
        TypeError: an unknown argument.
    """
    known = _FOR_VECTORS if vectors else _OPTIONS
    if unknown := sorted(set(given) - known):
        raise TypeError(f"unknown search argument {unknown[0]!r}; there are filter, k, {', '.join(sorted(known))}")
    chosen = {name: value for name, value in given.items() if value is not None}
    return {**({"mode": "dense"} if vectors else defaults), **chosen, "k": k, "filter": as_filter(filter)}


def _relevance(options: SearchOptions, config: StoreConfig) -> Callable[[float], float]:
    """Return what turns scores into relevances from 0 to 1, 1 being the best possible.

    A cosine c becomes (1 + c) / 2, a fused score is divided by what a record that is first in both halves gets.

    Raises:
        ConfigurationError: scores that have no upper bound.
    """
    dense, sparse = options.parts(config)
    fusion = options.fusion
    assert isinstance(fusion, Fusion)
    if not sparse:
        return lambda score: min(max((1 + score) / 2, 0.0), 1.0)
    if not dense or fusion.method == "weighted":
        what = 'fusion="weighted"' if dense else 'mode="sparse"'
        raise ConfigurationError(
            f"the scores of {what} have no upper bound, so there is no relevance from 0 to 1: compare the scores of "
            "similarity_search_with_score, or search in another way"
        )
    assert fusion.dense_weight is not None
    assert fusion.sparse_weight is not None
    best = fusion.dense_weight + fusion.sparse_weight
    best /= fusion.rrf_k + 1 if fusion.method == "rrf" else 1
    return lambda score: min(max(score / best, 0.0), 1.0)


def to_document(result: Result) -> Document:
    """Return a result as LangChain's document."""
    record, why = result.record, result.explanation
    metadata = dict(record.metadata)
    if why is not None:
        metadata[EXPLANATION] = {
            "score": result.score,
            "dense_score": why.dense_score,
            "sparse_score": why.sparse_score,
            "dense_rank": why.dense_rank,
            "sparse_rank": why.sparse_rank,
            "terms": [list(term) for term in why.terms],
            **({"provenance": dict(record.provenance)} if record.provenance else {}),
        }
    return Document(id=record.id, page_content=record.text, metadata=metadata)


def _scored(results: Iterable[Result]) -> Scored:
    return [(to_document(result), result.score) for result in results]


def _documents(found: Scored) -> list[Document]:
    return [document for document, _ in found]


def _row(embedding: list[float]) -> Float32:
    return np.asarray([embedding], dtype=np.float32)
