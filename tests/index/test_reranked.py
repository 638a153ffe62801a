"""Searches with a third stage, against the fp64 scores of transformers' own class."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reference.gte import build_gte
from reference.rerankers import Scorer, build_cross_encoder, reference_cross_encoder
from rerankers.pairs import random_pairs
from twinvec import Embedder, Reranker
from twinvec.errors import ConfigurationError
from twinvec_stores import HybridIndex, MemoryStore, Range, Result, StoreConfig

TEXTS = list(dict.fromkeys(text for _, text in random_pairs(120, longest=20) if text.strip()))
IDS = [f"doc-{i:03}" for i in range(len(TEXTS))]
QUERIES = ["what is the capital of china", "столица россии", "quick sort in python"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cross_encoder(tmp_path_factory.mktemp("reranker"), "bert")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Scorer:
    return reference_cross_encoder(folder)


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Iterator[Reranker]:
    with Reranker(folder, dtype="float32") as made:
        yield made


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HybridIndex]:
    with Embedder(build_gte(tmp_path_factory.mktemp("gte"), seed=11), dtype="float32") as embedder:
        index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
        index.add(TEXTS, ids=IDS, metadata=[{"number": i, "kind": i % 7} for i in range(len(TEXTS))])
        yield index


def ranking(results: list[Result]) -> list[tuple[str, float]]:
    return [(result.record.id, result.score) for result in results]


def check(query: str, results: list[Result], fused: list[Result], reference: Scorer) -> None:
    """Results are the best of the fused candidates by the reference, with both scores."""
    scores = dict(
        zip((r.record.id for r in fused), reference([(query, r.record.text) for r in fused]).tolist(), strict=True)
    )
    assert [r.score for r in results] == pytest.approx(sorted(scores.values(), reverse=True)[: len(results)], abs=1e-4)
    before = {r.record.id: r.score for r in fused}
    for result in results:
        assert result.score == pytest.approx(scores[result.record.id], abs=1e-4)
        assert result.fused_score == before[result.record.id]


@pytest.mark.parametrize("options", [{}, {"mode": "dense"}, {"fusion": "weighted"}, {"filter": Range("number", lt=60)}])
def test_the_first_candidates_are_ordered_anew(
    index: HybridIndex, reranker: Reranker, reference: Scorer, options: dict[str, Any]
) -> None:
    options = {**options, "fetch_k": len(TEXTS)}  # a relative fusion depends on the candidates
    many = index.search_many(QUERIES, k=5, rerank=reranker, rerank_k=30, **options)
    awaited = asyncio.run(index.asearch_many(QUERIES, k=5, rerank=reranker, rerank_k=30, **options))
    for query, results, again in zip(QUERIES, many, awaited, strict=True):
        fused = index.search(query, k=30, **options)
        assert len(results) == 5
        check(query, results, fused, reference)
        assert ranking(again) == ranking(results)
    assert many[0][0].record.dense is None


def test_the_explanation_has_the_third_stage(index: HybridIndex, reranker: Reranker) -> None:
    results = index.search(QUERIES[0], k=4, rerank=reranker, explain=True)
    for rank, result in enumerate(results, 1):
        why = result.explanation
        assert why is not None
        assert (why.rerank_score, why.rerank_rank) == (result.score, rank)
        assert why.dense_score is not None
    plain = index.search(QUERIES[0], k=1, explain=True)[0]
    assert plain.explanation is not None
    assert (plain.explanation.rerank_score, plain.explanation.rerank_rank, plain.fused_score) == (None, None, None)


def test_a_threshold_on_the_rerankers_score(index: HybridIndex, reranker: Reranker) -> None:
    every = index.search(QUERIES[1], k=20, rerank=reranker)
    least = every[9].score
    kept = index.search(QUERIES[1], k=20, rerank=reranker, min_rerank=least)
    assert [r.record.id for r in kept] == [r.record.id for r in every if r.score >= least]
    assert index.search(QUERIES[1], rerank=reranker, min_rerank=1e6) == []


@pytest.mark.parametrize("size", [1, 2])
def test_groups_are_made_of_the_new_order(index: HybridIndex, reranker: Reranker, size: int) -> None:
    ranked = index.search(QUERIES[2], k=40, rerank=reranker, rerank_k=40)
    groups: dict[Any, list[str]] = {}
    for result in ranked:
        groups.setdefault(result.record.metadata["kind"], []).append(result.record.id)
    wanted = [id for members in list(groups.values())[:4] for id in members[:size]]
    found = index.search(QUERIES[2], k=4, rerank=reranker, rerank_k=40, group_by="kind", group_size=size)
    assert [result.record.id for result in found] == wanted


def test_64_searches_share_passes(index: HybridIndex, reranker: Reranker) -> None:
    queries = [f"{QUERIES[i % 3]} {i}" for i in range(64)]

    async def search() -> list[list[Result]]:
        return await asyncio.gather(*(index.asearch(query, k=3, rerank=reranker, rerank_k=8) for query in queries))

    before = reranker.stats()
    found = asyncio.run(search())
    after = reranker.stats()
    assert after["texts"] - before["texts"] == 64 * 8
    assert after["forwards"] - before["forwards"] < 64
    assert [[r.record.id for r in each] for each in found] == [
        [r.record.id for r in index.search(query, k=3, rerank=reranker, rerank_k=8)] for query in queries
    ]


def test_a_scoped_index_reranks_its_part(index: HybridIndex, reranker: Reranker) -> None:
    part = index.scoped(Range("number", lt=5))
    assert {r.record.id for r in part.search(QUERIES[0], rerank=reranker)} == set(IDS[:5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rerank": "a model"}, "rerank must be"),
        ({"min_rerank": 0.5}, "needs rerank"),
        ({"rerank_k": 0}, "0"),
        ({"k": 60}, "less than k"),
        ({"mmr": 0.5}, "mmr"),
        ({"min_rerank": float("nan")}, "finite"),
    ],
)
def test_what_cannot_be_reranked(index: HybridIndex, reranker: Reranker, options: dict[str, Any], message: str) -> None:
    given = options if message == "needs rerank" else {"rerank": reranker, **options}
    with pytest.raises((ConfigurationError, TypeError), match=message):
        index.search("a", **given)


def test_vectors_have_no_words(index: HybridIndex, reranker: Reranker) -> None:
    batch = index.embedder.embed_queries(["a"])
    with pytest.raises(ConfigurationError, match="words"):
        index.search_vectors(batch.dense, batch.sparse, rerank=reranker)
    with pytest.raises(ConfigurationError, match="2 texts"):
        index.search_vectors(batch.dense, batch.sparse, ["a", "b"], rerank=reranker)
    [found] = index.search_vectors(batch.dense, batch.sparse, ["a"], rerank=reranker)
    assert ranking(found) == ranking(index.search("a", rerank=reranker))
