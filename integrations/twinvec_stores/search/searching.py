"""One search, as a flow: query the halves, apply thresholds, fuse, cut, and fetch the records."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twinvec import BaseEmbedder, SparseBatch, Task
from twinvec.errors import ConfigurationError, FusionWarning
from twinvec.flows import call
from twinvec.vectors import Float32
from twinvec_stores.filters.conditions import HasId
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import DenseQuery, Hit, Record, SparseQuery, StoreQuery
from twinvec_stores.search.explain import Result, explain
from twinvec_stores.search.fusion import Fusion, diversify, ranked
from twinvec_stores.search.grouping import Groups, joined, neighbours
from twinvec_stores.search.options import SearchOptions
from twinvec_stores.search.reranking import rerank

_GTE_HEAD = ("gte", "head")
_AT_ONCE = 64  # queries per call of the store
_PAGE = 256  # candidates whose groups are looked up together


@dataclass(frozen=True)
class Query:
    """One query: the halves that are queried, and its words if they are known."""

    dense: DenseQuery | None
    sparse: SparseQuery | None
    text: str | None = None

    def halves(self) -> list[StoreQuery]:
        """Return the halves that are queried."""
        return [half for half in (self.dense, self.sparse) if half is not None]


@dataclass(frozen=True)
class Found:
    """One query's rankings, and their result; ``fused``: scores before reranking."""

    query: Query
    dense: list[Hit]
    sparse: list[Hit]
    best: list[Hit]
    fused: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Searching:
    """A search with a model, in a store; its methods are flows."""

    embedder: BaseEmbedder
    store: HybridStore
    options: SearchOptions

    async def texts(self, queries: Sequence[str], task: Task | str | None) -> list[list[Result]]:
        """Search for texts."""
        if isinstance(queries, str):
            raise TypeError("search_many needs a list of queries; use search for one")
        dense, sparse = self.options.parts(self.store.config)
        if not queries:
            return []
        if dense and sparse:
            self._warn_of_scales()
        embed, aembed = self.embedder.embed_queries, self.embedder.aembed_queries
        batch = await call(embed, aembed, queries, task=task, dense=dense, sparse=sparse)
        return await self.vectors(batch.dense, batch.sparse, queries)

    def _warn_of_scales(self) -> None:
        """Warn that the default weights of raw scores are GTE's: another sparse half may make them a bad choice."""
        if self.options.fusion == Fusion("weighted") and (self.embedder.family, self.embedder.spec.sparse) != _GTE_HEAD:
            warnings.warn(
                'fusion="weighted" adds raw scores with weights made for GTE\'s sparse half, and this one '
                'uses a different scale: use fusion="relative", or pass your own dense_weight and sparse_weight '
                "(twinvec tune)",
                FusionWarning,
                stacklevel=2,
            )

    async def vectors(
        self, dense: Float32 | None, sparse: SparseBatch | None, texts: Sequence[str] | None = None
    ) -> list[list[Result]]:
        """Search for vectors: float32 [n, dim], n rows, or both; ``texts`` are the words of the queries."""
        config = self.store.config
        parts = self.options.parts(config, dense=dense is not None, sparse=sparse is not None)
        if sparse is not None and parts[1] and config.idf:
            sparse = await self._weighted_by_idf(sparse)
        n = len(dense) if dense is not None else len(sparse) if sparse is not None else 0
        if dense is not None and sparse is not None and len(sparse) != n:
            raise ConfigurationError(f"{n} dense but {len(sparse)} sparse queries")
        if texts is not None and len(texts) != n:
            raise ConfigurationError(f"vectors of {n} queries but {len(texts)} texts")
        queries = [
            Query(
                DenseQuery(dense[i]) if dense is not None and parts[0] else None,
                SparseQuery(sparse[i]) if sparse is not None and parts[1] else None,
                texts[i] if texts is not None else None,
            )
            for i in range(n)
        ]
        results: list[list[Result]] = []
        for start in range(0, n, _AT_ONCE):
            results += await self._run(queries[start : start + _AT_ONCE])
        return results

    async def completed(self, query: StoreQuery, ranking: list[Hit], ids: Sequence[str]) -> list[Hit]:
        """Return a ranking extended by the scores of records below its end."""
        lacking = set(ids).difference(hit.id for hit in ranking)
        if not lacking:
            return ranking
        only = HasId(sorted(lacking))
        [found] = await call(
            self.store.search, self.store.asearch, [query], limit=len(lacking), filter=only, exact=True
        )
        return ranking + found

    async def records(self, hits: Sequence[Hit], *, with_vectors: bool = False) -> dict[str, Record]:
        """Return the records of hits by id; some may just have been deleted, or replaced by others than were ranked."""
        if not hits:
            return {}
        ids = [hit.id for hit in hits]
        found = await call(self.store.get, self.store.aget, ids, with_vectors=with_vectors)
        return {record.id: record for record in found}

    async def _run(self, queries: list[Query]) -> list[list[Result]]:
        found = await self._find(queries, *self.options.halves)
        if self.options.rerank is not None:
            found = await rerank(self, found)
        return [await self._results(each) for each in found]

    async def _find(self, queries: list[Query], dense_k: int, sparse_k: int) -> list[Found]:
        options, store = self.options, self.store
        asked = [half for query in queries for half in query.halves()]
        rankings = iter(
            await call(
                store.search,
                store.asearch,
                asked,
                limit=max(dense_k, sparse_k),
                filter=options.filter,
                exact=options.exact,
            )
        )
        found = []
        for query in queries:
            dense = next(rankings)[:dense_k] if query.dense is not None else []
            sparse = next(rankings)[:sparse_k] if query.sparse is not None else []
            best = await self._gated(query, dense, sparse, await self._joined(query, dense, sparse))
            found.append(Found(query, dense, sparse, best))
        return found

    async def _gated(self, query: Query, dense: list[Hit], sparse: list[Hit], best: list[Hit]) -> list[Hit]:
        """Return the hits whose own scores are high enough, in order."""
        gates = ((query.dense, dense, self.options.min_dense), (query.sparse, sparse, self.options.min_sparse))
        for half, ranking, least in gates:
            if half is not None and least is not None:
                scores = dict(await self.completed(half, ranking, [hit.id for hit in best]))
                best = [hit for hit in best if scores.get(hit.id, 0.0) >= least]
        return best

    async def _grouped(self, found: Found, by: str) -> tuple[Found, list[Hit]]:
        """Return the hits of the first k groups; if there are fewer, request more candidates.

        Reranked hits cannot be extended.
        """
        (dense_k, sparse_k), options = self.options.halves, self.options
        while True:
            groups = Groups(options.k, options.group_size, by)
            for start in range(0, len(found.best), _PAGE):
                if not groups.full:
                    page = found.best[start : start + _PAGE]
                    records = await self.records(page)
                    for hit in page:
                        if hit.id in records:
                            groups.add(hit, records[hit.id])
            reached_all = len(found.dense) < dense_k and len(found.sparse) < sparse_k
            if groups.full or reached_all or found.fused is not None:
                return found, groups.hits()
            dense_k, sparse_k = 4 * dense_k, 4 * sparse_k
            [found] = await self._find([found.query], dense_k, sparse_k)

    async def _joined(self, query: Query, dense: list[Hit], sparse: list[Hit]) -> list[Hit]:
        fusion, threshold = self.options.fusion, self.options.score_threshold
        assert isinstance(fusion, Fusion)
        if query.dense is None or query.sparse is None:
            joined = dense or sparse
        elif fusion.method == "weighted":
            ids = [hit.id for hit in dense + sparse]
            joined = fusion.fuse(
                ranked(await self.completed(query.dense, dense, ids)),
                ranked(await self.completed(query.sparse, sparse, ids)),
            )
        else:
            joined = fusion.fuse(dense, sparse)
        return joined if threshold is None else [hit for hit in joined if hit.score >= threshold]

    async def _results(self, found: Found) -> list[Result]:
        options = self.options
        best = found.best[: options.k]
        if options.mmr is not None:
            best = await self._diverse(found, options.mmr)
        elif options.group_by is not None:
            found, best = await self._grouped(found, options.group_by)
        records = await self.records(best, with_vectors=options.explain)
        kept = [hit for hit in best if hit.id in records]
        why = await explain(self, found, kept, records) if options.explain else {}
        around = await self._around([records[hit.id] for hit in kept]) if options.expand else {}
        fused = found.fused or {}
        return [
            Result(_without_vectors(records[hit.id]), hit.score, why.get(hit.id), around.get(hit.id), fused.get(hit.id))
            for hit in kept
        ]

    async def _around(self, records: Sequence[Record]) -> dict[str, str]:
        wanted = {record.id: neighbours(record, self.options.expand) for record in records}
        ids = sorted({id for near in wanted.values() for id in near})
        found = await self.records([Hit(id, 0.0) for id in ids])
        return {
            record.id: joined(
                [
                    found[id]
                    for id in wanted[record.id]
                    if id in found and found[id].provenance.get("document") == record.provenance["document"]
                ]
            )
            for record in records
            if wanted[record.id]
        }

    async def _diverse(self, found: Found, weight: float) -> list[Hit]:
        candidates = found.best[: self.options.candidates]
        records = await self.records(candidates, with_vectors=True)
        candidates = [hit for hit in candidates if hit.id in records]
        if not candidates:
            return []
        relevance = [hit.score for hit in candidates]
        if found.query.sparse is not None:  # scores other than cosines are brought to the same scale
            relevance = Fusion("relative").scaled(relevance)
        vectors = np.stack([row for hit in candidates if (row := records[hit.id].dense) is not None])
        return [candidates[i] for i in diversify(relevance, vectors, self.options.k, weight)]

    async def _weighted_by_idf(self, sparse: SparseBatch) -> SparseBatch:
        """Multiply by ln(1 + (n - df + 0.5) / (df + 0.5)): Robertson's idf in Lucene's form, which stays above 0."""
        keys, where = np.unique(sparse.indices, return_inverse=True)
        if not len(keys):
            return sparse
        store = self.store
        n = await call(store.count, store.acount)
        frequencies = await call(store.document_frequencies, store.adocument_frequencies, keys.astype(np.int32))
        idf = np.log1p((n - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
        return SparseBatch(sparse.indptr, sparse.indices, sparse.values * idf[where])


def _without_vectors(record: Record) -> Record:
    return Record(record.id, record.text, record.metadata, record.provenance)
