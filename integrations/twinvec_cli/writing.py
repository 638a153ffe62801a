"""The output of `twinvec embed`: JSON lines on stdout, or a file that appears only once it is complete."""

from __future__ import annotations

import contextlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import typer

from twinvec.errors import ConfigurationError
from twinvec.vectors import EmbeddingBatch, SparseBatch


class Writer(ABC):
    """Accepts batches in order."""

    @abstractmethod
    def write(self, start: int, texts: Sequence[str], batch: EmbeddingBatch) -> None:
        """Take the vectors of ``texts``, the first of which has the index ``start``."""

    def finish(self) -> None:  # noqa: B027  JSON lines have nothing left to do
        """Write the rest."""


class JsonLines(Writer):
    """One JSON object per text: index, text (if requested), dense, sparse, tokens, truncated."""

    def __init__(self, stream: BinaryIO, *, with_text: bool) -> None:
        self._stream = stream
        self._with_text = with_text

    def write(self, start: int, texts: Sequence[str], batch: EmbeddingBatch) -> None:
        """Write one line per text."""
        for i, text in enumerate(texts):
            row: dict[str, Any] = {"index": start + i}
            if self._with_text:
                row["text"] = text
            if batch.dense is not None:
                row["dense"] = _numbers(batch.dense[i].tolist())
            if batch.sparse is not None:
                sparse = batch.sparse[i]
                row["sparse"] = dict(zip(sparse.indices.tolist(), _numbers(sparse.values.tolist()), strict=True))
            row["tokens"] = int(batch.token_counts[i])
            row["truncated"] = bool(batch.truncated[i])
            self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()


class Npz(Writer):
    """Arrays: dense [n, dim]; sparse rows in CSR form; token_counts and truncated [n]. Kept in memory until the end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._batches: list[EmbeddingBatch] = []

    def write(self, start: int, texts: Sequence[str], batch: EmbeddingBatch) -> None:
        """Keep a batch."""
        self._batches.append(batch)

    def finish(self) -> None:
        """Write the arrays."""
        arrays: dict[str, Any] = {}
        dense = [b.dense for b in self._batches if b.dense is not None]
        if dense:
            arrays["dense"] = np.concatenate(dense)
        if rows := [b.sparse for b in self._batches if b.sparse is not None]:
            sparse = SparseBatch.stack(rows)
            arrays |= {f"sparse_{name}": getattr(sparse, name) for name in ("indptr", "indices", "values")}
        for name in ("token_counts", "truncated"):
            arrays[name] = np.concatenate([getattr(b, name) for b in self._batches])
        np.savez(self._stream, **arrays)


def check_output(path: Path | None) -> None:
    """Reject an output that could not be written, before any model is loaded.

    Raises:
        ConfigurationError: the suffix is neither .jsonl nor .npz, the folder is missing, or it is not a regular file.
    """
    if path is None:
        return
    if path.suffix not in (".jsonl", ".npz"):
        raise ConfigurationError(f"--output {path}: the name must end in .jsonl or .npz")
    if not path.resolve().parent.is_dir():
        raise ConfigurationError(f"--output {path}: the folder {path.resolve().parent} does not exist")
    if path.exists() and not path.is_file():
        raise ConfigurationError(f"--output {path}: not a regular file")


@contextlib.contextmanager
def open_writer(path: Path | None, *, with_text: bool) -> Iterator[Writer]:
    """Open the output; a file gets its final name only if the block ends without an error.

    Raises:
        OSError: the disk is full, or access is denied.
    """
    if path is None:
        yield JsonLines(typer.get_binary_stream("stdout"), with_text=with_text)
        return
    target = path.resolve()  # a symbolic link remains one
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with io.BufferedWriter(_File(partial, shown=path)) as file:
            writer = Npz(file) if path.suffix == ".npz" else JsonLines(file, with_text=with_text)
            yield writer
            writer.finish()
            file.flush()
            with _naming(path):
                os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


class _File(io.FileIO):
    """A new file whose write errors contain the user's file name; the operating system's name no file."""

    def __init__(self, path: Path, shown: Path) -> None:
        super().__init__(path, "xb")
        self._shown = shown

    def write(self, data: Any) -> int:
        with _naming(self._shown):
            return super().write(data)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; the file was not written", str(path)) from None


def _numbers(values: Sequence[float]) -> list[float]:
    """Shorten to the 9 digits that reproduce the same float32."""
    return [float(f"{value:.9g}") for value in values]
