"""Linear layers on a CPU: weights laid out once for oneDNN, with bias, activation and sum fused into the product.

``F.linear`` passes weights as they are to a BLAS, or lays them out again on every call; for the few rows of a query
that costs more than the product. oneDNN also builds a plan for each number of rows (about 2 ms, 0.7 MB), so rows run in
slices whose size is one of few, and the last is padded to the next one.

A layer that oneDNN cannot run, or runs differently from torch, stays as it is.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from twinvec.compute.kernels import Activation, activate_
from twinvec.compute.quantization import Int8Linear, inverse_scales, linear_layers

logger = logging.getLogger(__name__)

ROWS = 512  # per slice at most
_SIZES = (8, 16, 32, 64, 96, 128)  # above, multiples of ``_STEP``: each number of rows has a plan of its own
_STEP = 64
_MOST = 1024  # rows of one product: more would need more plans
_SLICE = 512 * 384  # elements: beyond that, what lies between two products leaves the L2 cache
_POST_OPS = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "silu": ("swish", "")}
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative to the largest result, at load time
_ZERO_POINT = 128
# added to a float of at most 2^21 it leaves the integer, rounded to even, in the low byte, moved by the zero point
_ROUND = 1.5 * 2**23 + _ZERO_POINT


def slices(rows: int, width: int) -> Iterator[slice]:
    """Split rows of a width into parts of at most ``ROWS`` that stay in the cache."""
    size = min(max(_SLICE // width // _STEP * _STEP, _SIZES[-1]), ROWS)
    return (slice(start, start + size) for start in range(0, rows, size))


def product(
    layer: nn.Module, x: torch.Tensor, activation: Activation | None = None, *, plus: torch.Tensor | None = None,
    times: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return activation(layer(x)) + plus, or layer(x) * times, in newly allocated memory.

    Args:
        layer: any linear layer.
        x: [rows, in].
        activation: applied to the layer's result.
        plus: [rows, out], contiguous; cannot be combined with the others.
        times: like ``plus``.
    """
    if isinstance(layer, PackedLinear):
        return layer.run(x, activation, plus, times)
    out: torch.Tensor = layer(x)
    if activation is not None:
        activate_(out, activation)
    if plus is not None:
        out.add_(plus)
    return out if times is None else out.mul_(times)


class PackedLinear(nn.Module):
    """A linear layer with weights in oneDNN's layout; it has no gradients and stays on the CPU.

    Attributes:
        bias: [out] in the dtype of the layer, or None.
    """

    bias: torch.Tensor | None

    def __init__(self, layer: nn.Linear | Int8Linear) -> None:
        """Lay out a layer's weights.

        Raises:
            RuntimeError: this torch or this processor does not support it.
        """
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        # not a buffer: an opaque tensor can be neither moved nor saved
        self._weight = self._pack(layer.weight.detach())

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _SIZES[-1])
        return packed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., out] of [..., in]."""
        return self.run(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    def run(
        self, rows: torch.Tensor, activation: Activation | None = None, plus: torch.Tensor | None = None,
        times: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """See ``product``."""
        n = rows.shape[0]
        if n <= _MOST:
            return self._slice(rows, activation, plus, times)
        out = rows.new_empty(n, self.out_features)
        for start in range(0, n, _MOST):
            part = slice(start, start + _MOST)
            more = (None if other is None else other[part] for other in (plus, times))
            out[part] = self._slice(rows[part], activation, *more)
        return out

    def _slice(
        self, rows: torch.Tensor, activation: Activation | None, plus: torch.Tensor | None, times: torch.Tensor | None
    ) -> torch.Tensor:
        n, other = len(rows), plus if times is None else times
        ops: Any = torch.ops.mkldnn._linear_pointwise
        if other is not None:
            how = "add" if times is None else "mul"
            out: torch.Tensor = ops.binary(_fill(rows), _fill(other), self._weight, self.bias, how)
        else:
            name, algorithm = ("none", "") if activation is None else _POST_OPS[activation]
            out = ops(_fill(rows), self._weight, self.bias, name, [], algorithm)
        return out if len(out) == n else out[:n]

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class PackedInt8Linear(PackedLinear):
    """The same for 8-bit weights, with the formula of ``quantization``.

    Attributes:
        scale: fp32 [out], the value of a weight of 1.
    """

    scale: torch.Tensor

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__(layer)
        self.register_buffer("scale", layer.scale)
        self.register_buffer("_zeros", torch.zeros(self.out_features, dtype=torch.int32))
        self._bias = None if layer.bias is None else layer.bias.float()

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight, [_SIZES[-1], self.in_features])
        return packed

    def _slice(
        self, rows: torch.Tensor, activation: Activation | None, plus: torch.Tensor | None, times: torch.Tensor | None
    ) -> torch.Tensor:
        n, dtype = len(rows), rows.dtype
        rows = rows.float()
        inverse, scale = inverse_scales(rows)
        rounded = torch.mul(rows, inverse).add_(_ROUND)
        quantised = _fill(rounded.view(torch.int32).to(torch.uint8))
        out: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            quantised, 1.0, _ZERO_POINT, self._weight, self.scale, self._zeros, None, 1.0, 0, torch.float32,
            "none", [], "",
        )[:n]  # fmt: skip
        out.mul_(scale)  # addcmul with a column takes three times as long as both steps
        if self._bias is not None:
            out.add_(self._bias)
        if activation is not None:
            activate_(out, activation)
        if plus is not None:
            out.add_(plus)
        if times is not None:
            out.mul_(times)
        return out.to(dtype)


@functools.cache  # asked for every product
def filled_rows(rows: int) -> int:
    """Return the number of rows that products will run on; starting with that many saves padding in each layer."""
    return next((size for size in _SIZES if rows <= size), -(-rows // _STEP) * _STEP)


def _fill(rows: torch.Tensor) -> torch.Tensor:
    """Return rows padded with zeros to the next size."""
    n = rows.shape[0]  # len() of a tensor takes three times as long, and this runs often
    missing = filled_rows(n) - n
    return nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows.contiguous()


def pack(model: nn.Module) -> None:
    """Replace the linear layers of a model on a CPU, one after another, so that no second copy of the model is needed.

    Layers that share their weights with an embedding stay: they would need a separate copy.
    """
    places = linear_layers(model, nn.Linear, Int8Linear)
    failed: dict[str, None] = {}
    while places:  # each layer is released before the next is packed
        layer, where = places.popitem()
        try:
            packed = _packed(layer)
        except (RuntimeError, AttributeError, ArithmeticError) as error:
            failed[str(error).partition("\n")[0]] = None
            continue
        for parent, name in where:
            setattr(parent, name, packed)
    for reason in failed:
        logger.info("linear layers are not packed: %s", reason)


@torch.inference_mode()
def _packed(layer: nn.Linear | Int8Linear) -> PackedLinear:
    """Pack a layer and compare it with the original.

    Raises:
        ArithmeticError: the result differs, or oneDNN does not multiply the dtype.
    """
    if isinstance(layer, nn.Linear) and layer.weight.dtype not in _TOLERANCE:
        raise ArithmeticError(f"{layer.weight.dtype} cannot be packed")
    packed = PackedInt8Linear(layer) if isinstance(layer, Int8Linear) else PackedLinear(layer)
    dtype = torch.float32 if isinstance(layer, Int8Linear) else layer.weight.dtype
    # with the largest numbers, too: without VNNI instructions, int8 products of them saturate at 16 bits
    rows = torch.cat([torch.ones(1, layer.in_features), torch.randn(2, layer.in_features, generator=_generator())])
    rows = rows.to(dtype)
    found, wanted = packed(rows).float(), layer(rows).float()
    if not (found - wanted).abs().max() <= _TOLERANCE[dtype] * wanted.abs().max():  # NaN fails, too
        raise ArithmeticError(f"oneDNN's packed product differs from torch's ({dtype})")
    return packed


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def linear_in_use(model: nn.Module) -> str:
    """Return how most of a model's matrix products run: "packed", "packed int8", "int8" or "torch"."""
    names: dict[type, str] = {PackedLinear: "packed", PackedInt8Linear: "packed int8", Int8Linear: "int8"}
    found: dict[str, int] = {}
    for module in model.modules():
        size = getattr(module, "in_features", 0) * getattr(module, "out_features", 0)
        if isinstance(size, int) and size:
            name = names.get(type(module), "torch")
            found[name] = found.get(name, 0) + size
    return max(found, key=found.__getitem__, default="torch")
