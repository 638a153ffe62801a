"""Retrieval metrics against values computed by hand."""

from __future__ import annotations

import pytest

from twinvec_cli.metrics import ndcg_at_k, recall_at_k

# grades 3, 0, 2 and, not judged, x; log2(2), log2(3), log2(4), log2(5) = 1, 1.5849625, 2, 2.3219281
GRADES = {"a": 3, "b": 0, "c": 2, "d": 1, "e": -1}


@pytest.mark.parametrize(
    ("ranking", "k", "expected"),
    [
        (["a", "c", "d"], 10, 1.0),
        # DCG 0/1 + 2/1.5849625 + 3/2 = 2.7618595; ideal 3 + 2/1.5849625 + 1/2 = 4.7618595
        (["b", "c", "a"], 10, 2.7618595 / 4.7618595),
        # x and e gain nothing: 0 + 0 + 0 + 3/2.3219281; the ideal of four ranks is that of three
        (["x", "e", "b", "a"], 4, (3 / 2.3219281) / 4.7618595),
        # only the first rank counts, in the ideal too
        (["c", "a"], 1, 2 / 3),
        ([], 10, 0.0),
        (["x", "b"], 10, 0.0),
    ],
)
def test_ndcg(ranking: list[str], k: int, expected: float) -> None:
    assert ndcg_at_k(ranking, GRADES, k) == pytest.approx(expected, abs=1e-7)


def test_ndcg_of_one_relevant_document() -> None:
    ranking = [f"d{i}" for i in range(20)]
    assert ndcg_at_k(ranking, {"d0": 1}) == 1.0
    assert ndcg_at_k(ranking, {"d2": 1}) == pytest.approx(0.5)
    assert ndcg_at_k(ranking, {"d9": 1}) == pytest.approx(0.2890648, abs=1e-7)  # 1 / log2(11)
    assert ndcg_at_k(ranking, {"d10": 1}) == 0.0


@pytest.mark.parametrize(
    ("ranking", "k", "expected"),
    [
        (["a", "x", "c", "d"], 10, 1.0),
        (["a", "x", "c", "d"], 3, 2 / 3),
        (["b", "e"], 10, 0.0),
        ([], 10, 0.0),
    ],
)
def test_recall(ranking: list[str], k: int, expected: float) -> None:
    assert recall_at_k(ranking, GRADES, k) == pytest.approx(expected)


def test_nothing_relevant() -> None:
    for grades in ({}, {"a": 0}):
        assert ndcg_at_k(["a"], grades) == 0.0
        assert recall_at_k(["a"], grades) == 0.0
