"""What the dense and the sparse class share: options, the Embedder behind them, and their serialised form."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from llama_index.core.bridge.pydantic import ConfigDict, Field
from pydantic import SkipValidation, WithJsonSchema
from typing_extensions import Self

from twinvec import BaseEmbedder, Embedder, ModelSpec, RemoteEmbedder, Role, Task
from twinvec.errors import CheckpointError, ConfigurationError
from twinvec.fields import OptionFields, option
from twinvec.flows import Call
from twinvec.options import EmbedderOptions, spec_fields
from twinvec.overriding import overridden

_DOCUMENTS = (
    "dtype",
    "dim",
    "max_length",
    "reproducible",
    "quantization",
)  # the options that decide a document's dense vector
_SPEC = tuple(field.name for field in spec_fields())
_LIVE = ("token", "cache")  # excluded from everything that is serialised
_RUNTIME = tuple(field.name for field in fields(EmbedderOptions) if field.name not in ("task", *_LIVE))
_OPTIONS = (*_SPEC, *_RUNTIME, *_LIVE)
_CALLS = ("embed_batch_size", "num_workers")
_WORDS = {  # terms of LlamaIndex's other embeddings, and their equivalents here
    "model": "model_name=",
    "model_path": "model_name=",
    "query_instruction": 'prompts={"query": ...} or task=, or see TwinVecEmbedding.from_huggingface',
    "text_instruction": 'prompts={"document": ...}, or see TwinVecEmbedding.from_huggingface',
    "cache_folder": "cache_dir=",
    "batch_size": "embed_batch_size=",
    "dimensions": "dim=",
    "truncate_dim": "dim=",
    "torch_dtype": "dtype=",
    "api_base": "embedder=RemoteEmbedder(...)",
    "base_url": "embedder=RemoteEmbedder(...)",
}
_BEFORE, _AFTER = "<settings at 0x", ">"


class TwinVecModel(OptionFields):
    """The options of an Embedder, and the Embedder itself: loaded on construction, or passed in.

    The options cannot be changed afterwards, and show the values they were resolved to. Copies share the model in
    memory, as does every other user of it in the process. Pickles contain the specification, not the weights.

    ``to_dict`` returns plain JSON in two parts. Its readable part contains whatever decides the vector of a document,
    so that LlamaIndex's hash of a transformation (``str`` of the dict) changes if and only if documents have to be
    embedded again. Everything else (the query's task, batch size, device ...) is under ``settings``, written as
    ``<settings at 0x...>`` with the hex of its JSON: the form of unstable values, which that hash ignores.
    ``from_dict`` reads both. Of a RemoteEmbedder the address is serialised, without key and password.

    Raises:
        TypeError: an argument is unknown.
        ConfigurationError: an argument cannot be honoured.
        CheckpointError: the model cannot be found, read or loaded.
    """

    needs: ClassVar[Literal["dense", "sparse"]]
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=("pydantic_model_",))

    model_name: str = Field(
        default="", kw_only=False, description='folder, hub id ("owner/name") or "modelscope:owner/name".'
    )
    embedder: Annotated[BaseEmbedder, SkipValidation, WithJsonSchema({})] = Field(
        default=cast("BaseEmbedder", None),
        exclude=True,
        repr=False,
        description="an Embedder or a RemoteEmbedder to share instead of ``model_name``; always set afterwards.",
    )
    embed_batch_size: int = Field(
        default=256, gt=0, le=2048, description="texts per call; batches on the device are formed by tokens."
    )
    num_workers: int | None = Field(default=None, ge=1, description="concurrent batches of one async call.")

    sparse: str | os.PathLike[str] | None = option("sparse")
    token: str | None = option("token", exclude=True, repr=False)
    cache: Any = option("cache", exclude=True, repr=False)

    if not TYPE_CHECKING:  # type checkers derive the signature from the fields

        def __init__(self, model_name: Any = "", **given: Any) -> None:
            super().__init__(**_opened(type(self), {"model_name": model_name, **given} if model_name else given))

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises it."""
        return cls.__name__

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the dict from which ``from_dict`` makes an equal object; see the class."""
        digest, _, sparse_digest = str(self.embedder.spec.digest).partition("+")
        settings = {name: getattr(self, name) for name in (*_SPEC, *_RUNTIME, *_CALLS) if name not in _DOCUMENTS}
        settings["task"] = asdict(self.task) if isinstance(self.task, Task) else self.task
        settings["sparse_digest"] = sparse_digest or None
        if isinstance(self.embedder, RemoteEmbedder):
            settings["url"] = self.embedder.url
        return {
            "model_name": self.model_name,
            "digest": digest,
            **{name: getattr(self, name) for name in _DOCUMENTS},
            **{name: getattr(self, name) for name in self._own_fields()},
            "document_prompt": self.embedder.prompt_for(Role.DOCUMENT, self.task),
            "settings": _BEFORE + json.dumps(settings, sort_keys=True).encode().hex() + _AFTER,
            "class_name": self.class_name(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Create an equal object from the output of ``to_dict``; the model is loaded, or shared if already loaded.

        Args:
            data: the output of ``to_dict``, or a subset of its fields.
            kwargs: fields that override or extend it, including those never serialised (token, callback_manager ...).

        Raises:
            CheckpointError: the model cannot be found, or its content has changed.
            RemoteError: the model is on a server that cannot be reached.
        """
        given = {**data, **kwargs}
        values = {**_settings(given.pop("settings", None)), **given}
        for derived in ("class_name", "document_prompt"):
            values.pop(derived, None)
        url = values.pop("url", None)
        digests = [digest for name in ("digest", "sparse_digest") if (digest := values.pop(name, None))]
        if url is not None and values.get("embedder") is None:
            values["embedder"] = _served(url, "+".join(digests))
        if values.get("embedder") is not None:
            return cls(**{name: value for name, value in values.items() if name not in ("model_name", *_OPTIONS)})
        if digests:
            deciding = {name: values.pop(name) for name in _SPEC if name in values}
            values["model_name"] = ModelSpec(model=values["model_name"], digest="+".join(digests), **deciding)
        return cls(**values)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("model_name", "embedder", "task", *_OPTIONS):
            raise ConfigurationError(
                f"{name} was fixed when the model was opened: create another {type(self).__name__}, it shares the model"
            )
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TwinVecModel) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # as all of LlamaIndex's

    def __reduce__(self) -> tuple[Any, ...]:
        calls = {name: getattr(self, name) for name in (*_CALLS, *self._own_fields())}
        return _rebuild, (type(self), {"embedder": self.embedder, "task": self.task, **calls})

    @classmethod
    def _own_fields(cls) -> list[str]:
        """Return the fields added by a subclass outside this package."""
        return [name for name in cls.model_fields if name not in cls._ours().model_fields]

    @classmethod
    def _ours(cls) -> type[TwinVecModel]:
        """Return this class, or of a subclass outside this package the class of this package."""
        return next(each for each in cls.__mro__ if each.__module__.partition(".")[0] == __name__.partition(".")[0])

    def _only_singles(self) -> bool:
        """Return whether a subclass overrides only the embedding of single texts."""
        singles = overridden(self, self._ours(), "_get_text_embedding", "_aget_text_embedding")
        return singles and not overridden(self, self._ours(), "_get_text_embeddings", "_aget_text_embeddings")

    def __repr__(self) -> str:
        names = ("model_name", "dim", "dtype", "sparse", "task", "embed_batch_size")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    __str__ = __repr__


def meet() -> Call[None]:
    """Return the call that lets other async callers catch up, so that their texts share a forward pass."""
    return Call(lambda: None, functools.partial(asyncio.sleep, 0))


def _opened(cls: type[TwinVecModel], given: dict[str, Any]) -> dict[str, Any]:
    """Return the values of all fields, after opening the model if none is given."""
    for name in given:
        if name not in cls.model_fields:
            meant = f": use {_WORDS[name]} instead" if name in _WORDS else ""
            raise TypeError(f"{cls.__name__} got an unexpected keyword argument {name!r}{meant}")
    said = [name for name in ("model_name", *_OPTIONS) if name in given]
    rest = {name: value for name, value in given.items() if name not in said and (name, value) != ("task", None)}
    embedder = rest.get("embedder")
    if embedder is None:
        if not given.get("model_name"):
            raise ConfigurationError(f"{cls.__name__} needs model_name= or embedder=")
        options = {name: given[name] for name in said if name != "model_name"}
        embedder = Embedder(given["model_name"], task=given.get("task"), **options)
    elif not isinstance(embedder, BaseEmbedder):
        raise ConfigurationError(
            f"embedder= must be a twinvec.Embedder or RemoteEmbedder, not {type(embedder).__name__}"
        )
    elif said:
        raise ConfigurationError(f"{', '.join(said)}: already determined by the embedder")
    if not (embedder.has_sparse if cls.needs == "sparse" else embedder.dim is not None):
        raise ConfigurationError(
            f"{cls.__name__}: {embedder.spec.model} has no {cls.needs} half"
            + ('; create it with sparse="bm25", a head file or a SPLADE checkpoint' if cls.needs == "sparse" else "")
        )
    spec = embedder.spec
    described = {name: getattr(spec, name) for name in _SPEC}
    described |= {field.name: getattr(embedder.options, field.name) for field in fields(EmbedderOptions)}
    values = {**described, **rest, "embedder": embedder}
    for role in Role:
        embedder.prompt_for(role, values["task"])
    return {**values, "model_name": spec.model}


def _served(url: str, digest: str) -> RemoteEmbedder:
    embedder = RemoteEmbedder(url, from_data=True)
    if digest and embedder.spec.digest != digest:
        embedder.close()
        raise CheckpointError(
            f"{url} serves a different model now, {embedder.spec.model}: create a new embedding for it"
        )
    return embedder


def _rebuild(cls: type[TwinVecModel], fields: dict[str, Any]) -> TwinVecModel:
    return cls(**fields)


def _settings(written: str | None) -> dict[str, Any]:
    if written is None:
        return {}
    settings: dict[str, Any] = json.loads(bytes.fromhex(written.removeprefix(_BEFORE).removesuffix(_AFTER)))
    if isinstance(settings["task"], dict):
        settings["task"] = Task(**settings["task"])
    return settings
