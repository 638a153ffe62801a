"""The identity of a checkpoint: sha256 over every byte that decides a vector, and the files' stat.

A large file needs to be read only once: its sha256 is remembered by path, size, times and inode in a small record of
its own, so that any number of processes may write records concurrently. If a record is missing, damaged or outdated,
the file is simply read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_REMEMBERED = 2**20  # bytes; smaller files are read about as fast as their records
_CHUNK = 2**20
_RECORDS = 2000  # about 300 bytes each; beyond that, the older half is deleted
_TICK = 20_000_000  # ns: file system clocks advance in steps of up to 10 ms
_COARSE_TICK = 2_000_000_000  # ns: some only store seconds, FAT even seconds
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Stamp(NamedTuple):
    """A file's stat; rewriting the file changes at least one of these."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, file: Path) -> Stamp:
        """Return a file's stamp, following links."""
        real = file.resolve()
        stat = real.stat()
        return cls(str(real), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@dataclass(frozen=True)
class Identity:
    """The files that make up a checkpoint.

    Attributes:
        digest: 64 hex digits over the names and all bytes of the files; equal copies have equal digests.
        files: name within the checkpoint -> its path, and its stat when it was read.
    """

    digest: str
    files: tuple[tuple[str, Stamp], ...]

    def holds(self) -> bool:
        """Return whether, according to stat, no file has changed since."""
        try:
            return all(Stamp.of(Path(stamp.path)) == stamp for _, stamp in self.files)
        except OSError:
            return False


def identify(files: Mapping[str, Path], memory: Path) -> Identity:
    """Return the identity of files by name; ``memory``: the folder of records."""
    stamped = []
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        stamp, content = _file_digest(file, memory)
        stamped.append((name, stamp))
        digest.update(f"{name}\0{content}\n".encode())
    return Identity(digest.hexdigest(), tuple(stamped))


def memory_folder(cache_dir: str | None) -> Path:
    """Return the folder of records: below ``cache_dir`` if given, else in the user's cache."""
    base = cache_dir or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "twinvec" / "digests"


def _file_digest(file: Path, memory: Path) -> tuple[Stamp, str]:
    stamp = Stamp.of(file)
    if stamp.size < _REMEMBERED:
        return stamp, _read(file)
    blob = Path(stamp.path)
    if file.is_symlink() and blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return stamp, blob.name  # the hub's cache names large files by their sha256
    record = memory / hashlib.sha256(stamp.path.encode("utf-8", "surrogateescape")).hexdigest()
    if (known := _recall(record, stamp)) is not None:
        return stamp, known
    # a change within the same clock tick would leave the stamp unchanged
    if (age := _age(stamp)) < _TICK:
        time.sleep((_TICK - age) / 1e9)
        stamp = Stamp.of(file)
    content = _read(file)
    if Stamp.of(file) == stamp and (_age(stamp) >= _COARSE_TICK or _is_fine(stamp)):
        _remember(record, stamp, content)
    return stamp, content


def _age(stamp: Stamp) -> int:
    """Return the ns since the last change; 0 for a time in the future, which is unreliable."""
    now = time.time_ns()
    return min((now - t for t in (stamp.mtime_ns, stamp.ctime_ns) if t <= now), default=0)


def _is_fine(stamp: Stamp) -> bool:
    return any(t % 1_000_000_000 for t in (stamp.mtime_ns, stamp.ctime_ns))


def _read(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _recall(record: Path, stamp: Stamp) -> str | None:
    try:
        line, check = record.read_text(encoding="ascii").splitlines()
        if hashlib.sha256(line.encode()).hexdigest() != check:
            return None
        *known, content = json.loads(line)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return str(content) if known == list(stamp) else None


def _remember(record: Path, stamp: Stamp, content: str) -> None:
    """Write a record atomically; if that fails, the file is simply read again next time."""
    line = json.dumps([*stamp, content])
    with contextlib.suppress(OSError, UnicodeError):
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=record.parent, prefix=".")
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(f"{line}\n{hashlib.sha256(line.encode()).hexdigest()}\n")
            os.replace(name, record)
        except BaseException:
            os.unlink(name)
            raise
        _forget_old(record.parent)


def _forget_old(memory: Path) -> None:
    records = list(memory.iterdir())
    if len(records) > _RECORDS:
        for record in sorted(records, key=lambda r: r.stat().st_mtime)[: len(records) // 2]:
            record.unlink(missing_ok=True)
