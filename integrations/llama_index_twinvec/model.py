"""What the dense and the sparse class share: options, the Embedder behind them, and how both are written down."""

from __future__ import annotations

import asyncio
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
from twinvec.options import EmbedderOptions, spec_fields

_DOCUMENTS = ("dtype", "dim", "max_length", "reproducible", "quantization")  # what decides a document's dense vector
_SPEC = tuple(field.name for field in spec_fields())
_LIVE = ("token", "cache")  # kept out of everything that is written down
_RUNTIME = tuple(field.name for field in fields(EmbedderOptions) if field.name not in ("task", *_LIVE))
_OPTIONS = (*_SPEC, *_RUNTIME, *_LIVE)
_CALLS = ("embed_batch_size", "num_workers")
_WORDS = {  # of LlamaIndex's other embeddings, and what is meant by them here
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
    """Options of an Embedder, and the Embedder itself: loaded on construction, or given.

    The options cannot be changed afterwards, and say what they were resolved to. Copies share the model in memory, and
    so does every other user of it in the process. Pickles carry the specification, not the weights.

    ``to_dict`` is plain JSON in two parts. Its readable part is what decides the vector of a document, so that
    LlamaIndex's hash of a transformation (``str`` of the dict) changes when documents have to be embedded again, and
    only then. Everything else (the query's task, batch size, device ...) is under ``settings``, written as
    ``<settings at 0x...>``, the hex of its JSON: the form of unstable values, which that hash leaves out.
    ``from_dict`` reads both. Of a RemoteEmbedder it is the address that is written down, without key and password.

    Raises:
        TypeError: an unknown argument.
        ConfigurationError: an argument that cannot be honoured.
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
        description="an Embedder or a RemoteEmbedder to share instead of ``model_name``; always there afterwards.",
    )
    embed_batch_size: int = Field(
        default=256, gt=0, le=2048, description="texts handed over at once; the device's batches are made by tokens."
    )
    num_workers: int | None = Field(default=None, ge=1, description="batches of one async call at the same time.")

    sparse: str | os.PathLike[str] | None = option("sparse")
    token: str | None = option("token", exclude=True, repr=False)
    cache: Any = option("cache", exclude=True, repr=False)

    if not TYPE_CHECKING:  # type checkers read the signature off the fields

        def __init__(self, model_name: Any = "", **given: Any) -> None:
            super().__init__(**_opened(type(self), {"model_name": model_name, **given} if model_name else given))

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex writes down."""
        return cls.__name__

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what ``from_dict`` makes an equal object of; see the class."""
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
        """Make an equal object from what ``to_dict`` gave; the model is loaded, or shared where it is loaded already.

        Args:
            data: what ``to_dict`` gave, or fewer fields of it.
            kwargs: fields laid over it: others, or such as are never written down (token, callback_manager ...).

        Raises:
            CheckpointError: the model cannot be found, or its content is another one now.
            RemoteError: it is on a server that cannot be reached.
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
                f"{name} was decided when the model was opened: make another {type(self).__name__}, it shares the model"
            )
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TwinVecModel) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # as all of LlamaIndex's

    def with_task(self, task: Task | str) -> Self:
        """Return a copy for another task, on the same Embedder.

        Raises:
            PromptError: the model was not trained with instructions.
        """
        self.embedder.prompt_for(Role.QUERY, task)
        return self.model_copy(update={"task": task})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        calls = {name: getattr(self, name) for name in (*_CALLS, *self._own_fields())}
        return _rebuild, (type(self), {"embedder": self.embedder, "task": self.task, **calls})

    @classmethod
    def _own_fields(cls) -> list[str]:
        """Return the fields that a subclass outside of this package has added."""
        ours = next(each for each in cls.__mro__ if each.__module__.partition(".")[0] == __name__.partition(".")[0])
        return [name for name in cls.model_fields if name not in ours.model_fields]  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        names = ("model_name", "dim", "dtype", "sparse", "task", "embed_batch_size")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    __str__ = __repr__


async def meet() -> None:
    """Let the other callers of this moment come up to here, so that their texts meet in one forward pass."""
    await asyncio.sleep(0)


def _opened(cls: type[TwinVecModel], given: dict[str, Any]) -> dict[str, Any]:
    """Return the values of all fields, after opening the model where none is given."""
    for name in given:
        if name not in cls.model_fields:
            meant = f": it is {_WORDS[name]} here" if name in _WORDS else ""
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
        raise ConfigurationError(f"{', '.join(said)}: already said by the embedder")
    if not (embedder.has_sparse if cls.needs == "sparse" else embedder.dim is not None):
        raise ConfigurationError(
            f"{cls.__name__}: {embedder.spec.model} has no {cls.needs} half"
            + ('; make it with sparse="bm25", a head file or a SPLADE checkpoint' if cls.needs == "sparse" else "")
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
        raise CheckpointError(f"{url} serves another model now, {embedder.spec.model}: make a new embedding of it")
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
