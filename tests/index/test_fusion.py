"""Fusion and diversity against qdrant-client's and LangChain's own computations, and against the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from qdrant_client import models
from qdrant_client.hybrid import fusion as peer

from twinvec.errors import ConfigurationError
from twinvec_stores import Fusion, Hit
from twinvec_stores.search.fusion import Method, diversify

_SCORES = st.floats(0.0078125, 40, width=32)


def _ranking(scores: dict[int, float]) -> list[Hit]:
    return sorted((Hit(f"d{i:02}", score) for i, score in scores.items()), key=lambda hit: (-hit.score, hit.id))


RANKINGS = st.dictionaries(st.integers(0, 20), _SCORES, max_size=15).map(_ranking)
METHODS: list[Method] = ["rrf", "weighted", "relative", "dbsf"]


def _points(ranking: list[Hit]) -> list[models.ScoredPoint]:
    return [models.ScoredPoint(id=int(hit.id[1:]), version=0, score=hit.score) for hit in ranking]


def _as_dict(points: list[models.ScoredPoint]) -> dict[str, float]:
    return {f"d{point.id:02}": point.score for point in points}


@given(RANKINGS, RANKINGS)
def test_rrf_agrees_with_qdrants(dense: list[Hit], sparse: list[Hit]) -> None:
    # its constant counts ranks from 0, so 61 there is 60 here
    expected = _as_dict(peer.reciprocal_rank_fusion([_points(dense), _points(sparse)], 100, ranking_constant_k=61))
    assert {hit.id: hit.score for hit in Fusion("rrf").fuse(dense, sparse)} == pytest.approx(expected)


@given(RANKINGS, RANKINGS)
def test_dbsf_agrees_with_qdrants(dense: list[Hit], sparse: list[Hit]) -> None:
    expected = _as_dict(peer.distribution_based_score_fusion([_points(dense), _points(sparse)], 100))
    assert {hit.id: hit.score for hit in Fusion("dbsf").fuse(dense, sparse)} == pytest.approx(expected, abs=1e-6)


@given(RANKINGS, RANKINGS, st.floats(0.1, 3), st.floats(0.1, 3))
def test_rrf_weights_follow_the_formula(dense: list[Hit], sparse: list[Hit], a: float, b: float) -> None:
    expected: dict[str, float] = {}
    for weight, ranking in ((a, dense), (b, sparse)):
        for place, hit in enumerate(ranking):
            expected[hit.id] = expected.get(hit.id, 0) + weight / (10 + place + 1)
    fused = Fusion("rrf", a, b, rrf_k=10).fuse(dense, sparse)
    assert {hit.id: hit.score for hit in fused} == pytest.approx(expected)


@given(RANKINGS, RANKINGS)
def test_relative_runs_from_0_to_1_in_each_ranking(dense: list[Hit], sparse: list[Hit]) -> None:
    fused = {hit.id: hit.score for hit in Fusion("relative", 2.0, 0.5).fuse(dense, sparse)}
    expected: dict[str, float] = dict.fromkeys(fused, 0.0)
    for weight, ranking in ((2.0, dense), (0.5, sparse)):
        scores = np.array([hit.score for hit in ranking])
        spread = np.ptp(scores) if len(scores) else 0
        for hit in ranking:
            expected[hit.id] += weight * ((hit.score - scores.min()) / spread if spread else 1.0)
    assert fused == pytest.approx(expected)


def test_weighted_adds_raw_scores() -> None:
    dense, sparse = [Hit("a", 0.8), Hit("b", 0.5)], [Hit("b", 4.0), Hit("a", 1.0)]
    fused = Fusion("weighted", 1.0, 0.3).fuse(dense, sparse)
    assert [hit.id for hit in fused] == ["b", "a"]
    assert [hit.score for hit in fused] == pytest.approx([0.5 + 1.2, 0.8 + 0.3])


@given(RANKINGS, RANKINGS, st.sampled_from(METHODS))
def test_fused_holds_every_record_once_best_first_ties_by_id(
    dense: list[Hit], sparse: list[Hit], method: Method
) -> None:
    fused = Fusion(method).fuse(dense, sparse)
    assert sorted(hit.id for hit in fused) == sorted({hit.id for hit in dense + sparse})
    keys = [(-hit.score, hit.id) for hit in fused]
    assert keys == sorted(keys)
    assert all(math.isfinite(hit.score) for hit in fused)


@given(RANKINGS, st.sampled_from(METHODS))
def test_a_lone_ranking_keeps_its_order(ranking: list[Hit], method: Method) -> None:
    fused = {hit.id: hit.score for hit in Fusion(method).fuse(ranking, [])}
    scores = [fused[hit.id] for hit in ranking]
    assert scores == sorted(scores, reverse=True)


def test_ties_go_by_id() -> None:
    fused = Fusion("rrf").fuse([Hit("b", 1.0)], [Hit("a", 9.0)])
    assert [hit.id for hit in fused] == ["a", "b"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "borda"},
        {"dense_weight": -1.0},
        {"sparse_weight": math.nan},
        {"dense_weight": 0.0, "sparse_weight": 0.0},
        {"rrf_k": -1},
        {"dense_weight": "1"},
        {"dense_weight": True},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Fusion(**wrong)  # type: ignore[arg-type]


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), st.integers(0, 2**32 - 1))
def test_mmr_agrees_with_langchains(n: int, k: int, weight: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 6))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    query = rng.normal(size=6)
    query /= np.linalg.norm(query)
    order = np.argsort(-(rows @ query))  # candidates come best first
    rows = rows[order]
    chosen = diversify((rows @ query).tolist(), rows, k, weight)
    assert chosen == maximal_marginal_relevance(query, rows.tolist(), lambda_mult=weight, k=k)
