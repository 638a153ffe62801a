"""Giga Embeddings 0826: tiny checkpoints in the official layouts, and the computation in float64.

480M and 3B are Qwen3 without the causal mask, 10B-A1.8B is DeepSeek-V3 (MLA, mixture of experts) without it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

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
from .decoders import (
    Shapes,
    Weights,
    decoder_shapes,
    grouped_query_attention,
    grouped_query_shapes,
    latent_attention,
    run_decoder,
    swiglu,
    swiglu_shapes,
)
from .tokenizers_ import write_bpe_tokenizer

VOCAB = 608
DEFAULT_QUERY_PROMPT = "Instruct: Given a query, retrieve relevant passages\nQuery: "


def build_giga_0826(
    folder: Path,
    *,
    size: Literal["480M", "3B"] = "480M",
    dtype: Dtype = "bfloat16",
    rope_theta: float = 100000.0,
    seed: int = 0,
) -> Path:
    """Write a tiny 0826 checkpoint on Qwen3; "3B" is wider, deeper and sharded in two files."""
    layers, hidden, head_dim, shards = (2, 64, 16, 1) if size == "480M" else (3, 128, 32, 2)
    config = _shared_config(dtype, rope_theta, layers, hidden) | {
        "architectures": ["Qwen3BidirectionalModel"],
        "auto_map": {
            "AutoConfig": "modeling_qwen3_bidirec.Qwen3BidirectionalConfig",
            "AutoModel": "modeling_qwen3_bidirec.Qwen3BidirectionalModel",
        },
        "model_type": "qwen3_bidirec",
        "head_dim": head_dim,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": ["full_attention"] * layers,
        "sliding_window": None,
        "use_sliding_window": False,
    }
    write_json(folder / "config.json", config)
    shapes = decoder_shapes(config) | _qwen3_shapes(config)
    write_weights(folder, random_weights(shapes, seed=seed), dtype, shards=shards)
    _write_0826_files(folder, hidden)
    return folder


def build_giga_10b(
    folder: Path,
    *,
    dtype: Dtype = "bfloat16",
    groups: int = 2,
    q_lora_rank: int | None = None,
    rope_interleave: bool | None = None,
    seed: int = 0,
) -> Path:
    """Write a tiny 0826 checkpoint on DeepSeek-V3, in the original names with one tensor per expert.

    The experts of the better half of the ``groups`` compete; one group is plain top-k.
    ``rope_interleave=None`` leaves the key out, as DeepSeek's own config does: it then means True.
    """
    config = _shared_config(dtype, rope_theta=100000.0, layers=3, hidden=64) | {
        "architectures": ["DeepseekV3BidirectionalModel"],
        "auto_map": {
            "AutoConfig": "modeling_deepseek_v3_bidirec.DeepseekV3BidirectionalConfig",
            "AutoModel": "modeling_deepseek_v3_bidirec.DeepseekV3BidirectionalModel",
        },
        "model_type": "deepseek_v3_bidirec",
        "first_k_dense_replace": 1,
        "intermediate_size": 128,
        "kv_lora_rank": 32,
        "moe_intermediate_size": 32,
        "moe_layer_freq": 1,
        "n_group": groups,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 4,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": q_lora_rank,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sigmoid",
        "topk_group": max(1, groups // 2),
        "topk_method": "noaux_tc",
        "v_head_dim": 20,
    }
    if rope_interleave is not None:
        config["rope_interleave"] = rope_interleave
    write_json(folder / "config.json", config)
    weights = random_weights(decoder_shapes(config) | _deepseek_shapes(config), seed=seed)
    write_weights(folder, weights, dtype, shards=2, fp32=("e_score_correction_bias",))
    _write_0826_files(folder, config["hidden_size"])
    return folder


@dataclass(frozen=True)
class GigaReference:
    """Float64 text encoder; every method takes the ids of one text, ``<s>``, ``</s>`` and prompt included."""

    config: dict[str, Any]
    weights: Weights

    def hidden(self, ids: list[int]) -> Array:
        """Token states [T, H] that are pooled."""
        raise NotImplementedError

    def dense(self, ids: list[int]) -> Array:
        """Mean over all tokens, then L2."""
        return f.unit(self.hidden(ids).mean(axis=0))


class Giga0826Reference(GigaReference):
    """Qwen3: grouped-query attention with an RMS norm on every query and key head, SwiGLU."""

    def hidden(self, ids: list[int]) -> Array:
        """Token states [T, H] after the last norm."""
        return run_decoder(self.config, self.weights, ids, self._attention, self._mlp)

    def _attention(self, prefix: str, x: Array) -> Array:
        return grouped_query_attention(self.config, self.weights, prefix, x)

    def _mlp(self, prefix: str, x: Array) -> Array:
        return swiglu(self.weights, prefix + "mlp.", x)


class Giga10BReference(GigaReference):
    """DeepSeek-V3 (arXiv 2412.19437, sections 2.1.1 and 2.1.2) with the conventions of its published code."""

    def hidden(self, ids: list[int]) -> Array:
        """Token states [T, H] after the last norm."""
        return run_decoder(self.config, self.weights, ids, self._attention, self._mlp)

    def _attention(self, prefix: str, x: Array) -> Array:
        config, w, p = self.config, self.weights, prefix + "self_attn."
        heads, nope, rank = (config[key] for key in ("num_attention_heads", "qk_nope_head_dim", "kv_lora_rank"))
        if config["q_lora_rank"] is None:
            query = f.linear(x, w[p + "q_proj.weight"])
        else:
            low = f.rms_norm(f.linear(x, w[p + "q_a_proj.weight"]), w[p + "q_a_layernorm.weight"], 1e-6)
            query = f.linear(low, w[p + "q_b_proj.weight"])
        query = f.split_heads(query, heads)
        compressed = f.linear(x, w[p + "kv_a_proj_with_mqa.weight"])
        latent, key_rope = compressed[:, :rank], compressed[:, rank:]
        latent = f.rms_norm(latent, w[p + "kv_a_layernorm.weight"], 1e-6)  # eps is the class default, not the config's
        expanded = f.split_heads(f.linear(latent, w[p + "kv_b_proj.weight"]), heads)
        interleaved = config.get("rope_interleave", True)
        key_nope, value, key_rope = expanded[..., :nope], expanded[..., nope:], f.split_heads(key_rope, 1)
        mixed = latent_attention(config, query, key_nope, key_rope, value, interleaved=interleaved)
        return f.linear(mixed, w[p + "o_proj.weight"])

    def _mlp(self, prefix: str, x: Array) -> Array:
        p = prefix + "mlp."
        if p + "gate.weight" not in self.weights:
            return swiglu(self.weights, p, x)
        routed = self._route(p + "gate.", x)
        out = swiglu(self.weights, p + "shared_experts.", x)
        for expert in range(self.config["n_routed_experts"]):
            out = out + routed[:, expert, None] * swiglu(self.weights, f"{p}experts.{expert}.", x)
        return out

    def _route(self, prefix: str, x: Array) -> Array:
        """Weight of every expert for every token [T, E], zero where the expert is not chosen.

        The correction bias only chooses: the experts of the best groups compete (a group scores the sum of
        its two best), and the weights are the uncorrected sigmoids.
        """
        config = self.config
        affinity = f.sigmoid(f.linear(x, self.weights[prefix + "weight"]))
        choice = affinity + self.weights[prefix + "e_score_correction_bias"]
        grouped = choice.reshape(len(x), config["n_group"], -1)
        group_score = np.sort(grouped, axis=-1)[..., -2:].sum(-1)
        closed = np.argsort(-group_score, axis=-1)[:, config["topk_group"] :]
        np.put_along_axis(grouped, closed[..., None], -np.inf, axis=1)
        chosen = np.argsort(-grouped.reshape(choice.shape), axis=-1)[:, : config["num_experts_per_tok"]]
        weight = np.take_along_axis(affinity, chosen, axis=-1)
        if config["norm_topk_prob"]:
            weight = weight / (weight.sum(-1, keepdims=True) + 1e-20)
        routed = np.zeros_like(affinity)
        np.put_along_axis(routed, chosen, weight * config["routed_scaling_factor"], axis=-1)
        return routed


def reference_giga_0826(folder: Path) -> Giga0826Reference:
    """The float64 computation of a checkpoint that :func:`build_giga_0826` wrote."""
    return Giga0826Reference(read_config(folder), read_weights(folder))


def reference_giga_10b(folder: Path) -> Giga10BReference:
    """The float64 computation of a checkpoint that :func:`build_giga_10b` wrote."""
    return Giga10BReference(read_config(folder), read_weights(folder))


def _qwen3_shapes(config: dict[str, Any]) -> Shapes:
    shapes: Shapes = {}
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        shapes |= grouped_query_shapes(p + "self_attn.", config)
        shapes |= {f"{p}self_attn.{name}_norm.weight": (config["head_dim"],) for name in ("q", "k")}
        shapes |= swiglu_shapes(p + "mlp.", config["hidden_size"], config["intermediate_size"])
    return shapes


def _deepseek_shapes(config: dict[str, Any]) -> Shapes:
    hidden, heads, q_rank, kv_rank = (
        config[key] for key in ("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank")
    )
    nope, rope, value = (config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    shapes: Shapes = {}
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}.self_attn."
        if q_rank is None:
            shapes[p + "q_proj.weight"] = (heads * (nope + rope), hidden)
        else:
            shapes |= {p + "q_a_proj.weight": (q_rank, hidden), p + "q_a_layernorm.weight": (q_rank,)}
            shapes[p + "q_b_proj.weight"] = (heads * (nope + rope), q_rank)
        shapes |= {
            p + "kv_a_proj_with_mqa.weight": (kv_rank + rope, hidden),
            p + "kv_a_layernorm.weight": (kv_rank,),
        }
        shapes |= {
            p + "kv_b_proj.weight": (heads * (nope + value), kv_rank),
            p + "o_proj.weight": (hidden, heads * value),
        }
        shapes |= _moe_shapes(f"model.layers.{layer}.mlp.", config, dense=layer < config["first_k_dense_replace"])
    return shapes


def _moe_shapes(prefix: str, config: dict[str, Any], *, dense: bool) -> Shapes:
    hidden, inner, experts = (
        config["hidden_size"],
        config["moe_intermediate_size"],
        config["n_routed_experts"],
    )
    if dense:
        return swiglu_shapes(prefix, hidden, config["intermediate_size"])
    shapes: Shapes = {
        prefix + "gate.weight": (experts, hidden),
        prefix + "gate.e_score_correction_bias": (experts,),
    }
    shapes |= swiglu_shapes(prefix + "shared_experts.", hidden, inner * config["n_shared_experts"])
    for expert in range(experts):
        shapes |= swiglu_shapes(f"{prefix}experts.{expert}.", hidden, inner)
    return shapes


def _shared_config(dtype: Dtype, rope_theta: float, layers: int, hidden: int) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": dtype,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "is_causal": False,
        "max_position_embeddings": 8192,
        "num_hidden_layers": layers,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": rope_theta,
        "tie_word_embeddings": False,
        "use_cache": False,
        "vocab_size": VOCAB,
    }


def _write_0826_files(folder: Path, dim: int) -> None:
    write_bpe_tokenizer(folder)
    prompts = {"query": DEFAULT_QUERY_PROMPT, "document": ""}
    write_sentence_transformers_files(folder, dim=dim, pooling="mean", prompts=prompts)
