"""Official-layout checkpoints of every family against independent fp64 computations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from reference.giga import build_giga_0826, build_giga_10b, reference_giga_0826, reference_giga_10b
from reference.giga_original import build_giga_original, reference_giga_original
from reference.gte import build_gte, reference_gte
from reference.sentence_layouts import (
    BACKBONES,
    build_bge_m3,
    build_embedding_gemma,
    build_gte_qwen2,
    build_multilingual_e5,
    build_qwen3_embedding,
    build_sentence_transformer,
    build_splade,
)
from reference.sentence_reference import reference_sparse, reference_vectors
from support import TEXTS, dense_of, sparse_of
from twinvec import Embedder

TOLERANCE = 1e-5


def ids_of(folder: Path, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return list(tokenizer.encode(text).ids)


def assert_sparse(rows: list[dict[int, float]], expected: list[dict[int, float]]) -> None:
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        for key, weight in wanted.items():
            assert row[key] == pytest.approx(weight, abs=TOLERANCE, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("model_type", "variant", "native_names"),
    [
        ("new", "multilingual", False),
        ("gte", "multilingual", False),
        ("gte", "multilingual", True),
        ("new", "large-en", False),
        ("gte", "snowflake", False),
    ],
)
def test_gte_dense_agrees_with_fp64(tmp_path: Path, model_type: Any, variant: Any, native_names: bool) -> None:
    folder = build_gte(tmp_path, model_type=model_type, variant=variant, native_names=native_names)
    reference = reference_gte(folder)
    with Embedder(folder, dtype="float32") as embedder:
        dense = dense_of(embedder.embed_documents(TEXTS, sparse=False))
    for row, text in zip(dense, TEXTS, strict=True):
        np.testing.assert_allclose(row, reference.dense(ids_of(folder, text)), atol=TOLERANCE)


@pytest.mark.parametrize("keys", ["surface", "ids"])
def test_gte_sparse_agrees_with_fp64(tmp_path: Path, keys: str) -> None:
    folder = build_gte(tmp_path)
    reference = reference_gte(folder)
    with Embedder(folder, dtype="float32", sparse_keys="surface" if keys == "surface" else "ids") as embedder:
        sparse = sparse_of(embedder.embed_documents(TEXTS))
        if keys == "ids":
            assert_sparse(sparse.to_dicts(), [reference.sparse_ids(ids_of(folder, t)) for t in TEXTS])
            return
        for row, text in zip(embedder.token_weights(sparse), TEXTS, strict=True):
            wanted = reference.sparse_surface(ids_of(folder, text))
            assert row.keys() == wanted.keys()
            assert list(row.values()) == sorted(row.values(), reverse=True)
            for token, weight in wanted.items():
                assert row[token] == pytest.approx(weight, abs=TOLERANCE, rel=TOLERANCE)


def test_gte_elastic_dims_slice_then_normalise(tmp_path: Path) -> None:
    folder = build_gte(tmp_path)
    reference = reference_gte(folder)
    with Embedder(folder, dtype="float32", dim=24) as embedder:
        dense = dense_of(embedder.embed_queries(TEXTS[:3]))
    assert dense.shape == (3, 24)
    for row, text in zip(dense, TEXTS, strict=False):
        np.testing.assert_allclose(row, reference.dense(ids_of(folder, text), dim=24), atol=TOLERANCE)


GIGA: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "480M": (lambda p: build_giga_0826(p, size="480M"), reference_giga_0826),
    "3B": (lambda p: build_giga_0826(p, size="3B"), reference_giga_0826),
    "10B": (build_giga_10b, reference_giga_10b),
    "10B with q_lora": (lambda p: build_giga_10b(p, q_lora_rank=16), reference_giga_10b),
    "generation 1": (lambda p: build_giga_original(p, generation=1), reference_giga_original),
    "generation 2": (
        lambda p: build_giga_original(p, generation=2),
        lambda p: reference_giga_original(p, interleaved=True),
    ),
    "generation 2, one rope head": (
        lambda p: build_giga_original(p, generation=2, num_krope_heads=1),
        lambda p: reference_giga_original(p, interleaved=True),
    ),
}


@pytest.mark.parametrize("name", GIGA)
def test_giga_agrees_with_fp64_for_queries_and_documents(tmp_path: Path, name: str) -> None:
    build, refer = GIGA[name]
    folder = build(tmp_path)
    reference = refer(folder)
    task = "Дан вопрос, необходимо найти абзац текста с ответом"
    with Embedder(folder, dtype="float32") as embedder:
        documents = dense_of(embedder.embed_documents(TEXTS, task=task))
        queries = dense_of(embedder.embed_queries(TEXTS, task=task))
        assert embedder.stats()["attention"] == "sdpa"
    for text, document, query in zip(TEXTS, documents, queries, strict=True):
        wanted = reference.dense(ids_of(folder, text))
        np.testing.assert_allclose(document, wanted, atol=TOLERANCE)
        prompted = f"Instruct: {task}\nQuery: {text}"
        np.testing.assert_allclose(query, reference.dense(ids_of(folder, prompted)), atol=TOLERANCE)


def test_giga_generation_2_has_both_rotations(tmp_path: Path) -> None:
    folder = build_giga_original(tmp_path, generation=2)
    with Embedder(folder, dtype="float32") as embedder:
        backbone = embedder._core.model.encoder.backbone
        assert backbone.rope_variants() == ("interleaved", "half")
        backbone.use_rope("half")
        dense = dense_of(embedder.embed_documents([TEXTS[1]]))
    wanted = reference_giga_original(folder, interleaved=False).dense(ids_of(folder, TEXTS[1]))
    np.testing.assert_allclose(dense[0], wanted, atol=TOLERANCE)


@pytest.mark.parametrize(("generation", "warned"), [(1, False), (2, True)])
def test_only_giga_generation_2_is_called_experimental(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, generation: Any, warned: bool
) -> None:
    with Embedder(build_giga_original(tmp_path, generation=generation), dtype="float32"):
        assert ("experimental" in caplog.text) is warned


PADDED = {"mpnet", "deberta-v2"}
NOT_SUPPORTED = {"t5"}


@pytest.mark.parametrize("backbone", sorted(BACKBONES.keys() - NOT_SUPPORTED))
def test_every_backbone_agrees_with_fp64(tmp_path: Path, backbone: str) -> None:
    pooling = "lasttoken" if backbone in ("qwen2", "qwen3", "llama", "mistral") else "mean"
    folder = build_sentence_transformer(tmp_path, backbone, pooling=pooling)
    with Embedder(folder, dtype="float32") as embedder:
        dense = dense_of(embedder.embed_documents(TEXTS))
        assert embedder.stats()["attention"] == ("padded" if backbone in PADDED else "sdpa")
        assert embedder.stats()["forwards"] == 1
    np.testing.assert_allclose(dense, reference_vectors(folder, TEXTS), atol=TOLERANCE)


NAMED = {
    "bge-m3": build_bge_m3,
    "bge-m3 safetensors": lambda p: build_bge_m3(p, weights="safetensors"),
    "multilingual-e5": build_multilingual_e5,
    "qwen3-embedding": build_qwen3_embedding,
    "gte-qwen2": build_gte_qwen2,
    "embedding-gemma": build_embedding_gemma,
}


@pytest.mark.parametrize("name", NAMED)
def test_named_checkpoints_agree_with_fp64(tmp_path: Path, name: str) -> None:
    folder = NAMED[name](tmp_path)
    with Embedder(folder, dtype="float32") as embedder:
        prompt = embedder.prompt_for("document")
        dense = dense_of(embedder.embed_documents(TEXTS, sparse=False))
    np.testing.assert_allclose(dense, reference_vectors(folder, TEXTS, prompt), atol=TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": ["cls", "mean", "max"]},
        {"pooling": "weightedmean"},
        {"pooling": "mean_sqrt_len_tokens", "legacy_pooling_booleans": True},
        {"pooling": "mean", "dense": [{"out_features": 24, "bias": False}, {"out_features": 16}]},
        {"pooling": "cls", "legacy_pooling_booleans": True, "normalize": False},
    ],
)
def test_pooling_and_dense_modules_agree_with_fp64(tmp_path: Path, options: dict[str, object]) -> None:
    folder = build_sentence_transformer(tmp_path, "bert", **options)  # type: ignore[arg-type]
    with Embedder(folder, dtype="float32") as embedder:
        dense = dense_of(embedder.embed_documents(TEXTS))
    expected = reference_vectors(folder, TEXTS)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)  # TwinVec's dense rows always have length 1
    np.testing.assert_allclose(dense, expected, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "lasttoken"])
def test_prompt_can_be_left_out_of_the_pooling(tmp_path: Path, pooling: str) -> None:
    prompt = "search_query: "
    folder = build_sentence_transformer(
        tmp_path, "nomic_bert", pooling=pooling, include_prompt=False, prompts={"query": prompt, "document": ""}
    )
    texts = [t for t in TEXTS if t.strip()]
    with Embedder(folder, dtype="float32") as embedder:
        dense = dense_of(embedder.embed_queries(texts))
    np.testing.assert_allclose(dense, reference_vectors(folder, texts, prompt), atol=TOLERANCE)


def test_truncate_dim_of_the_checkpoint_is_renormalised(tmp_path: Path) -> None:
    folder = build_sentence_transformer(tmp_path, "bert", truncate_dim=16)
    with Embedder(folder, dtype="float32") as embedder:
        dense = dense_of(embedder.embed_documents(TEXTS))
        assert embedder.dim == 16
    np.testing.assert_allclose(dense, reference_vectors(folder, TEXTS), atol=TOLERANCE)


@pytest.mark.parametrize("weights", ["bin", "safetensors"])
def test_bge_m3_sparse_agrees_with_fp64(tmp_path: Path, weights: Any) -> None:
    folder = build_bge_m3(tmp_path, weights=weights)
    with Embedder(folder, dtype="float32", sparse_keys="ids") as embedder:
        batch = embedder.embed_documents(TEXTS)
        assert embedder.stats()["forwards"] == 1
    assert_sparse(sparse_of(batch).to_dicts(), reference_sparse(folder, TEXTS))


@pytest.mark.parametrize("backbone", ["bert", "distilbert"])
@pytest.mark.parametrize("layout", ["bare", "legacy", "current"])
def test_splade_agrees_with_fp64(tmp_path: Path, backbone: Any, layout: Any) -> None:
    folder = build_splade(tmp_path, backbone, layout=layout)
    with Embedder(folder, dtype="float32", sparse_keys="ids") as embedder:
        batch = embedder.embed_documents(TEXTS)
        assert embedder.dim is None
        assert batch.dense is None
    assert_sparse(sparse_of(batch).to_dicts(), reference_sparse(folder, TEXTS))


def test_a_splade_checkpoint_can_be_the_sparse_half_of_a_dense_model(tmp_path: Path) -> None:
    dense_folder = build_sentence_transformer(tmp_path / "dense", "bert")
    sparse_folder = build_splade(tmp_path / "sparse", "bert")
    with Embedder(dense_folder, dtype="float32", sparse=sparse_folder, sparse_keys="ids") as embedder:
        batch = embedder.embed_documents(TEXTS)
    np.testing.assert_allclose(dense_of(batch), reference_vectors(dense_folder, TEXTS), atol=TOLERANCE)
    assert_sparse(sparse_of(batch).to_dicts(), reference_sparse(sparse_folder, TEXTS))
