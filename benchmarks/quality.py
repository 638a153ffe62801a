"""Does hybrid search find more than the better of its halves? On real collections, with the product's own search.

    python benchmarks/quality_collections.py --out collections      # from Debian's documentation packages
    python benchmarks/quality.py --model e5/ --sparse sparse_linear.safetensors \\
        --prompts '{"query": "query: ", "document": "passage: "}' collections/out/*

A collection is a folder in BEIR layout. All is reported on a random half of its queries (seed 0); the weights of the
default fusion were chosen on the other halves. Intervals: paired bootstraps of nDCG@10, hybrid less the better half.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from twinvec import Embedder, TruncationWarning
from twinvec_cli.collection import Collection
from twinvec_cli.metrics import ndcg_at_k, recall_at_k
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig

Floats = NDArray[np.float64]
RESULTS = Path(__file__).parent / "results" / "quality.json"
WAYS: dict[str, dict[str, Any]] = {
    "dense": {"mode": "dense"},
    "sparse": {"mode": "sparse"},
    "hybrid": {},
    "hybrid, rrf 1:1": {"fusion": "rrf"},
    "hybrid, dbsf 1:1": {"fusion": "dbsf"},
}
RESAMPLES = 10_000


@dataclass(frozen=True)
class Outcome:
    """One collection: mean nDCG@10 and recall@10 by way of searching, and hybrid less the better half."""

    name: str
    documents: int
    queries: int
    ndcg: dict[str, float]
    recall: dict[str, float]
    gain: float
    interval: tuple[float, float]


def main() -> None:
    options = _options()
    prompts = json.loads(options.prompts) if options.prompts else None
    outcomes = []
    with Embedder(options.model, sparse=options.sparse or "auto", prompts=prompts) as embedder:
        for folder in options.collections:
            outcomes.append(evaluate(embedder, folder))
            print(f"{folder.name}: {outcomes[-1].ndcg}")
    _show(outcomes)
    facts = {"model": str(options.model), "sparse": options.sparse, "collections": [asdict(o) for o in outcomes]}
    options.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def evaluate(embedder: Embedder, folder: Path) -> Outcome:
    """Search a collection in every way, for the held-back half of its queries."""
    collection = Collection.read(folder)
    asked = [query for query in collection.queries if query in collection.qrels]
    chosen = np.random.default_rng(0).permutation(len(asked))[len(asked) // 2 :]
    held_back = [asked[i] for i in sorted(chosen.tolist())]
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        index.add(list(collection.documents.values()), ids=list(collection.documents), show_progress=True)
    ndcg: dict[str, Floats] = {}
    recall: dict[str, float] = {}
    for way, search in WAYS.items():
        found = index.search_many([collection.queries[query] for query in held_back], k=10, **search)
        rankings = [[result.record.id for result in results] for results in found]
        pairs = [(ranking, collection.qrels[query]) for query, ranking in zip(held_back, rankings, strict=True)]
        ndcg[way] = np.array([ndcg_at_k(*pair) for pair in pairs])
        recall[way] = float(np.mean([recall_at_k(*pair) for pair in pairs]))
    better = max(("dense", "sparse"), key=lambda way: ndcg[way].mean())
    return Outcome(
        folder.name,
        len(collection.documents),
        len(held_back),
        {way: float(values.mean()) for way, values in ndcg.items()},
        recall,
        float((ndcg["hybrid"] - ndcg[better]).mean()),
        _interval(ndcg["hybrid"] - ndcg[better]),
    )


def _interval(differences: Floats) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    means = rng.choice(differences, (RESAMPLES, len(differences))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _show(outcomes: list[Outcome]) -> None:
    table = Table(title="nDCG@10 on held-back queries", title_justify="left")
    for name in ("Collection", "Documents", "Queries", *WAYS, "Hybrid less the better half"):
        table.add_column(name, justify="left" if name == "Collection" else "right")
    for outcome in outcomes:
        low, high = outcome.interval
        table.add_row(
            outcome.name,
            str(outcome.documents),
            str(outcome.queries),
            *(f"{outcome.ndcg[way]:.3f}" for way in WAYS),
            f"{outcome.gain:+.3f} [{low:+.3f}, {high:+.3f}]",
        )
    Console().print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path, help="folders in BEIR layout")
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--sparse", help="head file, SPLADE checkpoint or bm25")
    parser.add_argument("--prompts", help="JSON object")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
