"""The float64 references agree with the transformers classes, where transformers has the family."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    DeepseekV3Config,
    DeepseekV3Model,
    GteConfig,
    GteForTokenClassification,
    GteModel,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .checkpoint_files import Array, read_weights
from .giga import build_giga_0826, build_giga_10b, reference_giga_0826, reference_giga_10b
from .giga_original import HIDDEN, Generation, build_giga_original, reference_giga_original
from .gte import Variant, build_gte, reference_gte, rope_frequencies
from .gte_native import gte_config

TEXTS = [
    "what is the capital of China?",
    "Instruct: Given a query, retrieve relevant passages\nQuery: столица России",
    "中国的首都在哪儿",
    "北京 the lathe the cat in the hat",
]
TOLERANCE = 1e-5
LLAMA_KEYS = {"hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads"}
LLAMA_KEYS |= {"num_key_value_heads", "rms_norm_eps", "rope_theta", "pad_token_id"}


@pytest.fixture(params=TEXTS)
def text(request: pytest.FixtureRequest) -> str:
    """One of the texts."""
    chosen: str = request.param
    return chosen


def encode(folder: Path, text: str) -> list[int]:
    """Ids with specials."""
    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    return ids


def load(model_class: Any, folder: Path, config: Any) -> Any:
    """The transformers class in float32 over the checkpoint, every key accounted for."""
    model, info = model_class.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return model


@torch.no_grad()
def last_hidden(model: Any, ids: list[int]) -> Array:
    """Last hidden states [T, H] of one text."""
    hidden: Array = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
    return hidden


def assert_close(actual: Array, expected: Array) -> None:
    """Within the tolerance, relative to the size of the numbers."""
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("variant", ["multilingual", "large-en", "snowflake"])
def test_gte_agrees_with_transformers(tmp_path: Path, text: str, variant: Variant) -> None:
    """Official layouts load into the native classes and give the reference's states."""
    reference = reference_gte(build_gte(tmp_path, variant=variant))
    ids = encode(tmp_path, text)
    if variant == "multilingual":
        model: Any = load(GteForTokenClassification, tmp_path, gte_config(tmp_path))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :, 0]
        assert_close(logits.relu().double().numpy(), reference.token_weights(ids))
        model = model.gte
    else:
        model = load(GteModel, tmp_path, gte_config(tmp_path))
    assert_close(last_hidden(model, ids), reference.hidden(ids))


@pytest.mark.parametrize("native_names", [False, True])
def test_converted_gte_is_the_same_model(tmp_path: Path, native_names: bool) -> None:
    """A converted copy loads through its own config and gives the official checkpoint's vectors."""
    official = reference_gte(build_gte(tmp_path / "official"))
    folder = build_gte(tmp_path / "converted", model_type="gte", native_names=native_names)
    converted = reference_gte(folder)
    ids = encode(folder, TEXTS[0])
    np.testing.assert_allclose(rope_frequencies(converted.config), rope_frequencies(official.config))
    np.testing.assert_allclose(converted.hidden(ids), official.hidden(ids))
    model: Any = load(GteForTokenClassification, folder, GteConfig.from_pretrained(folder))
    assert_close(last_hidden(model.gte, ids), official.hidden(ids))


def test_gte_names_are_those_transformers_saves(tmp_path: Path) -> None:
    """``save_pretrained`` writes the names and shapes that ``build_gte(model_type="gte")`` writes."""
    for native in (False, True):
        ours = build_gte(tmp_path / f"ours-{native}", model_type="gte", native_names=native)
        model = load(GteForTokenClassification, ours, GteConfig.from_pretrained(ours))
        model.save_pretrained(tmp_path / f"theirs-{native}", save_original_format=not native)
        theirs = read_weights(tmp_path / f"theirs-{native}")
        assert {n: w.shape for n, w in theirs.items()} == {n: w.shape for n, w in read_weights(ours).items()}


def test_gte_weights_are_telling(tmp_path: Path) -> None:
    """Texts are far apart, about half of the token weights are positive, ids that decode alike are merged."""
    reference = reference_gte(build_gte(tmp_path))
    ids = [encode(tmp_path, text) for text in TEXTS]
    dense = np.stack([reference.dense(text) for text in ids])
    assert np.triu(dense @ dense.T, 1).max() < 0.9
    weights = np.concatenate([reference.token_weights(text) for text in ids])
    assert 0.25 < np.mean(weights > 0) < 0.75
    assert all(reference.sparse_surface(text) for text in ids)
    the_lathe = encode(tmp_path, "the lathe")
    surfaces = [reference.tokenizer.decode([token]) for token in the_lathe]
    assert surfaces.count("the") == 2
    assert len(set(the_lathe)) == len(the_lathe)


@pytest.mark.parametrize("size", ["480M", "3B"])
def test_qwen3_agrees_with_transformers(tmp_path: Path, text: str, size: Any) -> None:
    """Qwen3 with the mask off."""
    reference = reference_giga_0826(build_giga_0826(tmp_path, size=size))
    settings = {key: reference.config[key] for key in (*LLAMA_KEYS, "head_dim", "is_causal")}
    ids = encode(tmp_path, text)
    assert_close(last_hidden(load(Qwen3Model, tmp_path, Qwen3Config(**settings)), ids), reference.hidden(ids))


@pytest.mark.parametrize(
    "options",
    [{}, {"groups": 1}, {"groups": 4, "seed": 1}, {"q_lora_rank": 24}, {"rope_interleave": False}],
    ids=str,
)
def test_deepseek_v3_agrees_with_transformers(tmp_path: Path, text: str, options: dict[str, Any]) -> None:
    """MLA, grouped routing, per-expert tensors merged on load."""
    reference = reference_giga_10b(build_giga_10b(tmp_path, **options))
    known = set(DeepseekV3Config().to_dict()) - {"model_type", "architectures", "dtype"}
    settings = {key: value for key, value in reference.config.items() if key in known}
    settings |= {"is_causal": False, "rope_theta": reference.config["rope_theta"]}
    ids = encode(tmp_path, text)
    model = load(DeepseekV3Model, tmp_path, DeepseekV3Config(**settings))
    assert_close(last_hidden(model, ids), reference.hidden(ids))


def torch_state(weights: dict[str, Array]) -> dict[str, torch.Tensor]:
    """The text tower's tensors, without their prefix."""
    text = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    return {name: torch.from_numpy(value).float() for name, value in text.items()}


def test_giga_original_text_tower_is_llama(tmp_path: Path, text: str) -> None:
    """Generation 1's text tower is Llama with the mask off."""
    reference = reference_giga_original(build_giga_original(tmp_path))
    config = reference.config["text_config"]
    settings = {key: config[key] for key in (*LLAMA_KEYS, "head_dim")}
    settings |= {"is_causal": False, "attn_implementation": "eager"}
    model = LlamaModel(LlamaConfig(**settings))
    model.load_state_dict(torch_state(reference.weights))
    ids = encode(tmp_path, text)
    assert_close(last_hidden(model, ids), reference.text_hidden(ids))


@pytest.mark.parametrize("interleaved", [False, True])
def test_giga_original_mla_is_deepseek(tmp_path: Path, text: str, interleaved: bool) -> None:
    """With one rotary key head, generation 2's text tower is a dense DeepSeek-V3 with split projections."""
    build_giga_original(tmp_path, 2, num_krope_heads=1)
    reference = reference_giga_original(tmp_path, interleaved=interleaved)
    config = reference.config["text_config"]
    dims = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    settings = {key: config[key] for key in (*LLAMA_KEYS, *dims)}
    settings |= {"first_k_dense_replace": 99, "q_lora_rank": None, "rope_interleave": interleaved}
    settings |= {"is_causal": False, "attn_implementation": "eager"}
    model = DeepseekV3Model(DeepseekV3Config(**settings))
    state = torch_state(reference.weights)
    heads = config["num_attention_heads"]
    for layer in range(config["num_hidden_layers"]):
        part = {key: state.pop(f"layers.{layer}.self_attn.{key}.weight") for key in MLA_PARTS}
        up = [part[key].view(heads, -1, config["kv_lora_rank"]) for key in ("uk_proj", "uv_proj")]
        merged = {
            "kv_a_proj_with_mqa": torch.cat([part["dkv_proj"], part["kr_proj"]]),
            "kv_a_layernorm": part["kv_norm"],
            "kv_b_proj": torch.cat(up, dim=1).flatten(0, 1),
        }
        state |= {f"layers.{layer}.self_attn.{key}.weight": value for key, value in merged.items()}
    model.load_state_dict(state)
    ids = encode(tmp_path, text)
    assert_close(last_hidden(model, ids), reference.text_hidden(ids))


MLA_PARTS = ("dkv_proj", "kr_proj", "kv_norm", "uk_proj", "uv_proj")


@pytest.mark.parametrize("generation", [1, 2])
def test_giga_original_dense(tmp_path: Path, generation: Generation) -> None:
    """Unit vectors of the hidden size, far apart; the latent block and the rotation matter."""
    build_giga_original(tmp_path, generation)
    reference = reference_giga_original(tmp_path)
    ids = [encode(tmp_path, text) for text in TEXTS]
    dense = np.stack([reference.dense(text) for text in ids])
    assert dense.shape == (len(TEXTS), HIDDEN)
    assert np.triu(dense @ dense.T, 1).max() < 0.9
    turned = reference_giga_original(tmp_path, interleaved=True).dense(ids[0])
    assert (turned @ dense[0] < 0.999) == (generation == 2)


@pytest.fixture
def default_rope(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry that transformers 5 dropped."""

    def default(config: Any, device: Any = None, **_: Any) -> tuple[torch.Tensor, float]:
        exponent = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
        return 1.0 / config.rope_theta**exponent, 1.0

    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "default", default)


def test_remote_code_has_the_official_traps(tmp_path: Path) -> None:
    """As shipped it does not load on transformers 5."""
    build_giga_original(tmp_path, remote_code=True)
    with pytest.raises((KeyError, ValueError, AttributeError)):
        AutoModel.from_pretrained(tmp_path, trust_remote_code=True)


@pytest.mark.usefixtures("default_rope")
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_remote_code_computes_generation_one(tmp_path: Path) -> None:
    """Built as ``Model(config)`` from one dynamic module it gives the reference's vectors, padding aside."""
    reference = reference_giga_original(build_giga_original(tmp_path, remote_code=True))
    model_class: Any = get_class_from_dynamic_module("modeling_gigarembed.GigarEmbedModel", str(tmp_path))
    model = model_class(model_class.config_class.from_pretrained(tmp_path)).eval()
    state = {name: tensor for file in tmp_path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    model.load_state_dict(state, strict=True)
    rows = [encode(tmp_path, text) for text in TEXTS]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        vectors = model(input_ids=ids, attention_mask=mask, return_embeddings=True)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert_close(vectors.double().numpy(), np.stack([reference.dense(row) for row in rows]))
    assert_close(states[0, : len(rows[0])].double().numpy(), reference.hidden(rows[0]))
