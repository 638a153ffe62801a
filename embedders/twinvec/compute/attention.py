"""Packed attention for unmodified transformers classes.

Each function is registered with transformers' ``AttentionInterface``. No mask function has its name, so that models
build no mask and pass ``attention_mask=None``; the batch arrives as the keyword argument ``packed``. Queries are [1,
heads, tokens, dim], results [1, tokens, heads, dim_v].
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_utils import AttentionInterface

from twinvec.compute.packing import TokenBatch
from twinvec.errors import ConfigurationError

PREFIX = "twinvec_"
_HALF = (torch.float16, torch.bfloat16)
_SCORE_BYTES = 2**22
_SHORT = 32  # for shorter texts the products cost nothing compared with the calls
_KEYS = 16  # a multiple of it is what the fused kernel is fastest with; see benchmarks/NOTES.md


def choose_attention(device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the fastest packed attention available: "varlen", "flash" or "sdpa"."""
    if device.type != "cuda" or dtype not in _HALF:
        return "sdpa"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "sdpa"
    if "window_size" in _varlen_parameters():
        return "varlen"
    return "flash" if importlib.util.find_spec("flash_attn") else "sdpa"


@functools.cache
def _varlen_parameters() -> frozenset[str]:
    """Return the options of torch's varlen_attn; empty without it (it evolved from 2.10 to 2.12)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


@dataclass(frozen=True)
class _Options:
    """A layer's parameters: score factor, window |i - j| < sliding_window, and whether later tokens are hidden."""

    scaling: float | None
    sliding_window: int | None
    causal: bool

    def window(self, length: int) -> int | None:
        """Return the window if it hides any part of a text."""
        return self.sliding_window if self.sliding_window is not None and self.sliding_window < length else None


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, TokenBatch, _Options], torch.Tensor]


def _register(kernel: Kernel) -> Callable[..., tuple[torch.Tensor, None]]:
    """Give a kernel the signature that transformers calls, and register it under its name."""

    @functools.wraps(kernel)
    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        packed: TokenBatch,
        scaling: float | None = None,
        sliding_window: int | None = None,
        is_causal: bool | None = None,
        **unused: Any,
    ) -> tuple[torch.Tensor, None]:
        causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
        return kernel(query, key, value, packed, _Options(scaling, sliding_window, causal)), None

    AttentionInterface.register(PREFIX + kernel.__name__, attend)
    return attend


@_register
def sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: TokenBatch, options: _Options
) -> torch.Tensor:
    """Run one call per run of texts of equal length."""
    n, heads, dim_v = packed.n_tokens, query.shape[1], value.shape[-1]
    if len(packed.lengths) == 1 and options.window(n) is None and not _in_products(query, n, options):
        # rows that belong to no text attend to the only text, too: nothing has to be copied
        return _fused(query, key[:, :, :n], value[:, :, :n], options).transpose(1, 2)
    out = query.new_empty(1, query.shape[2], heads, dim_v)
    out[0, n:] = 0  # rows that belong to no text (``filled``)
    for start, count, length in packed.runs:
        stop = start + count * length
        q, k, v = (x[0, :, start:stop].unflatten(1, (count, length)).transpose(0, 1) for x in (query, key, value))
        to = out[0, start:stop].view(count, length, heads, dim_v).transpose(1, 2)
        if _in_products(query, length, options):
            _products(q, k, v, options.scaling, to)
        else:
            to.copy_(_fused(q, k, v, options))
    return out


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: _Options) -> torch.Tensor:
    """Return torch's attention; all are [texts, heads, length, dim]."""
    length = key.shape[2]
    window = options.window(length)
    mask = None if window is None else _window_mask(length, window, options.causal, query.device)
    causal = options.causal and window is None and length > 1
    if more := _more_keys(query, length):
        key, value = (F.pad(x, (0, 0, 0, more)) for x in (key, value))
        if mask is not None:
            mask = F.pad(mask, (0, more))
        elif not causal:  # which hides later keys anyway
            mask = F.pad(query.new_zeros(length), (0, more), value=-torch.inf).expand(1, 1, query.shape[2], -1)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=options.scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip


def _more_keys(query: torch.Tensor, length: int) -> int:
    """Return how many hidden keys make a text faster: odd numbers of keys cost a CPU up to twice as much."""
    return -length % _KEYS if query.device.type == "cpu" and length > 2 * _SHORT and length % 4 else 0


def _in_products(query: torch.Tensor, length: int, options: _Options) -> bool:
    """Return whether ``_products`` is faster: of all bfloat16 instructions the fused kernel only uses AMX."""
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or length <= _SHORT:
        return False
    return not options.causal and options.window(length) is None and not _has_amx()


@functools.cache
def _has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


@_register
def varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: TokenBatch, options: _Options
) -> torch.Tensor:
    """Run torch's built-in flash attention over the whole batch (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v, scale = _ragged(query, key, value, options.scaling)
    window = -1 if options.sliding_window is None else options.sliding_window - 1
    # before torch 2.12 the kernel accepts fewer key heads without being told
    grouped: dict[str, Any] = {"enable_gqa": k.shape[1] != q.shape[1]} if "enable_gqa" in _varlen_parameters() else {}
    out = varlen_attn(
        q, k, v, packed.cu_seqlens, packed.cu_seqlens, packed.longest, packed.longest,
        scale=scale, window_size=(window, 0 if options.causal else window), **grouped,
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)
    return out[None, ..., : value.shape[-1]]


@_register
def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: TokenBatch, options: _Options
) -> torch.Tensor:
    """Run the optional flash-attn package over the whole batch (CUDA, half precision)."""
    from flash_attn import flash_attn_varlen_func

    q, k, v, scale = _ragged(query, key, value, options.scaling)
    window = -1 if options.sliding_window is None else options.sliding_window - 1
    out: torch.Tensor = flash_attn_varlen_func(
        q, k, v, packed.cu_seqlens, packed.cu_seqlens, packed.longest, packed.longest,
        softmax_scale=scale, causal=options.causal, window_size=(window, window),
    )  # fmt: skip
    return out[None, ..., : value.shape[-1]]


def _ragged(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Return [tokens, heads, dim] and the score factor.

    The kernels require equal head widths, a multiple of 8: narrower ones (such as the values of latent attention) are
    padded with zeros.
    """
    dim, dim_v = query.shape[-1], value.shape[-1]
    if dim_v > dim:
        raise ConfigurationError(f"flash attention needs value heads ({dim_v}) no wider than query heads")
    width = -(-dim // 8) * 8
    q, k, v = (F.pad(x[0].transpose(0, 1), (0, width - x.shape[-1])) for x in (query, key, value))
    return q, k, v, dim**-0.5 if scaling is None else scaling


def _products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None, out: torch.Tensor) -> None:
    """Attend without a mask, with two matrix products per block of queries; all are [texts, heads, length, dim].

    Scores are rounded to bfloat16, as in transformers' eager attention; blocks keep them in the cache.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    queries, keys, values = (x.flatten(0, 1).contiguous() for x in (q, k, v))
    keys = keys.mT
    nothing = q.new_empty(1).expand(len(queries), 1, 1)  # of the products only baddbmm takes a factor
    rows = max(_SCORE_BYTES // (q.element_size() * len(queries) * q.shape[2]), 16)
    for start in range(0, q.shape[2], rows):
        block = slice(start, start + rows)
        scores = torch.baddbmm(nothing, queries[:, block], keys, beta=0, alpha=scale)
        torch.softmax(scores, -1, out=scores)
        out[:, :, block] = torch.bmm(scores, values).unflatten(0, q.shape[:2])


def _window_mask(length: int, window: int, causal: bool, device: torch.device) -> torch.Tensor:
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window) if causal else distance.abs() < window
