"""The demo's search: a collection is ingested into a store and searched for all its questions in three ways."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinvec.errors import TruncationWarning
from twinvec_cli.collection import Collection
from twinvec_cli.metrics import ndcg_at_k, recall_at_k

if TYPE_CHECKING:
    from twinvec import BaseEmbedder
    from twinvec_stores import IngestReport, Result, StoreInfo

WAYS: Mapping[str, Mapping[str, Any]] = {"dense": {"mode": "dense"}, "sparse": {"mode": "sparse"}, "hybrid": {}}


@dataclass(frozen=True)
class Search:
    """A collection, ingested and searched.

    Attributes:
        collection: the collection searched.
        found: "dense", "sparse" and "hybrid" -> query id -> results, best first.
        report: the ingestion's report.
        info: the store's info.
        seconds: time for all queries, by way of searching; the first way also embeds them.
    """

    collection: Collection
    found: Mapping[str, Mapping[str, Sequence[Result]]]
    report: IngestReport
    info: StoreInfo
    seconds: Mapping[str, float]

    def ranking(self, way: str, query: str) -> list[str]:
        """Return the ids of the top documents."""
        return [result.record.id for result in self.found[way][query]]

    def quality(self, way: str, k: int = 10) -> tuple[float, float]:
        """Return nDCG@k and recall@k, averaged over all queries."""
        pairs = [(self.ranking(way, query), grades) for query, grades in self.collection.qrels.items()]
        ndcg = [ndcg_at_k(ranking, grades, k) for ranking, grades in pairs]
        recall = [recall_at_k(ranking, grades, k) for ranking, grades in pairs]
        return sum(ndcg) / len(ndcg), sum(recall) / len(recall)


def search(embedder: BaseEmbedder, collection: Collection, folder: Path, *, show_progress: bool = False) -> Search:
    """Ingest a collection into a new store in ``folder``, and search it for all its queries in every way."""
    from twinvec_stores import Document, EmbeddedStore, HybridIndex, StoreConfig, ingest

    documents = [Document(id=id, text=text) for id, text in collection.documents.items()]
    found, seconds = {}, {}
    with EmbeddedStore(folder, StoreConfig.for_embedder(embedder)) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # the view shows how many
        report = ingest(documents, embedder, store, show_progress=show_progress)
        index = HybridIndex(embedder, store)
        for way, options in WAYS.items():
            start = time.perf_counter()
            results = index.search_many(list(collection.queries.values()), explain=way == "sparse", **options)
            seconds[way] = time.perf_counter() - start
            found[way] = dict(zip(collection.queries, results, strict=True))
        return Search(collection, found, report, store.info(), seconds)
