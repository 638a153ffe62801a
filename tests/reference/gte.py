"""GTE (the "new" architecture): tiny checkpoints in the official layouts, and the computation in float64."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from . import formulas as f
from .checkpoint_files import (
    Array,
    Dtype,
    random_weights,
    read_config,
    read_weights,
    write_json,
    write_sentence_transformers_files,
    write_weights,
)
from .tokenizers_ import write_wordpiece_tokenizer, write_xlmr_tokenizer

Variant = Literal["multilingual", "large-en", "snowflake", "reranker"]

TOKENIZER_VOCAB = 600
VOCAB = 608  # like the official file (250048 against 250002), a little larger than the tokenizer's

_ROPE: dict[Variant, tuple[float, float | None]] = {  # theta, NTK factor
    "multilingual": (20000.0, 8.0),
    "reranker": (20000.0, 8.0),
    "large-en": (160000.0, 2.0),
    "snowflake": (160000.0, None),
}
_ARCHITECTURE: dict[Variant, str] = {
    "multilingual": "NewForTokenClassification",
    "reranker": "NewForSequenceClassification",
    "large-en": "NewModel",
    "snowflake": "GteModel",
}


def build_gte(
    folder: Path,
    *,
    model_type: Literal["new", "gte"] = "new",
    variant: Variant = "multilingual",
    with_head: bool = True,
    dtype: Dtype = "float16",
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    seed: int = 0,
    native_names: bool = False,
) -> Path:
    """Write a tiny GTE checkpoint and return its folder.

    ``model_type="new"`` is the official layout of the variant. ``model_type="gte"`` is a copy converted by
    transformers: its config, and the tensor names that ``GteForTokenClassification.save_pretrained`` writes
    (``gte.`` before the original names), or with ``native_names`` those of ``save_original_format=False``.
    Snowflake is ``model_type "gte"`` with the original config keys and no prefix, whatever is asked.
    ``with_head`` says whether the classifier is there; ``large-en`` and ``snowflake`` officially have none.
    """
    with_head = with_head and variant in ("multilingual", "reranker")
    config = _config(variant, with_head, dtype, layers=layers, hidden=hidden, heads=heads)
    converted = model_type == "gte" and variant != "snowflake"
    write_json(folder / "config.json", _converted_config(config) if converted else config)

    weights = random_weights(_shapes(config, variant, with_head), seed=seed)
    if converted and native_names:
        weights = _native_names(weights)
    prefix = "" if variant == "snowflake" else "gte." if converted else "new."
    named = {name if name.startswith("classifier") else prefix + name: value for name, value in weights.items()}
    write_weights(folder, named, dtype)

    if variant == "large-en":
        write_wordpiece_tokenizer(folder, vocab_size=TOKENIZER_VOCAB)
    else:
        write_xlmr_tokenizer(folder, vocab_size=TOKENIZER_VOCAB)
    if variant != "reranker":
        prompts = {"query": "query: "} if variant == "snowflake" else {}
        normalize = variant != "large-en"
        write_sentence_transformers_files(folder, dim=hidden, pooling="cls", normalize=normalize, prompts=prompts)
    return folder


@dataclass(frozen=True)
class GteReference:
    """Float64 GTE over the stored weights; every method takes the ids of one text, specials included."""

    config: dict[str, Any]
    weights: dict[str, Array]
    tokenizer: Tokenizer
    special_ids: frozenset[int]

    def hidden(self, ids: list[int]) -> Array:
        """Last hidden states [T, H]."""
        heads, eps = int(self.config["num_attention_heads"]), float(self.config["layer_norm_eps"])
        frequencies = rope_frequencies(self.config)
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
        x = f.layer_norm(x, w["embeddings.LayerNorm.weight"], w["embeddings.LayerNorm.bias"], eps)
        for layer in range(int(self.config["num_hidden_layers"])):
            p = f"encoder.layer.{layer}."
            qkv = f.linear(x, w[p + "attention.qkv_proj.weight"], w[p + "attention.qkv_proj.bias"])
            query, key, value = (f.split_heads(part, heads) for part in np.split(qkv, 3, axis=-1))
            query = f.rotate(query, frequencies, interleaved=False)
            key = f.rotate(key, frequencies, interleaved=False)
            mixed = f.attention(query, key, value, query.shape[-1] ** -0.5)
            x = x + f.linear(mixed, w[p + "attention.o_proj.weight"], w[p + "attention.o_proj.bias"])
            x = f.layer_norm(x, w[p + "attn_ln.weight"], w[p + "attn_ln.bias"], eps)
            up, gate = np.split(f.linear(x, w[p + "mlp.up_gate_proj.weight"]), 2, axis=-1)
            x = x + f.linear(f.gelu(gate) * up, w[p + "mlp.down_proj.weight"], w[p + "mlp.down_proj.bias"])
            x = f.layer_norm(x, w[p + "mlp_ln.weight"], w[p + "mlp_ln.bias"], eps)
        return x

    def dense(self, ids: list[int], dim: int | None = None) -> Array:
        """CLS state, the first ``dim`` components, then L2."""
        return f.unit(self.hidden(ids)[0, :dim])

    def token_weights(self, ids: list[int]) -> Array:
        """relu(classifier(h)) per token, specials included."""
        logits = f.linear(self.hidden(ids), self.weights["classifier.weight"], self.weights["classifier.bias"])
        return np.maximum(logits[:, 0], 0.0)

    def sparse_ids(self, ids: list[int]) -> dict[int, float]:
        """Largest positive weight of every id but cls, eos, pad and unk."""
        best: dict[int, float] = {}
        for token, weight in zip(ids, self.token_weights(ids).tolist(), strict=True):
            if token not in self.special_ids and weight > best.get(token, 0.0):
                best[token] = weight
        return best

    def sparse_surface(self, ids: list[int]) -> dict[str, float]:
        """The same keyed by decoded string (possibly empty), as in the official code: equal ones merge."""
        best: dict[str, float] = {}
        for token, weight in self.sparse_ids(ids).items():
            text = self.tokenizer.decode([token])
            best[text] = max(weight, best.get(text, 0.0))
        return best


def reference_gte(folder: Path) -> GteReference:
    """The float64 computation of a checkpoint that :func:`build_gte` wrote, in any of its layouts."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens: dict[str, str] = json.loads((folder / "special_tokens_map.json").read_text(encoding="utf-8"))
    names = [tokens[key] for key in ("cls_token", "eos_token", "pad_token", "unk_token") if key in tokens]
    special = frozenset(token for name in names if (token := tokenizer.token_to_id(name)) is not None)
    return GteReference(read_config(folder), _official_names(read_weights(folder)), tokenizer, special)


def rope_frequencies(config: dict[str, Any]) -> Array:
    """The d/2 rotary frequencies: NTK (theta f)^(-2i/d) / f^(2/d), as in Alibaba-NLP/new-impl, or unscaled.

    A converted config says the same in transformers' words: ``linear`` divides every frequency by ``factor``.
    """
    dim: int = config["hidden_size"] // config["num_attention_heads"]
    if parameters := config.get("rope_parameters"):
        return f.inverse_frequencies(parameters["rope_theta"], dim) / float(parameters.get("factor", 1.0))
    if not config.get("rope_scaling"):
        return f.inverse_frequencies(config["rope_theta"], dim)
    factor = float(config["rope_scaling"]["factor"])
    ntk: Array = f.inverse_frequencies(config["rope_theta"] * factor, dim) / factor ** (2 / dim)
    return ntk


def _config(variant: Variant, with_head: bool, dtype: Dtype, *, layers: int, hidden: int, heads: int) -> dict[str, Any]:
    theta, factor = _ROPE[variant]
    code = "hf_alibaba_nlp_gte" if variant == "snowflake" else ""
    stem = "Gte" if variant == "snowflake" else "New"
    module = f"modeling_{code}" if code else "Alibaba-NLP/new-impl--modeling"
    configuration = f"configuration_{code}" if code else "Alibaba-NLP/new-impl--configuration"
    architecture = _ARCHITECTURE[variant] if with_head else f"{stem}Model"
    return {
        "architectures": [architecture],
        "auto_map": {"AutoConfig": f"{configuration}.{stem}Config", "AutoModel": f"{module}.{stem}Model"},
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": hidden,
        "id2label": {"0": "LABEL_0"},
        "initializer_range": 0.02,
        "intermediate_size": 2 * hidden,
        "label2id": {"LABEL_0": 0},
        "layer_norm_eps": 1e-12,
        "layer_norm_type": "layer_norm",
        "logn_attention_clip1": False,
        "logn_attention_scale": False,
        "max_position_embeddings": 8192,
        "model_type": "gte" if variant == "snowflake" else "new",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pack_qkv": True,
        "pad_token_id": 0 if variant == "large-en" else 1,
        "position_embedding_type": "rope",
        "rope_scaling": None if factor is None else {"factor": factor, "type": "ntk"},
        "rope_theta": theta,
        "torch_dtype": dtype,
        "type_vocab_size": 2 if variant == "large-en" else 1,
        "unpad_inputs": False,
        "use_memory_efficient_attention": False,
        "vocab_size": VOCAB,
    }


def _converted_config(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers saves: its own class name, and ``rope_parameters`` for the official rope keys."""
    dim, theta = config["hidden_size"] // config["num_attention_heads"], config["rope_theta"]
    factor = (config["rope_scaling"] or {"factor": 1.0})["factor"]
    rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / dim)}
    official = {"auto_map", "rope_theta", "rope_scaling", "torch_dtype", "layer_norm_type", "pack_qkv"}
    official |= {"logn_attention_clip1", "logn_attention_scale", "position_embedding_type"}
    official |= {"unpad_inputs", "use_memory_efficient_attention"}
    kept = {key: value for key, value in config.items() if key not in official}
    architecture = config["architectures"][0].replace("New", "Gte")
    changed = {"architectures": [architecture], "model_type": "gte", "dtype": config["torch_dtype"]}
    return kept | changed | {"rope_parameters": rope, "transformers_version": "5.23.0"}


def _shapes(config: dict[str, Any], variant: Variant, with_head: bool) -> dict[str, tuple[int, ...]]:
    """Official tensor names, without the model prefix."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{layer}."
        shapes |= {
            p + "attention.qkv_proj.weight": (3 * hidden, hidden),
            p + "attention.qkv_proj.bias": (3 * hidden,),
            p + "attention.o_proj.weight": (hidden, hidden),
            p + "attention.o_proj.bias": (hidden,),
            p + "mlp.up_gate_proj.weight": (2 * inner, hidden),
            p + "mlp.down_proj.weight": (hidden, inner),
            p + "mlp.down_proj.bias": (hidden,),
        }
        shapes |= {f"{p}{norm}.{part}": (hidden,) for norm in ("attn_ln", "mlp_ln") for part in ("weight", "bias")}
    if variant == "reranker":
        shapes |= {"pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,)}
    if with_head:
        shapes |= {"classifier.weight": (1, hidden), "classifier.bias": (1,)}
    return shapes


_RENAMED = {  # official name -> name inside transformers' Gte classes
    "encoder.layer.": "layers.",
    "attention.o_proj": "self_attn.o_proj",
    "attn_ln": "post_attention_layernorm",
    "mlp_ln": "post_mlp_layernorm",
}
_SPLIT = {
    "attention.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.up_gate_proj": ("mlp.up_proj", "mlp.gate_proj"),
}


def _native_names(weights: dict[str, Array]) -> dict[str, Array]:
    native = dict(weights)
    for packed, parts in _SPLIT.items():
        for name in [name for name in weights if packed in name]:
            pieces = np.split(native.pop(name), len(parts))
            native |= {name.replace(packed, part): piece for part, piece in zip(parts, pieces, strict=True)}
    return {_replace(name, _RENAMED.items()): value for name, value in native.items()}


def _official_names(weights: dict[str, Array]) -> dict[str, Array]:
    official = {re.sub(r"^(new|gte)\.", "", name): value for name, value in weights.items()}
    for packed, parts in _SPLIT.items():
        for name in [name for name in official if parts[0] in name]:
            pieces = [official.pop(name.replace(parts[0], part)) for part in parts]
            official[name.replace(parts[0], packed)] = np.concatenate(pieces)
    return {_replace(name, ((b, a) for a, b in _RENAMED.items())): value for name, value in official.items()}


def _replace(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name
