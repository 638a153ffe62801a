"""The layouts are official: sentence-transformers loads them and agrees with the reference vectors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from .sentence_layouts import (
    BACKBONES,
    HIDDEN,
    IDENTITY,
    RELU,
    build_bge_m3,
    build_embedding_gemma,
    build_gte_qwen2,
    build_multilingual_e5,
    build_qwen3_embedding,
    build_sentence_transformer,
    build_splade,
)
from .sentence_reference import POOLINGS, reference_sparse, reference_vectors, token_ids

library = pytest.importorskip("sentence_transformers")

TOLERANCE = 1e-5
LONG = "how to implement quick sort in python given a query and the text of the model. " * 3
TEXTS = ["What is the capital of China?", "столица России это Москва", LONG, "a"]


def assert_agrees(folder: Path, prompt: str = "", *, normalize: bool = False) -> None:
    """The library, in one padded fp32 batch, against the reference of each text alone."""
    model = library.SentenceTransformer(str(folder), device="cpu")
    vectors = model.encode(TEXTS, prompt=prompt, normalize_embeddings=normalize, show_progress_bar=False)
    np.testing.assert_allclose(vectors, reference_vectors(folder, TEXTS, prompt), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("legacy", [False, True], ids=["current", "legacy"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone(tmp_path: Path, backbone: str, legacy: bool) -> None:
    build_sentence_transformer(tmp_path, backbone, legacy_pooling_booleans=legacy, max_seq_length=256)
    assert_agrees(tmp_path)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_texts_differ_clearly(tmp_path: Path, backbone: str) -> None:
    vectors = reference_vectors(build_sentence_transformer(tmp_path, backbone), TEXTS)
    cosines = (vectors @ vectors.T)[np.triu_indices(len(TEXTS), 1)]
    assert cosines.max() < 0.95


@pytest.mark.parametrize("backbone", ["modernbert", "mistral", "gemma3_text"])
def test_local_layers_matter(tmp_path: Path, backbone: str) -> None:
    """The long text is longer than the window: without the window its vector is another one."""
    build_sentence_transformer(tmp_path, backbone)
    local = reference_vectors(tmp_path, [LONG])
    config = tmp_path / "config.json"
    text = config.read_text(encoding="utf-8")
    for key in ("local_attention", "sliding_window"):
        text = text.replace(f'"{key}": 16', f'"{key}": 512')
    config.write_text(text, encoding="utf-8")
    assert np.abs(reference_vectors(tmp_path, [LONG]) - local).max() > 0.01


@pytest.mark.parametrize("legacy", [False, True], ids=["current", "legacy"])
@pytest.mark.parametrize("pooling", [*POOLINGS, ["cls", "max", "weightedmean"]], ids=str)
def test_pooling_without_prompt(tmp_path: Path, pooling: str | list[str], legacy: bool) -> None:
    build_sentence_transformer(
        tmp_path,
        "xlm-roberta",
        pooling=pooling,
        include_prompt=False,
        normalize=False,
        legacy_pooling_booleans=legacy,
    )
    assert_agrees(tmp_path, "Query: the ")


@pytest.mark.parametrize("legacy", [False, True], ids=["current", "legacy"])
def test_dense_and_truncation(tmp_path: Path, legacy: bool) -> None:
    build_sentence_transformer(
        tmp_path,
        "nomic_bert",
        pooling=["mean", "max"],
        dense=[
            {"out_features": 96},
            {"out_features": 80, "activation": RELU},
            {"out_features": HIDDEN, "activation": IDENTITY, "bias": False},
        ],
        truncate_dim=24,
        legacy_pooling_booleans=legacy,
    )
    assert reference_vectors(tmp_path, TEXTS).shape == (len(TEXTS), 24)
    assert_agrees(tmp_path, normalize=True)  # the library does not normalise again by itself


@pytest.mark.parametrize("legacy", [False, True], ids=["current", "legacy"])
def test_length_limit_and_lower_case(tmp_path: Path, legacy: bool) -> None:
    build_sentence_transformer(tmp_path, "llama", max_seq_length=12, do_lower_case=True, legacy_pooling_booleans=legacy)
    model = library.SentenceTransformer(str(tmp_path), device="cpu")
    vectors = model.encode(TEXTS, show_progress_bar=False)
    expected = reference_vectors(tmp_path, TEXTS, max_tokens=12)
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE, rtol=0)


def test_prompts(tmp_path: Path) -> None:
    prompts = {"query": "query: ", "document": ""}
    build_sentence_transformer(tmp_path, "bert", prompts=prompts, default_prompt_name="query")
    model = library.SentenceTransformer(str(tmp_path), device="cpu")
    expected = reference_vectors(tmp_path, TEXTS, "query: ")
    np.testing.assert_allclose(model.encode(TEXTS, show_progress_bar=False), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files(tmp_path: Path, dtype: Any) -> None:
    folder = build_sentence_transformer(tmp_path, "bert", dense=[{"out_features": 32}], dtype=dtype)
    model = library.SentenceTransformer(str(folder), device="cpu").float()
    vectors = model.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(vectors, reference_vectors(folder, TEXTS), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("build", [build_bge_m3, build_qwen3_embedding, build_embedding_gemma, build_multilingual_e5])
def test_named_checkpoints(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    build(tmp_path)
    assert_agrees(tmp_path)
    assert_agrees(tmp_path, "query: ")


def test_gte_qwen2(tmp_path: Path) -> None:
    """The library drops ``add_eos_token`` (only the repository's own code obeys it): add the eos."""
    build_gte_qwen2(tmp_path)
    model = library.SentenceTransformer(str(tmp_path), device="cpu")
    eos = model.tokenizer.eos_token
    assert [*model.tokenizer("a")["input_ids"], model.tokenizer.eos_token_id] == token_ids(tmp_path, "a")
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, model.tokenizer.eos_token_id)]
    )
    vectors = model.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(vectors, reference_vectors(tmp_path, TEXTS), atol=TOLERANCE, rtol=0)


def test_bge_m3_sparse(tmp_path: Path) -> None:
    """No library here computes it: the weights must be positive, few, and of the text's own tokens."""
    build_bge_m3(tmp_path, weights="safetensors")
    for text, sparse in zip(TEXTS, reference_sparse(tmp_path, TEXTS), strict=True):
        assert sparse
        assert set(sparse) <= set(token_ids(tmp_path, text)) - {0, 1, 2, 3}
        assert min(sparse.values()) > 0.0


@pytest.mark.parametrize("layout", ["bare", "legacy", "current"])
@pytest.mark.parametrize("backbone", ["bert", "distilbert"])
def test_splade(tmp_path: Path, backbone: Any, layout: Any) -> None:
    build_splade(tmp_path, backbone, layout=layout)
    model = library.SparseEncoder(str(tmp_path), device="cpu")
    weights = model.encode(TEXTS, convert_to_sparse_tensor=False, show_progress_bar=False).numpy()
    weights[:, model.tokenizer.all_special_ids] = 0.0  # the library keeps them
    expected = np.zeros_like(weights)
    for row, sparse in zip(expected, reference_sparse(tmp_path, TEXTS), strict=True):
        row[list(sparse)] = list(sparse.values())
    np.testing.assert_allclose(weights, expected, atol=TOLERANCE, rtol=0)
