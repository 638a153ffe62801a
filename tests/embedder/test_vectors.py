"""The Embedder: same text, same vector; prompts, truncation, scores, head files, dims."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from reference.giga import DEFAULT_QUERY_PROMPT, build_giga_0826
from reference.gte import reference_gte
from reference.sentence_layouts import build_bge_m3, build_multilingual_e5, build_sentence_transformer
from reference.sentence_reference import reference_vectors
from support import TEXTS, dense_of, sparse_of
from twinvec import Embedder, Role, Task, TruncationWarning
from twinvec.errors import ConfigurationError, PromptError, TextTooLongError


@pytest.fixture(scope="module")
def giga_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_giga_0826(tmp_path_factory.mktemp("giga"))


@pytest.fixture(scope="module")
def giga(giga_folder: Path) -> Iterator[Embedder]:
    with Embedder(giga_folder, dtype="float32") as embedder:
        yield embedder


def counted(embedder: Embedder) -> tuple[int, int]:
    stats = embedder.stats()
    return stats["forwards"], stats["texts"]


# --- same text, same vector


words = st.sampled_from(["sort", "list", "Москва", "北京", "capital", "the", "\n", "🙂", "of"])
many_texts = st.lists(st.lists(words, max_size=30).map(" ".join), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(many_texts)
def test_a_text_has_the_same_vectors_alone_and_in_any_batch(gte: Embedder, texts: list[str]) -> None:
    together = gte.embed_documents(texts)
    for i in {0, len(texts) // 2, len(texts) - 1}:
        alone = gte.embed_documents([texts[i]])
        np.testing.assert_allclose(dense_of(together)[i], dense_of(alone)[0], atol=1e-5)
        np.testing.assert_array_equal(sparse_of(together)[i].indices, sparse_of(alone)[0].indices)
        np.testing.assert_allclose(sparse_of(together)[i].values, sparse_of(alone)[0].values, atol=1e-5, rtol=1e-5)
        assert together.token_counts[i] == alone.token_counts[0]


def test_bfloat16_stays_within_its_bound(own_folder: Path) -> None:
    with Embedder(own_folder, dtype="bfloat16", memo_bytes=0) as embedder:
        together = dense_of(embedder.embed_documents(TEXTS))
        for row, text in zip(together, TEXTS, strict=True):
            alone = dense_of(embedder.embed_documents([text]))
            assert float(row @ alone[0]) >= 0.9995


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reproducible_is_bitwise(own_folder: Path, dtype: str) -> None:
    with Embedder(own_folder, dtype=dtype, reproducible=True, memo_bytes=0) as embedder:
        together = embedder.embed_documents(TEXTS)
        backwards = embedder.embed_documents(TEXTS[::-1])
        np.testing.assert_array_equal(dense_of(together), dense_of(backwards)[::-1])
        for i, text in enumerate(TEXTS):
            alone = embedder.embed_documents([text])
            np.testing.assert_array_equal(dense_of(together)[i], dense_of(alone)[0])
            np.testing.assert_array_equal(sparse_of(together)[i].values, sparse_of(alone)[0].values)


def test_equal_texts_are_computed_once_and_returned_each_time(gte: Embedder) -> None:
    before = counted(gte)
    batch = gte.embed_documents(["x", "y", "x", "x", "y"])
    after = counted(gte)
    assert after[1] - before[1] == 2
    np.testing.assert_array_equal(dense_of(batch)[0], dense_of(batch)[2])
    assert sparse_of(batch)[1].to_dict() == sparse_of(batch)[4].to_dict()


def test_dense_and_sparse_come_from_one_pass(own_folder: Path) -> None:
    with Embedder(own_folder, dtype="float32") as embedder:
        embedder.embed_documents(TEXTS)
        assert counted(embedder) == (1, len(set(TEXTS)))


def test_halves_can_be_left_out(gte: Embedder) -> None:
    both = gte.embed_documents(TEXTS)
    dense_only = gte.embed_documents(TEXTS, sparse=False)
    sparse_only = gte.embed_documents(TEXTS, dense=False)
    assert dense_only.sparse is None
    assert sparse_only.dense is None
    np.testing.assert_array_equal(dense_of(dense_only), dense_of(both))
    assert sparse_of(sparse_only).to_dicts() == sparse_of(both).to_dicts()
    with pytest.raises(ConfigurationError, match="nothing to compute"):
        gte.embed_documents(TEXTS, dense=False, sparse=False)


def test_a_hundred_thousand_texts_keep_their_order(gte: Embedder) -> None:
    texts = [f"{i % 700}" for i in range(100_000)]
    batch = gte.embed_documents(texts)
    assert dense_of(batch).shape == (100_000, 64)
    assert len(sparse_of(batch)) == 100_000
    for i in (0, 699, 700, 99_999):
        np.testing.assert_array_equal(dense_of(batch)[i], dense_of(batch)[i % 700])
    alone = gte.embed_documents(["333"])
    np.testing.assert_allclose(dense_of(batch)[70_333], dense_of(alone)[0], atol=1e-5)


# --- prompts


def test_instructions_go_before_queries_only(giga: Embedder, giga_folder: Path) -> None:
    assert giga.prompt_for("query") == DEFAULT_QUERY_PROMPT
    assert giga.prompt_for(Role.DOCUMENT) == ""
    query = dense_of(giga.embed_queries(["sort\na list"]))
    raw = dense_of(giga.embed_documents(["sort\na list"]))
    prompted = dense_of(giga.embed_documents([DEFAULT_QUERY_PROMPT + "sort\na list"]))
    np.testing.assert_allclose(query, prompted, atol=1e-6)
    assert np.abs(query - raw).max() > 1e-2
    del giga_folder


def test_symmetric_tasks_wrap_every_text(giga: Embedder) -> None:
    task = Task("Find the topic", symmetric=True)
    query, document = dense_of(giga.embed_queries(["x"], task=task)), dense_of(giga.embed_documents(["x"], task=task))
    np.testing.assert_array_equal(query, document)
    assert giga.prompt_for("document", task) == "Instruct: Find the topic\nQuery: "


def test_a_default_task_can_be_overridden_per_call(giga_folder: Path) -> None:
    with Embedder(giga_folder, dtype="float32", task="web_search") as embedder:
        assert "web search" in embedder.prompt_for("query")
        assert embedder.prompt_for("query", "Another task") == "Instruct: Another task\nQuery: "
        other = dense_of(embedder.embed_queries(["x"], task="Another task"))
        same = dense_of(embedder.embed_queries(["x"], prompt="Instruct: Another task\nQuery: "))
        np.testing.assert_array_equal(other, same)


def test_a_task_for_a_model_without_instructions_is_an_error(gte: Embedder, gte_folder: Path) -> None:
    with pytest.raises(PromptError, match="not trained with instructions"):
        gte.embed_queries(["x"], task="Given a question, find a paragraph with the answer")
    with pytest.raises(PromptError, match="not trained with instructions"):
        Embedder(gte_folder, task="web_search")


def test_task_and_prompt_together_are_an_error(giga: Embedder) -> None:
    with pytest.raises(PromptError, match="not both"):
        giga.embed_queries(["x"], task="web_search", prompt="query: ")


def test_sparse_rows_leave_the_prompts_tokens_out(gte: Embedder, gte_folder: Path) -> None:
    reference = reference_gte(gte_folder)
    tokenizer = Tokenizer.from_file(str(gte_folder / "tokenizer.json"))
    prompt, text = "the capital of ", "China is the list"
    ids = list(tokenizer.encode(prompt + text).ids)
    start = len(tokenizer.encode(prompt).ids) - 1  # without </s>
    expected: dict[str, float] = {}
    for token, weight in list(zip(ids, reference.token_weights(ids), strict=True))[start:]:
        if weight > 0 and token not in reference.special_ids:
            key = tokenizer.decode([token])
            expected[key] = max(expected.get(key, 0.0), float(weight))
    batch = gte.embed_documents([text], prompt=prompt)
    np.testing.assert_allclose(dense_of(batch)[0], reference.dense(ids), atol=1e-5)
    assert gte.token_weights(sparse_of(batch))[0] == pytest.approx(expected, abs=1e-5)


def test_prompts_can_be_given_where_the_checkpoint_has_none(tmp_path: Path) -> None:
    folder = build_multilingual_e5(tmp_path, with_prompts=False)
    prompts = {"query": "query: ", "passage": "passage: "}
    with Embedder(folder, dtype="float32", prompts=prompts) as embedder:
        queries, documents = (
            dense_of(embedder.embed_queries(["Москва"])),
            dense_of(embedder.embed_documents(["Москва"])),
        )
    np.testing.assert_allclose(queries, reference_vectors(folder, ["Москва"], "query: "), atol=1e-5)
    np.testing.assert_allclose(documents, reference_vectors(folder, ["Москва"], "passage: "), atol=1e-5)


# --- truncation


def test_truncation_cuts_only_the_tail_and_says_so(giga_folder: Path) -> None:
    long = "sort a list " * 200
    with Embedder(giga_folder, dtype="float32", max_length=64) as embedder:
        with pytest.warns(TruncationWarning, match=r"1 of 3 texts.*64 tokens.*texts\[1\]") as caught:
            batch = embedder.embed_queries(["short", long, "b"])
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert batch.truncated.tolist() == [False, True, False]
        assert batch.token_counts[1] == 64
        assert embedder.stats()["truncated"] == 1
        tokenizer = Tokenizer.from_file(str(giga_folder / "tokenizer.json"))
        full = tokenizer.encode(DEFAULT_QUERY_PROMPT + long).ids
        kept = embedder._core.model.tokenizer.encode([long], DEFAULT_QUERY_PROMPT, 64)[0].ids.tolist()
        assert kept == full[:63] + full[-1:]


def test_on_overflow_error_names_the_text(own_folder: Path) -> None:
    with (
        Embedder(own_folder, dtype="float32", max_length=16, on_overflow="error") as embedder,
        pytest.raises(TextTooLongError, match=r"texts\[1\] has \d+ tokens.*limit is 16"),
    ):
        embedder.embed_documents(["short", "a b c d " * 50])


def test_a_prompt_longer_than_the_model_is_an_error(giga_folder: Path) -> None:
    with (
        Embedder(giga_folder, dtype="float32", max_length=8) as embedder,
        pytest.raises(PromptError, match="no room for a text"),
    ):
        embedder.embed_queries(["x"])


# --- scores and readable weights


def test_score_pairs_is_the_weighted_sum_of_both_halves(gte: Embedder, gte_folder: Path) -> None:
    reference = reference_gte(gte_folder)
    tokenizer = Tokenizer.from_file(str(gte_folder / "tokenizer.json"))
    pairs = [("the capital of China", "what is the capital of China?"), ("北京", "hello the world")]
    expected = []
    for pair in pairs:
        (a, b) = (list(tokenizer.encode(t).ids) for t in pair)
        rows = reference.sparse_surface(a), reference.sparse_surface(b)
        common = sum(w * rows[1][k] for k, w in rows[0].items() if k in rows[1])
        expected.append(1.0 * float(reference.dense(a) @ reference.dense(b)) + 0.3 * common)
    np.testing.assert_allclose(gte.score_pairs(pairs), expected, rtol=1e-4, atol=1e-5)
    assert gte.score_pairs([]).shape == (0,)
    with pytest.raises(TypeError, match=r"pairs\[0\]"):
        gte.score_pairs(["ab"])  # type: ignore[list-item]


def test_score_pairs_needs_the_halves_it_weighs(giga: Embedder) -> None:
    with pytest.raises(ConfigurationError, match="sparse_weight=0"):
        giga.score_pairs([("a", "b")])
    assert giga.score_pairs([("a", "b")], sparse_weight=0).shape == (1,)


def test_id_keys_read_as_vocabulary_entries(own_folder: Path) -> None:
    with Embedder(own_folder, dtype="float32", sparse_keys="ids") as embedder:
        sparse = sparse_of(embedder.embed_documents(["the capital"]))
        tokenizer = Tokenizer.from_file(str(own_folder / "tokenizer.json"))
        expected = {tokenizer.id_to_token(k): v for k, v in sparse[0].to_dict().items()}
        assert embedder.token_weights(sparse)[0] == pytest.approx(expected)


# --- head files, lengths, dims


def test_a_head_file_gives_any_encoder_a_sparse_half(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with_head = build_bge_m3(tmp_path / "bge", weights="safetensors")
    head = torch.load(with_head / "sparse_linear.pt", weights_only=True)
    file = tmp_path / "head.safetensors"
    save_file(head, file)
    with Embedder(with_head, dtype="float32") as embedder:
        expected = sparse_of(embedder.embed_documents(TEXTS))
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (with_head / name).unlink()
    with Embedder(with_head, dtype="float32") as embedder:
        assert not embedder.has_sparse
    with Embedder(with_head, dtype="float32", sparse=file) as embedder:
        batch = embedder.embed_documents(TEXTS)
        assert embedder.stats()["forwards"] == 1
        assert embedder.stats()["linear"] == ("packed" if embedder.stats()["device"] == "cpu" else "torch")
    for row, wanted in zip(sparse_of(batch).to_dicts(), expected.to_dicts(), strict=True):
        assert row == pytest.approx(wanted)


def test_max_length_of_sentence_transformers_wins(tmp_path: Path) -> None:
    folder = build_sentence_transformer(tmp_path, "bert", max_seq_length=12, legacy_pooling_booleans=True)
    with Embedder(folder, dtype="float32") as embedder:
        assert embedder.max_length == 12
    with Embedder(folder, dtype="float32", max_length=40) as embedder:
        assert embedder.max_length == 40
