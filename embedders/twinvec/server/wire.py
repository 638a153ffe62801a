"""What server and RemoteEmbedder say to each other: vectors as safetensors, errors by the name of their class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
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
    InvalidTextError,
    NonFiniteError,
    OutOfMemoryError,
    OverloadedError,
    PromptError,
    TextTooLongError,
    TwinVecError,
)
from twinvec.text.prompts import Task
from twinvec.vectors import EmbeddingBatch, Int64, SparseBatch

PROTOCOL = 1
FINGERPRINT = "x-twinvec-fingerprint"  # header of every answer with vectors
VECTORS = "application/vnd.safetensors"

# errors that a request can end in, and their HTTP status; others are 500
STATUS: Mapping[type[TwinVecError], int] = {
    ConfigurationError: 400,
    PromptError: 400,
    InvalidTextError: 400,
    TextTooLongError: 413,
    OutOfMemoryError: 413,  # a text too long for the device: trying again does not help
    OverloadedError: 429,
    NonFiniteError: 500,
    DeviceLostError: 503,
    DeadlineError: 504,
}
ERRORS: Mapping[str, type[TwinVecError]] = {error.__name__: error for error in STATUS}

_DTYPES = {
    "dense": np.float32,
    "sparse.indptr": np.int64,
    "sparse.indices": np.int32,
    "sparse.values": np.float32,
    "token_counts": np.int32,
    "truncated": np.bool_,
    "offsets": np.int64,
    "indptr": np.int64,
}


def pack_batch(batch: EmbeddingBatch) -> bytes:
    """Return a batch as safetensors, bit for bit; a half that is not there is left out."""
    arrays: dict[str, NDArray[Any]] = {"token_counts": batch.token_counts, "truncated": batch.truncated}
    if batch.dense is not None:
        arrays["dense"] = batch.dense
    if batch.sparse is not None:
        arrays |= {f"sparse.{name}": getattr(batch.sparse, name) for name in ("indptr", "indices", "values")}
    return _pack(arrays)


def unpack_batch(data: bytes) -> EmbeddingBatch:
    """Read what ``pack_batch`` gave.

    Raises:
        ValueError: it is something else.
    """
    arrays = _unpack(data, needed=("token_counts", "truncated"))
    halves = [name for name in arrays if name.startswith("sparse.")]
    if halves and len(halves) != 3:
        raise ValueError(f"of the sparse half there is only {', '.join(halves)}")
    sparse = SparseBatch(*(arrays[f"sparse.{n}"] for n in ("indptr", "indices", "values"))) if halves else None
    return EmbeddingBatch(arrays.get("dense"), sparse, arrays["token_counts"], arrays["truncated"])


def pack_offsets(offsets: list[Int64]) -> bytes:
    """Return the offsets of each text, int64 [tokens, 2], as safetensors."""
    indptr = np.cumsum([0, *map(len, offsets)], dtype=np.int64)
    return _pack({"indptr": indptr, "offsets": np.concatenate([np.zeros((0, 2), np.int64), *offsets])})


def unpack_offsets(data: bytes) -> list[Int64]:
    """Read what ``pack_offsets`` gave.

    Raises:
        ValueError: it is something else.
    """
    arrays = _unpack(data, needed=("indptr", "offsets"))
    indptr, offsets = arrays["indptr"], arrays["offsets"]
    if offsets.ndim != 2 or offsets.shape[1] != 2 or len(indptr) == 0 or indptr[-1] != len(offsets):
        raise ValueError("the offsets do not fit together")
    return [offsets[start:end] for start, end in pairwise(indptr)]


def task_to_json(task: Task | str | None) -> Any:
    """Return a task as JSON types."""
    return asdict(task) if isinstance(task, Task) else task


def task_from_json(data: Any) -> Task | str | None:
    """Read what ``task_to_json`` gave.

    Raises:
        TypeError: it is something else.
        PromptError: an empty instruction.
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
    # safetensors writes the memory as it lies: a view with other strides would come out scrambled
    packed: bytes = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return packed


def _unpack(data: bytes, needed: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        arrays: dict[str, NDArray[Any]] = load(data)
    except SafetensorError as error:
        raise ValueError(f"not safetensors: {error}") from None
    if missing := [name for name in needed if name not in arrays]:
        raise ValueError(f"without {', '.join(missing)}")
    for name, array in arrays.items():
        if name not in _DTYPES or array.dtype != _DTYPES[name]:
            raise ValueError(f"{name} is of an unknown kind, {array.dtype}")
    return arrays
