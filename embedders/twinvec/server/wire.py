"""The protocol between server and RemoteEmbedder: vectors as safetensors, errors by class name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from twinvec.errors import (
    ConfigurationError,
    DeadlineError,
    DeviceLostError,
    FilterError,
    InvalidTextError,
    NonFiniteError,
    OutOfMemoryError,
    OverloadedError,
    PromptError,
    StoreError,
    TextTooLongError,
    TwinVecError,
)
from twinvec.spec import ModelSpec
from twinvec.text.prompts import PromptTemplate, Task
from twinvec.vectors import EmbeddingBatch, Float32, Int32, Int64, MultiBatch, MultiVectors, SparseBatch

PROTOCOL = 1
FINGERPRINT = "x-twinvec-fingerprint"  # header of every response with vectors
VECTORS = "application/vnd.safetensors"

# errors that a request can end in, with their HTTP status; all others are 500
STATUS: Mapping[type[TwinVecError], int] = {
    ConfigurationError: 400,
    PromptError: 400,
    FilterError: 400,
    InvalidTextError: 400,
    TextTooLongError: 413,
    OutOfMemoryError: 413,  # a text too long for the device: retrying does not help
    OverloadedError: 429,
    NonFiniteError: 500,
    StoreError: 500,
    DeviceLostError: 503,
    DeadlineError: 504,
}
ERRORS: Mapping[str, type[TwinVecError]] = {error.__name__: error for error in STATUS}

_SPARSE, _MULTI = ("indptr", "indices", "values"), ("indptr", "values")  # in the order of the constructors' arguments
_UNIT = 1e-3  # tolerance of a row's norm: rows are normalised in float32

MULTI_BYTES = 2**26  # vectors of tokens in one response, unless those of a single text need more

_DTYPES = {
    "dense": np.float32,
    "multi.indptr": np.int64,
    "multi.values": np.float32,
    "sparse.indptr": np.int64,
    "sparse.indices": np.int32,
    "sparse.values": np.float32,
    "token_counts": np.int32,
    "truncated": np.bool_,
    "offsets": np.int64,
    "indptr": np.int64,
}


def pack_batch(batch: EmbeddingBatch) -> bytes:
    """Return a batch as safetensors, bit for bit; a missing half is left out."""
    arrays: dict[str, NDArray[Any]] = {"token_counts": batch.token_counts, "truncated": batch.truncated}
    if batch.dense is not None:
        arrays["dense"] = batch.dense
    if batch.sparse is not None:
        arrays |= {f"sparse.{name}": getattr(batch.sparse, name) for name in _SPARSE}
    if batch.multi is not None:
        arrays |= {f"multi.{name}": getattr(batch.multi, name) for name in _MULTI}
    return _pack(arrays)


def unpack_batch(data: bytes) -> EmbeddingBatch:
    """Read the output of ``pack_batch``.

    Raises:
        ValueError: the data is something else.
    """
    arrays = _unpack(data, needed=("token_counts", "truncated"))
    sparse, multi = (_part(arrays, name, fields) for name, fields in (("sparse", _SPARSE), ("multi", _MULTI)))
    if multi and (multi[0].ndim, multi[1].ndim) != (1, 2):
        raise ValueError("the multi half must be rows of vectors")
    return EmbeddingBatch(
        arrays.get("dense"),
        SparseBatch(*sparse) if sparse else None,
        arrays["token_counts"],
        arrays["truncated"],
        MultiBatch(*multi) if multi else None,
    )


def _part(arrays: Mapping[str, NDArray[Any]], name: str, fields: Sequence[str]) -> list[NDArray[Any]]:
    found = [arrays[f"{name}.{each}"] for each in fields if f"{name}.{each}" in arrays]
    if found and len(found) != len(fields):
        raise ValueError(f"the {name} half is incomplete: it needs {', '.join(fields)}")
    return found


def multi_limit(dim: int, max_length: int) -> int:
    """Return how many vectors of tokens a response may have: at least those of one text."""
    return max(MULTI_BYTES // (4 * dim), max_length)


def pack_offsets(offsets: list[Int64]) -> bytes:
    """Return the offsets of each text, int64 [tokens, 2], as safetensors."""
    indptr = np.cumsum([0, *map(len, offsets)], dtype=np.int64)
    return _pack({"indptr": indptr, "offsets": np.concatenate([np.zeros((0, 2), np.int64), *offsets])})


def unpack_offsets(data: bytes) -> list[Int64]:
    """Read the output of ``pack_offsets``.

    Raises:
        ValueError: the data is something else.
    """
    arrays = _unpack(data, needed=("indptr", "offsets"))
    indptr, offsets = arrays["indptr"], arrays["offsets"]
    fits = offsets.ndim == 2 and offsets.shape[1] == 2 and indptr.ndim == 1 and len(indptr) > 0
    if not (fits and indptr[0] == 0 and indptr[-1] == len(offsets) and (np.diff(indptr) >= 0).all()):
        raise ValueError("the offsets are inconsistent")
    return [offsets[start:end] for start, end in pairwise(indptr)]


def check_batch(
    batch: EmbeddingBatch, *, rows: int, dim: int | None, columns: int | None, multi_dim: int | None = None
) -> None:
    """Check that a batch is what an Embedder would return.

    Args:
        batch: received from a server.
        rows: number of texts sent.
        dim: dense dimensions; None if no dense half was requested.
        columns: number of sparse columns; None if no sparse half was requested.
        multi_dim: dimensions of the vectors of tokens; None if they were not requested.

    Raises:
        ValueError: the batch is invalid.
    """
    halves = (("dense", batch.dense, dim), ("sparse", batch.sparse, columns), ("multi", batch.multi, multi_dim))
    for name, half, wanted in halves:
        if (half is not None) != (wanted is not None):
            raise ValueError(f"the {name} half is {'missing' if half is None else 'present, but was not requested'}")
    for counts, name in ((batch.token_counts, "token_counts"), (batch.truncated, "truncated")):
        if counts.shape != (rows,):
            raise ValueError(f"{name} has the shape {list(counts.shape)} for {rows} texts")
    if (batch.token_counts < 0).any():
        raise ValueError("token_counts are negative")
    if batch.dense is not None:
        if batch.dense.shape != (rows, dim):
            raise ValueError(f"the dense half has the shape {list(batch.dense.shape)}, expected [{rows}, {dim}]")
        _check_unit(batch.dense, "dense")
    if batch.sparse is not None:
        if len(batch.sparse) != rows:
            raise ValueError(f"the sparse half has {len(batch.sparse)} rows for {rows} texts")
        if columns is not None and (batch.sparse.indices >= columns).any():
            raise ValueError(f"a sparse index is {columns} or greater")
    if batch.multi is not None:
        _check_multi(batch.multi, batch.token_counts, multi_dim)


def _check_unit(rows: Float32, half: str) -> None:
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    if not (np.abs(lengths - 1) <= _UNIT).all():  # also true for NaN
        raise ValueError(f"the {half} rows are not finite and of length 1")


def _check_multi(multi: MultiBatch, tokens: Int32, dim: int | None) -> None:
    indptr, values = multi.indptr, multi.values
    if values.ndim != 2 or values.shape[1] != dim:
        raise ValueError(f"the multi half has the shape {list(values.shape)}, expected [vectors, {dim}]")
    if indptr.shape != (len(tokens) + 1,) or indptr[0] != 0 or indptr[-1] != len(values):
        raise ValueError("the multi half's rows are inconsistent")
    if ((counts := np.diff(indptr)) < 0).any() or (counts > tokens).any():
        raise ValueError("the multi half has another number of vectors than there are tokens")
    _check_unit(values, "multi")


def check_offsets(offsets: list[Int64], texts: Sequence[str]) -> None:
    """Check that offsets lie within their texts.

    Raises:
        ValueError: they do not, or their number differs from that of the texts.
    """
    if len(offsets) != len(texts):
        raise ValueError(f"offsets for {len(offsets)} texts, expected {len(texts)}")
    for position, (pairs, text) in enumerate(zip(offsets, texts, strict=True)):
        inside = (pairs >= 0).all() and (pairs <= len(text)).all() and (pairs[:, 0] <= pairs[:, 1]).all()
        if not inside:
            raise ValueError(f"the offsets of text {position} lie outside it")


@dataclass(frozen=True)
class ServerInfo:
    """A server's description of its Embedder, checked.

    Attributes:
        spec, template, task, family, prompts: those of the Embedder.
        special_tokens: number of special tokens added to each text.
        columns: number of sparse columns; None without a sparse half.
        multi, multi_dim: how it gives vectors of tokens, and their dimensions, if it does.
        max_texts, max_body_bytes: limits per request.
    """

    spec: ModelSpec
    template: PromptTemplate
    task: Task | str | None
    family: str
    prompts: dict[str, str]
    special_tokens: int
    columns: int | None
    multi: MultiVectors | None
    multi_dim: int | None
    max_texts: int
    max_body_bytes: int

    @classmethod
    def parse(cls, info: Mapping[str, Any]) -> ServerInfo:
        """Read ``/v1/twinvec/info``.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: the data is something else.
        """
        spec = ModelSpec(**info["spec"])
        template = PromptTemplate(**{**info["template"], "named": _strings(info["template"]["named"])})
        for prompt in (template.query, template.document, template.instruct or ""):
            _string(prompt)
        if spec.fingerprint != info["fingerprint"]:
            raise ValueError("its fingerprint does not match its spec")
        if spec.max_length is None or (spec.sparse is not None) != (info["vocabulary_size"] is not None):
            raise ValueError("its spec is incomplete")
        limits, multi = info["limits"], info["multi"]
        return cls(
            spec=spec,
            template=template,
            task=task_from_json(info["task"]),
            family=_string(info["family"]),
            prompts=_strings(info["prompts"]),
            special_tokens=_whole(info["special_tokens"], 0),
            columns=None if info["vocabulary_size"] is None else _whole(info["vocabulary_size"], 1),
            multi=None if multi is None else MultiVectors(mean=_boolean(multi["mean"])),
            multi_dim=None if multi is None else _whole(multi["dim"], 1),
            max_texts=_whole(limits["max_texts"], 1),
            max_body_bytes=_whole(limits["max_body_bytes"], 1),
        )


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is not a string")
    return value


def _strings(value: Any) -> dict[str, str]:
    return {_string(name): _string(text) for name, text in dict(value).items()}


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{str(value)[:40]!r} is neither true nor false")
    return value


def _whole(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise ValueError(f"{str(value)[:40]!r} is not an integer of at least {least}")
    return value


def task_to_json(task: Task | str | None) -> Any:
    """Return a task as JSON types."""
    return asdict(task) if isinstance(task, Task) else task


def task_from_json(data: Any) -> Task | str | None:
    """Read the output of ``task_to_json``.

    Raises:
        TypeError: the data is something else.
        PromptError: the instruction is empty.
    """
    if isinstance(data, dict):
        task = Task(**data)
        if not isinstance(task.symmetric, bool):
            raise TypeError("symmetric must be true or false")
        return task
    if data is not None and not isinstance(data, str):
        raise TypeError(f"a task must be a string or an object, not {type(data).__name__}")
    return data


def _pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    # safetensors writes the underlying memory: a strided view would be scrambled
    packed: bytes = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return packed


def _unpack(data: bytes, needed: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        arrays: dict[str, NDArray[Any]] = load(data)
    except SafetensorError as error:
        raise ValueError(f"not safetensors: {error}") from None
    if missing := [name for name in needed if name not in arrays]:
        raise ValueError(f"missing {', '.join(missing)}")
    for name, array in arrays.items():
        if name not in _DTYPES or array.dtype != _DTYPES[name]:
            raise ValueError(f"{name} has the unexpected type {array.dtype}")
    return arrays
