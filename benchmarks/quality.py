"""Which weights should both halves have, and does hybrid search then find more than the better of them?

    python benchmarks/quality_collections.py --download --out collections      # from Debian's documentation packages
    python benchmarks/quality.py --model e5/ --prompts '{"query": "query: ", "document": "passage: "}' \\
        --sparse head=sparse_linear.safetensors --sparse SPLADE=splade/ --sparse BM25=bm25 collections/*-*

A collection is a folder in BEIR layout; its name ends with its language. Questions are split as by ``twinvec tune``.
One part chooses the share of the sparse half, for each kind of sparse half and for all kinds together. All that is
reported comes from the other part. Vectors are kept in ``--cache`` for the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from twinvec import Embedder, TruncationWarning
from twinvec_cli.collection import Collection
from twinvec_stores import EmbeddedStore, Fusion, HybridIndex, StoreConfig
from twinvec_stores.evaluation import Comparison, Evaluation, Questions, compare, evaluate, read_questions, split
from twinvec_stores.search.options import SearchKeywords

RESULTS = Path(__file__).parent / "results" / "quality-shares.json"
MEASURES = ("nDCG@10", "R@10")
NDCG = MEASURES[0]
SHARES = [round(0.05 * n, 2) for n in range(1, 11)]  # of the sparse half, by the default method
BY_SHARE: Mapping[str, SearchKeywords] = {f"{s:g}": {"fusion": Fusion("relative", 1 - s, s)} for s in SHARES}
WAYS: Mapping[str, SearchKeywords] = {
    "dense": {"mode": "dense"},
    "sparse": {"mode": "sparse"},
    "hybrid": {},
    "hybrid, rrf 1:1": {"fusion": "rrf"},
    "hybrid, dbsf 1:1": {"fusion": "dbsf"},
}
ENGLISH = ("SPLADE",)  # the checkpoint that a package ships knows no other language


@dataclass(frozen=True)
class Subject:
    """One collection with one kind of sparse half.

    Attributes:
        name: of the collection.
        index: its documents.
        held_back: the questions that choose nothing.
        tuning: share -> mean nDCG on the others.
    """

    name: str
    index: HybridIndex
    held_back: Questions
    tuning: Mapping[str, float]


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as opened:
        kinds: dict[str, list[Subject]] = {}
        for kind, sparse in (each.split("=", 1) for each in options.sparse):
            prompts = json.loads(options.prompts) if options.prompts else None
            embedder = opened.enter_context(
                Embedder(options.model, sparse=sparse, prompts=prompts, cache=options.cache)
            )
            folders = [f for f in options.collections if kind not in ENGLISH or f.name.endswith("-en")]
            kinds[kind] = [
                prepared(embedder, folder, Path(place, f"{kind}-{folder.name}"), options.questions, options.documents)
                for folder in folders
            ]
            for subject in kinds[kind]:
                opened.enter_context(subject.index)
        facts = {"model": options.model.name, "default": f"{Fusion().sparse_weight:g}", **measured(kinds)}
    _show(facts["kinds"])
    options.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def sample(folder: Path, n_questions: int | None, n_documents: int | None) -> tuple[Mapping[str, str], Questions]:
    """Return some of a collection's questions, and some of its documents, all relevant ones among them."""
    random, documents = np.random.default_rng(0), Collection.read(folder).documents
    questions = read_questions(folder)
    asked = questions.asked
    questions = questions.part([asked[i] for i in sorted(random.permutation(len(asked))[:n_questions].tolist())])
    if n_documents is None:
        return documents, questions
    relevant = set(questions.documents)
    others = [id for id in documents if id not in relevant]
    kept = relevant.union(others[i] for i in random.permutation(len(others))[: max(n_documents - len(relevant), 0)])
    return {id: text for id, text in documents.items() if id in kept}, questions


def prepared(
    embedder: Embedder, folder: Path, store: Path, n_questions: int | None, n_documents: int | None
) -> Subject:
    """Index a collection, and try every share on the tuning half of its questions."""
    documents, questions = sample(folder, n_questions, n_documents)
    index = HybridIndex(embedder, EmbeddedStore(store, StoreConfig.for_embedder(embedder)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        index.add(list(documents.values()), ids=list(documents), show_progress=True)
    tuning, held_back = map(questions.part, split(questions))
    chosen = evaluate(index, tuning, ways=BY_SHARE, measures=[NDCG], show_progress=True)
    return Subject(folder.name, index, held_back, {share: way.mean(NDCG) for share, way in chosen.ways.items()})


def measured(kinds: Mapping[str, Sequence[Subject]]) -> dict[str, Any]:
    """Choose shares by the tuning halves, and measure them on the others, which are searched once."""
    tuning = {kind: {s: fmean(each.tuning[s] for each in found) for s in BY_SHARE} for kind, found in kinds.items()}
    common = max(BY_SHARE, key=lambda share: fmean(of[share] for of in tuning.values()))
    results: dict[str, Any] = {}
    for kind, subjects in kinds.items():
        best = max(BY_SHARE, key=tuning[kind].__getitem__)
        ways = {**WAYS, **{share: BY_SHARE[share] for share in {best, common}}}
        found = [evaluate(each.index, each.held_back, ways=ways, measures=MEASURES) for each in subjects]
        results[kind] = {
            "tuning": tuning[kind],
            "best": best,
            "best minus common": asdict(_against(found, best, common)),
            "common minus default": asdict(_against(found, common, "hybrid")),
            "hybrid minus dense": asdict(_against(found, "hybrid", "dense")),
            "common minus dense": asdict(_against(found, common, "dense")),
            "collections": [_facts(subject, each, common) for subject, each in zip(subjects, found, strict=True)],
        }
    return {"common": common, "kinds": results}


def _facts(subject: Subject, found: Evaluation, common: str) -> dict[str, Any]:
    return {
        "name": subject.name,
        "documents": found.records,
        "queries": len(found.asked),
        "tuning": subject.tuning,
        "ndcg": {way: result.mean(NDCG) for way, result in found.ways.items()},
        "recall": {way: result.mean(MEASURES[1]) for way, result in found.ways.items()},
        "better half": found.baseline,
        "gain": asdict(found.compare("hybrid")),
        "gain of common": asdict(found.compare(common)),
    }


def _against(found: Sequence[Evaluation], way: str, other: str) -> Comparison:
    """Compare two ways on the questions of all collections."""
    one, two = (np.concatenate([each.ways[w].scores[NDCG] for each in found]) for w in (way, other))
    return compare(one, two)


def _show(kinds: Mapping[str, Any]) -> None:
    for kind, of in kinds.items():
        table = Table(title=f"{kind}: nDCG@10 on held-back questions", title_justify="left")
        for name in ("Collection", "Questions", *WAYS, "Hybrid minus the better half"):
            table.add_column(name, justify="left" if name == "Collection" else "right")
        for row in of["collections"]:
            gain = "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row["gain"])
            table.add_row(row["name"], str(row["queries"]), *(f"{row['ndcg'][way]:.3f}" for way in WAYS), gain)
        Console().print(table)
        Console().print(f"best share {of['best']}; minus the common one: {of['best minus common']}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path, help="folders in BEIR layout")
    parser.add_argument("--model", required=True, type=Path, help="folder")
    parser.add_argument(
        "--sparse", action="append", required=True, metavar="KIND=SPARSE", help="head, checkpoint, bm25"
    )
    parser.add_argument("--questions", type=int, metavar="N", help="at most, of each collection")
    parser.add_argument("--documents", type=int, metavar="N", help="at most, of each collection; relevant ones first")
    parser.add_argument("--prompts", help="JSON object")
    parser.add_argument("--cache", type=Path, help="folder for vectors")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
