"""Layers of transformers' classes with fewer, larger steps.

The classes run three products for queries, keys and values and two for gate and up, and write every activation,
rotation, sum and norm to a new tensor. At CPU sizes each of those is fresh memory that the kernel has to map and clear;
on CUDA each is a trip through the device's memory. Here products of the same input are joined, and the steps between
products are a single pass, or at least in place (``kernels``). On a CPU everything in a layer except attention runs for
some rows at a time (``linear.slices``), from its first step to its last, within the caches. Weights and formulas stay
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import AttentionInterface

from twinvec.compute.kernels import Activation, Norm, add_norm, apply_norm, gate, rotate_
from twinvec.compute.linear import product, slices
from twinvec.compute.packing import TokenBatch

_NAMES = ("Gte", "NomicBert", "JinaEmbeddingsV3", "EuroBert", "Llama", "Mistral", "Qwen2", "Qwen3")
_BERTS = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra")
_ROTARY = {f"{name}Attention" for name in _NAMES}
_ABSOLUTE = {f"{name}SelfAttention" for name in _BERTS}
_GATED = {f"{name}MLP" for name in (*_NAMES, "Gemma3", "DeepseekV3")}  # not all of them are gated
_PLAIN = {f"{name}Intermediate" for name in (*_BERTS, "MPNet")}
_MODELS = {f"{name}Model" for name in _BERTS}
_POST_NORM = {f"{name}Layer" for name in ("Gte", "NomicBert", "JinaEmbeddingsV3")}
_PRE_NORM = {f"{name}DecoderLayer" for name in ("EuroBert", "Llama", "Mistral", "Qwen2", "Qwen3")}
_SUMS = {f"{name}{part}" for name in (*_BERTS, "MPNet") for part in ("SelfOutput", "Output")}
_ACTIVATIONS: dict[str, Activation] = {
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "SiLU": "silu",
    "SiLUActivation": "silu",
}
_RMS = {f"{name}RMSNorm" for name in ("EuroBert", "Llama", "Mistral", "Qwen2", "Qwen3", "DeepseekV3")}


def fuse(model: nn.Module, device: torch.device, *, packed: bool) -> int:
    """Replace the forward method of every module that this file knows; return how many.

    Args:
        device: where it will run.
        packed: whether the model runs on one row of packed texts; attention is left alone otherwise.
    """
    fused = 0
    for module in list(model.modules()):
        forward = _fused_forward(module, device, packed)
        if forward is not None:
            module.__class__ = _with_forward(cast(Any, type(module)), forward)
            fused += 1
    return fused


@cache
def _with_forward(kind: type, forward: Any) -> type:
    """Return a class with another forward method; as an attribute of the module it would keep the module alive."""
    return type(kind.__name__, (kind,), {"forward": forward})


def _fused_forward(module: Any, device: torch.device, packed: bool) -> Any:  # noqa: PLR0911  (one for each kind)
    name = type(module).__name__
    if name in _SUMS or name in _RMS:
        return _sum_norm if name in _SUMS else _rms_norm
    on_cpu = device.type == "cpu"
    if packed and (name in _POST_NORM or name in _PRE_NORM):
        return _post_norm if name in _POST_NORM else _pre_norm
    if packed and on_cpu and name in _MODELS:
        return _bert_model
    if name in _GATED and hasattr(module, "gate_proj") and type(module.act_fn).__name__ in _ACTIVATIONS:
        if not on_cpu:
            _join(module, "gate_up_proj", ("gate_proj", "up_proj"))
        return _gated_slices if on_cpu else _gated
    if name in _PLAIN and type(module.intermediate_act_fn).__name__ in _ACTIVATIONS:
        return _plain
    if packed and (name in _ROTARY or name in _ABSOLUTE):
        rotary = name in _ROTARY
        _join(module, "qkv_proj", ("q_proj", "k_proj", "v_proj") if rotary else ("query", "key", "value"))
        return _rotary_attention if rotary else _absolute_attention
    return None


def _join(module: nn.Module, joined: str, names: tuple[str, ...]) -> None:
    """Join several products of one input into one; the individual weights are released."""
    parts = [cast(nn.Linear, module.get_submodule(name)) for name in names]
    assert all(isinstance(part, nn.Linear) for part in parts), "layers are joined before they are quantised"
    rows = sum(part.out_features for part in parts)
    linear = nn.Linear(parts[0].in_features, rows, bias=parts[0].bias is not None, device="meta")
    linear.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]), requires_grad=False)
    if parts[0].bias is not None:
        linear.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]), requires_grad=False)
    for name in names:
        delattr(module, name)
    module.add_module(joined, linear)


# --- layers


def _post_norm(self: Any, hidden_states: torch.Tensor, attention_mask: None = None, **options: Any) -> torch.Tensor:
    attended, _ = self.self_attn(hidden_states, attention_mask=None, **options)

    def rest(hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        hidden = add_norm(attended, hidden, _norm(self.post_attention_layernorm))
        return add_norm(self.mlp(hidden), hidden, _norm(self.post_mlp_layernorm))

    return _in_slices(rest, hidden_states[0], attended[0])[None]


def _pre_norm(self: Any, hidden_states: torch.Tensor, attention_mask: None = None, **options: Any) -> torch.Tensor:
    attended, _ = self.self_attn(self.input_layernorm(hidden_states), attention_mask=None, **options)

    def rest(hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        normed = add_norm(attended, hidden, _norm(self.post_attention_layernorm), keep_sum=True)
        return hidden.add_(self.mlp(normed))

    return _in_slices(rest, hidden_states[0], attended[0])[None]


def _bert_model(
    self: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, packed: TokenBatch,
    token_type_ids: torch.Tensor | None = None, **unused: Any,
) -> BaseModelOutput:  # fmt: skip
    """Run all layers without module calls, whose overhead for training and masks costs as much as a short query."""
    embeddings = self.embeddings
    rows = F.embedding(input_ids[0], embeddings.word_embeddings.weight)
    types = embeddings.token_type_embeddings.weight
    rows.add_(types[0] if token_type_ids is None else F.embedding(token_type_ids[0], types))
    rows.add_(F.embedding(position_ids[0], embeddings.position_embeddings.weight))
    rows = apply_norm(rows, _norm(embeddings.LayerNorm))
    if hasattr(self, "embeddings_project"):
        rows = product(self.embeddings_project, rows)
    for layer in self.encoder.layer:
        rows = _bert_layer(layer, rows, packed)
    return BaseModelOutput(last_hidden_state=rows[None])


def _bert_layer(layer: Any, rows: torch.Tensor, packed: TokenBatch) -> torch.Tensor:
    attention, inner, output = layer.attention.self, layer.intermediate, layer.output
    out, first, second = layer.attention.output.dense, *(_norm(p.LayerNorm) for p in (layer.attention.output, output))
    activation = _ACTIVATIONS.get(type(inner.intermediate_act_fn).__name__)
    heads = product(attention.qkv_proj, rows).unflatten(-1, (3, -1, attention.attention_head_size))
    attended = _attend(attention, *heads.unbind(1), packed=packed)[0]

    def rest(hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        hidden = apply_norm(product(out, attended, plus=hidden), first)
        wide = inner(hidden) if activation is None else product(inner.dense, hidden, activation)
        return apply_norm(product(output.dense, wide, plus=hidden), second)

    return _in_slices(rest, rows, attended)


def _in_slices(rest: Callable[..., torch.Tensor], hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Run everything after attention; both are [tokens, width], ``hidden`` may be overwritten."""
    parts = list(slices(*hidden.shape)) if hidden.device.type == "cpu" else []
    if len(parts) < 2:
        return rest(hidden, attended)
    for part in parts:
        hidden[part] = rest(hidden[part], attended[part])
    return hidden


def _sum_norm(self: Any, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
    norm = _norm(self.LayerNorm)
    if hidden_states.device.type != "cpu":
        return add_norm(self.dense(hidden_states), input_tensor, norm)
    total = product(self.dense, hidden_states.flatten(0, -2), plus=input_tensor.flatten(0, -2))
    return apply_norm(total, norm).view_as(input_tensor)


def _rms_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return apply_norm(hidden_states, _norm(self))


def _norm(module: Any) -> Norm:
    if isinstance(module, nn.LayerNorm):
        return Norm(module.weight, module.bias, module.eps, centred=True)
    return Norm(module.weight, None, module.variance_epsilon, centred=False)


# --- attention


def _rotary_attention(
    self: Any, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **options: Any
) -> tuple[torch.Tensor, None]:
    heads = self.qkv_proj(hidden_states[0]).unflatten(-1, (-1, self.head_dim))
    shared = getattr(self, "num_key_value_groups", 1)  # query heads per key head
    n_keys = heads.shape[1] // (shared + 2)
    n_queries = shared * n_keys
    cos, sin = (table[0] for table in position_embeddings)
    if hasattr(self, "q_norm"):
        query, key = self.q_norm(heads[:, :n_queries]), self.k_norm(heads[:, n_queries : n_queries + n_keys])
        rotate_(query, cos, sin)
        rotate_(key, cos, sin)
    else:
        rotate_(heads[:, : n_queries + n_keys], cos, sin)
        query, key = heads[:, :n_queries], heads[:, n_queries : n_queries + n_keys]
    window = getattr(self, "sliding_window", None)
    if type(self).__name__ == "MistralAttention":
        window = getattr(self.config, "sliding_window", None)
    out = _attend(self, query, key, heads[:, n_queries + n_keys :], sliding_window=window, **options)
    return self.o_proj(out), None


def _absolute_attention(self: Any, hidden_states: torch.Tensor, **options: Any) -> tuple[torch.Tensor, None]:
    heads = self.qkv_proj(hidden_states[0]).unflatten(-1, (3, -1, self.attention_head_size))
    return _attend(self, *heads.unbind(1), **options), None


def _attend(
    self: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    attention_mask: None = None,
    past_key_values: None = None,
    **options: Any,
) -> torch.Tensor:
    """Return [1, tokens, width] of heads [tokens, n, dim]."""
    attend = AttentionInterface._global_mapping[self.config._attn_implementation]
    q, k, v = (heads.transpose(0, 1)[None] for heads in (query, key, value))
    out, _ = attend(self, q, k, v, None, scaling=self.scaling, **options)
    return cast(torch.Tensor, out.flatten(2))


# --- feed-forward


def _gated(self: Any, x: torch.Tensor) -> torch.Tensor:
    rows = gate(self.gate_up_proj(x.flatten(0, -2)), _activation(self.act_fn))
    return cast(torch.Tensor, self.down_proj(rows).view(*x.shape[:-1], -1))


def _gated_slices(self: Any, x: torch.Tensor) -> torch.Tensor:
    """On a CPU gate and up stay two products: the second is multiplied by the first, row by row, as it is written."""
    rows, activation = x.flatten(0, -2), _activation(self.act_fn)
    parts = []
    for part in slices(*rows.shape):
        gated = product(self.gate_proj, rows[part], activation)
        parts.append(self.down_proj(product(self.up_proj, rows[part], times=gated)))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return cast(torch.Tensor, out.view(*x.shape[:-1], -1))


def _plain(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    inner = product(self.dense, hidden_states.flatten(0, -2), _activation(self.intermediate_act_fn))
    return inner.view(*hidden_states.shape[:-1], -1)


def _activation(function: Any) -> Activation:
    return _ACTIVATIONS[type(function).__name__]
