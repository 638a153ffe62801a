"""Sources: files, folders and iterables as rows, and what is known of them before they are read."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from twinvec.errors import ConfigurationError, IngestError
from twinvec_stores.ingestion.documents import Document
from twinvec_stores.ingestion.readers import READERS, Kinds, Row, read_folder, require_pyarrow, walk


@dataclass(frozen=True)
class Source:
    """Rows, and what is known of them before reading.

    Attributes:
        rows: starts reading; closing the iterator lets go of the source.
        total: where ``end`` of the last row will be; None: unknown.
        unit: of ``total``: "B" or "doc".
        identity: JSON value that changes whenever the rows may have; None: nothing is known.
    """

    rows: Callable[[], Generator[Row, None, None]]
    total: int | None
    unit: str
    identity: list[Any] | None


class _File(NamedTuple):
    """A file or folder: how to read it, its bytes, what tells its state."""

    read: Callable[[], Iterator[Row]]
    size: int
    state: list[Any]


def open_source(source: Any, kinds: Kinds) -> Source:
    """Return a path, a list of paths or an iterable as a source.

    Args:
        source: see ``ingest``.
        kinds: types of columns that a file without types (CSV) is to be read with.

    Raises:
        IngestError: a file that is not there or of no known kind.
        ConfigurationError: something else that cannot be read, or parquet without pyarrow.
    """
    paths = _paths(source)
    if paths is not None:
        try:
            return _of_files([_open(path, kinds) for path in paths])
        except OSError as error:
            raise IngestError(f"cannot read {error.filename}: {error.strerror}") from error
    is_one = isinstance(source, (bytes, Mapping, Document)) or not isinstance(source, Iterable)
    if is_one or hasattr(source, "columns"):  # a data frame gives the names of its columns
        raise ConfigurationError(
            f"a {type(source).__name__} is no source: pass a path or documents, of a data frame df.to_dict('records')"
        )
    total = len(source) if isinstance(source, Sized) else None
    return Source(functools.partial(_items, source), total, "doc", None)


def _paths(source: Any) -> list[Path] | None:
    if isinstance(source, (str, os.PathLike)):
        return [Path(source)]
    if not isinstance(source, (list, tuple)):
        return None
    if any(isinstance(item, os.PathLike) for item in source):
        return [Path(item) for item in source]
    for item in source:
        if isinstance(item, str) and item.lower().endswith(tuple(READERS)) and os.path.exists(item):
            raise ConfigurationError(f"strings in a list are texts, but {item!r} is a file: pass pathlib.Path objects")
    return None


def _of_files(files: Sequence[_File]) -> Source:
    def rows() -> Generator[Row, None, None]:
        start = 0
        for file in files:
            try:
                for row in file.read():
                    yield row._replace(end=start + row.end)
            except OSError as error:
                raise IngestError(f"{error.filename or 'the source'} cannot be read further: {error}") from error
            start += file.size

    return Source(rows, sum(file.size for file in files), "B", [file.state for file in files])


def _items(source: Iterable[Any]) -> Generator[Row, None, None]:
    iterator = iter(source)
    try:
        for number, item in enumerate(iterator, 1):
            yield Row(f"item {number}", functools.partial(_given, item), number)
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


def _given(item: Any) -> Any:
    return item


def _open(path: Path, kinds: Kinds) -> _File:
    path = path.expanduser()
    if not path.exists():
        raise IngestError(f"there is no file or folder {path}")
    if path.is_dir():
        return _open_folder(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise IngestError(f"{path}: cannot tell what it is; known are folders and {', '.join(READERS)}")
    if suffix == ".parquet":
        require_pyarrow()
    status = path.stat()
    read = functools.partial(READERS[suffix], path, kinds)
    return _File(read, status.st_size, [str(path.resolve()), status.st_size, status.st_mtime_ns])


def _open_folder(folder: Path) -> _File:
    state, size = blake2b(digest_size=16), 0
    for path in walk(folder):
        try:
            status = path.stat()
        except OSError:
            continue
        size += status.st_size
        state.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return _File(functools.partial(read_folder, folder), size, [str(folder.resolve()), state.hexdigest()])
