"""Memory-bound steps between the matrix products, each in one pass over its tensors.

On CUDA these are Triton kernels where Triton works; everywhere else plain torch. Both compute the same formulas: Triton
in fp32, rounded once; torch with the rounding of its individual steps.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

Activation = Literal["gelu", "gelu_tanh", "silu"]


@dataclass(frozen=True)
class Norm:
    """A LayerNorm (``centred``) or an RMSNorm over the last dimension."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float
    centred: bool


def gate(gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Return activation(gate) * up [rows, n] of joined projections [rows, 2 n]."""
    if use_triton(gate_up.device):
        from twinvec.compute import triton

        return triton.gate(gate_up, activation)
    left, right = gate_up.chunk(2, dim=-1)
    # a single row already is contiguous: contiguous() would return the caller's own memory
    return activate_(left.clone(memory_format=torch.contiguous_format), activation).mul_(right)


def activate_(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Apply an activation in place."""
    if activation == "silu":
        return torch.ops.aten.silu_(x)  # type: ignore[no-any-return]
    return torch.ops.aten.gelu_(  # type: ignore[no-any-return]
        x, approximate="tanh" if activation == "gelu_tanh" else "none"
    )


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate heads in place: (a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of each head.

    Formula: rotary position embedding (Su et al. 2021) in the layout of GPT-NeoX, Llama and transformers.

    Args:
        x: [tokens, heads, dim], contiguous in the last dimension only.
        cos: [tokens, dim / 2] or wider, as repeated by transformers; contiguous in the last dimension.
        sin: like ``cos``.
    """
    if use_triton(x.device):
        from twinvec.compute import triton

        triton.rotate_(x, cos, sin)
        return
    first, second = x.chunk(2, dim=-1)
    half = first.shape[-1]
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    turned = torch.addcmul(first * cos, second, sin, value=-1)
    torch.addcmul(second * cos, first, sin, out=second)
    first.copy_(turned)


def add_norm(x: torch.Tensor, residual: torch.Tensor, norm: Norm, *, keep_sum: bool = False) -> torch.Tensor:
    """Return norm(x + residual) of contiguous tensors; either may be overwritten.

    Args:
        x: [..., n].
        residual: like ``x``; with ``keep_sum`` it becomes the sum.
        norm: the norm to apply.
        keep_sum: see ``residual``.
    """
    if use_triton(x.device):
        from twinvec.compute import triton

        return triton.add_norm(x, residual, norm.weight, norm.bias, norm.eps, centred=norm.centred, keep_sum=keep_sum)
    total = residual.add_(x) if keep_sum else x.add_(residual)
    return apply_norm(total, norm)


def apply_norm(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Return norm(x)."""
    shape = x.shape[-1:]
    if norm.centred:
        return F.layer_norm(x, shape, norm.weight, norm.bias, norm.eps)
    return F.rms_norm(x, shape, norm.weight, norm.eps)


@functools.cache
def use_triton(device: torch.device) -> bool:
    """Return whether the kernels work on a device; determined once, by comparing each with torch."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    try:
        check_triton(device)
    except Exception as error:  # no compiler or an unknown chip: torch does the same, more slowly
        logger.warning("%s: Triton kernels do not work here, using plain torch: %s", device, error)
        return False
    return True


def check_triton(device: torch.device) -> None:
    """Run each Triton kernel on small tensors and compare with torch.

    Raises:
        ArithmeticError: a result differs from torch's. Triton raises its own errors if it cannot compile or launch.
    """
    from twinvec.compute import triton

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, torch.bfloat16)

    generator = torch.Generator().manual_seed(0)
    cpu = torch.device("cpu")
    for activation in ("gelu", "gelu_tanh", "silu"):
        joined = random(5, 2 * 72)
        _compare("gate", triton.gate(joined, activation), gate(joined.to(cpu), activation))
    heads, tables = random(7, 3, 40), random(2, 7, 20)
    expected = heads.to(cpu, copy=True)
    rotate_(expected, *tables.to(cpu))
    triton.rotate_(heads, *tables)
    _compare("rotate", heads, expected)
    for centred, bias in ((True, random(72)), (False, None)):
        norm = Norm(random(72), bias, 1e-6, centred)
        on_cpu = Norm(norm.weight.to(cpu), None if bias is None else bias.to(cpu), 1e-6, centred)
        x, residual = random(5, 72), random(5, 72)
        on_cpu_x, on_cpu_residual = x.to(cpu, copy=True), residual.to(cpu, copy=True)
        normed = triton.add_norm(x, residual, norm.weight, norm.bias, norm.eps, centred=centred, keep_sum=True)
        _compare("add_norm", normed, add_norm(on_cpu_x, on_cpu_residual, on_cpu, keep_sum=True))
        _compare("add_norm", residual, on_cpu_residual)


def _compare(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.allclose(found.cpu().float(), expected.float(), rtol=0.05, atol=0.05):
        raise ArithmeticError(f"{name} is off by up to {(found.cpu() - expected).abs().max().item():.3g}")
