"""Sources: files, folders and iterables as rows, and what is known about them before they are read."""

from __future__ import annotations

import functools
import operator
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from twinvec.errors import ConfigurationError, IngestError
from twinvec_stores.addresses import without_secrets
from twinvec_stores.ingestion.files import READERS, reader_of
from twinvec_stores.ingestion.folders import Walked, read_folder, size_of, walk
from twinvec_stores.ingestion.readers import Reading, Row, is_url, suffix_of
from twinvec_stores.ingestion.rows import Document


@dataclass(frozen=True)
class Source:
    """Rows, and what is known about them before reading.

    Attributes:
        rows: starts reading; closing the iterator releases the source.
        total: the ``end`` of the last row; None: unknown.
        unit: unit of ``total``: "B" or "doc".
        walked: what the folders contained, once everything is read.
    """

    rows: Callable[[], Generator[Row, None, None]]
    total: int | None
    unit: str
    walked: Walked = field(default_factory=Walked)


class _File(NamedTuple):
    """A file or folder: how to read it, and its size in bytes; None: unknown."""

    read: Callable[[], Iterator[Row]]
    size: int | None


def open_source(source: Any, reading: Reading) -> Source:
    """Return a path, a list of paths or an iterable as a source.

    Args:
        source: see ``ingest``; a Source is returned as it is.
        reading: how tables are read.

    Raises:
        IngestError: a file does not exist, or its kind is unknown.
        ConfigurationError: the source is something else, or parquet without pyarrow.
    """
    if isinstance(source, Source):
        return source
    paths = _paths(source)
    if paths is not None:
        try:
            walked = Walked()
            return _of_files([_open(path, reading, walked) for path in paths], walked)
        except OSError as error:
            raise IngestError(f"cannot read {error.filename}: {error.strerror}") from error
    is_one = isinstance(source, (bytes, Mapping, Document)) or not isinstance(source, Iterable)
    if is_one or hasattr(source, "columns"):  # iterating over a data frame yields column names
        raise ConfigurationError(
            f"a {type(source).__name__} is not a source: pass a path or documents (df.to_dict('records'))"
        )
    total = operator.length_hint(source, -1)
    return Source(functools.partial(_items, source), None if total < 0 else total, "doc")


def _paths(source: Any) -> list[Path | str] | None:
    """Return the paths and URLs of a source that is made of them."""
    if isinstance(source, (str, os.PathLike)):
        return [_path(source)]
    if not isinstance(source, (list, tuple)):
        return None
    if any(isinstance(item, os.PathLike) for item in source) or (source and all(map(is_url, source))):
        return [_path(item) for item in source]
    for item in source:
        if isinstance(item, str) and suffix_of(Path(item)) in READERS and os.path.exists(item):
            raise ConfigurationError(f"strings in a list are texts, but {item!r} is a file: pass pathlib.Path objects")
    return None


def _path(source: str | os.PathLike[str]) -> Path | str:
    return source if isinstance(source, str) and is_url(source) else Path(source)


def _of_files(files: Sequence[_File], walked: Walked) -> Source:
    def rows() -> Generator[Row, None, None]:
        start = 0
        walked.read, walked.passed_over = 0, Counter()
        for file in files:
            try:
                for row in file.read():
                    yield row._replace(end=start + row.end)
            except OSError as error:
                raise IngestError(f"{error.filename or 'the source'} cannot be read further: {error}") from error
            start += file.size or 0

    sizes = [file.size for file in files if file.size is not None]
    return Source(rows, sum(sizes) if len(sizes) == len(files) else None, "B", walked)


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


def _open(path: Path | str, reading: Reading, walked: Walked) -> _File:
    if isinstance(path, str):
        from twinvec_stores.ingestion.remote import open_url

        return _File(*open_url(path, reading, walked))
    path = path.expanduser()
    if not path.exists():
        # what has a space is no URL, and is read as a path
        address = re.sub(r"^([a-z][a-z0-9+.-]+):/", r"\1://", str(path))
        raise IngestError(f"there is no file or folder {without_secrets(address)}")
    if path.is_dir():
        return _open_folder(path, reading, walked)
    read = reader_of(path, reading)
    if not path.is_file():
        raise IngestError(f"{path} is not a regular file but a pipe, a socket or a device: read it yourself")
    return _File(functools.partial(read, path), path.stat().st_size)


def _open_folder(folder: Path, reading: Reading, walked: Walked) -> _File:
    size = sum(size_of(path) for path in walk(folder))
    return _File(functools.partial(read_folder, folder, reading, walked), size)
