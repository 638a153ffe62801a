"""Room on the disk, and copies of folders full of sparse files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from twinvec.errors import StoreEngineError

_RESERVE = 64 * 2**20  # free bytes required for writing: log segments and pages grow in steps
_BLOCK = 2**20


def need_room(path: Path, size: int) -> None:
    """Refuse before the engine does: on a full disk its memory-mapped files kill the process with SIGBUS."""
    free, needed = shutil.disk_usage(path).free, 3 * size + _RESERVE
    if free < needed:
        raise StoreEngineError(
            f"{path}: the disk is nearly full ({free >> 20} MiB free, {needed >> 20} MiB needed): free some space, "
            "then continue; everything written so far is safe"
        )


def folder_size(path: Path) -> int:
    """Return the size on disk in bytes."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # files may disappear
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def copy_folder(source: Path, target: Path, *, without: str = "") -> None:
    """Copy a folder, without its folders of one name, and its files without their holes."""
    for folder, names, files in os.walk(source):
        names[:] = [name for name in names if name != without]
        made = target / Path(folder).relative_to(source)
        made.mkdir()
        for name in files:
            _copy_file(os.path.join(folder, name), made / name)


def _copy_file(source: str, target: Path) -> None:
    """Copy a file without its holes; the engine's files are full of them."""
    with open(source, "rb", buffering=0) as read, target.open("wb", buffering=0) as written:
        written.truncate(os.fstat(read.fileno()).st_size)
        for start, end in _parts(read.fileno()):
            read.seek(start)
            written.seek(start)
            while block := read.read(min(_BLOCK, end - read.tell())):
                written.write(block)


def _parts(file: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges in which a file has data."""
    end, size = 0, os.fstat(file).st_size
    if not hasattr(os, "SEEK_DATA"):
        yield 0, size
        return
    with contextlib.suppress(OSError):  # after the last part there is only a hole
        while end < size:
            start = os.lseek(file, end, os.SEEK_DATA)
            end = os.lseek(file, start, os.SEEK_HOLE)
            yield start, end
