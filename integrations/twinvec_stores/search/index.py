"""HybridIndex: a model and a store together. Texts go in, ranked records come out."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

import numpy as np

from twinvec import BaseEmbedder, EmbeddingBatch, SparseBatch, SparseVector, Task
from twinvec.errors import ConfigurationError
from twinvec.vectors import Float32, Int32
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import Filter, HasId
from twinvec_stores.protocol import HybridStore, check_limit
from twinvec_stores.records import DenseQuery, Hit, Record, RecordBatch, SparseQuery, StoreQuery, check_rows
from twinvec_stores.search.fusion import Fusion, Method, diversify, ranked

if TYPE_CHECKING:
    from typing_extensions import Unpack

Mode = Literal["hybrid", "dense", "sparse"]
_T = TypeVar("_T")
_AT_ONCE = 64  # queries in one call of the store


@dataclass(frozen=True)
class Explanation:
    """Why a record was found.

    Attributes:
        dense_score: cosine with the query; None where the mode is "sparse".
        sparse_score: sum over common terms of weight * weight, with idf where the store has it; None where the mode
            is "dense".
        dense_rank: place in the dense ranking, from 1; None where it is not among its first ``fetch_k``.
        sparse_rank: place in the sparse ranking, from 1.
        terms: (term, weight in the query, weight in the record) of the common terms, those that count most first.
    """

    dense_score: float | None = None
    sparse_score: float | None = None
    dense_rank: int | None = None
    sparse_rank: int | None = None
    terms: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True)
class Result:
    """One found record.

    Attributes:
        record: with its text, metadata and provenance.
        score: of the ranking; higher is better. Comparable within one query and one way of searching.
        explanation: where asked for.
    """

    record: Record
    score: float
    explanation: Explanation | None = None


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search.

    Attributes:
        k: results per query.
        mode: "hybrid", "dense" or "sparse"; None: hybrid where the store has both halves.
        fusion: how "hybrid" joins them: a Fusion, or a method's name with its default weights.
        fetch_k: candidates of each half, and for ``mmr``; None: max(100, 10 * k).
        dense_k: candidates of the dense half, where it is to have others than ``fetch_k``; may be less than k.
        sparse_k: the same of the sparse half.
        filter: only records that match.
        score_threshold: only results with at least this score.
        mmr: None, or the weight of relevance against diversity, from 0 to 1 (maximal marginal relevance by dense
            vectors; 0.5 is usual).
        explain: fill ``Result.explanation``.
        exact: compare with every dense vector instead of walking a graph.
    """

    k: int = 10
    mode: Mode | None = None
    fusion: Fusion | Method = field(default_factory=Fusion)
    fetch_k: int | None = None
    dense_k: int | None = None
    sparse_k: int | None = None
    filter: Filter | None = None
    score_threshold: float | None = None
    mmr: float | None = None
    explain: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        for limit in (self.k, self.dense_k, self.sparse_k):
            if limit is not None:
                check_limit(limit)
        if self.fetch_k is not None and check_limit(self.fetch_k) < self.k:
            raise ConfigurationError(f"fetch_k={self.fetch_k} is less than k={self.k}")
        if self.mode not in (None, "hybrid", "dense", "sparse"):
            raise ConfigurationError(f'mode={self.mode!r} is not one of "hybrid", "dense", "sparse"')
        if self.mmr is not None and not 0 <= self.mmr <= 1:
            raise ConfigurationError(f"mmr={self.mmr!r} must be a number from 0 to 1")
        if not isinstance(self.fusion, Fusion):
            object.__setattr__(self, "fusion", Fusion(self.fusion))

    @property
    def candidates(self) -> int:
        """Return how many candidates each half has where nothing else is said of it."""
        return self.fetch_k if self.fetch_k is not None else max(100, 10 * self.k)

    @property
    def halves(self) -> tuple[int, int]:
        """Return how many candidates the dense and the sparse half have."""
        dense = self.candidates if self.dense_k is None else self.dense_k
        return dense, self.candidates if self.sparse_k is None else self.sparse_k

    def parts(self, config: StoreConfig, *, dense: bool = True, sparse: bool = True) -> tuple[bool, bool]:
        """Return whether to ask the dense and the sparse half.

        Args:
            config: what the store has.
            dense: there is a dense query.
            sparse: there is a sparse query.

        Raises:
            ConfigurationError: the mode needs a half that is not there.
        """
        dense, sparse = dense and config.dim is not None, sparse and config.sparse
        wanted = (self.mode in ("hybrid", "dense"), self.mode in ("hybrid", "sparse"))
        if self.mode is None:
            wanted = (dense, sparse)
        for half, has, needs in (("dense", dense, wanted[0]), ("sparse", sparse, wanted[1])):
            if needs and not has:
                raise ConfigurationError(f"mode={self.mode!r} needs {half} vectors in the store and in the query")
        if not any(wanted):
            raise ConfigurationError("neither a dense nor a sparse query fits this store")
        if self.mmr is not None and config.dim is None:
            raise ConfigurationError("mmr compares dense vectors, and this store keeps none")
        return wanted


class SearchKeywords(TypedDict, total=False):
    """The fields of ``SearchOptions`` as keyword arguments, so that type checkers see a wrong one."""

    k: int
    mode: Mode | None
    fusion: Fusion | Method
    fetch_k: int | None
    dense_k: int | None
    sparse_k: int | None
    filter: Filter | None
    score_threshold: float | None
    mmr: float | None
    explain: bool
    exact: bool


class HybridIndex:
    """A model and a store of its vectors. Thread safe; every method has an async twin with an ``a`` before its name.

    Example:
        >>> with HybridIndex(embedder, EmbeddedStore("index/", StoreConfig.for_embedder(embedder))) as index:
        ...     index.add(["Paris is the capital of France."], ids=["paris"])
        ...     index.search("capital of France", k=3)[0].record.text
        'Paris is the capital of France.'
    """

    def __init__(self, embedder: BaseEmbedder, store: HybridStore, *, task: Task | str | None = None) -> None:
        """Bring both together.

        Args:
            embedder: the model, an Embedder or a RemoteEmbedder.
            store: made with ``StoreConfig.for_embedder``.
            task: what the index is for, in place of the embedder's own: an instruction, for models trained with them.

        Raises:
            FingerprintMismatchError: the store holds another model's vectors.
            StoreMismatchError: its documents were embedded with another prompt.
        """
        store.config.check(StoreConfig.for_embedder(embedder, task=task), repr(store))
        self.embedder = embedder
        self.store = store
        self.task = task

    def add(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        show_progress: bool = False,
    ) -> list[str]:
        """Embed documents, one forward pass for both halves, and store them.

        Args:
            texts: the documents.
            ids: of equal length; known ids are replaced. None: random ones.
            metadata: dicts, of equal length; see ``plain_metadata``. They are checked before anything is embedded.
            show_progress: draw a progress bar.

        Returns:
            The ids.
        """
        rows = check_rows(_new_ids(texts) if ids is None else ids, texts, metadata, self.store.config)
        batch = self.embedder.embed_documents(rows.texts, task=self.task, show_progress=show_progress)
        self.store.upsert(RecordBatch(rows.ids, rows.texts, batch.dense, batch.sparse, rows.metadata))
        return rows.ids

    async def aadd(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[str]:
        """See ``add``."""
        rows = check_rows(_new_ids(texts) if ids is None else ids, texts, metadata, self.store.config)
        batch = await self.embedder.aembed_documents(rows.texts, task=self.task)
        await self.store.aupsert(RecordBatch(rows.ids, rows.texts, batch.dense, batch.sparse, rows.metadata))
        return rows.ids

    def search(self, query: str, *, task: Task | str | None = None, **options: Unpack[SearchKeywords]) -> list[Result]:
        """Return the best records for a query, best first, ties by id.

        Args:
            query: what is looked for.
            task: instruction in place of the index's own, for models trained with them.
            options: the fields of ``SearchOptions``: k, mode, fusion, fetch_k, filter, score_threshold, mmr,
                explain, exact.
        """
        return self.search_many([query], task=task, **options)[0]

    def search_many(
        self, queries: Sequence[str], *, task: Task | str | None = None, **options: Unpack[SearchKeywords]
    ) -> list[list[Result]]:
        """Search for several queries with one forward pass; see ``search``."""
        return _finish(
            _Search(_Blocking(self), SearchOptions(**options)).texts(queries, self.task if task is None else task)
        )

    def search_vectors(
        self, dense: Float32 | None = None, sparse: SparseBatch | None = None, **options: Unpack[SearchKeywords]
    ) -> list[list[Result]]:
        """Search with vectors that are there already: dense float32 [n, dim], n sparse rows, or both."""
        return _finish(_Search(_Blocking(self), SearchOptions(**options)).vectors(dense, sparse))

    async def asearch(
        self, query: str, *, task: Task | str | None = None, **options: Unpack[SearchKeywords]
    ) -> list[Result]:
        """See ``search``."""
        return (await self.asearch_many([query], task=task, **options))[0]

    async def asearch_many(
        self, queries: Sequence[str], *, task: Task | str | None = None, **options: Unpack[SearchKeywords]
    ) -> list[list[Result]]:
        """See ``search_many``."""
        return await _Search(_Awaiting(self), SearchOptions(**options)).texts(
            queries, self.task if task is None else task
        )

    async def asearch_vectors(
        self, dense: Float32 | None = None, sparse: SparseBatch | None = None, **options: Unpack[SearchKeywords]
    ) -> list[list[Result]]:
        """See ``search_vectors``."""
        return await _Search(_Awaiting(self), SearchOptions(**options)).vectors(dense, sparse)

    def close(self) -> None:
        """Close the store; the embedder stays open."""
        self.store.close()

    def __enter__(self) -> HybridIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Awaiting:
    """What a search needs of the outside, without blocking the event loop."""

    index: HybridIndex

    async def embed(self, texts: Sequence[str], **options: Any) -> EmbeddingBatch:
        return await self.index.embedder.aembed_queries(texts, **options)

    async def search(self, queries: Sequence[StoreQuery], **options: Any) -> list[list[Hit]]:
        return await self.index.store.asearch(queries, **options)

    async def get(self, ids: Sequence[str], with_vectors: bool) -> list[Record]:
        return await self.index.store.aget(ids, with_vectors=with_vectors)

    async def idf(self, keys: Int32) -> Float32:
        store = self.index.store
        return _idf(await store.acount(), await store.adocument_frequencies(keys))

    async def names(self, keys: SparseBatch) -> list[dict[str, float]]:
        return await asyncio.to_thread(self.index.embedder.token_weights, keys)


class _Blocking(_Awaiting):
    """The same for threads: coroutines that never wait, so one search serves both; see ``_finish``."""

    async def embed(self, texts: Sequence[str], **options: Any) -> EmbeddingBatch:
        return self.index.embedder.embed_queries(texts, **options)

    async def search(self, queries: Sequence[StoreQuery], **options: Any) -> list[list[Hit]]:
        return self.index.store.search(queries, **options)

    async def get(self, ids: Sequence[str], with_vectors: bool) -> list[Record]:
        return self.index.store.get(ids, with_vectors=with_vectors)

    async def idf(self, keys: Int32) -> Float32:
        store = self.index.store
        return _idf(store.count(), store.document_frequencies(keys))

    async def names(self, keys: SparseBatch) -> list[dict[str, float]]:
        return self.index.embedder.token_weights(keys)


def _finish(search: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that waits for nothing."""
    try:
        search.send(None)
    except StopIteration as result:
        value: _T = result.value
        return value
    raise AssertionError("a blocking search has waited")


@dataclass(frozen=True)
class _Query:
    """One query's halves, where they are asked."""

    dense: DenseQuery | None
    sparse: SparseQuery | None

    def halves(self) -> list[StoreQuery]:
        return [half for half in (self.dense, self.sparse) if half is not None]


@dataclass(frozen=True)
class _Found:
    """One query's rankings, and what became of them."""

    query: _Query
    dense: list[Hit]
    sparse: list[Hit]
    best: list[Hit]


@dataclass(frozen=True)
class _Search:
    outside: _Awaiting
    options: SearchOptions

    async def texts(self, queries: Sequence[str], task: Task | str | None) -> list[list[Result]]:
        if isinstance(queries, str):
            raise TypeError("search_many needs a list of queries; use search for one")
        dense, sparse = self.options.parts(self.outside.index.store.config)
        if not queries:
            return []
        batch = await self.outside.embed(queries, task=task, dense=dense, sparse=sparse)
        return await self.vectors(batch.dense, batch.sparse)

    async def vectors(self, dense: Float32 | None, sparse: SparseBatch | None) -> list[list[Result]]:
        config = self.outside.index.store.config
        parts = self.options.parts(config, dense=dense is not None, sparse=sparse is not None)
        if sparse is not None and parts[1] and config.idf:
            sparse = await self._weighted_by_idf(sparse)
        n = len(dense) if dense is not None else len(sparse) if sparse is not None else 0
        if dense is not None and sparse is not None and len(sparse) != n:
            raise ConfigurationError(f"{n} dense but {len(sparse)} sparse queries")
        queries = [
            _Query(
                DenseQuery(dense[i]) if dense is not None and parts[0] else None,
                SparseQuery(sparse[i]) if sparse is not None and parts[1] else None,
            )
            for i in range(n)
        ]
        results: list[list[Result]] = []
        for start in range(0, n, _AT_ONCE):
            results += await self._run(queries[start : start + _AT_ONCE])
        return results

    async def _run(self, queries: list[_Query]) -> list[list[Result]]:
        options = self.options
        rankings = iter(
            await self.outside.search(
                [half for query in queries for half in query.halves()],
                limit=max(options.halves),
                filter=options.filter,
                exact=options.exact,
            )
        )
        dense_k, sparse_k = options.halves
        results = []
        for query in queries:
            dense = next(rankings)[:dense_k] if query.dense is not None else []
            sparse = next(rankings)[:sparse_k] if query.sparse is not None else []
            results.append(await self._results(_Found(query, dense, sparse, await self._joined(query, dense, sparse))))
        return results

    async def _joined(self, query: _Query, dense: list[Hit], sparse: list[Hit]) -> list[Hit]:
        fusion, threshold = self.options.fusion, self.options.score_threshold
        assert isinstance(fusion, Fusion)
        if query.dense is None or query.sparse is None:
            joined = dense or sparse
        elif fusion.method == "weighted":
            ids = [hit.id for hit in dense + sparse]
            joined = fusion.fuse(
                ranked(dense + await self._lacking(query.dense, dense, ids)),
                ranked(sparse + await self._lacking(query.sparse, sparse, ids)),
            )
        else:
            joined = fusion.fuse(dense, sparse)
        return joined if threshold is None else [hit for hit in joined if hit.score >= threshold]

    async def _lacking(self, query: StoreQuery, ranking: list[Hit], ids: list[str]) -> list[Hit]:
        """Return the scores of the records that a ranking does not reach down to."""
        lacking = set(ids).difference(hit.id for hit in ranking)
        if not lacking:
            return []
        return (await self.outside.search([query], limit=len(lacking), filter=HasId(sorted(lacking)), exact=True))[0]

    async def _results(self, found: _Found) -> list[Result]:
        options = self.options
        best = found.best[: options.k] if options.mmr is None else await self._diverse(found, options.mmr)
        if not best:
            return []
        records = {record.id: record for record in await self.outside.get([hit.id for hit in best], options.explain)}
        kept = [hit for hit in best if hit.id in records]  # one may have been deleted in this moment
        why = await self._explain(found, kept, records) if options.explain else {}
        return [Result(_without_vectors(records[hit.id]), hit.score, why.get(hit.id)) for hit in kept]

    async def _diverse(self, found: _Found, weight: float) -> list[Hit]:
        candidates = found.best[: self.options.candidates]
        records = {record.id: record for record in await self.outside.get([hit.id for hit in candidates], True)}
        candidates = [hit for hit in candidates if hit.id in records]
        if not candidates:
            return []
        relevance = [hit.score for hit in candidates]
        if found.query.sparse is not None:  # other scores than cosines are brought to their scale
            relevance = Fusion("relative").scaled(relevance)
        vectors = np.stack([row for hit in candidates if (row := records[hit.id].dense) is not None])
        return [candidates[i] for i in diversify(relevance, vectors, self.options.k, weight)]

    async def _explain(self, found: _Found, hits: list[Hit], records: Mapping[str, Record]) -> dict[str, Explanation]:
        query, ids = found.query, [hit.id for hit in hits]
        scores: list[dict[str, float]] = []
        for half, ranking in ((query.dense, found.dense), (query.sparse, found.sparse)):
            scores.append({} if half is None else dict(ranking + await self._lacking(half, ranking, ids)))
        ranks = [{hit.id: rank for rank, hit in enumerate(ranking, 1)} for ranking in (found.dense, found.sparse)]
        explained = {}
        for id in ids:
            row = records[id].sparse
            terms = await self._terms(query.sparse.vector, row) if query.sparse is not None and row is not None else ()
            explained[id] = Explanation(
                dense_score=scores[0].get(id),
                sparse_score=scores[1].get(id, 0.0) if query.sparse is not None else None,
                dense_rank=ranks[0].get(id),
                sparse_rank=ranks[1].get(id),
                terms=terms,
            )
        return explained

    async def _terms(self, query: SparseVector, record: SparseVector) -> tuple[tuple[str, float, float], ...]:
        keys, in_query, in_record = np.intersect1d(query.indices, record.indices, return_indices=True)
        weights = list(zip(query.values[in_query].tolist(), record.values[in_record].tolist(), strict=True))
        order = sorted(range(len(keys)), key=lambda i: -weights[i][0] * weights[i][1])
        names = await self.outside.names(SparseBatch.from_dicts([{int(keys[i]): 1.0} for i in order]))
        return tuple((next(iter(name)), *weights[i]) for name, i in zip(names, order, strict=True))

    async def _weighted_by_idf(self, sparse: SparseBatch) -> SparseBatch:
        keys, where = np.unique(sparse.indices, return_inverse=True)
        if not len(keys):
            return sparse
        idf = await self.outside.idf(keys.astype(np.int32))
        return SparseBatch(sparse.indptr, sparse.indices, sparse.values * idf[where])


def _idf(n: int, frequencies: Any) -> Float32:
    """Return ln(1 + (n - df + 0.5) / (df + 0.5)): Robertson's idf as Lucene keeps it above 0."""
    weights: Float32 = np.log1p((n - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
    return weights


def _new_ids(texts: Sequence[str]) -> list[str]:
    return [str(uuid.uuid4()) for _ in texts]


def _without_vectors(record: Record) -> Record:
    return Record(record.id, record.text, record.metadata, record.provenance)
