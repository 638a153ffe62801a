"""What the dense and the sparse class share: options, the Embedder behind them, copies, pickles, dumps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from langchain_core.load.serializable import Serializable, SerializedConstructor, SerializedNotImplemented
from pydantic import ConfigDict, Field, SecretStr, model_validator
from pydantic.json_schema import SkipJsonSchema

from twinvec import BaseEmbedder, Embedder, ModelSpec, Role, SparseBatch, Task
from twinvec.errors import ConfigurationError
from twinvec.fields import OptionFields, option
from twinvec.flows import Call, call
from twinvec.options import option_docs
from twinvec.vectors import Float32

_Rows = TypeVar("_Rows", Float32, SparseBatch)
_Value = TypeVar("_Value")
_AT_ONCE = 256  # rows; a few milliseconds
_PEER_OPTIONS = {
    "model_name",
    "model_kwargs",
    "encode_kwargs",
    "query_encode_kwargs",
    "multi_process",
    "cache_folder",
}
_OWN = ("model", "embedder", "show_progress")  # fields that are not options of an Embedder
_SPARSE = "sparse_"  # the attribute behind the argument ``sparse``, since that name is taken by a method


class TwinVecModel(OptionFields, Serializable):
    """The options of an Embedder, and the Embedder itself: loaded on construction, or passed in.

    Objects are immutable. Copies, including deep ones, share the Embedder; pickles and ``dumps`` contain the options,
    without the weights and the token.

    Raises:
        ValidationError: an argument is unknown, or has the wrong type (pydantic's error, a ValueError).
        ConfigurationError: an argument cannot be honoured.
        CheckpointError: the model cannot be found, read or loaded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    model: str | os.PathLike[str] | SkipJsonSchema[ModelSpec] | None = Field(
        default=None,
        kw_only=False,
        description='folder, hub id ("owner/name"), "modelscope:owner/name", or a ModelSpec, which contains '
        "everything that decides a vector.",
    )
    embedder: SkipJsonSchema[BaseEmbedder] = Field(
        default=cast("BaseEmbedder", None),
        exclude=True,
        repr=False,
        description="an Embedder or a RemoteEmbedder to share instead of ``model``; always set afterwards. Can only "
        "be combined with ``task`` and ``show_progress``.",
    )
    show_progress: bool = Field(default=False, description="draw a progress bar while embedding documents.")

    sparse_: str | os.PathLike[str] | None = Field(
        default="auto", alias="sparse", description=option_docs().get("sparse")
    )
    token: SecretStr | None = option("token", exclude=True, repr=False)

    if not TYPE_CHECKING:  # type checkers derive the signature from the fields

        def __init__(self, model: Any = None, **options: Any) -> None:
            # not in a validator, because pydantic would replace TwinVec's errors by its own
            given = options if model is None else {"model": model, **options}
            super().__init__(**{name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in given.items()})
            if self.embedder is None:
                self.__dict__["embedder"] = self._load()
            elif given := sorted(self._given().keys() - {"task"} | ({"model"} & self.model_fields_set)):
                raise ConfigurationError(
                    f"{', '.join(given)}: already determined by embedder=; pass model= instead, or another Embedder"
                )
            if self.task is not None:
                self.embedder.prompt_for(Role.QUERY, self.task)

    @model_validator(mode="before")
    @classmethod
    def _refuse_options_of_others(cls, options: Any) -> Any:
        if isinstance(options, dict) and (theirs := sorted(_PEER_OPTIONS & options.keys())):
            raise ValueError(
                f"{', '.join(theirs)}: arguments of HuggingFaceEmbeddings; convert them with "
                "TwinVecEmbeddings.from_huggingface({...})"
            )
        return options

    def _given(self) -> dict[str, Any]:
        """Return the given options of an Embedder, under the Embedder's names."""
        names = {field: info.alias or field for field, info in type(self).model_fields.items()}
        return {names[field]: getattr(self, field) for field in self.model_fields_set if field not in _OWN}

    def _load(self) -> Embedder:
        if self.model is None:
            raise ConfigurationError(f"{type(self).__name__} needs model= (a folder or a hub id) or embedder=")
        return Embedder(self.model, **self._given())

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "token": None}}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield "sparse" if name == _SPARSE else name, value
        if self.model is None:
            yield "embedder", self.embedder

    @classmethod
    def is_lc_serializable(cls) -> Literal[True]:
        """Return True: ``dumps`` is supported."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Return the names of secrets, which ``dumps`` must not write."""
        return {"token": "HF_TOKEN"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Return the attributes that ``dumps`` writes in another form."""
        values = {"task": self.task, "model": self.model}
        return {name: asdict(value) for name, value in values.items() if isinstance(value, Task | ModelSpec)}

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Return the output of ``dumps``: the options if all are plain values, otherwise why it is impossible."""
        objects = [name for name in ("embedder", "cache") if name in self.model_fields_set]
        objects = [name for name in objects if not isinstance(getattr(self, name), str | None)]
        if objects:
            return not_serialized(self, f"it contains an object, {objects[0]}=")
        written = cast("SerializedConstructor", super().to_json())
        named = {"sparse" if name == _SPARSE else name: value for name, value in written["kwargs"].items()}
        return {**written, "kwargs": named}


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

    async def _documents(self, texts: list[str], convert: Callable[[SparseBatch], list[_Value]]) -> list[_Value]:
        embed, aembed = self.embedder.embed_documents, self.embedder.aembed_documents
        batch = await call(embed, aembed, texts, task=self.task, dense=False, show_progress=self.show_progress)
        assert batch.sparse is not None
        return await in_turns(convert, batch.sparse)

    async def _query(self, text: str, convert: Callable[[SparseBatch], list[_Value]]) -> _Value:
        embed, aembed = self.embedder.embed_queries, self.embedder.aembed_queries
        batch = await call(embed, aembed, [text], task=self.task, dense=False)
        assert batch.sparse is not None
        return convert(batch.sparse)[0]


def not_serialized(value: Serializable, reason: str) -> SerializedNotImplemented:
    """Return the output of ``dumps`` for an object it cannot rebuild; ``loads`` shows the reason."""
    written = value.to_json_not_implemented()
    return {**written, "repr": f"{value!r} cannot be rebuilt from JSON: {reason}"}


def in_turns(convert: Callable[[_Rows], list[_Value]], rows: _Rows) -> Call[list[_Value]]:
    """Return the call that converts rows to Python objects, in portions so as not to block an event loop."""

    async def converted() -> list[_Value]:
        values: list[_Value] = []
        for start in range(0, len(rows), _AT_ONCE):
            values += convert(rows[start : start + _AT_ONCE])
            await asyncio.sleep(0)
        return values

    return Call(lambda: convert(rows), converted)
