"""What the dense and the sparse class share: their options, the Embedder behind them, copies, pickles, dumps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from langchain_core.load.serializable import Serializable, SerializedConstructor, SerializedNotImplemented
from pydantic import BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from typing_extensions import Self

from twinvec import BaseEmbedder, Embedder, EmbeddingBatch, Role, SparseBatch, Task
from twinvec.cache import VectorCache
from twinvec.embedder import OnOverflow
from twinvec.errors import ConfigurationError
from twinvec.spec import SparseKeys
from twinvec.vectors import Float32

_Rows = TypeVar("_Rows", Float32, SparseBatch)
_Value = TypeVar("_Value")
_AT_ONCE = 256  # rows, some milliseconds
_PEER_OPTIONS = {
    "model_name",
    "model_kwargs",
    "encode_kwargs",
    "query_encode_kwargs",
    "multi_process",
    "cache_folder",
}
_NOT_OF_THE_MODEL = {"embedder", "task", "show_progress"}


def _as_string(place: Any) -> Any:
    return os.fspath(place) if isinstance(place, os.PathLike) else place


Place = Annotated["str | os.PathLike[str]", BeforeValidator(_as_string)]


class TwinVecModel(Serializable):
    """Options of an Embedder, and the Embedder itself: loaded on construction, or given.

    Objects do not change once made. Copies, also deep ones, share the Embedder; pickles and ``dumps`` carry the options
    without the weights and without the token.

    Attributes:
        model: folder, hub id ("owner/name") or "modelscope:owner/name".
        embedder: an Embedder or a RemoteEmbedder to share instead of ``model``; always there afterwards.
        task: what the texts are for, for models trained with instructions: a Task, a task's name or an instruction; see
            ``Embedder.embed_queries``. None: the Embedder's own default.
        show_progress: draw a progress bar while documents are embedded.
        cache: folder in which vectors are kept for the next run, by text and role; or a ``twinvec.cache.VectorCache``.
        token: the hub's access token; never shown, pickled or dumped.
        sparse_source: the argument ``sparse`` of ``Embedder``, under that name.
        revision, device, dtype, dim, max_length, sparse_keys, reproducible, quantization, prompts, on_overflow,
            trust_remote_code, cache_dir, offline, token_budget: see ``Embedder``; not together with ``embedder``.

    Raises:
        ValidationError: an unknown argument, or one of the wrong type (pydantic's, a ValueError).
        ConfigurationError: an argument that cannot be honoured.
        CheckpointError: the model cannot be found, read or loaded.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=(), populate_by_name=True
    )

    model: Place | None = None
    embedder: BaseEmbedder = Field(default=cast("BaseEmbedder", None), exclude=True, repr=False)
    task: Task | str | None = None
    show_progress: bool = False
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    dim: int | None = None
    max_length: int | None = None
    sparse_source: Place | None = Field(default="auto", alias="sparse")
    sparse_keys: SparseKeys = "surface"
    reproducible: bool = False
    quantization: Literal["int8"] | None = None
    prompts: dict[str, str] | None = None
    on_overflow: OnOverflow = "truncate"
    trust_remote_code: bool = False
    cache_dir: Place | None = None
    token: SecretStr | None = Field(default=None, exclude=True, repr=False)
    offline: bool | None = None
    token_budget: int | None = None
    cache: Place | VectorCache | None = None

    if not TYPE_CHECKING:  # type checkers read the signature off the fields

        def __init__(self, **options: Any) -> None:
            # not in a validator: pydantic would turn TwinVec's errors into its own
            super().__init__(**options)
            if self.embedder is None:
                self.__dict__["embedder"] = self._load()
            elif given := sorted(self.model_fields_set - _NOT_OF_THE_MODEL):
                raise ConfigurationError(
                    f"{', '.join(given)}: already said by embedder=; pass model= instead, or make another Embedder"
                )
            if self.task is not None:
                self.embedder.prompt_for(Role.QUERY, self.task)

    @model_validator(mode="before")
    @classmethod
    def _refuse_options_of_others(cls, options: Any) -> Any:
        if isinstance(options, dict) and (theirs := sorted(_PEER_OPTIONS & options.keys())):
            raise ValueError(
                f"{', '.join(theirs)}: arguments of HuggingFaceEmbeddings; take them over by "
                "TwinVecEmbeddings.from_huggingface({...})"
            )
        return options

    def with_task(self, task: Task | str) -> Self:
        """Return a copy for another task, on the same Embedder.

        Raises:
            PromptError: the model was not trained with instructions.
        """
        self.embedder.prompt_for(Role.QUERY, task)
        return self.model_copy(update={"task": task})

    def _load(self) -> Embedder:
        if self.model is None:
            raise ConfigurationError(f"{type(self).__name__} needs model= (a folder or a hub id) or embedder=")
        cache = self.cache if isinstance(self.cache, VectorCache | None) else VectorCache(self.cache)
        return Embedder(
            self.model,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            dim=self.dim,
            max_length=self.max_length,
            sparse=self.sparse_source,
            sparse_keys=self.sparse_keys,
            reproducible=self.reproducible,
            quantization=self.quantization,
            task=self.task,
            prompts=self.prompts,
            on_overflow=self.on_overflow,
            trust_remote_code=self.trust_remote_code,
            cache_dir=self.cache_dir,
            token=self.token.get_secret_value() if self.token is not None else None,
            offline=self.offline,
            token_budget=self.token_budget,
            cache=cache,
        )

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "token": None}}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield from super().__repr_args__()
        if self.model is None:
            yield "embedder", self.embedder

    @classmethod
    def is_lc_serializable(cls) -> Literal[True]:
        """Return that ``dumps`` works."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Return what ``dumps`` must not write, and the name to load it by."""
        return {"token": "HF_TOKEN"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Return what ``dumps`` writes in another form."""
        return {"task": asdict(self.task)} if isinstance(self.task, Task) else {}

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Return what ``dumps`` writes: the options where they are all plain values, else why it cannot."""
        objects = [name for name in ("embedder", "cache") if name in self.model_fields_set]
        objects = [name for name in objects if not isinstance(getattr(self, name), str | None)]
        return not_serialized(self, f"it holds an object, {objects[0]}=") if objects else super().to_json()


class TwinVecSparseModel(TwinVecModel):
    """What all sparse classes share."""

    if not TYPE_CHECKING:

        def __init__(self, **options: object) -> None:
            super().__init__(**options)
            if not self.embedder.has_sparse:
                raise ConfigurationError(
                    f'{self.embedder.spec.model} has no sparse half: pass sparse="bm25", a head file or a SPLADE '
                    "checkpoint"
                )

    def _documents(self, texts: list[str]) -> SparseBatch:
        return _sparse(
            self.embedder.embed_documents(texts, task=self.task, dense=False, show_progress=self.show_progress)
        )

    def _query(self, text: str) -> SparseBatch:
        return _sparse(self.embedder.embed_queries([text], task=self.task, dense=False))

    async def _adocuments(self, texts: list[str]) -> SparseBatch:
        return _sparse(await self.embedder.aembed_documents(texts, task=self.task, dense=False))

    async def _aquery(self, text: str) -> SparseBatch:
        return _sparse(await self.embedder.aembed_queries([text], task=self.task, dense=False))


def not_serialized(value: Serializable, reason: str) -> SerializedNotImplemented:
    """Return what ``dumps`` writes for an object it cannot rebuild; ``loads`` shows the reason."""
    written = value.to_json_not_implemented()
    return {**written, "repr": f"{value!r} cannot be rebuilt from JSON: {reason}"}


def _sparse(batch: EmbeddingBatch) -> SparseBatch:
    assert batch.sparse is not None
    return batch.sparse


async def in_turns(convert: Callable[[_Rows], list[_Value]], rows: _Rows) -> list[_Value]:
    """Convert rows to Python objects, a few at a time: all at once, a million numbers would hold up the event loop."""
    values: list[_Value] = []
    for start in range(0, len(rows), _AT_ONCE):
        values += convert(rows[start : start + _AT_ONCE])
        await asyncio.sleep(0)
    return values
