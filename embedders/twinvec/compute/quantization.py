"""Linear layers with 8-bit weights: half the memory of bfloat16, and integer products on a CPU.

Weights are quantised per output channel, symmetrically (Jacob et al. 2018, "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", with the zero point at 0). On a CPU the activations are
quantised as well, per token at run time (ZeroQuant, Yao et al. 2022; LLM.int8(), Dettmers et al. 2022, without its
outlier columns), so that a text's vector does not depend on the rest of its batch:

    s_w[o] = max |w[o, :]| / 127,  q_w = round(w / s_w);  s_x[t] = max |x[t, :]| / 127,  q_x = round(x / s_x)
    y[t, o] = s_x[t] s_w[o] sum_i q_x[t, i] q_w[o, i] + b[o]

On other devices only the weights are integers: y = x (s_w q_w)^T + b.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from twinvec.errors import ConfigurationError

_LEVELS = 127
_ROWS = 512  # per slice on a CPU: intermediate results stay in the cache
_SMALLEST = 1e-30  # smallest scale of a row: below it, dividing by the scale would overflow fp32


class Int8Linear(nn.Module):
    """A linear layer with int8 weights; it has no gradients.

    Attributes:
        weight: int8 [out, in].
        scale: fp32 [out], the value of a weight of 1.
        bias: [out] in the dtype of the layer it was made from, or None.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise the weights of a layer, on its device."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = _largest(weight) / _LEVELS
        scale = torch.where(scale == 0, 1.0, scale)
        quantised = (weight / scale).round_().clamp_(-_LEVELS, _LEVELS).to(torch.int8)
        self.register_buffer("weight", quantised)
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., out] of [..., in], in the dtype of ``x``."""
        if x.device.type != "cpu":
            weight = torch.empty(self.weight.shape, dtype=x.dtype, device=x.device)
            return F.linear(x, torch.mul(self.weight, self.scale[:, None], out=weight), self.bias)
        rows = x.reshape(-1, self.in_features)
        out = rows.new_empty(len(rows), self.out_features)
        bias = None if self.bias is None else self.bias.float()
        exact = _multiplies_exactly() and self.in_features > 1
        # separate memory for each slice would have to be mapped each time
        sums = rows.new_empty(min(len(rows), _ROWS), self.out_features, dtype=torch.int32)
        products = torch.empty_like(sums, dtype=torch.float32)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            scale = _largest(part).float().clamp_min_(_SMALLEST).div_(_LEVELS)
            quantised = torch.div(part, scale).round_().to(torch.int8)
            product = products[: len(part)]
            if exact:
                torch._int_mm(quantised, self.weight.t(), out=sums[: len(part)])
                torch.mul(sums[: len(part)], scale, out=product)
            else:
                torch.mm(quantised.float(), self.weight.t().float(), out=product).mul_(scale)
            if bias is None:
                product.mul_(self.scale)
            else:
                torch.addcmul(bias, product, self.scale, out=product)
            out[start : start + _ROWS] = product
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def quantize(model: nn.Module) -> int:
    """Replace the linear layers of a model by ``Int8Linear``, one after another; return how many weights they hold.

    Embeddings stay, as do layers that share their weights with one. Layers that are to be joined (``fused``) must be
    joined first.

    Raises:
        ConfigurationError: less than half of the matrix weights belong to linear layers; the model is left unchanged.
    """
    places = linear_layers(model, nn.Linear)
    embeddings = _embeddings(model)
    matrices = {id(p): p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in embeddings}
    covered = sum(matrices[key] for key in {id(linear.weight) for linear in places})
    if 2 * covered < sum(matrices.values()) or not covered:
        raise ConfigurationError(
            f"8-bit weights: only {covered:,} of the {sum(matrices.values()):,} weights outside embeddings belong "
            "to linear layers (mixtures of experts keep theirs in other tensors); use another dtype"
        )
    while places:  # each layer is released before the next is quantised
        linear, where = places.popitem()
        quantised = Int8Linear(linear)
        for parent, name in where:
            setattr(parent, name, quantised)
    return covered


def linear_layers(model: nn.Module, *types: type[nn.Module]) -> dict[Any, list[tuple[nn.Module, str]]]:
    """Return the layers of exactly these types, with their (parent, name).

    Subclasses are excluded, since their owners may read the weights (torch's own attention does), and so are layers
    that share their weights with an embedding.
    """
    embeddings = _embeddings(model)
    places: dict[Any, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if type(child) in types and id(child.weight) not in embeddings:  # type: ignore[union-attr]
                places.setdefault(child, []).append((parent, name))
    return places


def inverse_scales(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 1 / s_x and s_x [rows, 1] of fp32 rows."""
    largest = _largest(rows).clamp_min_(_SMALLEST)  # an infinity norm takes 15 times as long
    return _LEVELS / largest, largest / _LEVELS


def _embeddings(model: nn.Module) -> set[int]:
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}


def _largest(x: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of each row [rows, 1]; NaN if the row has one."""
    return x.abs().amax(dim=1, keepdim=True)


@functools.cache
def _multiplies_exactly() -> bool:
    """Return whether the CPU's int8 matrix product is exact for the largest numbers.

    Without VNNI instructions, oneDNN adds pairs of products in 16 bits, and saturates. (A single column in
    ``weight.t()`` is wrong on all CPUs.)
    """
    ones = torch.full((32, 64), _LEVELS, dtype=torch.int8)
    return bool((torch._int_mm(ones, ones.t()) == 64 * _LEVELS**2).all())
