"""What the dense and the sparse class share: options, the Embedder behind them, and how both are written down."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, Field
from pydantic import SkipValidation, WithJsonSchema
from typing_extensions import Self

from twinvec import BaseEmbedder, Embedder, ModelSpec, RemoteEmbedder, Role, Task
from twinvec.embedder import OnOverflow
from twinvec.errors import CheckpointError, ConfigurationError
from twinvec.spec import SparseKeys

_DOCUMENTS = ("dtype", "dim", "max_length", "reproducible", "quantization")
_SPEC = (*_DOCUMENTS, "revision", "sparse", "sparse_keys", "trust_remote_code")
_RUNTIME = ("device", "prompts", "on_overflow", "cache_dir", "offline", "token_budget", "on_overload", "memo_bytes")
_LIVE = ("token", "cache")  # kept out of everything that is written down
_OPTIONS = (*_SPEC, *_RUNTIME, *_LIVE)
_CALLS = ("embed_batch_size", "num_workers")
_BEFORE, _AFTER = "<settings at 0x", ">"


class TwinVecModel(BaseModel):
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

    model_name: str = Field(default="", description='Folder, hub id ("owner/name") or "modelscope:owner/name".')
    embed_batch_size: int = Field(
        default=256, gt=0, le=2048, description="Texts handed over at once; the device's batches are made by tokens."
    )
    num_workers: int | None = Field(default=None, ge=1, description="Batches of one async call at the same time.")
    embedder: Annotated[BaseEmbedder, SkipValidation, WithJsonSchema({})] = Field(
        default=cast("BaseEmbedder", None),
        exclude=True,
        repr=False,
        description="The Embedder or RemoteEmbedder: given to be shared, or made.",
    )
    task: Task | str | None = Field(
        default=None, description="Instruction, for models trained with them; see Embedder.embed_queries."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    device: str = Field(default="auto", description='"auto", "cpu", "cuda", "cuda:0,cuda:1" ...')
    dtype: str = Field(default="auto", description='"auto", "float32", "bfloat16" or "float16".')
    dim: int | None = Field(default=None, description="Dense dimensions; None: all.")
    max_length: int | None = Field(default=None, description="Tokens per text; None: the model's own limit.")
    sparse: str | None = Field(default="auto", description="Where the sparse half comes from; see ModelSpec.")
    sparse_keys: SparseKeys = Field(default="surface", description='"surface" or "ids"; see ModelSpec.')
    reproducible: bool = Field(default=False, description="Bitwise the same vector whatever a text travels with.")
    quantization: Literal["int8"] | None = Field(default=None, description="8-bit weights; see ModelSpec.")
    trust_remote_code: bool = Field(default=False, description="Run the checkpoint's own code; see ModelSpec.")
    prompts: Mapping[str, str] | None = Field(default=None, description="Prompts laid over the checkpoint's.")
    on_overflow: OnOverflow = Field(default="truncate", description='"truncate" or "error" for too long texts.')
    cache_dir: str | None = Field(default=None, description="Where hub downloads are kept.")
    token: str | None = Field(default=None, exclude=True, repr=False, description="The hub's token; used, not kept.")
    offline: bool | None = Field(default=None, description="Never ask the hub. None: TWINVEC_OFFLINE.")
    token_budget: int | None = Field(default=None, description="Tokens per forward pass.")
    on_overload: Literal["wait", "error"] = Field(default="wait", description="What to do when the queue is full.")
    memo_bytes: int = Field(default=64 * 2**20, description="Memory for recent rows; see Embedder.")
    cache: Any = Field(default=None, exclude=True, repr=False, description="A twinvec.cache.VectorCache on disk.")

    if not TYPE_CHECKING:  # type checkers take the signature from the fields

        def __init__(self, **given: Any) -> None:
            super().__init__(**_opened(type(self), given))

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex writes down."""
        return cls.__name__

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what ``from_dict`` makes an equal object of; see the class."""
        digest, _, sparse_digest = str(self.embedder.spec.digest).partition("+")
        settings = {name: getattr(self, name) for name in (*_SPEC, *_RUNTIME, *_CALLS) if name not in _DOCUMENTS}
        settings["task"] = dataclasses.asdict(self.task) if isinstance(self.task, Task) else self.task
        settings["sparse_digest"] = sparse_digest or None
        if isinstance(self.embedder, RemoteEmbedder):
            settings["url"] = self.embedder.url
        return {
            "model_name": self.model_name,
            "digest": digest,
            **{name: getattr(self, name) for name in _DOCUMENTS},
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
        fields = {**_settings(given.pop("settings", None)), **given}
        for derived in ("class_name", "document_prompt"):
            fields.pop(derived, None)
        url = fields.pop("url", None)
        digests = [digest for name in ("digest", "sparse_digest") if (digest := fields.pop(name, None))]
        if url is not None and fields.get("embedder") is None:
            fields["embedder"] = _served(url, "+".join(digests))
        if fields.get("embedder") is not None:
            return cls(**{name: value for name, value in fields.items() if name not in ("model_name", *_OPTIONS)})
        if not digests:
            return cls(**fields)
        spec = ModelSpec(
            model=fields.pop("model_name"),
            digest="+".join(digests),
            **{name: fields.pop(name) for name in _SPEC if name in fields},
        )
        options = {name: fields.pop(name) for name in (*_RUNTIME, *_LIVE) if name in fields}
        return cls(embedder=Embedder(spec, task=fields.get("task"), **options), **fields)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("model_name", "embedder", "task", *_OPTIONS):
            raise ConfigurationError(
                f"{name} was decided when the model was opened: make another {type(self).__name__}, it shares the model"
            )
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TwinVecModel) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # as all of LlamaIndex's

    def __reduce__(self) -> tuple[Any, ...]:
        calls = {name: getattr(self, name) for name in _CALLS}
        return _rebuild, (type(self), {"embedder": self.embedder, "task": self.task, **calls})

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
            raise TypeError(f"{cls.__name__} got an unexpected keyword argument {name!r}")
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
    # the rest of a server's options is its own affair
    options = embedder.__reduce__()[1][1] if isinstance(embedder, Embedder) else {"prompts": embedder.prompts or None}
    described = {name: getattr(spec, name) for name in _SPEC}
    described |= {name: options[name] for name in (*_RUNTIME, "cache") if name in options}
    fields = {**described, "task": embedder.task, **rest, "embedder": embedder}
    for role in Role:
        embedder.prompt_for(role, fields["task"])
    return {**fields, "model_name": spec.model}


def _served(url: str, digest: str) -> RemoteEmbedder:
    embedder = RemoteEmbedder(url)
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
