"""Every kind of bad text, argument and checkpoint has one decided answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from reference.checkpoint_files import read_weights
from reference.giga import build_giga_0826, build_giga_10b
from reference.giga_original import build_giga_original, reference_giga_original
from reference.gte import build_gte, reference_gte
from reference.sentence_layouts import build_bge_m3, build_gte_qwen2, build_sentence_transformer, build_splade
from support import TEXTS, dense_of, sparse_of
from twinvec import Embedder, ModelSpec, TruncationWarning
from twinvec.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
    InvalidTextError,
    RemoteCodeRequiredError,
    TwinVecError,
    UnsupportedCheckpointError,
)
from twinvec_stores.config import StoreConfig


@pytest.fixture(scope="module")
def gte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gte(tmp_path_factory.mktemp("gte"))


@pytest.fixture(scope="module")
def gte(gte_folder: Path) -> Iterator[Embedder]:
    with Embedder(gte_folder, dtype="float32") as embedder:
        yield embedder


def edit_config(folder: Path, file: str = "config.json", **changes: Any) -> Path:
    path = folder / file
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    path.write_text(json.dumps(config))
    return folder


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    weights = {k: v.astype(np.float32) for k, v in read_weights(folder).items()}
    change(weights)
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    save_file(weights, folder / "model.safetensors")
    return folder


# --- texts


def test_an_empty_list_gives_an_empty_batch_of_the_right_shape(gte: Embedder) -> None:
    for batch in (gte.embed_documents([]), gte.embed_queries(iter(()))):
        assert dense_of(batch).shape == (0, 64)
        assert dense_of(batch).dtype == np.float32
        assert len(sparse_of(batch)) == 0
        assert len(batch) == 0


def test_an_empty_text_is_the_special_tokens_alone(gte: Embedder, gte_folder: Path) -> None:
    batch = gte.embed_documents(["", "x"])
    np.testing.assert_allclose(dense_of(batch)[0], reference_gte(gte_folder).dense([0, 2]), atol=1e-5)
    assert batch.token_counts[0] == 2
    assert len(sparse_of(batch)[0]) == 0


def test_an_empty_text_without_special_tokens_has_no_vector(tmp_path: Path) -> None:
    folder = build_gte_qwen2(tmp_path)
    edit_config(folder, "tokenizer_config.json", add_eos_token=False)
    with Embedder(folder, dtype="float32") as embedder:
        with pytest.raises(InvalidTextError, match=r"texts\[1\] has no tokens"):
            embedder.embed_documents(["x", ""])
        assert len(embedder.embed_documents(["x"])) == 1


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["nested"], math.nan])
def test_a_non_string_is_named_by_position(gte: Embedder, bad: Any) -> None:
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string, not " + type(bad).__name__):
        gte.embed_documents(["fine", bad])


def test_a_single_string_is_not_taken_for_a_list(gte: Embedder) -> None:
    with pytest.raises(TypeError, match="must be a list of strings"):
        gte.embed_queries("one query")


@pytest.mark.parametrize("text", ["\ud83d", "half an emoji \ude00 here"])
def test_a_lone_surrogate_is_named_by_position(gte: Embedder, text: str) -> None:
    with pytest.raises(InvalidTextError, match=r"texts\[1\] has a lone surrogate \(U\+D[8E]"):
        gte.embed_documents(["fine", text])
    with pytest.raises(InvalidTextError, match=r"prompt\[0\]"):
        gte.embed_documents(["fine"], prompt=text)


def test_nul_whitespace_and_newlines_reach_the_tokenizer_unchanged(gte: Embedder, gte_folder: Path) -> None:
    reference, tokenizer = reference_gte(gte_folder), Tokenizer.from_file(str(gte_folder / "tokenizer.json"))
    texts = ["a\x00b", " \t\n ", "line\nbreak", " padded "]
    for row, text in zip(dense_of(gte.embed_documents(texts)), texts, strict=True):
        np.testing.assert_allclose(row, reference.dense(list(tokenizer.encode(text).ids)), atol=1e-5)


def test_a_million_characters_are_cut_with_a_warning(gte_folder: Path) -> None:
    with Embedder(gte_folder, dtype="float32", max_length=256) as embedder:
        with pytest.warns(TruncationWarning, match="1 of 1 texts"):
            batch = embedder.embed_documents(["Москва the " * 100_000])
        assert batch.token_counts.tolist() == [256]
        with pytest.warns(TruncationWarning):
            assert len(embedder.embed_documents(["x" * 1_000_000])) == 1


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 65}, "supports 10 to 64 dimensions"),
        ({"dim": 3}, "supports 10 to 64 dimensions"),
        ({"dim": 0}, "positive integer"),
        ({"dim": True}, "positive integer"),
        ({"dim": 2.5}, "positive integer"),
        ({"max_length": 10**6}, "has positions for"),
        ({"max_length": -1}, "positive integer"),
        ({"dtype": "int7"}, "float32, bfloat16, float16"),
        ({"device": "gpu"}, "not a device"),
        ({"device": "cuda:99"}, "torch sees"),
        ({"sparse_keys": "words"}, "surface"),
        ({"on_overflow": "ignore"}, "truncate"),
        ({"token_budget": 0}, "at least 1"),
        ({"sparse": "bm25:klingon"}, "klingon"),
        ({"revision": "main"}, "is a folder"),
        ({"prompts": {"query": 3}}, "dict of names and texts"),
    ],
)
def test_arguments_that_cannot_be_honoured(gte_folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Embedder(gte_folder, **arguments)


def test_unknown_keywords_fail(gte_folder: Path, gte: Embedder) -> None:
    with pytest.raises(TypeError, match="normalize"):
        Embedder(gte_folder, normalize=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="batch_size"):
        gte.embed_documents(["x"], batch_size=3)  # type: ignore[call-arg]


def test_fewer_dims_are_refused_without_matryoshka(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not trained for fewer dimensions"):
        Embedder(build_giga_0826(tmp_path), dim=32)


def test_a_first_pass_over_fewer_dims_is_refused_without_matryoshka(tmp_path: Path, gte: Embedder) -> None:
    with (
        Embedder(build_giga_0826(tmp_path)) as giga,
        pytest.raises(ConfigurationError, match="not trained for fewer dimensions"),
    ):
        StoreConfig.for_embedder(giga, quantization="first_dim=32")
    assert gte.dim is not None
    config = StoreConfig.for_embedder(gte, quantization=f"first_dim={gte.dim // 2}")
    assert (config.dim, config.first_dim) == (gte.dim, gte.dim // 2)
    with pytest.raises(ConfigurationError, match=rf"dim=1: .* supports \d+ to {gte.dim} dimensions"):
        StoreConfig.for_embedder(gte, quantization="first_dim=1")


def test_sparse_is_refused_where_there_is_none(tmp_path: Path) -> None:
    folder = build_sentence_transformer(tmp_path / "bert", "bert")
    with pytest.raises(ConfigurationError, match="has no lexical head"):
        Embedder(folder, sparse="head")
    with Embedder(folder) as embedder, pytest.raises(ConfigurationError, match="has no sparse half"):
        embedder.embed_documents(["x"], sparse=True)
    with pytest.raises(ConfigurationError, match="only has sparse vectors"):
        Embedder(build_splade(tmp_path / "splade"), sparse=None)
    with pytest.raises(CheckpointNotFoundError, match="no such head file"):
        Embedder(folder, sparse=tmp_path / "missing.safetensors")


def test_a_head_of_another_width_is_a_mismatch(tmp_path: Path) -> None:
    folder = build_sentence_transformer(tmp_path / "bert", "bert")
    save_file({"weight": np.zeros((1, 63), np.float32), "bias": np.zeros(1, np.float32)}, tmp_path / "h.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"weight \[1, 63\] instead of \[1, 64\]"):
        Embedder(folder, sparse=tmp_path / "h.safetensors")


@pytest.mark.parametrize(
    ("name", "value"), [("TWINVEC_TOKEN_BUDGET", "many"), ("TWINVEC_OFFLINE", "perhaps"), ("TWINVEC_DEVICE", "gpu")]
)
def test_a_bad_environment_variable_is_named(
    gte_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=value):
        Embedder(gte_folder)


# --- checkpoints that cannot be found


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("./relative/missing", "no such folder"),
        ("owner/repository-that-is-not-cached", r"config.json and weights are not in the cache.*pass that folder"),
        ("modelscope:iic/gte", r"pip install 'twinvec\[modelscope\]'"),
        ("", "empty string"),
    ],
)
def test_missing_models_say_what_to_do(model: str, message: str) -> None:
    with pytest.raises(TwinVecError, match=message):
        Embedder(model, offline=True)


def test_a_folder_without_a_checkpoint(tmp_path: Path, gte_folder: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no config\.json"):
        Embedder(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="is a file"):
        Embedder(gte_folder / "config.json")


def test_missing_weights_and_tokenizer(tmp_path: Path) -> None:
    folder = build_gte(tmp_path)
    (folder / "tokenizer.json").rename(folder / "saved.json")
    with pytest.raises(CheckpointNotFoundError, match=r"no tokenizer\.json.*AutoTokenizer"):
        Embedder(folder)
    (folder / "saved.json").rename(folder / "tokenizer.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"no weights \(model\.safetensors"):
        Embedder(folder)


# --- checkpoints that do not fit


@pytest.mark.parametrize("cut", [3, 100, -1])
def test_truncated_weights_are_refused_before_loading(tmp_path: Path, cut: int) -> None:
    folder = build_gte(tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:cut])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*Download it again"):
        Embedder(folder)


BUILDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "gte": (build_gte, "layer.1.mlp.down_proj.weight"),
    "giga 0826": (build_giga_0826, "layers.1.self_attn.q_norm.weight"),
    "giga 10B": (build_giga_10b, "layers.1.mlp.gate.weight"),
    "giga original": (build_giga_original, "latent_attention_model.latents"),
    "giga original text": (build_giga_original, "layers.1.mlp.up_proj.weight"),
    "bert": (lambda p: build_sentence_transformer(p, "bert"), "layer.1.output.dense.bias"),
    "qwen2": (build_gte_qwen2, "layers.0.self_attn.k_proj.bias"),
    "splade": (build_splade, "layer.0.attention.self.query.weight"),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_missing_unexpected_and_misshapen_tensors_are_listed(tmp_path: Path, name: str) -> None:
    build, tensor = BUILDERS[name]

    def pop(weights: dict[str, Any]) -> None:
        weights.pop(next(k for k in weights if k.endswith(tensor)))

    def add(weights: dict[str, Any]) -> None:
        weights["surprise.weight"] = np.zeros(3, np.float32)

    def reshape(weights: dict[str, Any]) -> None:
        key = next(k for k in weights if k.endswith(tensor))
        weights[key] = weights[key][..., :-1].copy()

    for number, (change, listed) in enumerate(((pop, "missing"), (add, "unexpected"), (reshape, "mismatched"))):
        folder = edit_weights(build(tmp_path / str(number)), change)
        with pytest.raises(CheckpointError) as caught:
            Embedder(folder)
        assert isinstance(caught.value, CheckpointMismatchError), caught.value
        assert getattr(caught.value, listed), (change.__name__, str(caught.value))
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (build_gte, "hidden_size"),
        (build_gte, "rope_theta"),
        (build_giga_0826, "head_dim"),
        (build_giga_0826, "rope_theta"),
        (build_giga_10b, "kv_lora_rank"),
        (build_bge_m3, "max_position_embeddings"),
        (build_bge_m3, "pad_token_id"),
        (build_splade, "vocab_size"),
    ],
)
def test_a_config_without_a_needed_field_names_it(tmp_path: Path, build: Callable[[Path], Path], field: str) -> None:
    changes: dict[str, Any] = {field: None}
    folder = edit_config(build(tmp_path), "config.json", **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{field}"):
        Embedder(folder)


def test_the_nested_config_of_giga_names_its_missing_field(tmp_path: Path) -> None:
    folder = build_giga_original(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"text_config\.intermediate_size missing"):
        Embedder(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "ntk", "factor": 8.0, "mixed_b": 0.5}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"logn_attention_scale": True},
        {"layer_norm_type": "rms_norm"},
        {"position_embedding_type": "absolute"},
    ],
)
def test_gte_options_that_change_the_formula_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="supported"):
        Embedder(edit_config(build_gte(tmp_path), **changes))


def test_a_reranker_is_not_an_embedder(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match="reranker"):
        Embedder(build_gte(tmp_path, variant="reranker"))


def test_a_damaged_bge_m3_is_not_a_model_without_a_head(tmp_path: Path) -> None:
    folder = build_bge_m3(tmp_path)
    (folder / "sparse_linear.pt").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"sparse_linear\.pt is missing"):
        Embedder(folder)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    folder = build_bge_m3(tmp_path / "model")
    for file in ("pytorch_model.bin", "sparse_linear.pt"):
        original = (folder / file).read_bytes()
        (folder / file).write_bytes(pickle.dumps({"weight": Payload()}, protocol=2))
        with pytest.raises(CheckpointError, match=rf"{file}: refused"):
            Embedder(folder)
        (folder / file).write_bytes(original)
    assert not (tmp_path / "executed").exists()


def test_a_bidirectional_sliding_window_is_refused(tmp_path: Path) -> None:
    folder = edit_config(build_sentence_transformer(tmp_path, "mistral", pooling="mean"), is_causal=False)
    with pytest.raises(UnsupportedCheckpointError, match="sliding window"):
        Embedder(folder)


# --- checkpoints that nobody knows, and remote code


def test_an_unknown_type_says_what_is_supported(tmp_path: Path) -> None:
    folder = edit_config(build_sentence_transformer(tmp_path, "bert"), model_type="novelty")
    with pytest.raises(
        UnsupportedCheckpointError, match=r"'novelty' is not one of.*bert.*gigarembed.*trust_remote_code"
    ):
        Embedder(folder)


def test_a_plain_transformers_checkpoint_says_that_pooling_is_unknown(tmp_path: Path) -> None:
    folder = build_sentence_transformer(tmp_path, "bert")
    (folder / "modules.json").unlink()
    with pytest.raises(UnsupportedCheckpointError, match="nothing says how to pool"):
        Embedder(folder)


def test_unknown_modules_are_refused(tmp_path: Path) -> None:
    folder = build_sentence_transformer(tmp_path, "bert")
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["type"] = "sentence_transformers.models.LSTM"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedCheckpointError, match="LSTM"):
        Embedder(folder)


def unlike_generation_2(weights: dict[str, Any]) -> None:
    for key in [k for k in weights if k.endswith("kr_proj.weight")]:
        weights[key.replace("kr_proj", "rope_k_proj")] = weights.pop(key)


def test_an_unknown_generation_of_giga_needs_its_own_code(tmp_path: Path) -> None:
    folder = edit_weights(build_giga_original(tmp_path, generation=2), unlike_generation_2)
    with pytest.raises(RemoteCodeRequiredError, match=r"trust_remote_code=True(.|\n)*rope_k_proj"):
        Embedder(folder)


@pytest.mark.parametrize("option", ["use_mla_scaling_factor", "apply_qk_norm", "gated_attention"])
def test_options_of_giga_that_change_the_formula_need_its_own_code(tmp_path: Path, option: str) -> None:
    folder = build_giga_original(tmp_path, generation=2)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"][option] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RemoteCodeRequiredError, match=option):
        Embedder(folder)


def test_remote_code_runs_only_when_opted_in(tmp_path: Path) -> None:
    folder = build_giga_original(tmp_path / "model", remote_code=True)
    edit_config(folder, model_type="gigarembed_next", hidden_size=64, max_position_embeddings=4096)
    with pytest.raises(RemoteCodeRequiredError, match="trust_remote_code=True"):
        Embedder(folder)
    with Embedder(folder, trust_remote_code=True, dtype="float32") as embedder:
        dense = dense_of(embedder.embed_documents(TEXTS))
        assert embedder.stats()["attention"] == "padded"
    reference, tokenizer = reference_giga_original(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for row, text in zip(dense, TEXTS, strict=True):
        np.testing.assert_allclose(row, reference.dense(list(tokenizer.encode(text).ids)), atol=1e-5)


def test_remote_code_of_a_hub_id_needs_a_commit() -> None:
    for revision in (None, "main", "abc123"):
        with pytest.raises(ConfigurationError, match="full commit"):
            Embedder(ModelSpec(model="owner/name", revision=revision, trust_remote_code=True), offline=True)
