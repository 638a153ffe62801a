"""The planner and the packed batch: properties that hold for any lengths."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twinvec.compute.packing import TokenBatch, plan
from twinvec.text.tokenizer import TokenizedText

LENGTHS = st.lists(st.integers(0, 40), max_size=40)
BUDGETS = st.integers(1, 100)


def tokenized(ids: list[int], prompt_length: int = 0) -> TokenizedText:
    return TokenizedText(np.array(ids, dtype=np.int32), prompt_length, len(ids))


@given(LENGTHS, BUDGETS)
def test_every_text_is_in_exactly_one_batch(lengths: list[int], budget: int) -> None:
    batches = plan(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batches)


@given(LENGTHS, BUDGETS)
def test_a_batch_fits_the_budget_unless_one_text_alone_does_not(lengths: list[int], budget: int) -> None:
    for batch in plan(lengths, budget):
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget


@given(LENGTHS, BUDGETS)
def test_the_longest_come_first_and_ties_keep_their_order(lengths: list[int], budget: int) -> None:
    order = [i for batch in plan(lengths, budget) for i in batch]
    assert order == np.argsort(-np.array(lengths, dtype=np.int64), kind="stable").tolist()


@given(LENGTHS, BUDGETS)
def test_a_batch_ends_only_where_the_next_text_does_not_fit(lengths: list[int], budget: int) -> None:
    batches = plan(lengths, budget)
    for batch, following in itertools.pairwise(batches):
        assert sum(lengths[i] for i in batch) + lengths[following[0]] > budget


def test_a_known_plan() -> None:
    assert plan([3, 9, 3, 5, 30, 1], 11) == [[4], [1], [3, 0, 2], [5]]
    assert plan([], 5) == []


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_below_one_token_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match="token_budget"):
        plan([1], budget)


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=9), min_size=1, max_size=9))
def test_packing_lays_texts_end_to_end(texts: list[list[int]]) -> None:
    prompts = [i % 3 for i in range(len(texts))]
    batch = TokenBatch.pack([tokenized(ids, prompt) for ids, prompt in zip(texts, prompts, strict=True)])
    assert batch.input_ids.dtype == batch.position_ids.dtype == torch.int64
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.input_ids.tolist() == [token for ids in texts for token in ids]
    assert batch.position_ids.tolist() == [position for ids in texts for position in range(len(ids))]
    assert batch.cu_seqlens.tolist() == [sum(map(len, texts[:i])) for i in range(len(texts) + 1)]
    assert batch.lengths == tuple(map(len, texts))
    assert batch.prompt_lengths == tuple(prompts)
    assert batch.n_tokens == sum(map(len, texts))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=20))
def test_runs_cover_all_tokens_with_as_few_runs_as_there_are_changes_of_length(lengths: list[int]) -> None:
    runs = TokenBatch.pack([tokenized([0] * n) for n in lengths]).runs
    assert [length for _, count, length in runs for _ in range(count)] == lengths
    assert len(runs) == 1 + sum(a != b for a, b in itertools.pairwise(lengths))
    ends = np.cumsum([count * length for _, count, length in runs]).tolist()
    assert [start for start, _, _ in runs] == [0, *ends[:-1]]


def test_moving_keeps_what_the_host_knows() -> None:
    batch = TokenBatch.pack([tokenized([1, 2], 1), tokenized([3], 0)])
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in (moved.input_ids, moved.position_ids, moved.cu_seqlens)} == {"meta"}
    assert (moved.lengths, moved.prompt_lengths, moved.runs) == ((2, 1), (1, 0), batch.runs)


def test_rows_of_no_text_are_zeros_behind_the_texts_which_stay() -> None:
    texts = [TokenizedText(np.arange(3, 3 + n, dtype=np.int32), 0, n) for n in (4, 2)]
    batch = TokenBatch.pack(texts)
    filled = batch.filled(9)
    assert filled.input_ids.tolist() == [3, 4, 5, 6, 3, 4, 0, 0, 0]
    assert filled.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 0, 0, 0]
    assert filled.cu_seqlens.tolist() == [0, 4, 6]
    assert (filled.n_tokens, filled.runs, filled.prompt_lengths) == (6, batch.runs, batch.prompt_lengths)
    assert batch.filled(6) is batch
