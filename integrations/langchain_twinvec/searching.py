"""From LangChain's search arguments to HybridIndex's, and from its results to documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from langchain_twinvec.filters import FilterForm, as_filter
from langchain_twinvec.peers import SEARCH, refuse_names_of_peers
from twinvec import Role
from twinvec.errors import ConfigurationError
from twinvec.flows import awaiting, blocking, call
from twinvec.overriding import heard, overridden, twin_of
from twinvec.vectors import Float32
from twinvec_stores import HybridIndex, Result, SearchOptions, StoreConfig

Scored: TypeAlias = "list[tuple[Document, float]]"
EXPLANATION = "_twinvec"  # metadata key
_OPTIONS = {each.name for each in fields(SearchOptions)} - {"k", "filter"} | {"task", "scores"}
_DIVERSE_BY_VECTOR = (
    "max_marginal_relevance_search_by_vector",
    "amax_marginal_relevance_search_by_vector",
    "max_marginal_relevance_search_with_score_by_vector",
    "amax_marginal_relevance_search_with_score_by_vector",
)
_OF_TEXTS = {"task", "mode", "fusion", "dense_k", "sparse_k", "min_sparse", "rerank", "rerank_k", "min_rerank"}
_FOR_VECTORS = _OPTIONS - _OF_TEXTS


class SearchableStore(VectorStore):
    """The searches of TwinVecVectorStore, which documents them."""

    index: HybridIndex
    _embeddings: Embeddings
    _defaults: Mapping[str, Any]

    @property
    def embeddings(self) -> Embeddings:
        """Return the embeddings."""
        return self._embeddings

    @blocking
    async def similarity_search(
        self, query: str, k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> list[Document]:
        """Return the best documents for a query, best first; see the class for more arguments."""
        search = self.similarity_search_with_score, self.asimilarity_search_with_score
        return _documents(await call(*search, query, k, filter, **kwargs))

    asimilarity_search = heard(awaiting(similarity_search))

    @blocking
    async def similarity_search_with_score(
        self, query: str, k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> Scored:
        """Return the best documents with their scores: higher is better; the scale depends on mode and fusion."""
        search = self.similarity_search_many, self.asimilarity_search_many
        found: list[Scored] = await call(*search, [query], k, filter, **kwargs)
        return found[0]

    asimilarity_search_with_score = heard(awaiting(similarity_search_with_score))

    @blocking
    async def similarity_search_many(
        self, queries: Sequence[str], k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> list[Scored]:
        """Search for several queries with one forward pass; see ``similarity_search_with_score``."""
        search = self.index.search_many, self.index.asearch_many
        found = await call(*search, queries, **self._arguments(k, filter, kwargs))
        return [_scored(each, kwargs) for each in found]

    asimilarity_search_many = heard(awaiting(similarity_search_many))

    @blocking
    async def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> list[Document]:
        """Return the documents nearest to a dense vector."""
        search = self.similarity_search_with_score_by_vector, self.asimilarity_search_with_score_by_vector
        return _documents(await call(*search, embedding, k, filter, **kwargs))

    asimilarity_search_by_vector = heard(awaiting(similarity_search_by_vector))

    @blocking
    async def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: FilterForm = None, **kwargs: Any
    ) -> Scored:
        """Return the documents nearest to a dense vector, with their cosines."""
        arguments = search_arguments(k, filter, kwargs, {}, vectors=True)
        search = self.index.search_vectors, self.index.asearch_vectors
        return _scored((await call(*search, _row(embedding), **arguments))[0], kwargs)

    asimilarity_search_with_score_by_vector = heard(awaiting(similarity_search_with_score_by_vector))

    @blocking
    async def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: FilterForm = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents that are relevant and different from each other.

        Args:
            query: the query.
            k: number of documents to return.
            fetch_k: number of candidates.
            lambda_mult: 1 for relevance only, 0 for diversity only.
            filter: see the class.
            kwargs: see the class.
        """
        if overridden(self, SearchableStore, *_DIVERSE_BY_VECTOR):
            row = await call(self.embeddings.embed_query, self.embeddings.aembed_query, query)
            by_vector = self.max_marginal_relevance_search_by_vector, self.amax_marginal_relevance_search_by_vector
            return await call(*by_vector, row, k, fetch_k, lambda_mult, filter=filter, **kwargs)
        search, asearch = self.similarity_search, self.asimilarity_search
        return await call(search, asearch, query, k, filter, fetch_k=max(k, fetch_k), mmr=lambda_mult, **kwargs)

    amax_marginal_relevance_search = heard(awaiting(max_marginal_relevance_search))

    @blocking
    async def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: FilterForm = None,
        **kwargs: Any,
    ) -> list[Document]:
        """See ``max_marginal_relevance_search``."""
        search = (
            self.max_marginal_relevance_search_with_score_by_vector,
            self.amax_marginal_relevance_search_with_score_by_vector,
        )
        return _documents(await call(*search, embedding, k, fetch_k, lambda_mult, filter, **kwargs))

    amax_marginal_relevance_search_by_vector = heard(awaiting(max_marginal_relevance_search_by_vector))

    @blocking
    async def max_marginal_relevance_search_with_score_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: FilterForm = None,
        **kwargs: Any,
    ) -> Scored:
        """See ``max_marginal_relevance_search``; with the documents' cosines."""
        search = self.similarity_search_with_score_by_vector, self.asimilarity_search_with_score_by_vector
        return await call(*search, embedding, k, filter, fetch_k=max(k, fetch_k), mmr=lambda_mult, **kwargs)

    amax_marginal_relevance_search_with_score_by_vector = heard(
        awaiting(max_marginal_relevance_search_with_score_by_vector)
    )

    def check_arguments(self, k: int = 4, filter: FilterForm = None, **kwargs: Any) -> SearchOptions:
        """Return the meaning of these search arguments.

        Raises:
            TypeError: an argument is unknown.
            ConfigurationError: this store and model cannot honour it.
        """
        arguments = self._arguments(k, filter, kwargs)
        if (task := arguments.pop("task")) is not None:
            self.index.embedder.prompt_for(Role.QUERY, task)
        options = SearchOptions(**arguments)
        options.parts(self.index.store.config)
        return options

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return _clipped

    @blocking
    async def _similarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        return (await self._relevant([query], k, kwargs))[0]

    _asimilarity_search_with_relevance_scores = heard(awaiting(_similarity_search_with_relevance_scores))

    @twin_of("similarity_search_with_relevance_scores")
    async def asimilarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        """See ``similarity_search_with_relevance_scores``."""
        return await super().asimilarity_search_with_relevance_scores(query, k, **kwargs)

    @blocking
    async def relevant_many(self, queries: Sequence[str], threshold: float, k: int = 4, **kwargs: Any) -> list[Scored]:
        """Search for several queries; keep results with at least this relevance, from 0 to 1."""
        return _at_least(threshold, await self._relevant(queries, k, kwargs))

    arelevant_many = awaiting(relevant_many)

    async def _relevant(self, queries: Sequence[str], k: int, given: Mapping[str, Any]) -> list[Scored]:
        """Return documents with their cosines as relevance, in the order of the search."""
        if overridden(self, SearchableStore, "_select_relevance_score_fn"):
            relevance = self._select_relevance_score_fn()
            found = await self._found(queries, k, given)
            return [[(document, relevance(score)) for document, score in each] for each in found]
        options = self.check_arguments(k, **given)
        if not options.parts(self.index.store.config)[0]:
            raise ConfigurationError(
                "the scores of a sparse search have no upper bound, so there is no relevance from 0 to 1: compare the "
                "scores of similarity_search_with_score, or search with the dense half"
            )
        found = await self._found(queries, k, {**given, "explain": True})
        return [[_with_cosine(document, score, given) for document, score in each] for each in found]

    async def _found(self, queries: Sequence[str], k: int, given: Mapping[str, Any]) -> list[Scored]:
        if len(queries) != 1:
            return await call(self.similarity_search_many, self.asimilarity_search_many, queries, k=k, **given)
        one = call(self.similarity_search_with_score, self.asimilarity_search_with_score, queries[0], k=k, **given)
        return [await one]

    def _arguments(self, k: int, filter: FilterForm, given: Mapping[str, Any]) -> dict[str, Any]:
        if given.get("fusion") is not None:
            need_both_halves(self.index.store.config)
        return search_arguments(k, filter, given, {"task": self.index.task, **self._defaults})


def need_both_halves(config: StoreConfig) -> None:
    """Reject a fusion if there is nothing to fuse.

    Raises:
        ConfigurationError: the store has only one half.
    """
    if config.dim is None or not config.sparse:
        half = "dense" if config.dim is not None else "sparse"
        raise ConfigurationError(f"fusion= joins dense and sparse rankings, and this store has only {half} vectors")


def search_arguments(
    k: int, filter: FilterForm, given: Mapping[str, Any], defaults: Mapping[str, Any], *, vectors: bool = False
) -> dict[str, Any]:
    """Return the arguments of ``HybridIndex.search_many``, or with ``vectors`` of ``search_vectors``.

    Args:
        k: results per query.
        filter: a dict or a filter.
        given: the caller's other arguments; None means the default.
        defaults: the store's defaults.
        vectors: whether the query is a dense vector rather than a text.

    Raises:
        TypeError: an argument is unknown.
    """
    refuse_names_of_peers(given, SEARCH)
    known = _FOR_VECTORS if vectors else _OPTIONS
    if unknown := sorted(set(given) - known):
        raise TypeError(f"unknown search argument {unknown[0]!r}; there are filter, k, {', '.join(sorted(known))}")
    chosen = {name: value for name, value in given.items() if value is not None and name != "scores"}
    return {**({"mode": "dense"} if vectors else defaults), **chosen, "k": k, "filter": as_filter(filter)}


def _clipped(cosine: float) -> float:
    return min(max(cosine, 0.0), 1.0)


def _at_least(threshold: float, found: list[Scored]) -> list[Scored]:
    return [[(document, relevance) for document, relevance in each if relevance >= threshold] for each in found]


def _with_cosine(document: Document, score: float, given: Mapping[str, Any]) -> tuple[Document, float]:
    why = document.metadata.pop(EXPLANATION, {})
    relevance = _clipped(why.get("dense_score", score))
    if given.get("explain"):
        document.metadata[EXPLANATION] = why
    elif given.get("scores"):
        document.metadata[EXPLANATION] = {"score": relevance}
    return document, relevance


def to_document(result: Result, *, scores: bool = False) -> Document:
    """Return a result as LangChain's document, with its score in the metadata on request."""
    record, why = result.record, result.explanation
    metadata = dict(record.metadata)
    if scores:
        metadata[EXPLANATION] = {"score": result.score}
    if why is not None:
        reasons = result.to_dict()["explanation"]
        if why.rerank_rank is None:
            del reasons["rerank_score"], reasons["rerank_rank"]
        origin = {"provenance": dict(record.provenance)} if record.provenance else {}
        metadata[EXPLANATION] = {"score": result.score, **reasons, **origin}
    text = record.text if result.context is None else result.context
    return Document(id=record.id, page_content=text, metadata=metadata)


def _scored(results: Iterable[Result], given: Mapping[str, Any]) -> Scored:
    return [(to_document(result, scores=bool(given.get("scores"))), result.score) for result in results]


def _documents(found: Scored) -> list[Document]:
    return [document for document, _ in found]


def _row(embedding: list[float]) -> Float32:
    return np.asarray([embedding], dtype=np.float32)
