"""Files and folders elsewhere, ``s3://``, ``gs://``, ``https://`` and whatever else fsspec knows.

Each file is copied into a temporary folder, read as one that is here, and removed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from twinvec.errors import ConfigurationError, IngestError, TwinVecError
from twinvec_stores.addresses import hide_secrets, without_secrets
from twinvec_stores.ingestion.files import id_within, is_readable, reader_of, rows_within
from twinvec_stores.ingestion.folders import Walked, without_text
from twinvec_stores.ingestion.readers import NoTextColumnError, Reading, Row, fail, suffix_of


class Remote(NamedTuple):
    """A file or folder: how to read it, and its bytes; None: unknown."""

    read: Callable[[], Iterator[Row]]
    size: int | None


class _Folder(NamedTuple):
    """Bytes of the files that can be read by their paths, and what else is there by kind."""

    files: dict[str, int]
    passed_over: Counter[str]


def open_url(url: str, reading: Reading, walked: Walked) -> Remote:
    """Look at what a URL names, and list it where it is a folder.

    Args:
        url: of a file or folder.
        reading: how tables are read.
        walked: counts what folders have.

    Raises:
        IngestError: it is not there, cannot be listed, or is of no known kind.
        ConfigurationError: fsspec, or what it needs for this kind of URL, is not installed.
    """
    name = without_secrets(url)
    with _told(url):
        fs, root = _filesystem(url)
        web = url.startswith(("http://", "https://"))  # where nothing tells folders from pages
        info: dict[str, Any] = {"type": "file"} if web else fs.info(root)
        if info["type"] == "directory":
            folder = _list(fs, root)
            read_folder = functools.partial(_read_folder, fs, root, name, folder, reading, walked)
            return Remote(read_folder, sum(folder.files.values()))
    file = PurePosixPath(urlsplit(url).path if web else root).name
    try:
        read = reader_of(Path(file), reading)
    except IngestError as error:  # it says the file's name first
        raise IngestError(f"{name.removesuffix(file)}{error}") from None
    return Remote(functools.partial(_read_file, fs, root, file, name, read), info.get("size"))


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        fsspec = importlib.import_module("fsspec")
        fs, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        name = without_secrets(url)
        raise ConfigurationError(f"{name} needs fsspec ({error}): pip install 'twinvec[remote]'") from None
    fs.invalidate_cache()  # of listings: a second run must see what has changed
    return fs, root


def _list(fs: Any, root: str) -> _Folder:
    """List a folder to its end; a part that cannot be listed raises, or what is in it would be taken for deleted."""
    folder, start = _Folder({}, Counter()), root.rstrip("/") + "/"
    left = [root]
    while left:
        parent = left.pop()
        for info in fs.ls(parent, detail=True):  # fsspec's own walk leaves out what it cannot list further down
            path = info["name"].rstrip("/").removeprefix(start)
            if info["name"].rstrip("/") == parent.rstrip("/") or PurePosixPath(path).name.startswith("."):
                continue
            if info["type"] == "directory":
                left.append(info["name"])
            elif is_readable(Path(path)):
                folder.files[path] = info["size"] or 0
            else:
                folder.passed_over[suffix_of(Path(path)) or "without a suffix"] += 1
    return folder


def _read_folder(fs: Any, root: str, name: str, folder: _Folder, reading: Reading, walked: Walked) -> Iterator[Row]:
    end, read, passed_over = 0, 0, Counter(folder.passed_over)
    for path, size in sorted(folder.files.items()):
        source, where = f"{root.rstrip('/')}/{path}", f"{name.rstrip('/')}/{path}"
        with tempfile.TemporaryDirectory(prefix="twinvec-") as temporary:
            copy = Path(temporary, PurePosixPath(path).name)
            try:
                for row in _rows_within(fs, source, path, copy, reading, size):
                    yield row._replace(where=row.where.replace(str(copy), where), end=end + row.end)
                read += 1
            except NoTextColumnError:
                passed_over[without_text(copy, reading)] += 1
        end += size
    walked.add(name, read, passed_over)


def _rows_within(fs: Any, source: str, path: str, copy: Path, reading: Reading, size: int) -> Iterator[Row]:
    try:
        fs.get_file(source, str(copy))
    except Exception as error:  # each kind of storage raises its own
        reason = f"cannot be read: {hide_secrets(str(error), source)}"
        yield Row(str(copy), functools.partial(fail, reason, id_within(path)), size)
    else:
        yield from rows_within(copy, path, reading, size)


def _read_file(fs: Any, root: str, file: str, name: str, read: Callable[[Path], Iterator[Row]]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="twinvec-") as temporary:
        copy = Path(temporary, file)
        with _told(root):
            fs.get_file(root, str(copy))
        try:
            for row in read(copy):
                yield row._replace(where=row.where.replace(str(copy), name))
        except IngestError as error:
            raise IngestError(str(error).replace(str(copy), name)) from error


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    try:
        yield
    except TwinVecError:
        raise
    except Exception as error:  # each kind of storage raises its own
        reason = f"{type(error).__name__}: {hide_secrets(str(error), url)}"
        # without its cause, which may show the URL, too
        raise IngestError(f"cannot read {without_secrets(url)}: {reason}") from None
