"""Folders: every file in them that can be read."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from twinvec.errors import IngestError
from twinvec_stores.ingestion.files import READERS, is_readable, rows_within
from twinvec_stores.ingestion.readers import NoTextColumnError, Reading, Row, suffix_of


@dataclass
class Walked:
    """What the folders contained, once they are read.

    Attributes:
        read: number of files that were read.
        passed_over: all other files, by kind.
    """

    read: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def files(self) -> int:
        """Return the number of files."""
        return self.read + self.passed_over.total()

    def add(self, folder: object, read: int, passed_over: Counter[str]) -> None:
        """Count what a folder had.

        Raises:
            IngestError: there are files, but none that can be read.
        """
        self.read += read
        self.passed_over += passed_over
        if passed_over and not read:
            kinds = ", ".join(f"{n} {kind}" for kind, n in passed_over.most_common())
            raise IngestError(f"{folder}: none of its files can be read ({kinds}); supported are {', '.join(READERS)}")


def without_text(path: Path, reading: Reading) -> str:
    """Return the kind under which a table without the column of texts is passed over."""
    return f"{suffix_of(path)} without a column {reading.text_field!r}"


def read_folder(folder: Path, reading: Reading, walked: Walked) -> Iterator[Row]:
    """Yield the documents of a folder, counting its files.

    Raises:
        IngestError: there are files, but none that can be read.
    """
    end, read, passed_over = 0, 0, Counter[str]()
    for path in walk(folder, passed_over):
        size = size_of(path)
        try:
            for row in rows_within(path, path.relative_to(folder).as_posix(), reading, size):
                yield row._replace(end=end + row.end)
            read += 1
        except NoTextColumnError:
            passed_over[without_text(path, reading)] += 1
        end += size
    walked.add(folder, read, passed_over)


def size_of(path: Path) -> int:
    """Return a file's bytes; 0 if it cannot be looked at, which reading it reports."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_gone(path: Path) -> bool:
    """Return whether there is nothing under this name, which reading it reports; a link to itself is something."""
    try:
        path.stat()
    except OSError as error:
        return error.errno != errno.ELOOP
    return False


def walk(folder: Path, passed_over: Counter[str] | None = None) -> Iterator[Path]:
    """Yield files by name, depth first; links to folders are not followed, which rules out cycles.

    Pipes, sockets and devices, which would block, links to themselves, and files of other kinds are counted in
    ``passed_over``.
    """
    levels = [iter([folder])]
    while levels:
        for path in levels[-1]:
            if path is not folder and path.name.startswith("."):
                continue
            if path.is_dir() and (path is folder or not path.is_symlink()):
                levels.append(iter(sorted(path.iterdir())))
                break
            if is_readable(path) and not path.is_dir() and (path.is_file() or _is_gone(path)):
                yield path
            elif passed_over is not None and not path.is_dir():
                passed_over[path.suffix.lower() or "without a suffix" if path.is_file() else "not a regular file"] += 1
        else:
            levels.pop()
