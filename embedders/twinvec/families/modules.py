"""The sentence-transformers files of a checkpoint: modules.json, pooling, lengths, prompts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twinvec.checkpoints.fields import MODULES, SENTENCE, SETTINGS, TOKENIZER, check_fields
from twinvec.checkpoints.files import Checkpoint, Module
from twinvec.checkpoints.tensors import load_strict, load_tensors
from twinvec.errors import CheckpointError, CheckpointFieldError, UnsupportedCheckpointError
from twinvec.text.prompts import TASKS, PromptTemplate

if TYPE_CHECKING:
    import torch

# the order in which sentence-transformers concatenates the legacy booleans
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_KNOWN = ("Transformer", "MLMTransformer", "Pooling", "SpladePooling", "Dense", "Normalize", "Dropout",
          "LogitScore", "MultiVectorMask")  # fmt: skip
_NEEDED = {"Dense": ("in_features", "out_features"), "LogitScore": ("true_token_id", "false_token_id")}
_UNBOUNDED = 10**9  # tokenizers write about 1e30 for "no limit"
_INSTRUCT = "Instruct: {task}\nQuery: "


@dataclass(frozen=True)
class SentenceModules:
    """The contents of modules.json and its companions.

    Attributes:
        pooling: modes; empty without a Pooling module.
        include_prompt: whether prompt tokens count in the pooling.
        dense: Dense modules, in order.
        max_length: sentence-transformers' max_seq_length, else the tokenizer's; None if neither is set.
        lower_case: whether texts are lower-cased first.
        prompts: from config_sentence_transformers.json.
        truncate_dim: number of dimensions that the checkpoint itself truncates to.
    """

    pooling: tuple[str, ...]
    include_prompt: bool
    dense: tuple[Module, ...]
    max_length: int | None
    lower_case: bool
    prompts: PromptTemplate
    truncate_dim: int | None


def read_modules(checkpoint: Checkpoint) -> SentenceModules:
    """Read the sentence-transformers files of a checkpoint; defaults where it has none.

    Raises:
        UnsupportedCheckpointError: TwinVec does not support one of the modules.
    """
    if unknown := [m.kind for m in checkpoint.modules if m.kind not in _KNOWN]:
        raise UnsupportedCheckpointError(
            f"{checkpoint.name}: modules.json lists {', '.join(unknown)}; supported are {', '.join(_KNOWN)}"
        )
    pooling = [m for m in checkpoint.modules if m.kind == "Pooling"]
    for module in checkpoint.modules:
        check_fields(
            module.folder / "config.json", module.config, MODULES.get(module.kind, {}), _NEEDED.get(module.kind, ())
        )
    sentence = checkpoint.json("sentence_bert_config.json", SENTENCE)
    settings = checkpoint.json("config_sentence_transformers.json", SETTINGS)
    return SentenceModules(
        pooling=_pooling_modes(pooling[0]) if pooling else (),
        include_prompt=not pooling or pooling[0].config.get("include_prompt") is not False,
        dense=tuple(m for m in checkpoint.modules if m.kind == "Dense"),
        max_length=sentence.get("max_seq_length") or _tokenizer_limit(checkpoint),
        lower_case=bool(sentence.get("do_lower_case", False)),
        prompts=PromptTemplate.from_prompts(
            {k: v for k, v in (settings.get("prompts") or {}).items() if isinstance(v, str)},
            settings.get("default_prompt_name"),
        ),
        truncate_dim=settings.get("truncate_dim"),
    )


def default_prompts(task: str) -> PromptTemplate:
    """Return the Giga template, with one of ``TASKS`` before queries and nothing before documents."""
    return PromptTemplate(instruct=_INSTRUCT, query=_INSTRUCT.replace("{task}", TASKS[task].instruction))


def output_dim(hidden: int, modules: SentenceModules, pooling: Sequence[str]) -> int:
    """Return the dense dimensions after pooling and Dense modules."""
    dim = hidden * len(pooling)
    for module in modules.dense:
        if module.config.get("in_features") != dim:
            raise CheckpointError(
                f"{module.folder / 'config.json'}: in_features is {module.config.get('in_features')}, but "
                f"{dim} dimensions arrive at this module"
            )
        dim = int(module.config["out_features"])
    return dim


def build_dense_layers(modules: Sequence[Module]) -> torch.nn.Sequential:
    """Build Dense modules in fp32: a linear layer and an activation from torch, nothing else.

    Raises:
        CheckpointFieldError: torch.nn lacks the activation, or it has weights.
        CheckpointMismatchError: the weights have another shape.
    """
    import torch

    layers: list[torch.nn.Module] = []
    for module in modules:
        config = module.config
        name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        activation = activation_named(name)
        if activation is None:
            raise CheckpointFieldError(
                module.folder / "config.json",
                "activation_function",
                name,
                "is not a weightless activation of torch",
            )
        linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias") is not False)
        tensors = {k.removeprefix("linear."): v for k, v in load_tensors(module.weights).items()}
        load_strict(linear, tensors, str(module.folder))
        layers += [linear, activation]
    return torch.nn.Sequential(*layers).eval()


def activation_named(name: str) -> torch.nn.Module | None:
    """Return a weightless torch module by its full name; None for any other."""
    import torch

    package, _, kind = name.rpartition(".")
    found: Any = getattr(torch.nn, kind, None)
    homes = (torch.nn.modules.activation.__name__, torch.nn.Identity.__module__)
    if not package.startswith("torch.nn") or not inspect.isclass(found) or found.__module__ not in homes:
        return None
    try:
        made: Any = found()
    except TypeError:  # it needs arguments
        return None
    return made if isinstance(made, torch.nn.Module) and not [*made.parameters()] else None


def _pooling_modes(module: Module) -> tuple[str, ...]:
    mode = module.config.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else list(mode or [])
    modes = modes or [new for old, new in _LEGACY.items() if module.config.get(old)]
    if not modes or (unknown := set(modes) - set(_LEGACY.values())):
        raise CheckpointError(
            f"{module.folder / 'config.json'}: "
            f"{f'unknown pooling {sorted(unknown)}' if modes else 'no pooling mode'}; known are "
            f"{', '.join(_LEGACY.values())}"
        )
    return tuple(modes)


def _tokenizer_limit(checkpoint: Checkpoint) -> int | None:
    limit = checkpoint.json("tokenizer_config.json", TOKENIZER).get("model_max_length")
    return int(limit) if limit is not None and limit < _UNBOUNDED else None
