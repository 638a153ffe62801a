"""Reranker as its callers see it: order, sharing, windows, errors, caches, pickling."""

from __future__ import annotations

import asyncio
import pickle
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.rerankers import build_cross_encoder, build_qwen3_reranker
from rerankers.pairs import random_pairs
from twinvec import ModelSpec, Ranked, Reranker, TruncationWarning
from twinvec.engine.waiting import Part
from twinvec.errors import (
    ConfigurationError,
    DeadlineError,
    InvalidTextError,
    PromptError,
    TextTooLongError,
)
from twinvec.scoring import ScoreOptions
from twinvec.text.pairs import join_pair, split_pair

QUERY = "what is the capital of china"
TEXTS = [text for _, text in random_pairs(40)]
LONG = " ".join(f"{i} gravity is" for i in range(40)) + " the capital of russia"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cross_encoder(tmp_path_factory.mktemp("reranker"), "bert")


@pytest.fixture
def reranker(folder: Path) -> Iterator[Reranker]:
    with Reranker(folder, dtype="float32") as made:
        yield made


def test_best_first_and_ties_by_index(reranker: Reranker) -> None:
    texts = [*TEXTS, *TEXTS[:10]]
    scores = reranker.score([(QUERY, text) for text in texts])
    wanted = sorted(range(len(texts)), key=lambda i: (-scores[i], i))
    ranked = reranker.rerank(QUERY, texts)
    assert [index for index, _ in ranked] == wanted
    assert [score for _, score in ranked] == [float(scores[i]) for i in wanted]
    assert reranker.rerank(QUERY, iter(texts), top_n=3) == ranked[:3]
    assert isinstance(ranked[0], Ranked)
    assert asyncio.run(reranker.arerank(QUERY, texts, top_n=3)) == ranked[:3]
    assert reranker.rerank(QUERY, []) == []
    assert reranker.score([]).shape == (0,)


def test_the_sigmoid_keeps_the_order_and_does_not_overflow(reranker: Reranker) -> None:
    pairs = [(QUERY, text) for text in TEXTS]
    logits, scores = reranker.score(pairs), reranker.score(pairs, activation="sigmoid")
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-6)
    assert scores.dtype == logits.dtype == np.float32
    with pytest.raises(ConfigurationError, match="softmax"):
        reranker.score(pairs, activation="softmax")  # type: ignore[arg-type]


def test_callers_share_a_model_its_passes_and_equal_pairs(folder: Path, reranker: Reranker) -> None:
    pairs = random_pairs(640, longest=6, seed=1)
    alone = reranker.score(pairs)
    reranker._core.clear_memo()
    before = reranker.stats()
    with Reranker(folder, dtype="float32") as other, ThreadPoolExecutor(64) as threads:
        calls = [threads.submit(other.score, pairs[i : i + 10]) for i in range(0, 640, 10)]
        together = np.concatenate([call.result() for call in calls])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    after = reranker.stats()
    assert after["texts"] - before["texts"] <= len(set(pairs))
    assert after["forwards"] - before["forwards"] < 64, "64 callers with 10 pairs each"


def test_a_pair_is_kept_in_the_memo_and_on_disk(folder: Path, tmp_path: Path) -> None:
    pairs = random_pairs(30)
    with Reranker(folder, dtype="float32", cache=tmp_path / "rows") as first:
        scores = first.score(pairs)
        rows = first.stats()["texts"]
        np.testing.assert_array_equal(first.score(pairs), scores)
        assert first.stats()["texts"] == rows
    with Reranker(folder, dtype="float32", cache=tmp_path / "rows") as second:
        np.testing.assert_array_equal(second.score(pairs), scores)
        assert second.stats()["texts"] == 0
        swapped = [(text, query) for query, text in pairs]
        assert not np.array_equal(second.score(swapped), scores), "a pair has two sides"


@given(st.text(), st.text(), st.text(), st.text())
def test_different_pairs_are_different_strings(a: str, b: str, c: str, d: str) -> None:
    assert split_pair(join_pair(a, b)) == (a, b)
    assert (join_pair(a, b) == join_pair(c, d)) == ((a, b) == (c, d))


def test_what_is_cut_is_said(folder: Path) -> None:
    with Reranker(folder, dtype="float32", max_length=32) as reranker:
        with pytest.warns(TruncationWarning, match="1 of 2 pairs"):
            reranker.score([(QUERY, "moscow"), (QUERY, LONG)])
        with pytest.raises(ConfigurationError, match="a query and the tokens around it take"):
            reranker.score([(LONG, "moscow")])
    with Reranker(folder, dtype="float32", max_length=32, on_overflow="error") as strict:
        with pytest.raises(TextTooLongError) as error:
            strict.score([(QUERY, "moscow"), (QUERY, LONG)])
        assert error.value.position == 1
        assert strict.score([(QUERY, LONG)], windows=True).shape == (1,)


@pytest.mark.parametrize("max_length", [14, 32, 64, 128])
def test_windows_cover_a_long_text_and_the_best_one_counts(folder: Path, max_length: int) -> None:
    with Reranker(folder, dtype="float32", max_length=max_length) as reranker:
        windows: list[str] = []
        parts = reranker._parts

        def recorded(pairs: Sequence[tuple[str, str]], options: ScoreOptions) -> list[Part]:
            windows.extend(text for _, text in pairs)
            return parts(pairs, options)

        reranker._parts = recorded  # type: ignore[method-assign]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            score = reranker.score([(QUERY, LONG)], windows=True)
            reranker._parts = parts  # type: ignore[method-assign]
            assert score[0] == reranker.score([(QUERY, window) for window in windows]).max()
            assert reranker.score([(QUERY, "a"), (QUERY, LONG), (QUERY, "")], windows=True)[1] == score[0]
    starts = [LONG.index(window) for window in windows]
    ends = [start + len(window) for start, window in zip(starts, windows, strict=True)]
    assert len(windows) > 1
    assert (starts[0], ends[-1]) == (0, len(LONG))
    assert all(start < end for start, end in zip(starts[1:], ends, strict=False)), "neighbours overlap"


def test_a_task_needs_a_model_trained_with_instructions(folder: Path, reranker: Reranker, tmp_path: Path) -> None:
    with pytest.raises(PromptError):
        reranker.score([(QUERY, "a")], task="Find an answer")
    with pytest.raises(PromptError):
        Reranker(folder, task="Find an answer")
    with Reranker(build_qwen3_reranker(tmp_path), dtype="float32", task="Find an answer") as instructed:
        pairs = [(QUERY, text) for text in TEXTS[:8]]
        own = instructed.score(pairs)
        np.testing.assert_array_equal(instructed.score(pairs, task="Find an answer"), own)
        assert np.abs(instructed.score(pairs, task="web_search") - own).max() > 1e-3


@pytest.mark.parametrize(
    "pairs",
    ["a pair", ["ab"], [("a",)], [("a", "b", "c")], [("a", 1)], [(None, "b")], [("a", "b"), b"ab"], [{"a", "b"}]],
)
def test_what_is_no_pair_is_refused(reranker: Reranker, pairs: object) -> None:
    with pytest.raises(TypeError):
        reranker.score(pairs)  # type: ignore[arg-type]


def test_other_bad_input_is_refused(reranker: Reranker) -> None:
    with pytest.raises(InvalidTextError, match=r"texts\[1\]"):
        reranker.score([("a", "b"), ("a", "\ud800")])
    with pytest.raises(TypeError, match="list of strings"):
        reranker.rerank("a", "b")
    with pytest.raises(TypeError):
        reranker.rerank(["a"], ["b"])  # type: ignore[arg-type]
    for top_n in (0, -1, True, 1.5):
        with pytest.raises(ConfigurationError, match="top_n"):
            reranker.rerank("a", ["b"], top_n=top_n)  # type: ignore[arg-type]
    with pytest.raises(DeadlineError):
        reranker.score(random_pairs(200, seed=7), timeout=0)
    reranker.close()
    with pytest.raises(ConfigurationError, match="closed"):
        reranker.score([("a", "b")])


def test_pickles_carry_the_spec(reranker: Reranker) -> None:
    data = pickle.dumps(reranker)
    assert len(data) < 2000
    with pickle.loads(data) as other:
        assert (other.spec, other.options) == (reranker.spec, reranker.options)
        assert other._core is reranker._core
        np.testing.assert_array_equal(other.score([(QUERY, "a")]), reranker.score([(QUERY, "a")]))
    assert isinstance(reranker.spec, ModelSpec)
    assert "bert" not in repr(reranker.options)


def test_reproducible_is_bitwise(folder: Path) -> None:
    pairs = random_pairs(20, seed=3)
    with Reranker(folder, dtype="float32", reproducible=True, memo_bytes=0) as reranker:
        together = reranker.score(pairs)
        assert [reranker.score([pair])[0] for pair in pairs] == together.tolist()
