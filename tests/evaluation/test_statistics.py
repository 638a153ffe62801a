"""Measures against their formulas, intervals and p-values against scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from twinvec.errors import ConfigurationError
from twinvec_stores.evaluation import compare
from twinvec_stores.evaluation.measures import Measures

DOCUMENTS = [f"d{i}" for i in range(8)]


@given(
    ranking=st.permutations(DOCUMENTS).flatmap(lambda p: st.integers(0, 8).map(lambda n: p[:n])),
    grades=st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 3), min_size=1),
)
@settings(max_examples=100, deadline=None)
def test_measures_are_their_formulas(ranking: list[str], grades: dict[str, int]) -> None:
    gains = [max(grades.get(document, 0), 0) for document in ranking]
    ideal = sorted((max(grade, 0) for grade in grades.values()), reverse=True)[:5]
    dcg, best = (sum(g / math.log2(r + 1) for r, g in enumerate(row[:5], 1)) for row in (gains, ideal))
    relevant = sum(grade > 0 for grade in grades.values())
    expected = {
        "nDCG@5": dcg / best if best else 0,
        "R@5": sum(g > 0 for g in gains[:5]) / relevant if relevant else 0,
        "RR@5": next((1 / r for r, g in enumerate(gains[:5], 1) if g > 0), 0),
        "Success@3": float(any(g > 0 for g in gains[:3])),
    }
    scores = Measures(list(expected)).score({"q": grades}, {"q": ranking}, ["q"])
    assert {name: float(row[0]) for name, row in scores.items()} == pytest.approx(expected, abs=1e-9)


def test_names_as_people_write_them() -> None:
    found = Measures(["ndcg@10", "recall@100", "MRR@10", "success@1", "precision@3"])
    assert found.names == ["nDCG@10", "R@100", "RR@10", "Success@1", "P@3"]
    assert found.depth == 100


@pytest.mark.parametrize("name", ["nDCG", "nDCG@0", "nDCG@x", "quality@10", "", "@5", "__import__('os')@1"])
def test_unknown_measures_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a measure"):
        Measures([name])
    with pytest.raises(ConfigurationError, match="no measures"):
        Measures([])


def test_interval_and_p_are_scipys() -> None:
    random = np.random.default_rng(3)
    baseline = random.uniform(0, 1, 120)
    scores = np.clip(baseline + random.normal(0.03, 0.12, 120), 0, 1)
    scores[:20] = baseline[:20]
    found = compare(scores, baseline)
    differences = scores - baseline
    interval = scipy.stats.bootstrap((differences,), np.mean, n_resamples=9999, method="percentile", rng=1)
    assert (found.low, found.high) == pytest.approx(interval.confidence_interval, abs=1e-3)
    test = scipy.stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=1)
    assert found.p == pytest.approx(test.pvalue, abs=0.01)
    assert 0.001 < found.p < 0.2  # the two cannot agree by being 0 or 1
    assert found.difference == pytest.approx(differences.mean())
    assert found.wins == int(np.sum(differences > 0))
    assert found.losses == int(np.sum(differences < 0))
    assert found.ties == 20


def test_equal_ways_do_not_differ() -> None:
    found = compare(np.array([0.5, 1.0, 0.0]), np.array([0.5, 1.0, 0.0]))
    assert (found.difference, found.low, found.high, found.p, found.ties) == (0, 0, 0, 1, 3)
    assert not found.significant


def test_p_is_never_said_to_be_nought() -> None:
    assert compare(np.ones(30), np.zeros(30)).p_value == "p < 0.001"
    assert compare(np.ones(30), np.ones(30)).p_value == "p 1.000"


def test_a_difference_of_every_question_is_significant() -> None:
    baseline = np.linspace(0, 0.5, 40)
    assert compare(baseline + 0.1, baseline).significant
    assert compare(baseline - 0.1, baseline).high < 0
