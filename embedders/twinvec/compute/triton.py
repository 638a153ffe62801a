"""The Triton kernels behind ``kernels``; imported only if Triton is available."""

# ruff: noqa: N803  (capitals are constants of a compiled kernel, as in Triton's own code)

from __future__ import annotations

import torch
import triton
import triton.language as tl

_COLUMNS = 1024  # columns of a gated row per program
_ROTATED = 1024  # elements of one half of the heads per program
_SQRT_2 = tl.constexpr(1.4142135623730951)
_TANH_SCALE = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)


@triton.jit  # type: ignore[untyped-decorator]
def _gate_kernel(
    gate_up: tl.tensor, out: tl.tensor, width: tl.tensor, row_stride: tl.tensor,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * row_stride + width + column, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "gelu":
        gate = 0.5 * gate * (1.0 + tl.math.erf(gate / _SQRT_2))
    elif ACTIVATION == "gelu_tanh":
        gate = gate / (1.0 + tl.exp((gate + 0.044715 * gate * gate * gate) * -_TANH_SCALE))
    else:
        gate = gate / (1.0 + tl.exp(-gate))
    tl.store(out + row * width + column, (gate * up).to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_kernel(
    x: tl.tensor, cos: tl.tensor, sin: tl.tensor, heads: tl.tensor, half: tl.tensor,
    token_stride: tl.tensor, head_stride: tl.tensor, cos_stride: tl.tensor, sin_stride: tl.tensor,
    HEADS: tl.constexpr, HALF: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, HALF)
    real = column < half
    inside = (head < heads)[:, None] & real[None, :]
    c = tl.load(cos + token * cos_stride + column, mask=real, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + token * sin_stride + column, mask=real, other=0.0).to(tl.float32)[None, :]
    place = x + token * token_stride + head[:, None] * head_stride + column[None, :]
    a = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, (a * c - b * s).to(x.dtype.element_ty), mask=inside)
    tl.store(place + half, (b * c + a * s).to(x.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_kernel(
    x: tl.tensor, residual: tl.tensor, out: tl.tensor, weight: tl.tensor, bias: tl.tensor,
    width: tl.tensor, eps: tl.tensor,
    CENTRED: tl.constexpr, BIAS: tl.constexpr, KEEP_SUM: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    total = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(residual + row + column, mask=inside, other=0.0).to(tl.float32)
    if KEEP_SUM:
        # the next block adds to the rounded sum, so the norm uses the rounded sum as well
        kept = total.to(residual.dtype.element_ty)
        tl.store(residual + row + column, kept, mask=inside)
        total = kept.to(tl.float32)
    if CENTRED:
        total = tl.where(inside, total - tl.sum(total, axis=0) / width, 0.0)
    normed = total / tl.sqrt(tl.sum(total * total, axis=0) / width + eps)
    normed *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        normed += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + column, normed.to(out.dtype.element_ty), mask=inside)


def gate(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """See ``kernels.gate``."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    block = min(_COLUMNS, triton.next_power_of_2(width))
    _gate_kernel[rows, triton.cdiv(width, block)](
        gate_up, out, width, gate_up.stride(0), ACTIVATION=activation, BLOCK=block
    )
    return out


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """See ``kernels.rotate_``."""
    tokens, heads, dim = x.shape
    half = triton.next_power_of_2(dim // 2)
    block = min(triton.next_power_of_2(heads), max(_ROTATED // half, 1))
    _rotate_kernel[tokens, triton.cdiv(heads, block)](
        x, cos, sin, heads, dim // 2, x.stride(0), x.stride(1), cos.stride(0), sin.stride(0), HEADS=block, HALF=half
    )


def add_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    centred: bool,
    keep_sum: bool,
) -> torch.Tensor:
    """See ``kernels.add_norm``."""
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[-1])
    _add_norm_kernel[(x.numel() // x.shape[-1],)](
        x, residual, out, weight, bias if bias is not None else weight, x.shape[-1], eps,
        CENTRED=centred, BIAS=bias is not None, KEEP_SUM=keep_sum, BLOCK=block,
        num_warps=min(max(block // 256, 1), 16),
    )  # fmt: skip
    return out
