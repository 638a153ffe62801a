"""From HuggingFaceEmbeddings to TwinVecEmbeddings: translates the arguments and reports the differences."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import SecretStr

from twinvec import Embedder, Role
from twinvec.errors import ConfigurationError, RemoteCodeRequiredError

if TYPE_CHECKING:
    from langchain_twinvec.base import TwinVecModel

_Model = TypeVar("_Model", bound="TwinVecModel")

_LINE_BREAKS = (
    "line breaks reach the model: HuggingFaceEmbeddings replaced them by spaces, so documents with line breaks have "
    "different vectors in an index created with it"
)
# arguments of SentenceTransformer and its encode() that do not affect vectors, or that packed batches make unnecessary
_NEEDLESS = {"similarity_fn_name", "model_card_data", "config_kwargs", "use_auth_token"}
_NEEDLESS_IN_ENCODE = {"batch_size", "chunk_size", "convert_to_numpy", "convert_to_tensor", "num_workers"}
_HOW_TO_LOAD = {"attn_implementation", "device_map", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors"}
# contents of a GTE card's configuration: implementation choices of its own code
_HOW_TO_COMPUTE = {"unpad_inputs", "use_memory_efficient_attention"}
_HOW_TO_PAD = {"padding", "padding_side", "truncation", "use_fast"}
_LINES = (("a\nb", "a b"), ("a.\n\nB", "a.  B"))
_READ_IN_ENCODE = {"prompt", "prompt_name", "normalize_embeddings", "truncate_dim", "device", "show_progress_bar"}
_FIXED_IN_ENCODE = {"precision": "float32", "output_value": "sentence_embedding"}


class DifferenceWarning(UserWarning):
    """HuggingFaceEmbeddings ignored or destroyed something that is handled correctly here, so some vectors differ."""


@dataclass
class Source:
    """The arguments of HuggingFaceEmbeddings, and the two that only HuggingFaceBgeEmbeddings has."""

    model_name: str = "sentence-transformers/all-mpnet-base-v2"
    cache_folder: str | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    encode_kwargs: dict[str, Any] = field(default_factory=dict)
    query_encode_kwargs: dict[str, Any] = field(default_factory=dict)
    multi_process: bool = False
    show_progress: bool = False
    query_instruction: str | None = None
    embed_instruction: str | None = None
    dtype: str | None = None

    @classmethod
    def read(cls, source: Any) -> Source:
        """Read an object of that class, or a dict of its arguments."""
        names = [each.name for each in fields(cls) if each.name != "dtype"]
        if not isinstance(source, Mapping):
            kind = type(source).__name__
            if kind == "HuggingFaceInstructEmbeddings":
                raise ConfigurationError(
                    f"{kind}: its models embed pairs of an instruction and a text, which no model here supports"
                )
            if missing := [name for name in names[:4] if not hasattr(source, name)]:
                raise TypeError(
                    f"expected HuggingFaceEmbeddings or a dict of its arguments, not {kind}, which has no {missing[0]}"
                )
            return cls(**{name: getattr(source, name) for name in names if hasattr(source, name)}, dtype=_dtype(source))
        given = {"model_name" if name == "model" else name: value for name, value in source.items()}
        _refuse(set(given) - set(names), "HuggingFaceEmbeddings")
        return cls(**given)

    def queries(self) -> Mapping[str, Any]:
        """Return the arguments of encode() for queries."""
        return self.query_encode_kwargs or self.encode_kwargs


def said_by(source: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Separate the peer's arguments, which may be among the options, from the other options."""
    if source is not None:
        return source, dict(options)
    theirs = {each.name for each in fields(Source)} - {"dtype"} | {"model"}
    given = {name: value for name, value in options.items() if name in theirs}
    if not {"model", "model_name"} & given.keys():
        raise ConfigurationError("from_huggingface needs such an object, a dict of its arguments, or model_name=")
    return given, {name: value for name, value in options.items() if name not in theirs}


def take_over(cls: type[_Model], source: Any, options: Mapping[str, Any]) -> _Model:
    """Return a model with a peer's configuration; see ``TwinVecEmbeddings.from_huggingface``."""
    peer = Source.read(source)
    _check_encode(peer)
    progress = peer.show_progress or any(each.get("show_progress_bar") for each in _encode_kwargs(peer))
    options = {"model": peer.model_name, "show_progress": progress, **_of_model(peer), **options}
    made, differences = _loaded(cls, options, peer)
    differences += [*_about_lines(made), *_about_dtype(peer, made), *_about_lengths(peer), *_about_processes(peer)]
    if "prompts" not in options:
        prompts, about_roles = _instructions(peer) or _prompts(peer, made)
        made = cls(**options, prompts=prompts) if prompts else made  # shares the loaded model
        differences += [*about_roles, *_about_own_prompts(peer, made)]
    for difference in differences:
        warnings.warn(difference, DifferenceWarning, stacklevel=3)
    return made


def _loaded(cls: type[_Model], options: dict[str, Any], peer: Source) -> tuple[_Model, list[str]]:
    """Return the model, loaded without code from its repository if possible."""
    if not peer.model_kwargs.get("trust_remote_code") or "trust_remote_code" in options:
        return cls(**options), []
    try:
        made = cls(**options)
    except RemoteCodeRequiredError:
        return cls(**options, trust_remote_code=True), []
    return made, ["trust_remote_code=True is dropped: this model is loaded without running code from its repository"]


def _of_model(peer: Source) -> dict[str, Any]:
    given = {name: value for name, value in peer.model_kwargs.items() if name not in _NEEDLESS}
    _refuse(set(peer.model_kwargs.get("config_kwargs") or ()) - _HOW_TO_COMPUTE - _HOW_TO_LOAD, "config_kwargs")
    inner = dict(given.pop("model_kwargs", None) or {})
    tokenizer = {**(given.pop("tokenizer_kwargs", None) or {}), **(given.pop("processor_kwargs", None) or {})}
    if (backend := given.pop("backend", "torch")) not in ("torch", "ipex"):
        raise ConfigurationError(f"model_kwargs: backend={backend!r} has no counterpart in TwinVec")
    for name in ("prompts", "default_prompt_name", "trust_remote_code"):  # see _prompts and _loaded
        given.pop(name, None)
    token = given.pop("token", None) or peer.model_kwargs.get("use_auth_token")
    dtype = inner.pop("torch_dtype", None) or inner.pop("dtype", None)
    dims = (given.pop("truncate_dim", None), *(each.get("truncate_dim") for each in _encode_kwargs(peer)))
    translated = {
        "device": given.pop("device", None) or peer.encode_kwargs.get("device"),
        "revision": given.pop("revision", None),
        "offline": given.pop("local_files_only", None) or None,
        "cache_dir": given.pop("cache_folder", None) or peer.cache_folder,
        "dim": _the_one(dims, "truncate_dim"),
        "max_length": tokenizer.pop("model_max_length", None),
        "dtype": str(dtype).removeprefix("torch.") if dtype is not None else None,
        "token": token if isinstance(token, str | SecretStr) else None,
    }
    _refuse(given, "model_kwargs")
    _refuse(set(inner) - _HOW_TO_LOAD - _HOW_TO_COMPUTE, "model_kwargs of model_kwargs")
    _refuse(set(tokenizer) - _HOW_TO_PAD - _HOW_TO_LOAD, "processor_kwargs of model_kwargs")
    return {name: value for name, value in translated.items() if value is not None}


def _check_encode(peer: Source) -> None:
    for where, given in zip(("encode_kwargs", "query_encode_kwargs"), _encode_kwargs(peer), strict=True):
        for name, only in _FIXED_IN_ENCODE.items():
            if given.get(name, only) != only:
                raise ConfigurationError(f"{where}: {name}={given[name]!r} has no counterpart in TwinVec")
        _refuse(set(given) - _READ_IN_ENCODE - _NEEDLESS_IN_ENCODE - set(_FIXED_IN_ENCODE), where)


def _instructions(peer: Source) -> tuple[dict[str, str], list[str]] | None:
    """Return the prompts of HuggingFaceBgeEmbeddings."""
    if peer.query_instruction is None and peer.embed_instruction is None:
        return None
    prompts = {"query": peer.query_instruction or "", "document": peer.embed_instruction or ""}
    return {**(peer.model_kwargs.get("prompts") or {}), **prompts}, []


def _prompts(peer: Source, made: TwinVecModel) -> tuple[dict[str, str], list[str]]:
    """Return prompts by name, including roles, and the differences."""
    prompts = dict(peer.model_kwargs.get("prompts") or {})
    found, said = {}, []
    for role, given in ((Role.QUERY, peer.queries()), (Role.DOCUMENT, peer.encode_kwargs)):
        name = None if given.get("prompt") is not None else _prompt_name(peer, given)
        text = given.get("prompt")
        if name is not None:
            text = prompts[name] if name in prompts else made.embedder.prompt_for(role, name)
        if text is None:
            continue
        if name is not None and (meant := _role_of(name)) not in (None, role):
            said.append(
                f"the prompt {name!r} goes before each {meant.value} only: HuggingFaceEmbeddings put it before each "
                f"{role.value} too; if that was intended, pass prompts={{{role.value!r}: {text!r}}}"
            )
        else:
            found[role] = text
    if not peer.query_encode_kwargs and len(found) == 2:
        said.append(
            f"the prompt {found[Role.QUERY]!r} goes before queries and documents alike, as with HuggingFaceEmbeddings; "
            'to tell them apart, pass prompts={"query": ..., "document": ...}'
        )
    return {**prompts, **{role.value: text for role, text in found.items()}}, said


def _about_lines(made: TwinVecModel) -> Iterable[str]:
    """Report that line breaks are kept, if that gives the model different tokens."""
    assert isinstance(made.embedder, Embedder)
    for pair in _LINES:
        first, second = made.embedder.tokenizer.encode(pair)
        if list(first.ids) != list(second.ids):
            yield _LINE_BREAKS
            return


def _about_dtype(peer: Source, made: TwinVecModel) -> Iterable[str]:
    theirs, ours = peer.dtype, made.embedder.spec.dtype
    if theirs is not None and theirs != ours:
        yield f"computed in {ours}, where that object computes in {theirs}: vectors differ slightly; see dtype="


def _about_own_prompts(peer: Source, made: TwinVecModel) -> Iterable[str]:
    if peer.query_instruction is not None or peer.embed_instruction is not None:
        return
    for role, given in ((Role.QUERY, peer.queries()), (Role.DOCUMENT, peer.encode_kwargs)):
        own = made.embedder.prompt_for(role)
        if own and given.get("prompt") is None and _prompt_name(peer, given) is None:
            yield (
                f"the model's prompt {own!r} goes before each {role.value}: HuggingFaceEmbeddings never applies it by "
                "itself"
            )


def _about_lengths(peer: Source) -> Iterable[str]:
    normalized = [each.get("normalize_embeddings") for each in _encode_kwargs(peer) if each] or [None]
    cut = "truncate_dim" in peer.model_kwargs or any("truncate_dim" in each for each in _encode_kwargs(peer))
    if False in normalized:
        yield "all vectors have length 1, regardless of normalize_embeddings; their directions are the same"
    elif cut and None in normalized:
        yield "vectors have length 1 after truncate_dim too: HuggingFaceEmbeddings returned shorter ones"


def _about_processes(peer: Source) -> Iterable[str]:
    if peer.multi_process:
        ignored = sorted({name for each in _encode_kwargs(peer) for name in each})
        dropped = f" and ignored {', '.join(ignored)}" if ignored else ""
        yield (
            f"one model serves all calls: with multi_process, HuggingFaceEmbeddings started processes for each call"
            f'{dropped}; for several devices pass device="cuda:0,cuda:1"'
        )


def _encode_kwargs(peer: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    return peer.encode_kwargs, peer.query_encode_kwargs


def _prompt_name(peer: Source, given: Mapping[str, Any]) -> str | None:
    name: str | None = given.get("prompt_name") or peer.model_kwargs.get("default_prompt_name")
    return name


def _role_of(name: str) -> Role | None:
    if "query" in name.lower():
        return Role.QUERY
    documents = ("document", "passage", "corpus", "text")
    return Role.DOCUMENT if any(word in name.lower() for word in documents) else None


def _dtype(source: Any) -> str | None:
    """Return the dtype of the model loaded by an object."""
    client: Any = getattr(source, "_client", None) or getattr(source, "client", None)
    weights = next(iter(client.parameters()), None) if hasattr(client, "parameters") else None
    return None if weights is None else str(weights.dtype).removeprefix("torch.")


def _the_one(values: Iterable[Any], name: str) -> Any:
    given = {value for value in values if value is not None}
    if len(given) > 1:
        raise ConfigurationError(f"{name} is specified more than once: {', '.join(map(str, sorted(given)))}")
    return given.pop() if given else None


def _refuse(unknown: Iterable[str], where: str) -> None:
    if names := sorted(unknown):
        raise ConfigurationError(f"{where}: {', '.join(names)} has no counterpart in TwinVec")
