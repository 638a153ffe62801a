"""The modules of the original Giga Embeddings: latent-attention block and multi-head latent attention (MLA)."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.tensors import load_strict, load_tensors
from twinvec.compute.backbone import PackedTransformer, native_config
from twinvec.compute.packing import TokenBatch
from twinvec.errors import CheckpointError, CheckpointFieldError, CheckpointMismatchError

_BLOCKS = "latent_attention_model.cross_attend_blocks."
_DEFAULT_HEADS = 8  # num_cross_heads of the published checkpoints


class LatentAttention(nn.Module):
    """Token states attend to learned latents: a = attn(h, latents); out = ff(a + h) + a + h.

    The names of its parameters are the checkpoint's. Generation 1 normalises before each block and has a GEGLU
    feed-forward with biases; generation 2 has no norms and a SiLU-gated one.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], heads: int) -> None:
        super().__init__()
        first = f"{_BLOCKS}0.fn.to_q.weight" in shapes
        latents, width = shapes["latent_attention_model.latents"]
        inner, hidden = shapes[_BLOCKS + ("0.fn.to_q.weight" if first else "0.to_q.weight")]
        self.heads, self.inner = heads, inner
        self.latents = nn.Parameter(torch.empty(latents, width))
        attend = nn.ModuleDict(
            {
                "to_q": nn.Linear(hidden, inner, bias=False),
                "to_kv": nn.Linear(width, 2 * inner, bias=False),
                "to_out": nn.Linear(inner, hidden, bias=False),
            }
        )
        if first:
            gates, _ = shapes[f"{_BLOCKS}1.fn.net.0.weight"]
            net = nn.ModuleDict({"0": nn.Linear(hidden, gates), "2": nn.Linear(gates // 2, hidden)})
            blocks = [
                nn.ModuleDict({"norm": nn.LayerNorm(hidden), "norm_context": nn.LayerNorm(width), "fn": attend}),
                nn.ModuleDict({"norm": nn.LayerNorm(hidden), "fn": nn.ModuleDict({"net": net})}),
            ]
        else:
            middle, _ = shapes[f"{_BLOCKS}1.up_proj.weight"]
            blocks = [
                attend,
                nn.ModuleDict(
                    {
                        "gate_proj": nn.Linear(hidden, middle, bias=False),
                        "up_proj": nn.Linear(hidden, middle, bias=False),
                        "down_proj": nn.Linear(middle, hidden, bias=False),
                    }
                ),
            ]
        self.cross_attend_blocks = nn.ModuleList(blocks)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return states [tokens, hidden]; without a mask: every token sees all latents and no other token."""
        attend, feed = (cast(Any, block) for block in self.cross_attend_blocks)
        if "fn" in attend:
            states, context, attend = (
                attend["norm"](hidden),
                attend["norm_context"](self.latents),
                attend["fn"],
            )
        else:
            states, context = hidden, self.latents
        q = attend["to_q"](states).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        k, v = (x.unflatten(-1, (self.heads, -1)).transpose(0, 1) for x in attend["to_kv"](context).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        hidden = attend["to_out"](attended) + hidden
        if "fn" in feed:
            net = feed["fn"]["net"]
            values, gates = net["0"](feed["norm"](hidden)).chunk(2, dim=-1)
            return cast(torch.Tensor, net["2"](values * F.gelu(gates)) + hidden)
        gated = F.silu(feed["gate_proj"](hidden)) * feed["up_proj"](hidden)
        return cast(torch.Tensor, feed["down_proj"](gated) + hidden)


class MultiHeadLatentAttention(nn.Module):
    """MLA with keys and values from one compressed state: c = norm(dkv(x)), k = [uk(c), rope(kr(x))], v = uv(c).

    A drop-in replacement for LlamaAttention. Whether the rope is interleaved is not published; in the training
    framework's public code it is. ``rope_interleave: false`` in the text config selects halves.
    """

    def __init__(self, config: Any, text: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.is_causal = False
        self.interleaved = bool(text.get("rope_interleave", True))
        heads, hidden = text["num_attention_heads"], text["hidden_size"]
        self.nope, self.rope, self.dim_v = (text[f"{n}_head_dim"] for n in ("qk_nope", "qk_rope", "v"))
        self.heads, self.rope_heads = heads, text.get("num_krope_heads") or heads
        self.scaling = (self.nope + self.rope) ** -0.5
        rank = text["kv_lora_rank"]
        self.q_proj = nn.Linear(hidden, heads * (self.nope + self.rope), bias=False)
        self.dkv_proj = nn.Linear(hidden, rank, bias=False)
        self.kv_norm = LlamaRMSNorm(rank, eps=config.rms_norm_eps)
        self.uk_proj = nn.Linear(rank, heads * self.nope, bias=False)
        self.uv_proj = nn.Linear(rank, heads * self.dim_v, bias=False)
        self.kr_proj = nn.Linear(hidden, self.rope_heads * self.rope, bias=False)
        self.o_proj = nn.Linear(heads * self.dim_v, hidden, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """Return [1, tokens, hidden]."""

        def heads(x: torch.Tensor, n: int) -> torch.Tensor:
            return cast(torch.Tensor, x.unflatten(-1, (n, -1))).transpose(1, 2)

        q_nope, q_rope = heads(self.q_proj(hidden_states), self.heads).split((self.nope, self.rope), dim=-1)
        compressed = self.kv_norm(self.dkv_proj(hidden_states))
        k_rope = self._rotate(heads(self.kr_proj(hidden_states), self.rope_heads), position_embeddings)
        k_rope = k_rope.repeat_interleave(self.heads // self.rope_heads, dim=1)
        query = torch.cat([q_nope, self._rotate(q_rope, position_embeddings)], dim=-1)
        key = torch.cat([heads(self.uk_proj(compressed), self.heads), k_rope], dim=-1)
        value = heads(self.uv_proj(compressed), self.heads)
        attend = AttentionInterface._global_mapping[self.config._attn_implementation]
        out, _ = attend(self, query, key, value, None, scaling=self.scaling, **options)
        return cast(torch.Tensor, self.o_proj(out.flatten(2))), None

    def _rotate(self, x: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        cos, sin = (table.unsqueeze(1) for table in position_embeddings)
        if self.interleaved:  # into half-rotated order, in both queries and keys, which leaves the products unchanged
            x = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin


class GigaBackbone(PackedTransformer):
    """Text backbone and latent block; both run per token on the packed batch."""

    def __init__(self, text: Any, latent: LatentAttention) -> None:
        super().__init__(text, causal=False)
        self.latent = latent

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, modules: nn.ModuleDict, dtype: torch.dtype, device: torch.device
    ) -> GigaBackbone:
        """Fill modules built on the meta device, strictly."""
        tensors = {k: v for file in checkpoint.weight_files for k, v in load_tensors(file, device=device).items()}
        load_strict(modules, tensors, checkpoint.name, dtype)
        text = cast(LlamaModel, modules["model"])
        text.rotary_emb = LlamaRotaryEmbedding(text.config)
        return cls(text.eval(), cast(LatentAttention, modules["latent_attention_model"]))

    def rope_variants(self) -> tuple[str, ...]:
        """Return the rotations that ``verify`` tries, starting with the one in use."""
        if not (layers := self._mla()):
            return ()
        return ("interleaved", "half") if layers[0].interleaved else ("half", "interleaved")

    def use_rope(self, variant: str) -> None:
        """Select one of ``rope_variants``."""
        for layer in self._mla():
            layer.interleaved = variant == "interleaved"

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Return states [tokens, hidden] after the latent block."""
        return cast(torch.Tensor, self.latent(super().forward(batch)))

    def _mla(self) -> list[MultiHeadLatentAttention]:
        return [m for m in self.modules() if isinstance(m, MultiHeadLatentAttention)]


def build_modules(checkpoint: Checkpoint, text: dict[str, Any], *, mla: bool) -> nn.ModuleDict:
    """Build both parts without memory (meta device), with the checkpoint's parameter names.

    Raises:
        CheckpointError: the latent block's tensors are missing.
    """
    shapes = {k: v.shape for k, v in checkpoint.tensors.items()}
    latent_config = checkpoint.config.get("latent_attention_config") or {}
    values = {**text, "is_causal": False}
    if mla:
        values |= {"head_dim": text["qk_rope_head_dim"], "num_key_value_heads": text["num_attention_heads"]}
    config = native_config(LlamaConfig, values, checkpoint)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = LlamaModel(config)
        if mla:
            for layer in model.layers:
                layer.self_attn = MultiHeadLatentAttention(config, text)
        try:
            latent = LatentAttention(shapes, latent_config.get("num_cross_heads") or _DEFAULT_HEADS)
        except KeyError as error:
            raise CheckpointMismatchError(checkpoint.name, missing=[str(error.args[0])]) from error
        except ValueError as error:  # a tensor of that name with the wrong number of dimensions
            raise CheckpointError(f"{checkpoint.name}: the latent block has another shape ({error})") from error
    if latent.inner % latent.heads:
        raise CheckpointFieldError(
            checkpoint.folder / "config.json",
            "latent_attention_config.num_cross_heads",
            latent.heads,
            f"must divide the {latent.inner} dimensions of the latent block's attention",
        )
    return nn.ModuleDict({"model": model, "latent_attention_model": latent})
