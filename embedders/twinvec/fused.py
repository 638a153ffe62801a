"""Feed-forward blocks without large temporaries.

The classes of transformers write each activation and product to a new tensor. At CPU sizes every one of those is fresh
memory that the kernel has to map and clear, which costs as much as a third of the matrix products. In-place activation
over slices of rows removes it; names, weights and results stay the same.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

_ROWS = 512  # rows per slice on a CPU: the slice's activations stay in the L2/L3 cache
_GATED = {
    "DeepseekV3MLP", "EuroBertMLP", "Gemma3MLP", "GteMLP", "JinaEmbeddingsV3MLP", "LlamaMLP", "MistralMLP",
    "NomicBertMLP", "Qwen2MLP", "Qwen3MLP",
}  # fmt: skip
_PLAIN = {
    "BertIntermediate", "ElectraIntermediate", "RobertaIntermediate", "XLMRobertaIntermediate",
    "CamembertIntermediate", "MPNetIntermediate",
}  # fmt: skip


def fuse_feed_forward(model: torch.nn.Module) -> int:
    """Replace the forward of every feed-forward block that this module knows; return how many."""
    fused = 0
    for module in model.modules():
        name = type(module).__name__
        if name in _GATED and _activation(getattr(module, "act_fn", None)) and hasattr(module, "gate_proj"):
            module.forward = MethodType(_gated, module)
        elif name in _PLAIN and _activation(getattr(module, "intermediate_act_fn", None)):
            module.forward = MethodType(_plain, module)
        else:
            continue
        fused += 1
    return fused


def _gated(self: Any, x: torch.Tensor) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    activate_ = _activation(self.act_fn)
    size = _ROWS if x.device.type == "cpu" else max(len(rows), 1)
    out = rows.new_empty(len(rows), self.down_proj.out_features)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        gate = activate_(self.gate_proj(part))
        out[start : start + size] = self.down_proj(gate.mul_(self.up_proj(part)))
    return out.view(*x.shape[:-1], -1)


def _plain(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _activation(self.intermediate_act_fn)(self.dense(hidden_states))
    return result


def _activation(function: Any) -> Any:
    """Return the in-place form of an activation, None where there is none."""
    name = type(function).__name__
    if name in ("GELUActivation", "GELU") and getattr(function, "approximate", "none") == "none":
        return torch.ops.aten.gelu_
    if name in ("GELUTanh", "PytorchGELUTanh", "GELUActivation", "GELU"):
        return lambda x: torch.ops.aten.gelu_(x, approximate="tanh")
    if name in ("SiLU", "SiLUActivation"):
        return torch.ops.aten.silu_
    return None
