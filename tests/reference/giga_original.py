"""The original Giga Embeddings (``gigarembed``): tiny checkpoints, and the computation in float64.

Not all of the official layout is public. Presumed here: ``text_config`` and ``latent_attention_config`` hold
the keys of the public training framework and of NV-Embed; generation 2's text tensors are the framework's; in
the latent block only generation 1's feed-forward and norms have biases; the norms have torch's default eps.
"""

import shutil
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
    decoder_shapes,
    grouped_query_attention,
    grouped_query_shapes,
    latent_attention,
    run_decoder,
    swiglu,
    swiglu_shapes,
)
from .giga import GigaReference
from .tokenizers_ import write_bpe_tokenizer

Generation = Literal[1, 2]

VOCAB = 608
HIDDEN = 64
LATENT_PREFIX = "latent_attention_model."
BLOCKS = LATENT_PREFIX + "cross_attend_blocks."


def build_giga_original(
    folder: Path,
    generation: Generation = 1,
    *,
    dtype: Dtype = "bfloat16",
    remote_code: bool = False,
    num_krope_heads: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a tiny original checkpoint of either generation, in two shards.

    ``remote_code`` adds stand-ins for the official Python files (generation 1 only), traps included; the
    config names them in ``auto_map`` in any case, as the official one does. ``num_krope_heads=None``
    (generation 2) means one rotary key head per query head.
    """
    if remote_code and generation != 1:
        raise ValueError("only generation 1 has stand-in remote code")
    config = _config(generation, dtype, num_krope_heads)
    write_json(folder / "config.json", config)
    text: dict[str, Any] = config["text_config"]
    text_shapes = _llama_shapes(text) if generation == 1 else _mla_shapes(text)
    shapes = decoder_shapes(text) | text_shapes | _latent_shapes(config["latent_attention_config"], generation)
    write_weights(folder, random_weights(shapes, seed=seed), dtype, shards=2)
    write_bpe_tokenizer(folder, pad="<unk>")
    write_sentence_transformers_files(folder, dim=HIDDEN, pooling="mean", max_seq_length=4096)
    if remote_code:
        for stem in ("configuration", "modeling"):
            shutil.copy(Path(__file__).parent / "remote_code" / f"{stem}_gigarembed.py", folder)
    return folder


@dataclass(frozen=True)
class GigaOriginalReference(GigaReference):
    """Text tower, then the latent block; ``interleaved`` turns generation 2's rotary pairs."""

    interleaved: bool = False

    @property
    def generation(self) -> Generation:
        """Told by the tensor names."""
        return 1 if BLOCKS + "0.fn.to_q.weight" in self.weights else 2

    def hidden(self, ids: list[int]) -> Array:
        """Token states [T, H] after the latent block: a = attention(h, latents), out = ff(a + h) + a + h."""
        text = self.text_hidden(ids)
        mixed = text + self._cross_attention(text)
        return mixed + self._feed_forward(mixed)

    def text_hidden(self, ids: list[int]) -> Array:
        """Token states [T, H] after the text tower."""
        attention = self._llama_attention if self.generation == 1 else self._mla
        return run_decoder(self.config["text_config"], self.weights, ids, attention, self._mlp)

    def _mlp(self, prefix: str, x: Array) -> Array:
        return swiglu(self.weights, prefix + "mlp.", x)

    def _llama_attention(self, prefix: str, x: Array) -> Array:
        return grouped_query_attention(self.config["text_config"], self.weights, prefix, x)

    def _mla(self, prefix: str, x: Array) -> Array:
        """c = kv_norm(dkv(x)); k = [uk(c), rope(kr(x))], v = uv(c), q = q_proj(x) = [nope, rope] per head."""
        config, w, p = self.config["text_config"], self.weights, prefix + "self_attn."
        heads = config["num_attention_heads"]
        latent = f.linear(x, w[p + "dkv_proj.weight"])
        latent = f.rms_norm(latent, w[p + "kv_norm.weight"], config["rms_norm_eps"])
        query = f.split_heads(f.linear(x, w[p + "q_proj.weight"]), heads)
        key_nope = f.split_heads(f.linear(latent, w[p + "uk_proj.weight"]), heads)
        key_rope = f.split_heads(f.linear(x, w[p + "kr_proj.weight"]), config["num_krope_heads"] or heads)
        value = f.split_heads(f.linear(latent, w[p + "uv_proj.weight"]), heads)
        mixed = latent_attention(config, query, key_nope, key_rope, value, interleaved=self.interleaved)
        return f.linear(mixed, w[p + "o_proj.weight"])

    def _cross_attention(self, x: Array) -> Array:
        """Tokens query the learned latents, without a mask; scale cross_dim_head^-1/2."""
        w, heads = self.weights, self.config["latent_attention_config"]["num_cross_heads"]
        latents, p = w[LATENT_PREFIX + "latents"], BLOCKS + "0."
        if self.generation == 1:
            x = f.layer_norm(x, w[p + "norm.weight"], w[p + "norm.bias"], 1e-5)
            latents = f.layer_norm(latents, w[p + "norm_context.weight"], w[p + "norm_context.bias"], 1e-5)
            p += "fn."
        query = f.split_heads(f.linear(x, w[p + "to_q.weight"]), heads)
        key, value = np.split(f.linear(latents, w[p + "to_kv.weight"]), 2, axis=-1)
        mixed = f.attention(query, f.split_heads(key, heads), f.split_heads(value, heads), query.shape[-1] ** -0.5)
        return f.linear(mixed, w[p + "to_out.weight"])

    def _feed_forward(self, x: Array) -> Array:
        """Generation 1: GEGLU (Shazeer 2020) as in the Perceiver, a * gelu(gate) of (a, gate); 2: SwiGLU."""
        w, p = self.weights, BLOCKS + "1."
        if self.generation == 2:
            return swiglu(w, p, x)
        x = f.layer_norm(x, w[p + "norm.weight"], w[p + "norm.bias"], 1e-5)
        a, gate = np.split(f.linear(x, w[p + "fn.net.0.weight"], w[p + "fn.net.0.bias"]), 2, axis=-1)
        return f.linear(a * f.gelu(gate), w[p + "fn.net.2.weight"], w[p + "fn.net.2.bias"])


def reference_giga_original(folder: Path, *, interleaved: bool = False) -> GigaOriginalReference:
    """The float64 computation of a checkpoint that :func:`build_giga_original` wrote."""
    return GigaOriginalReference(read_config(folder), read_weights(folder), interleaved)


def _config(generation: Generation, dtype: Dtype, num_krope_heads: int | None) -> dict[str, Any]:
    text = {
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "max_position_embeddings": 4096,
        "model_type": "gigar",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": VOCAB,
    }
    if generation == 1:
        text |= {"attention_type": "LlamaAttention", "head_dim": 16, "num_key_value_heads": 2}
    else:  # in the training framework q_lora_rank 0, not null, says that queries are not compressed
        text |= {"attention_type": "LlamaLatentAttention", "num_key_value_heads": 4, "q_lora_rank": 0}
        text |= {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
        text |= {"num_krope_heads": num_krope_heads}
    return {
        "architectures": ["GigarEmbedModel"],
        "auto_map": {
            "AutoConfig": "configuration_gigarembed.GigarEmbedConfig",
            "AutoModel": "modeling_gigarembed.GigarEmbedModel",
        },
        "is_mask_instruction": True,
        "latent_attention_config": {
            "cross_dim_head": 16,
            "hidden_dim": HIDDEN,
            "latent_dim": HIDDEN,
            "model_type": "latent_attention",
            "mult": 4,
            "num_cross_heads": 4,
            "num_latents_value": 24,
            "output_normalize": True,
        },
        "max_position_embeddings": 4096,
        "model_type": "gigarembed",
        "text_config": text,
        "torch_dtype": dtype,
    }


def _llama_shapes(config: dict[str, Any]) -> Shapes:
    shapes: Shapes = {}
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        shapes |= grouped_query_shapes(p + "self_attn.", config)
        shapes |= swiglu_shapes(p + "mlp.", config["hidden_size"], config["intermediate_size"])
    return shapes


def _mla_shapes(config: dict[str, Any]) -> Shapes:
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = (config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    shapes: Shapes = {}
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        attention: Shapes = {
            "q_proj": (heads * (nope + rope), hidden),
            "dkv_proj": (rank, hidden),
            "kv_norm": (rank,),
            "uk_proj": (heads * nope, rank),
            "uv_proj": (heads * value, rank),
            "kr_proj": ((config["num_krope_heads"] or heads) * rope, hidden),
            "o_proj": (hidden, heads * value),
        }
        shapes |= {f"{p}self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= swiglu_shapes(p + "mlp.", hidden, config["intermediate_size"])
    return shapes


def _latent_shapes(config: dict[str, Any], generation: Generation) -> Shapes:
    dim, mult, inner = (
        config["latent_dim"],
        config["mult"],
        config["num_cross_heads"] * config["cross_dim_head"],
    )
    cross = BLOCKS + ("0.fn." if generation == 1 else "0.")
    shapes: Shapes = {
        LATENT_PREFIX + "latents": (config["num_latents_value"], dim),
        cross + "to_q.weight": (inner, dim),
        cross + "to_kv.weight": (2 * inner, dim),
        cross + "to_out.weight": (dim, inner),
    }
    if generation == 2:
        return shapes | swiglu_shapes(BLOCKS + "1.", dim, mult * dim)
    for norm in ("0.norm", "0.norm_context", "1.norm"):
        shapes |= {f"{BLOCKS}{norm}.{part}": (dim,) for part in ("weight", "bias")}
    shapes |= {
        BLOCKS + "1.fn.net.0.weight": (2 * mult * dim, dim),
        BLOCKS + "1.fn.net.0.bias": (2 * mult * dim,),
    }
    return shapes | {BLOCKS + "1.fn.net.2.weight": (dim, mult * dim), BLOCKS + "1.fn.net.2.bias": (dim,)}
