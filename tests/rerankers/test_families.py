"""Every family of rerankers against transformers' own class in float64, on packed pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reference.gte import build_gte
from reference.rerankers import (
    ENCODERS,
    build_cross_encoder,
    build_qwen3_reranker,
    reference_cross_encoder,
    reference_gte_reranker,
    reference_qwen3_reranker,
    update_json,
)
from reference.sentence_layouts import build_sentence_transformer
from rerankers.pairs import random_pairs
from twinvec import Embedder, Reranker
from twinvec.errors import CheckpointError, CheckpointMismatchError, ConfigurationError, UnsupportedCheckpointError
from twinvec.vectors import Float32

PAIRS = random_pairs(300)
PADDED = {"mpnet", "deberta-v2"}
WEB = "Given a web search query, retrieve relevant passages that answer the query"


def assert_scores(found: Float32, wanted: np.ndarray) -> None:
    assert np.ptp(wanted) > 0.1, "scores that are all alike would show nothing"
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backbone", ENCODERS)
def test_cross_encoders_agree_with_fp64(tmp_path: Path, backbone: str) -> None:
    options: dict[str, Any] = {"classifier_pooling": "mean"} if backbone == "eurobert" else {}
    folder = build_cross_encoder(tmp_path, backbone, **options)
    with Reranker(folder, dtype="float32") as reranker:
        scores = reranker.score(PAIRS)
        assert reranker.stats()["attention"] == ("padded" if backbone in PADDED else "sdpa")
        assert reranker.stats()["forwards"] < 40, "pairs share passes"
        alone = np.concatenate([reranker.score([pair]) for pair in PAIRS[-20:]])
        reranker._core.clear_memo()
        again = np.concatenate([reranker.score([pair]) for pair in PAIRS[-20:]])
    assert_scores(scores, reference_cross_encoder(folder)(PAIRS))
    np.testing.assert_array_equal(alone, scores[-20:])
    np.testing.assert_allclose(again, scores[-20:], atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "config"),
    [
        ("modernbert", {"classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True}),
        ("modernbert", {"classifier_activation": "silu"}),
        ("eurobert", {"classifier_pooling": "bos"}),
        ("deberta-v2", {"pooler_hidden_act": "tanh", "type_vocab_size": 2}),
        ("bert", {"type_vocab_size": 1}),
        ("xlm-roberta", {"type_vocab_size": 2}),
    ],
)
def test_what_a_config_says_of_the_head(tmp_path: Path, backbone: str, config: dict[str, Any]) -> None:
    folder = build_cross_encoder(tmp_path, backbone, **config)
    with Reranker(folder, dtype="float32") as reranker:
        assert_scores(reranker.score(PAIRS[-60:]), reference_cross_encoder(folder)(PAIRS[-60:]))


def test_gte_agrees_with_fp64(tmp_path: Path) -> None:
    folder = build_gte(tmp_path, variant="reranker", dtype="float32")
    update_json(
        folder / "config.json", architectures=["NewForTokenClassification"]
    )  # of real files: the headers decide
    with Reranker(folder, dtype="float32") as reranker:
        assert_scores(reranker.score(PAIRS), reference_gte_reranker(folder)(PAIRS))


@pytest.mark.parametrize("tied", [True, False])
def test_qwen3_agrees_with_the_code_of_its_card(tmp_path: Path, tied: bool) -> None:
    folder = build_qwen3_reranker(tmp_path, tied=tied)
    task = "Given a question, find a paragraph with the answer"
    with Reranker(folder, dtype="float32") as reranker:
        assert_scores(reranker.score(PAIRS), reference_qwen3_reranker(folder, WEB)(PAIRS))
        assert_scores(reranker.score(PAIRS[:50], task=task), reference_qwen3_reranker(folder, task)(PAIRS[:50]))
        probability = reranker.score(PAIRS[:5], activation="model")
        np.testing.assert_allclose(probability, 1 / (1 + np.exp(-reranker.score(PAIRS[:5]).astype(float))), atol=1e-6)


@pytest.mark.parametrize("backbone", ["bert", "xlm-roberta"])
def test_only_the_text_is_cut(tmp_path: Path, backbone: str) -> None:
    folder = build_cross_encoder(tmp_path, backbone)
    query = "the capital of russia is what query"
    pairs = [(query, text) for _, text in PAIRS[:50]]
    with Reranker(folder, dtype="float32", max_length=24) as reranker, pytest.warns(UserWarning, match="were cut"):
        assert_scores(reranker.score(pairs), reference_cross_encoder(folder, max_length=24)(pairs))


@pytest.mark.parametrize(
    ("name", "activation"),
    [("Identity", torch.nn.Identity()), ("Sigmoid", torch.nn.Sigmoid()), ("Tanh", torch.nn.Tanh())],
)
@pytest.mark.parametrize("file", ["config.json", "config_sentence_transformers.json"])
def test_a_folder_of_sentence_transformers_has_its_activation(
    tmp_path: Path, name: str, activation: torch.nn.Module, file: str
) -> None:
    folder = build_cross_encoder(tmp_path, "bert")
    full = f"torch.nn.modules.{'linear' if name == 'Identity' else 'activation'}.{name}"
    if file == "config.json":
        update_json(folder / file, sentence_transformers={"activation_fn": full, "version": "4.1.0"})
    else:
        (folder / file).write_text("{}")
        update_json(folder / file, activation_fn=full, model_type="CrossEncoder")
    with Reranker(folder, dtype="float32") as reranker:
        logits = reranker.score(PAIRS[:9])
        wanted = activation(torch.from_numpy(logits)).numpy()
        np.testing.assert_allclose(reranker.score(PAIRS[:9], activation="model"), wanted, atol=1e-6)


def test_sentence_transformers_own_folder(tmp_path: Path) -> None:
    """Their class saves it, ours reads it; both score alike, through the activation that they chose."""
    from sentence_transformers import CrossEncoder

    build_cross_encoder(tmp_path / "plain", "bert")
    theirs = CrossEncoder(str(tmp_path / "plain"), device="cpu", max_length=256)
    theirs.save_pretrained(str(tmp_path / "saved"))
    with Reranker(tmp_path / "saved", dtype="float32") as reranker:
        wanted = theirs.predict(PAIRS[:40], show_progress_bar=False)
        np.testing.assert_allclose(reranker.score(PAIRS[:40], activation="model"), wanted, atol=1e-5)


def test_a_softmax_over_one_logit_is_refused(tmp_path: Path) -> None:
    folder = build_cross_encoder(tmp_path, "bert")
    softmax = "torch.nn.modules.activation.Softmax"
    update_json(folder / "config.json", sentence_transformers={"activation_fn": softmax})
    with pytest.raises(CheckpointError, match="Softmax"):
        Reranker(folder)


def test_a_head_must_be_whole(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = build_cross_encoder(tmp_path, "bert")
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.pooler.dense.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointMismatchError) as error:
        Reranker(folder)
    assert error.value.missing == ("bias",)


def test_the_backbone_is_loaded_strictly(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = build_cross_encoder(tmp_path, "modernbert")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.Wo.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointMismatchError):
        Reranker(folder)


def test_a_classifier_of_three_labels_is_no_reranker(tmp_path: Path) -> None:
    folder = build_cross_encoder(tmp_path, "xlm-roberta", labels=3)
    for kind in (Reranker, Embedder):
        with pytest.raises(UnsupportedCheckpointError, match="3 labels"):
            kind(folder)


def test_each_class_sends_to_the_other(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"this is a reranker: use twinvec\.Reranker"):
        Embedder(build_cross_encoder(tmp_path / "reranker", "bert"))
    with pytest.raises(UnsupportedCheckpointError, match=r"not a reranker: use twinvec\.Embedder"):
        Reranker(build_sentence_transformer(tmp_path / "embedder", "bert"))
    with pytest.raises(UnsupportedCheckpointError, match=r"not a reranker: use twinvec\.Embedder"):
        Reranker(build_gte(tmp_path / "gte"))


@pytest.mark.parametrize("option", [{"dim": 1}, {"sparse": None}, {"sparse_keys": "ids"}])
def test_options_of_vectors_are_refused(tmp_path: Path, option: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="not vectors"):
        Reranker(tmp_path, **option)  # type: ignore[arg-type]
