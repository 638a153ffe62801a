"""Dense pooling against sentence-transformers' own class, sparse reduction against plain dictionaries."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.modules import Pooling

from reference.checkpoint_files import write_json
from reference.tokenizers_ import write_xlmr_tokenizer
from twinvec.checkpoints.hub import open_checkpoint
from twinvec.compute.packing import TokenBatch
from twinvec.compute.pooling import POOLING_MODES, pool
from twinvec.compute.sparse import reduce_token_weights, reduce_vocabulary_weights
from twinvec.text.tokenizer import TextTokenizer, TokenizedText

WIDTH = 5
LENGTHS = (7, 3, 3, 9, 4)
MODE_LISTS = [(mode,) for mode in POOLING_MODES] + [
    ("cls", "mean"),
    ("mean", "cls"),
    ("max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"),
    POOLING_MODES,
]


def packed(lengths: tuple[int, ...], prompt_lengths: tuple[int, ...] | None = None) -> TokenBatch:
    prompts = prompt_lengths or (0,) * len(lengths)
    return TokenBatch.pack(
        [TokenizedText(np.arange(n, dtype=np.int32), p, n) for n, p in zip(lengths, prompts, strict=True)]
    )


def random_states(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def reference(
    states: torch.Tensor,
    lengths: tuple[int, ...],
    modes: tuple[str, ...],
    *,
    include_prompt: bool = True,
    prompt_length: int | None = None,
) -> torch.Tensor:
    """What sentence-transformers makes of the padded batch; the padding holds 1e6, so that a wrong mask shows."""
    rows = torch.split(states, list(lengths))
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=1e6)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    features: dict[str, torch.Tensor | int] = {"token_embeddings": padded, "attention_mask": mask.long()}
    if prompt_length is not None:
        features["prompt_length"] = prompt_length
    module = Pooling(states.shape[1], list(modes), include_prompt=include_prompt)
    pooled: torch.Tensor = module(features)["sentence_embedding"]
    return pooled


@pytest.mark.parametrize("modes", MODE_LISTS, ids="+".join)
def test_every_mode_agrees_with_sentence_transformers(modes: tuple[str, ...]) -> None:
    states = random_states(sum(LENGTHS))
    pooled = pool(states, packed(LENGTHS), modes)
    assert pooled.shape == (len(LENGTHS), WIDTH * len(modes))
    torch.testing.assert_close(pooled, reference(states, LENGTHS, modes), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("modes", MODE_LISTS, ids="+".join)
def test_the_prompt_is_left_out_as_sentence_transformers_does(modes: tuple[str, ...]) -> None:
    states = random_states(sum(LENGTHS), seed=1)
    pooled = pool(states, packed(LENGTHS, (2,) * len(LENGTHS)), modes, include_prompt=False)
    expected = reference(states, LENGTHS, modes, include_prompt=False, prompt_length=2)
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=1e-6)
    with_prompt = pool(states, packed(LENGTHS, (2,) * len(LENGTHS)), modes)
    assert modes == ("lasttoken",) or not torch.allclose(pooled, with_prompt, atol=1e-3)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_prompts_of_different_lengths_may_share_a_batch(mode: str) -> None:
    states, prompts = random_states(sum(LENGTHS), seed=2), (5, 0, 2, 8, 1)
    pooled = pool(states, packed(LENGTHS, prompts), [mode], include_prompt=False)
    for row, text, length, prompt in zip(pooled, torch.split(states, list(LENGTHS)), LENGTHS, prompts, strict=True):
        alone = reference(text, (length,), (mode,), include_prompt=False, prompt_length=prompt)
        torch.testing.assert_close(row, alone[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", ["cls", "mean", "mean_sqrt_len_tokens", "weightedmean"])
def test_a_text_of_nothing_but_prompt_is_pooled_as_sentence_transformers_does(mode: str) -> None:
    lengths = (3, 5)
    states = random_states(sum(lengths), seed=3)
    pooled = pool(states, packed(lengths, (3, 3)), [mode], include_prompt=False)
    expected = reference(states, lengths, (mode,), include_prompt=False, prompt_length=3)
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("modes", [("cls",), ("max",), ("mean",), ("weightedmean",)], ids="+".join)
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_without_a_prompt_the_leading_special_token_counts(tmp_path: Path, modes: tuple[str, ...], prompt: str) -> None:
    """sentence-transformers leaves tokens out only for texts that have a prompt."""
    write_xlmr_tokenizer(tmp_path)
    write_json(tmp_path / "config.json", {})
    texts = TextTokenizer(open_checkpoint(str(tmp_path)), 64).encode(["the capital of china", "python"], prompt)
    batch = TokenBatch.pack(texts)
    states = random_states(batch.n_tokens, seed=4)
    length = len(TextTokenizer(open_checkpoint(str(tmp_path)), 64).encode([prompt])[0].ids) - 1 if prompt else None
    expected = reference(states, batch.lengths, modes, include_prompt=False, prompt_length=length)
    torch.testing.assert_close(pool(states, batch, modes, include_prompt=False), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_half_precision_states_are_summed_in_fp32(dtype: torch.dtype, mode: str) -> None:
    lengths = (2000, 1)
    states = (1 + random_states(sum(lengths), seed=5)).to(dtype)
    pooled = pool(states, packed(lengths), [mode])
    assert pooled.dtype == torch.float32
    expected = reference(states.double(), lengths, (mode,)).float()  # sums of the same values in fp64
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)


def test_a_text_alone_is_pooled_as_in_a_batch() -> None:
    states = random_states(sum(LENGTHS), seed=6)
    together = pool(states, packed(LENGTHS), POOLING_MODES)
    for row, text, length in zip(together, torch.split(states, list(LENGTHS)), LENGTHS, strict=True):
        torch.testing.assert_close(pool(text, packed((length,)), POOLING_MODES)[0], row, atol=1e-6, rtol=1e-6)


KEYS = np.array([0, 1, -1, 1, 4, 0, -1, 4], dtype=np.int64)  # 3 is 1, 5 is 0, 7 is 4; 2 and 6 are special
WEIGHT = st.floats(-2, 2, width=32)
TEXTS = st.lists(st.lists(st.tuples(st.integers(0, 7), WEIGHT), min_size=1, max_size=12), min_size=1, max_size=6)


def reduced(text: list[tuple[int, float]], keys: NDArray[np.int64]) -> dict[int, float]:
    row: dict[int, float] = {}
    for token, weight in text:
        key = int(keys[token])
        if key >= 0 and weight > 0:
            row[key] = max(row.get(key, 0.0), weight)
    return row


@given(TEXTS)
def test_a_key_keeps_its_heaviest_token(texts: list[list[tuple[int, float]]]) -> None:
    weights = np.array([w for text in texts for _, w in text], dtype=np.float32)
    ids = np.array([i for text in texts for i, _ in text], dtype=np.int64)
    batch = reduce_token_weights(weights, ids, [len(text) for text in texts], KEYS)
    assert batch.to_dicts() == [reduced(text, KEYS) for text in texts]


@given(st.permutations(range(8)), TEXTS)
def test_any_assignment_of_keys_is_honoured(keys: list[int], texts: list[list[tuple[int, float]]]) -> None:
    table = np.array(keys, dtype=np.int64)
    weights = np.array([w for text in texts for _, w in text], dtype=np.float32)
    ids = np.array([i for text in texts for i, _ in text], dtype=np.int64)
    batch = reduce_token_weights(weights, ids, [len(text) for text in texts], table)
    assert batch.to_dicts() == [reduced(text, table) for text in texts]


def test_texts_of_specials_or_without_weight_give_empty_rows_in_place() -> None:
    weights = np.array([3, 3, 0, -1, 2, 9], dtype=np.float32)
    ids = np.array([2, 6, 0, 1, 7, 6], dtype=np.int64)
    assert reduce_token_weights(weights, ids, [2, 2, 1, 1], KEYS).to_dicts() == [{}, {}, {4: 2.0}, {}]
    assert reduce_token_weights(weights[:2], ids[:2], [2], KEYS).to_dicts() == [{}]


@given(st.lists(st.lists(WEIGHT, min_size=8, max_size=8), min_size=1, max_size=5))
def test_vocabulary_rows_follow_the_same_rules(rows: list[list[float]]) -> None:
    batch = reduce_vocabulary_weights(np.array(rows, dtype=np.float32), KEYS)
    assert batch.to_dicts() == [reduced(list(enumerate(row)), KEYS) for row in rows]


def test_a_large_vocabulary_does_not_overflow_the_cells() -> None:
    keys = np.arange(250_048, dtype=np.int64)
    lengths = [1] * 10_000  # rows * vocabulary is above 2**31
    ids = np.fromiter(itertools.islice(itertools.cycle([250_047, 3]), 10_000), dtype=np.int64)
    batch = reduce_token_weights(np.ones(10_000, dtype=np.float32), ids, lengths, keys)
    assert batch.indices.tolist() == ids.tolist()
    assert len(batch) == 10_000
