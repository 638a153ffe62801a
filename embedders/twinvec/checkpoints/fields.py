"""Valid values of a checkpoint's configuration: one table of types and ranges, and the rules between fields.

Names mean the same in all transformers configurations. Ranges are wider than any real model and narrow enough that no
loop, buffer or formula gets out of hand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from twinvec.errors import CheckpointFieldError

if TYPE_CHECKING:
    from twinvec.checkpoints.tensors import Tensor


class Field(NamedTuple):
    """What a value must be: in words, for the error, and as a test."""

    says: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Field:
    """Return an integer field; ``true`` does not count as an integer."""

    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Field(f"an integer from {low} to {high}", holds)


def real(low: float, high: float) -> Field:
    """Return a field for finite numbers."""

    def holds(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    return Field(f"a number from {low:g} to {high:g}", holds)


def one_of(*values: str) -> Field:
    """Return a field with a choice of names."""
    return Field(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def only(value: Any, why: str) -> Field:
    """Return a field with the only value that TwinVec supports."""
    return Field(f"{value!r}, {why}", lambda given: type(given) is type(value) and given == value)


def list_of(field: Field) -> Field:
    """Return a list field."""
    return Field(f"a list, each {field.says}", lambda value: isinstance(value, list) and all(map(field.holds, value)))


FLAG = Field("true or false", lambda value: isinstance(value, bool))
TEXT = Field("a string", lambda value: isinstance(value, str))
OBJECT = Field("an object", lambda value: isinstance(value, dict))
PROMPTS = Field("an object of strings", lambda v: isinstance(v, dict) and all(isinstance(p, str) for p in v.values()))

_SIZE = whole(1, 2**24)
_LAYERS = whole(1, 1000)
_TOKEN = whole(0, 2**24)
_EPS = real(1e-20, 0.1)
_THETA = real(100, 1e10)
_SCALE = real(1e-6, 1e6)
_CAP = real(1e-3, 1e6)
_ATTENTIONS = ("full_attention", "sliding_attention")
_ACTIVATION = one_of(
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh"),
    *("gelu_python_tanh", "laplace", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu"),
    *("swish", "tanh"),
)
_ENCODER = only(False, "TwinVec supports neither decoders with cross attention nor causal BERT models")
_BY_LENGTH = "whose positions depend on the longest text of a batch are not supported"

# None counts as absent
CONFIG: Mapping[str, Field] = {
    "model_type": TEXT,
    "architectures": list_of(TEXT),
    "auto_map": OBJECT,
    # shapes
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "intermediate_size", "embedding_size", "max_position_embeddings"), _SIZE
    ),
    **dict.fromkeys(("dim", "hidden_dim", "moe_intermediate_size"), _SIZE),
    **dict.fromkeys(("num_hidden_layers", "n_layers"), _LAYERS),
    **dict.fromkeys(("num_hidden_groups", "inner_group_num"), whole(1, 100)),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_heads", "num_krope_heads"), whole(1, 4096)),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), whole(1, 4096)),
    "kv_lora_rank": _SIZE,
    "q_lora_rank": whole(0, 2**24),
    **dict.fromkeys(("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group"), whole(1, 4096)),
    "n_shared_experts": whole(0, 4096),
    "first_k_dense_replace": whole(0, 1000),
    "type_vocab_size": whole(0, 4096),
    "relative_attention_num_buckets": whole(1, 4096),
    "position_buckets": whole(-1, 2**16),
    "max_relative_positions": whole(-1, 2**24),
    "conv_kernel_size": whole(0, 1001),
    # formulas
    **dict.fromkeys(("layer_norm_eps", "rms_norm_eps", "norm_eps"), _EPS),
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation", "conv_act"), _ACTIVATION),
    **dict.fromkeys(("pooler_hidden_act", "classifier_activation"), _ACTIVATION),
    **dict.fromkeys(("rope_theta", "global_rope_theta", "local_rope_theta", "rope_local_base_freq"), _THETA),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), _CAP),
    **dict.fromkeys(("query_pre_attn_scalar", "routed_scaling_factor"), _SCALE),
    "partial_rotary_factor": real(0.01, 1),
    **dict.fromkeys(("sliding_window", "local_attention"), _SIZE),
    **dict.fromkeys(("global_attn_every_n_layers", "sliding_window_pattern"), _LAYERS),
    "max_window_layers": whole(0, 1000),
    "layer_types": list_of(one_of(*_ATTENTIONS)),
    "rope_parameters": OBJECT,
    "rope_scaling": OBJECT,
    "pos_att_type": Field(
        "p2c, c2p or both",
        lambda value: (
            set(value.split("|") if isinstance(value, str) else value) <= {"p2c", "c2p"}
            if isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))
            else False
        ),
    ),
    "norm_rel_ebd": one_of("none", "layer_norm"),
    **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias", "decoder_bias"), FLAG),
    **dict.fromkeys(("tie_word_embeddings", "sinusoidal_pos_embds"), FLAG),
    **dict.fromkeys(("is_causal", "use_bidirectional_attention", "use_sliding_window", "rope_interleave"), FLAG),
    **dict.fromkeys(("norm_topk_prob", "relative_attention", "position_biased_input", "share_att_key", "legacy"), FLAG),
    **dict.fromkeys(("is_decoder", "add_cross_attention"), _ENCODER),
    # tokens
    **dict.fromkeys(
        ("pad_token_id", "bos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"), whole(-1, 2**24)
    ),
    # written by sentence-transformers' CrossEncoder
    "sentence_transformers": OBJECT,
    "sbert_ce_default_activation_function": TEXT,
    # Matryoshka
    "matryoshka_dimensions": list_of(_SIZE),
    "is_matryoshka": FLAG,
}
ROPE: Mapping[str, Field] = {
    **dict.fromkeys(
        ("type", "rope_type"),
        one_of("default", "linear", "ntk", "yarn", "llama3", "proportional")._replace(
            says=f"default, linear, ntk, yarn, llama3 or proportional; dynamic and longrope, {_BY_LENGTH}"
        ),
    ),
    "rope_theta": _THETA,
    **dict.fromkeys(("factor", "attention_factor", "mscale", "mscale_all_dim"), _SCALE),
    **dict.fromkeys(("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"), _SCALE),
    "original_max_position_embeddings": _SIZE,
    "partial_rotary_factor": real(0.01, 1),
    "truncate": FLAG,
}
MODULES: Mapping[str, Mapping[str, Field]] = {
    "Pooling": {
        "include_prompt": FLAG,
        "pooling_mode": Field("a mode or a list of modes", lambda v: TEXT.holds(v) or list_of(TEXT).holds(v)),
        **dict.fromkeys(
            [f"pooling_mode_{mode}" for mode in ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens")],
            FLAG,
        ),
        **dict.fromkeys(("pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"), FLAG),
    },
    "Dense": {
        **dict.fromkeys(("in_features", "out_features"), _SIZE),
        "bias": FLAG,
        "activation_function": TEXT,
    },
    "MultiVectorMask": {
        "skiplist_words": list_of(TEXT),
        "skiplist_tasks": list_of(one_of("query", "document")),
        "keep_only_token_ids": Field("null: images are not supported", lambda value: value is None),
    },
    "LogitScore": dict.fromkeys(("true_token_id", "false_token_id"), _TOKEN),
    "SpladePooling": {
        "pooling_strategy": only("max", "nothing else is supported"),
        "activation_function": only("relu", "nothing else is supported"),
    },
}
SENTENCE: Mapping[str, Field] = {"max_seq_length": _SIZE, "do_lower_case": FLAG}
SETTINGS: Mapping[str, Field] = {"prompts": PROMPTS, "default_prompt_name": TEXT, "truncate_dim": _SIZE}
TOKENIZER: Mapping[str, Field] = {
    "model_max_length": real(1, math.inf),  # about 1e30 if there is no limit
    "add_bos_token": FLAG,
    "add_eos_token": FLAG,
}

_DIVIDE = (
    (("num_attention_heads",), "hidden_size"),
    (("n_heads",), "dim"),
    (("num_key_value_heads", "num_krope_heads"), "num_attention_heads"),
    (("n_group",), "n_routed_experts"),
    (("num_hidden_groups",), "num_hidden_layers"),
)
_AT_MOST = (
    ("topk_group", "n_group"),
    ("num_experts_per_tok", "n_routed_experts"),
    ("first_k_dense_replace", "num_hidden_layers"),
)
# no tensor can be wider than the widest one in the file
_BOUNDED = ("hidden_size", "intermediate_size", "embedding_size", "dim", "hidden_dim", "vocab_size", "type_vocab_size",
            "moe_intermediate_size", "kv_lora_rank", "q_lora_rank")  # fmt: skip
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def check_fields(
    file: Path, values: Mapping[str, Any], fields: Mapping[str, Field], required: Sequence[str] = (), prefix: str = ""
) -> None:
    """Check the values that ``fields`` knows; None counts as absent.

    Raises:
        CheckpointFieldError: names the file, the first invalid field and its value, or all missing fields.
    """
    if missing := [prefix + name for name in required if values.get(name) is None]:
        raise CheckpointFieldError(
            file, ", ".join(missing), None, "missing; TwinVec never guesses it. Download the file again"
        )
    for name, field in fields.items():
        value = values.get(name)
        if value is not None and not field.holds(value):
            raise CheckpointFieldError(file, prefix + name, value, f"must be {field.says}")


def check_config(
    file: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    required: Sequence[str] = (),
    fields: Mapping[str, Field] = MappingProxyType({}),
    prefix: str = "",
) -> None:
    """Check a transformers configuration, by itself and against the headers of the weights.

    Args:
        file: the file it comes from.
        config: the raw values.
        tensors: headers of all weights.
        required: fields that must be present.
        fields: additions to ``CONFIG``, or replacements for its entries.
        prefix: put before field names in errors.

    Raises:
        CheckpointFieldError: see ``check_fields``.
    """
    check_fields(file, config, {**CONFIG, **fields}, required, prefix)
    for name, rope in _ropes(config):
        check_fields(file, rope, ROPE, prefix=f"{prefix}{name}.")
    for name, problem in (*_relations(config), *_unlike_headers(config, tensors)):
        raise CheckpointFieldError(file, prefix + name, config[name], problem)


def _relations(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each field that is inconsistent with another one, and the reason."""
    free = config.get("head_dim") or config.get(
        "kv_lora_rank"
    )  # in that case the heads need not divide the hidden size
    for divisors, dividend in _DIVIDE:
        for name in divisors:
            part, total = config.get(name), config.get(dividend)
            if part and total and total % part and not (free and dividend == "hidden_size"):
                yield name, f"must divide {dividend}={total}"
    for name, limit in _AT_MOST:
        part, total = config.get(name), config.get(limit)
        if part and total and part > total:
            yield name, f"must be at most {limit}={total}"
    kinds, layers = config.get("layer_types"), config.get("num_hidden_layers")
    if kinds and layers and len(kinds) != layers:
        yield "layer_types", f"must have num_hidden_layers={layers} entries"
    pad, vocabulary = config.get("pad_token_id"), config.get("vocab_size")
    if pad and vocabulary and pad >= vocabulary:
        yield "pad_token_id", f"must be below vocab_size={vocabulary}"


def _unlike_headers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield each field that contradicts the weights, before memory is allocated for it or a loop runs up to it."""
    widest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    for name in _BOUNDED:
        if (config.get(name) or 0) > widest:
            yield name, f"is larger than any dimension of the weights ({widest})"
    numbers = [int(found[1]) for name in tensors if (found := _LAYER.search(name))]
    for name in ("num_hidden_layers", "n_layers"):
        layers = config.get(name)
        if layers and numbers and not config.get("num_hidden_groups") and layers != max(numbers) + 1:
            yield name, f"does not fit the weights, which have {max(numbers) + 1} layers"


def _ropes(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield rope settings by name: one object, or one for each kind of attention."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name) or {}
        nested = {key: rope[key] for key in _ATTENTIONS if isinstance(rope.get(key), dict)}
        yield name, {key: value for key, value in rope.items() if key not in nested}
        for kind, value in nested.items():
            yield f"{name}.{kind}", value
