"""Rows on disk, shared by all processes of a machine.

This uses SQLite, which comes with Python, rather than the two libraries it was compared with: diskcache is SQLite plus
pickle, without a release since 2023 and with an open vulnerability for that (CVE-2025-69872); LMDB maps its file into
memory, so that a damaged file kills the process with SIGBUS (8 of 30 trials), and can be opened only once per process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinvec.cache.rows import Key, Row
from twinvec.cache.sqlite import Database
from twinvec.closing import Closing
from twinvec.errors import ConfigurationError, TwinVecError
from twinvec.vectors import SparseVector

_log = logging.getLogger(__name__)

_VERSION = 1
_HEADER = struct.Struct("<IBBxxIIII")  # checksum, version, halves, dims, sparse keys, tokens, full length
_CHECKSUM = 4  # bytes; it covers the digest and all that follows it
_DENSE, _SPARSE = 1, 2
_NO_INDICES, _NO_VALUES = np.zeros(0, np.int32), np.zeros(0, np.float32)

_SMALLEST = 2**20
_LOOKUP = 500  # keys per SELECT: older SQLite allows at most 999 parameters
_TRANSACTION = 2**20  # bytes per transaction: other processes get their turn in between
_EVICTED = 16  # rows per step
_REMEMBERED = 2**14  # hits kept in memory before they are recorded
_PUT = """INSERT INTO vectors (key, used, value) VALUES (?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET used = excluded.used, value = excluded.value"""
_OLDEST = "DELETE FROM vectors WHERE id IN (SELECT id FROM vectors ORDER BY used, id LIMIT ?)"


class VectorCache(Closing):
    """Rows in a folder on a local disk; the least recently used ones are evicted at a size limit.

    Any number of threads and processes may share the folder; a killed process loses at most the call it was in. Rows
    are returned exactly as written: one that is damaged or in another format counts as a miss. Texts are not stored,
    only their hashes; vectors are, so the folder is readable by its owner only. A full or read-only disk causes a
    single logged warning, and rows already stored are still returned. A copy (pickle, ``fork``) opens the folder anew.

    Args:
        path: the folder; created if missing. Not a network share, where SQLite's locks are unreliable.
        size_limit: bytes of the database, at least 1 MiB; the file may exceed it by 1 MiB, plus a log of a few MiB. A
            row of 1024 dims takes about 5 kB, so that the default of 1 GiB holds about 200,000.

    Attributes:
        hits, misses: counters of this object; dense and sparse halves are separate rows.

    Raises:
        ConfigurationError: the path cannot be used as a cache, the folder comes from an early version, or the size
            limit is too small.
    """

    def __init__(self, path: str | os.PathLike[str], *, size_limit: int = 2**30) -> None:
        if isinstance(size_limit, bool) or not isinstance(size_limit, int) or size_limit < _SMALLEST:
            raise ConfigurationError(
                f"size_limit={size_limit!r} must be an integer number of bytes, at least {_SMALLEST}"
            )
        self.path = Path(path).absolute()
        self.size_limit = size_limit
        self.hits = self.misses = 0
        self._used: dict[bytes, None] = {}
        self._lock = threading.Lock()
        self._warned = False
        file = self.path / "vectors.sqlite3"
        # two connections: a lookup never waits for a write
        self._reader, self._writer = Database(file), Database(file)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._writer.connection() as connection:
                connection.execute("SELECT 1 FROM vectors LIMIT 1")
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"{self.path} cannot be used as a vector cache: {error}. Pass a writable folder, or "
                f"remove {file.name} from it if it is damaged."
            ) from error

    def get_many(self, namespace: str, keys: Sequence[Key]) -> list[Row | None]:
        """Return the row of each key; None for keys without one.

        Args:
            namespace: whatever decides a row besides the key, such as a model's fingerprint.
            keys: may contain duplicates.
        """
        digests = [_digest(namespace, key) for key in keys]
        rows: dict[bytes, Row] = {}
        damaged: list[bytes] = []
        for digest, value in self._read(list(dict.fromkeys(digests))):
            row = _decode(digest, value)
            if row is None:
                damaged.append(digest)
            else:
                rows[digest] = row
        found = [rows.get(digest) for digest in digests]
        with self._lock:
            missing = found.count(None)
            self.misses += missing
            self.hits += len(found) - missing
            self._used.update(dict.fromkeys(rows))
            full = len(self._used) >= _REMEMBERED
        if damaged:
            _log.info("dropped %d rows of %s that are damaged or in another format", len(damaged), self.path)
            gone = [(digest,) for digest in damaged]
            self._write(lambda connection: connection.executemany("DELETE FROM vectors WHERE key = ?", gone))
        if full:
            self._write(self._note_use)
        return found

    def put_many(self, namespace: str, rows: Sequence[tuple[Key, Row]]) -> None:
        """Store rows, replacing those with the same keys. A row larger than half the limit is not stored."""
        chunk: list[tuple[bytes, bytes]] = []
        size = 0
        for position, (key, row) in enumerate(rows, 1):
            digest = _digest(namespace, key)
            value = _encode(digest, row)
            if len(value) <= self.size_limit // 2:
                chunk.append((digest, value))
                size += len(value)
            if size > min(_TRANSACTION, self.size_limit // 8) or position == len(rows):
                if not self._write(partial(self._put, chunk)):
                    return
                chunk, size = [], 0

    def stats(self) -> dict[str, int]:
        """Return ``hits`` and ``misses`` of this object, and ``entries`` and ``bytes`` of the whole cache.

        Counting the entries scans an index: about 10 ms per million. ``hits`` and ``misses`` are attributes, too.
        """
        entries = size = 0
        try:
            with self._reader.connection() as connection:
                entries = _number(connection, "SELECT COUNT(*) FROM vectors")
                size = _size(connection)
        except sqlite3.Error as error:
            self._warn("read", error)
        return {"hits": self.hits, "misses": self.misses, "entries": entries, "bytes": size}

    def clear(self) -> None:
        """Remove all rows and return the space to the disk.

        Raises:
            TwinVecError: the folder is not writable.
        """
        try:
            with self._writer.connection() as connection:
                connection.execute("DELETE FROM vectors")
                connection.execute("VACUUM")
        except sqlite3.Error as error:
            raise TwinVecError(f"the vector cache in {self.path} could not be cleared: {error}") from error

    def close(self) -> None:
        """Record what was used and close the files; later calls raise ConfigurationError."""
        if self._used and not self._writer.closed:
            self._write(self._note_use)
        self._reader.close()
        self._writer.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (str(self.path), self.size_limit)

    def __repr__(self) -> str:
        return f"VectorCache({str(self.path)!r}, size_limit={self.size_limit})"

    def _read(self, digests: list[bytes]) -> list[tuple[bytes, Any]]:
        found: list[tuple[bytes, Any]] = []
        try:
            with self._reader.connection() as connection:
                for start in range(0, len(digests), _LOOKUP):
                    part = digests[start : start + _LOOKUP]
                    marks = ",".join("?" * len(part))
                    query = f"SELECT key, value FROM vectors WHERE key IN ({marks})"  # noqa: S608 - only question marks
                    found += connection.execute(query, part)
        except sqlite3.Error as error:
            self._warn("read", error)
        return found

    def _write(self, action: Callable[[sqlite3.Connection], object]) -> bool:
        try:
            with self._writer.connection() as connection, _transaction(connection):
                action(connection)
        except (OSError, sqlite3.Error) as error:
            self._warn("written", error)
            return False
        return True

    def _put(self, values: list[tuple[bytes, bytes]], connection: sqlite3.Connection) -> None:
        now = _next_use(connection)
        connection.executemany(_PUT, [(digest, now, value) for digest, value in values])
        if _size(connection) > self.size_limit:
            self._note_use(connection)
            while _size(connection) > self.size_limit and connection.execute(_OLDEST, (_EVICTED,)).rowcount > 0:
                pass

    def _note_use(self, connection: sqlite3.Connection) -> None:
        """Record hits since the last time; only the eviction order depends on them, so this can wait."""
        with self._lock:
            used, self._used = self._used, {}
        now = _next_use(connection)
        connection.executemany("UPDATE vectors SET used = ? WHERE key = ?", [(now, digest) for digest in used])

    def _warn(self, what: str, error: Exception) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            _log.warning(
                "vector cache in %s cannot be %s (%s); continuing without it (logged once)", self.path, what, error
            )


def _open(path: str, size_limit: int) -> VectorCache:
    return VectorCache(path, size_limit=size_limit)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _next_use(connection: sqlite3.Connection) -> int:
    """Return a stamp newer than all others: clocks may go backwards, or differ between machines that share a disk."""
    return _number(connection, "SELECT COALESCE(MAX(used), 0) + 1 FROM vectors")


def _size(connection: sqlite3.Connection) -> int:
    """Return the bytes of the pages in use: while there are free pages, the file does not grow."""
    pages = _number(connection, "PRAGMA page_count") - _number(connection, "PRAGMA freelist_count")
    return pages * _number(connection, "PRAGMA page_size")


def _digest(namespace: str, key: Key) -> bytes:
    """Return 32 bytes; each part is preceded by its length, so that different keys never produce the same input."""
    named = (namespace, key.prompt, key.text, key.multi, repr(key.spans))
    parts = [part.encode("utf-8", "surrogatepass") for part in named]
    lengths = struct.pack("<6Q", *map(len, parts), key.max_length)
    return hashlib.sha256(lengths + b"".join(parts)).digest()


def _encode(digest: bytes, row: Row) -> bytes:
    dense = _NO_VALUES if row.dense is None else row.dense
    indices, values = (_NO_INDICES, _NO_VALUES) if row.sparse is None else (row.sparse.indices, row.sparse.values)
    halves = (row.dense is not None) * _DENSE + (row.sparse is not None) * _SPARSE
    header = _HEADER.pack(0, _VERSION, halves, len(dense), len(indices), row.tokens, row.full_length)
    body = header[_CHECKSUM:] + _bytes(dense, "f4") + _bytes(indices, "i4") + _bytes(values, "f4")
    return struct.pack("<I", zlib.crc32(body, zlib.crc32(digest))) + body


def _bytes(array: NDArray[Any], kind: str) -> bytes:
    if array.dtype != np.dtype(kind) or array.ndim != 1:
        raise TypeError(f"a cached array must be {np.dtype(kind)} with one dimension, not {array.dtype} {array.shape}")
    return array.astype(f"<{kind}", copy=False).tobytes()


def _decode(digest: bytes, value: object) -> Row | None:
    """Return the row; None unless these are exactly the bytes that ``_encode`` produced for this digest."""
    if not isinstance(value, bytes) or len(value) < _HEADER.size:
        return None
    checksum, version, halves, dims, keys, tokens, full_length = _HEADER.unpack_from(value)
    if version != _VERSION or len(value) != _HEADER.size + 4 * (dims + 2 * keys):
        return None
    if zlib.crc32(value[_CHECKSUM:], zlib.crc32(digest)) != checksum:
        return None
    # astype copies: aligned, and in native byte order
    dense = np.frombuffer(value, "<f4", dims, _HEADER.size).astype(np.float32)
    indices = np.frombuffer(value, "<i4", keys, _HEADER.size + 4 * dims).astype(np.int32)
    values = np.frombuffer(value, "<f4", keys, _HEADER.size + 4 * (dims + keys)).astype(np.float32)
    return Row(
        dense=dense if halves & _DENSE else None,
        sparse=SparseVector(indices, values) if halves & _SPARSE else None,
        tokens=tokens,
        full_length=full_length,
    )
