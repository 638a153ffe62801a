"""From HuggingFaceEmbedding to TwinVecEmbedding: translates the arguments and reports the differences."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from twinvec import Role
from twinvec.errors import ConfigurationError

if TYPE_CHECKING:
    from llama_index_twinvec.embeddings import TwinVecEmbedding

_Embedding = TypeVar("_Embedding", bound="TwinVecEmbedding")
_DEFAULT_MODEL = "BAAI/bge-small-en"
_INSTRUCTIONS = {Role.QUERY: "query_instruction", Role.DOCUMENT: "text_instruction"}
_OF_AN_OBJECT = ("model_name", "max_length", "normalize", "cache_folder", "embed_batch_size", "num_workers",
                 "callback_manager", "show_progress_bar", *_INSTRUCTIONS.values())  # fmt: skip
_SAME = ("device", "max_length", "revision", "token", "trust_remote_code", "embed_batch_size", "num_workers",
         "callback_manager")  # fmt: skip
_RENAMED = {"cache_folder": "cache_dir", "truncate_dim": "dim", "local_files_only": "offline"}
_NEEDLESS = ("backend", "similarity_fn_name", "model_card_data", "default_prompt_name")
_ROOMS = ("model_kwargs", "tokenizer_kwargs", "processor_kwargs", "config_kwargs")  # dicts within the keywords


class DifferenceWarning(UserWarning):
    """HuggingFaceEmbedding ignored or removed something that is handled correctly here, so some vectors differ."""


def take_over(cls: type[_Embedding], source: Any, keywords: Mapping[str, Any]) -> _Embedding:
    """Return a model with a peer's configuration; see ``TwinVecEmbedding.from_huggingface``."""
    given = {**_arguments(source), **keywords}
    own = {name: given.pop(name) for name in list(given) if name in cls.model_fields and name not in _peers_words()}
    prompts = {role.value: given.pop(name) for role, name in _INSTRUCTIONS.items() if given.get(name) is not None}
    said = list(_about_calls(given))
    options = {**_translated(given), **({"prompts": prompts} if prompts else {}), **own}
    made = cls(**options)
    said += [
        f"the model's prompt {text!r} goes before each {role.value}, where HuggingFaceEmbedding removes it; "
        f'{_INSTRUCTIONS[role]}="" leaves it out'
        for role in Role
        if "prompts" not in own and role.value not in prompts and (text := made.embedder.prompt_for(role, made.task))
    ]
    for difference in said:
        warnings.warn(difference, DifferenceWarning, stacklevel=3)
    return made


def _arguments(source: Any) -> dict[str, Any]:
    """Return the arguments of an object of that class, or only its first argument."""
    if source is None or isinstance(source, str):
        return {"model_name": source or _DEFAULT_MODEL}
    if missing := [name for name in _OF_AN_OBJECT if not hasattr(source, name)]:
        raise TypeError(
            f"expected HuggingFaceEmbedding or a model's name, not {type(source).__name__}, which has no {missing[0]}"
        )
    private = {"device": "_device", "parallel_process": "_parallel_process", "target_devices": "_target_devices"}
    hidden = {name: getattr(source, attribute, None) for name, attribute in private.items()}
    return {name: getattr(source, name) for name in _OF_AN_OBJECT} | hidden


def _peers_words() -> set[str]:
    return {"model_name", *_SAME, *_RENAMED, *_INSTRUCTIONS.values()}


def _translated(given: dict[str, Any]) -> dict[str, Any]:
    """Return our arguments; removes the ones it handles from ``given``.

    Raises:
        ConfigurationError: an argument is unknown or has no counterpart.
    """
    rooms = {name: dict(given.pop(name, None) or {}) for name in _ROOMS}
    if (backend := given.get("backend", "torch")) != "torch":
        raise ConfigurationError(f"backend={backend!r} has no counterpart in TwinVec")
    for name in _NEEDLESS:
        given.pop(name, None)
    inner = rooms["model_kwargs"]
    inner.pop("attn_implementation", None)
    made = {name: given.pop(name, None) for name in ("model_name", *_SAME)}
    made |= {ours: given.pop(name, None) or None for name, ours in _RENAMED.items()}
    made["trust_remote_code"] = made["trust_remote_code"] or None
    dtypes = [str(inner.pop(name)) for name in ("dtype", "torch_dtype") if inner.get(name) is not None]
    made["dtype"] = dtypes[0].removeprefix("torch.") if dtypes else None
    for name in ("tokenizer_kwargs", "processor_kwargs"):
        made["max_length"] = made["max_length"] or rooms[name].pop("model_max_length", None)
    if unknown := sorted([*given, *(f"{room}[{name!r}]" for room, inside in rooms.items() for name in inside)]):
        raise ConfigurationError(f"HuggingFaceEmbedding's {', '.join(unknown)}: has no counterpart in TwinVec")
    return {name: value for name, value in made.items() if value is not None}


def _about_calls(given: dict[str, Any]) -> Iterator[str]:
    """Yield the differences about calls; removes their arguments from ``given``."""
    if not given.pop("normalize", True):
        yield "all vectors have length 1, regardless of normalize; their directions are the same"
    if given.pop("show_progress_bar", False):
        yield "show_progress_bar is an argument of calls: get_text_embedding_batch(texts, show_progress=True)"
    parallel, devices = given.pop("parallel_process", False), given.pop("target_devices", None)
    if parallel:
        yield "one model on each device serves all calls, without parallel_process"
        given["device"] = _joined(devices) or given.get("device")


def _joined(devices: Iterable[str] | None) -> str | None:
    return ",".join(dict.fromkeys(devices)) if devices else None
