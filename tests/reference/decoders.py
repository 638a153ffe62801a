"""What the Llama-like text towers share, in float64: residual stack, attentions, tensor shapes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import formulas as f
from .checkpoint_files import Array

Weights = dict[str, Array]
Shapes = dict[str, tuple[int, ...]]


def run_decoder(
    config: dict[str, Any],
    weights: Weights,
    ids: list[int],
    attention: Callable[[str, Array], Array],
    mlp: Callable[[str, Array], Array],
) -> Array:
    """Pre-norm residual stack of the Llama family over the ``model.*`` tensors, last norm included."""
    eps = float(config["rms_norm_eps"])
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(int(config["num_hidden_layers"])):
        p = f"model.layers.{layer}."
        x = x + attention(p, f.rms_norm(x, weights[p + "input_layernorm.weight"], eps))
        x = x + mlp(p, f.rms_norm(x, weights[p + "post_attention_layernorm.weight"], eps))
    return f.rms_norm(x, weights["model.norm.weight"], eps)


def grouped_query_attention(config: dict[str, Any], weights: Weights, prefix: str, x: Array) -> Array:
    """Llama's attention; with ``q_norm`` and ``k_norm`` (per head, before the rotation) it is Qwen3's."""
    p = prefix + "self_attn."
    heads = {
        "q": config["num_attention_heads"],
        "k": config["num_key_value_heads"],
        "v": config["num_key_value_heads"],
    }
    state = {name: f.split_heads(f.linear(x, weights[f"{p}{name}_proj.weight"]), n) for name, n in heads.items()}
    for name in ("q", "k"):
        if f"{p}{name}_norm.weight" in weights:
            state[name] = f.rms_norm(state[name], weights[f"{p}{name}_norm.weight"], config["rms_norm_eps"])
        frequencies = f.inverse_frequencies(config["rope_theta"], state[name].shape[-1])
        state[name] = f.rotate(state[name], frequencies, interleaved=False)
    mixed = f.attention(state["q"], state["k"], state["v"], state["q"].shape[-1] ** -0.5)
    return f.linear(mixed, weights[p + "o_proj.weight"])


def latent_attention(
    config: dict[str, Any], query: Array, key_nope: Array, key_rope: Array, value: Array, *, interleaved: bool
) -> Array:
    """MLA once expanded (arXiv 2405.04434, 2.1): of the ``nope + rope`` dims of q and k only the last rotate.

    The scale is (nope + rope)^-1/2; ``key_rope`` has one head, which all share, or n heads.
    """
    nope = key_nope.shape[-1]
    frequencies = f.inverse_frequencies(config["rope_theta"], key_rope.shape[-1])
    key_rope = f.rotate(key_rope, frequencies, interleaved=interleaved)
    key_rope = np.broadcast_to(key_rope, (*key_nope.shape[:-1], key_rope.shape[-1]))
    query_rope = f.rotate(query[..., nope:], frequencies, interleaved=interleaved)
    query = np.concatenate([query[..., :nope], query_rope], axis=-1)
    key = np.concatenate([key_nope, key_rope], axis=-1)
    return f.attention(query, key, value, query.shape[-1] ** -0.5)


def swiglu(weights: Weights, prefix: str, x: Array) -> Array:
    """down(silu(gate(x)) * up(x))."""
    gate = f.silu(f.linear(x, weights[prefix + "gate_proj.weight"]))
    return f.linear(gate * f.linear(x, weights[prefix + "up_proj.weight"]), weights[prefix + "down_proj.weight"])


def decoder_shapes(config: dict[str, Any]) -> Shapes:
    """Embedding and norms of the Llama family."""
    hidden = config["hidden_size"]
    shapes: Shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (hidden,)
    return shapes


def swiglu_shapes(prefix: str, hidden: int, inner: int) -> Shapes:
    """The three matrices of a SwiGLU."""
    return {
        prefix + "gate_proj.weight": (inner, hidden),
        prefix + "up_proj.weight": (inner, hidden),
        prefix + "down_proj.weight": (hidden, inner),
    }


def grouped_query_shapes(prefix: str, config: dict[str, Any]) -> Shapes:
    """Llama's attention matrices, without biases."""
    hidden, dim = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    return {
        prefix + "q_proj.weight": (heads * dim, hidden),
        prefix + "k_proj.weight": (kv_heads * dim, hidden),
        prefix + "v_proj.weight": (kv_heads * dim, hidden),
        prefix + "o_proj.weight": (hidden, heads * dim),
    }
