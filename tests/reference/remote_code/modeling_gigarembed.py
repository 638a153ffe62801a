"""Stand-in for the modeling code of the original Giga Embeddings, generation 1, written for these tests.

It computes the generation-1 formulas, and what the official code does that breaks on transformers 5 is kept,
marked "Trap".
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention, silu
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .configuration_gigarembed import GigarConfig, GigarEmbedConfig, LatentAttentionConfig


class GigarRMSNorm(nn.Module):
    """RMS norm."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class GigarRotaryEmbedding(nn.Module):
    """Trap: ROPE_INIT_FUNCTIONS has no "default" any more. Trap: the buffer is not in the checkpoint."""

    inv_freq: Tensor

    def __init__(self, config: GigarConfig) -> None:
        super().__init__()
        inv_freq, self.attention_scaling = ROPE_INIT_FUNCTIONS["default"](config, None)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate x [B, n, T, d] by halves."""
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] * self.inv_freq
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class GigarAttention(nn.Module):
    """Grouped-query attention without a causal mask."""

    def __init__(self, config: GigarConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        inner, kv_inner = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_inner, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_inner, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: GigarRotaryEmbedding, mask: Tensor | None) -> Tensor:
        """Attend inside each row of x [B, T, H]."""
        parts = (proj(x) for proj in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        query, key = rotary(query), rotary(key)
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected


class GigarMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: GigarConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """down(silu(gate(x)) * up(x))."""
        out: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class GigarDecoderLayer(nn.Module):
    """Pre-norm layer."""

    def __init__(self, config: GigarConfig) -> None:
        super().__init__()
        self.self_attn = GigarAttention(config)
        self.mlp = GigarMLP(config)
        self.input_layernorm = GigarRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = GigarRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: GigarRotaryEmbedding, mask: Tensor | None) -> Tensor:
        """x + attention, then + MLP."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class GigarModel(PreTrainedModel):
    """Text tower. Trap: no ``post_init``."""

    config_class = GigarConfig

    def __init__(self, config: GigarConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GigarDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = GigarRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = GigarRotaryEmbedding(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token states [B, T, H]."""
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, self.rotary_emb, mask)
        out: Tensor = self.norm(x)
        return out


class CrossAttention(nn.Module):
    """Tokens query the latents."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Unmasked attention of x [B, T, H] over context [L, H]."""
        key, value = self.to_kv(context.expand(len(x), -1, -1)).chunk(2, dim=-1)
        split = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (self.to_q(x), key, value))
        out: Tensor = self.to_out(scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
        return out


class GEGLU(nn.Module):
    """a * gelu(gate)."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve the last dimension."""
        value, gate = x.chunk(2, dim=-1)
        return value * gelu(gate)


class FeedForward(nn.Module):
    """Linear, GEGLU, Linear."""

    def __init__(self, dim: int, mult: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, dim * mult * 2), GEGLU(), nn.Linear(dim * mult, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Per token."""
        out: Tensor = self.net(x)
        return out


class PreNorm(nn.Module):
    """Layer norm of the input, and of the context where there is one."""

    def __init__(self, dim: int, fn: nn.Module, *, context: bool = False) -> None:
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim) if context else None

    def forward(self, x: Tensor, **context: Tensor) -> Tensor:
        """fn(norm(x), norm(context))."""
        normed = {} if self.norm_context is None else {"context": self.norm_context(context["context"])}
        out: Tensor = self.fn(self.norm(x), **normed)
        return out


class LatentAttentionModel(PreTrainedModel):
    """Latent block. Trap: no ``post_init``."""

    config_class = LatentAttentionConfig

    def __init__(self, config: LatentAttentionConfig) -> None:
        super().__init__(config)
        attention = CrossAttention(config.latent_dim, config.num_cross_heads, config.cross_dim_head)
        feed_forward = FeedForward(config.latent_dim, config.mult)
        blocks = [
            PreNorm(config.latent_dim, attention, context=True),
            PreNorm(config.latent_dim, feed_forward),
        ]
        self.cross_attend_blocks = nn.ModuleList(blocks)
        self.latents = nn.Parameter(torch.randn(config.num_latents_value, config.latent_dim))

    def forward(self, hidden: Tensor) -> Tensor:
        """Token states [B, T, H]."""
        cross_attention, feed_forward = self.cross_attend_blocks
        hidden = cross_attention(hidden, context=self.latents) + hidden
        out: Tensor = feed_forward(hidden) + hidden
        return out


class GigarEmbedModel(PreTrainedModel):
    """Text tower and latent block. Trap: no ``post_init``, so no ``all_tied_weights_keys``."""

    config_class = GigarEmbedConfig

    def __init__(self, config: GigarEmbedConfig) -> None:
        super().__init__(config)
        self.model = GigarModel(config.text_config)
        self.latent_attention_model = AutoModel.from_config(config.latent_attention_config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pool_mask: Tensor | None = None,
        return_embeddings: bool = False,
        **unused: Any,
    ) -> Tensor | BaseModelOutput:
        """Unit vectors [B, H] with ``return_embeddings``, else the token states as ``last_hidden_state``."""
        with torch.autocast("cuda", dtype=torch.bfloat16):  # Trap: whatever the device
            hidden = self.latent_attention_model(self.model(input_ids, attention_mask))
        if not return_embeddings:
            return BaseModelOutput(last_hidden_state=hidden)
        mask = attention_mask if pool_mask is None else pool_mask
        mask = torch.ones_like(input_ids) if mask is None else mask
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


AutoModel.register(LatentAttentionConfig, LatentAttentionModel, exist_ok=True)
