"""A connection to the cache's SQLite file that is shared by threads but never survives a fork.

SQLite keeps file locks per process in memory: a child that continues to use its parent's connection, or opens the same
file next to it, relies on locks that it does not hold and can damage the file. Connections are therefore closed before
a fork.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinvec.errors import ConfigurationError

_SCHEMA = (
    "CREATE TABLE vectors"
    " (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, value BLOB NOT NULL)",
    "CREATE INDEX vectors_by_use ON vectors (used)",
)
_FORMAT = 2  # format 1 (stored as 0) had namespaces from samples of the weights
_BUSY = 5.0  # seconds to wait for another process
_LOG = 4 * 2**20  # size to which the write-ahead log is cut back


class Database:
    """One connection, opened on demand, used by one thread at a time.

    Attributes:
        file: the database file.
        closed: permanently.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.closed = False
        self.lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        _databases.add(self)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection.

        Raises:
            ConfigurationError: the cache is closed, or the file is not a cache.
            sqlite3.Error: the file cannot be opened.
        """
        with self.lock:
            if self.closed:
                raise ConfigurationError(f"the vector cache in {self.file.parent} is closed")
            if self._connection is None:
                self._connection = _connect(self.file)
            yield self._connection

    def close(self) -> None:
        """Close permanently."""
        with self.lock:
            self.closed = True
            self.disconnect()

    def disconnect(self) -> None:
        """Close the connection; the next use opens another. The caller holds ``lock``."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connect(file: Path) -> sqlite3.Connection:
    deadline = time.monotonic() + _BUSY
    while True:
        try:
            return _prepared(file.as_uri())
        except sqlite3.OperationalError as error:
            # SQLite itself does not wait while another process creates the file or its log
            if "locked" not in str(error) or time.monotonic() > deadline:
                if not file.exists() or (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
                    raise
                # read-only disk: nobody can write, so the lock files that cannot be created are not needed
                return _prepared(f"{file.as_uri()}?immutable=1")
        time.sleep(0.01)


def _prepared(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    try:
        connection.text_factory = bytes  # a maliciously planted string must not cause a decoding error
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        if not _schema(connection):
            _create(connection)
        if _schema(connection) != sorted(_SCHEMA):
            raise ConfigurationError(f"{uri} belongs to another program: choose another folder for the cache")
        if _format(connection) != _FORMAT:
            raise ConfigurationError(
                f"{uri} was written by an early version of TwinVec, which identified models by samples of their "
                "weights, so its rows may belong to another model: remove the folder or choose another"
            )
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG}")
    except BaseException:
        connection.close()
        raise
    return connection


def _schema(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
    return sorted(bytes(sql).decode(errors="replace") for (sql,) in found)


def _format(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not block each other
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _schema(connection):
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_fork = threading.Lock()
_held: list[Database] = []


def _before_fork() -> None:
    _fork.acquire()
    for database in sorted(_databases, key=id):
        database.lock.acquire()
        _held.append(database)
        database.disconnect()


def _after_fork() -> None:
    while _held:
        _held.pop().lock.release()
    _fork.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
