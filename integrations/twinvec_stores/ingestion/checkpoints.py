"""Checkpoints: how far an ingest has come, in a small SQLite file that survives ``kill -9``.

It follows the store: rows count as done once the store has flushed their records. What was written after that is found
again by its hash. ``started`` remembers what such a document was (new or changed), so that nothing is counted wrong.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from twinvec.errors import IngestError

Outcome = Literal["new", "changed", "unchanged", "failed"]
_SCHEMA = (
    "CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # place: where the document was read; NULL: a row with this id was bad
    "CREATE TABLE seen (digest BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID",
    "CREATE TABLE started (digest BLOB PRIMARY KEY, outcome TEXT NOT NULL, truncated INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE failures (number INTEGER PRIMARY KEY, place TEXT NOT NULL, id TEXT, reason TEXT NOT NULL)",
    "CREATE TABLE pruned (digest BLOB PRIMARY KEY) WITHOUT ROWID",
)
_SEE = "INSERT INTO seen VALUES (?, ?) ON CONFLICT (digest) DO UPDATE SET place = COALESCE(place, excluded.place)"
MAX_FAILURES = 1000  # kept in detail
_VERSION = 1
_APPLICATION = 0x54764963  # in the file's header: "TvIc"


@dataclass
class Progress:
    """What is done.

    Attributes:
        rows: how many rows of the source.
        end: how much of the source, in its unit.
        new, changed, unchanged, failed: documents.
        nameless: failed rows whose document is not known.
        records: written.
        truncated: documents cut at the model's limit.
        seconds: of work, of all runs together.
        witnesses: ids of some records that the store must have.
    """

    rows: int = 0
    end: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    failed: int = 0
    nameless: int = 0
    records: int = 0
    truncated: int = 0
    seconds: float = 0.0
    witnesses: list[str] = field(default_factory=list)


class FailedRow(NamedTuple):
    """A row that gave no records."""

    number: int
    where: str
    id: str | None
    reason: str


class Started(NamedTuple):
    """A document whose records are being written."""

    digest: bytes
    outcome: Outcome
    truncated: bool


class Checkpoint:
    """State of one ingest, shared by the thread that reads and the one that writes."""

    def __init__(self, path: Path | None, identity: Any, *, resume: bool) -> None:
        """Open a checkpoint, or begin one.

        Args:
            path: its file; None: nothing is kept.
            identity: JSON value; a file of another identity is begun anew, and so is a damaged one, with a warning.
            resume: False: begin anew in any case.

        Raises:
            IngestError: the file cannot be made.
        """
        self.path = path
        self.progress = Progress()
        self._lock = threading.Lock()
        self._claimed: dict[bytes, str] = {}
        self._identity = json.dumps([_VERSION, identity])
        self._connection = (self._resumed() if resume else None) or self._begun()

    def claim(self, digest: bytes, place: str) -> str | None:
        """Take a document's id for the row at ``place``; return where it was taken before, if it was."""
        with self._lock:
            taken = self._claimed.get(digest)
            if taken is None:
                row = self._one("SELECT place FROM seen WHERE digest = ?", digest)
                taken = row[0] if row else None
            if taken is None:
                self._claimed[digest] = place
            return taken

    def start(self, documents: Iterable[Started]) -> None:
        """Remember what is about to be written."""
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO started VALUES (?, ?, ?)", documents)

    def started(self, digest: bytes) -> Started | None:
        """Return what was about to be written when the run before was killed."""
        with self._lock:
            row = self._one("SELECT digest, outcome, truncated FROM started WHERE digest = ?", digest)
        return Started(row[0], row[1], bool(row[2])) if row else None

    def commit(self, seen: Mapping[bytes, str | None], failures: Sequence[FailedRow]) -> None:
        """Write down ``progress``, and the documents and failures that came since the last time, all or nothing."""
        with self._transaction() as connection:
            connection.executemany(_SEE, seen.items())
            connection.executemany("DELETE FROM started WHERE digest = ?", ((digest,) for digest in seen))
            connection.executemany("INSERT INTO failures VALUES (?, ?, ?, ?)", failures)
            self._set("progress", json.dumps(asdict(self.progress)))
        with self._lock:
            for digest in seen:
                self._claimed.pop(digest, None)

    def failures(self) -> list[FailedRow]:
        """Return the first failures."""
        rows = self._connection.execute("SELECT * FROM failures ORDER BY number LIMIT ?", (MAX_FAILURES,))
        return [FailedRow(*row) for row in rows]

    def unseen(self, digests: Iterable[bytes]) -> set[bytes]:
        """Return the documents that the source does not have, and count them as pruned."""
        with self._transaction() as connection:
            missing = {digest for digest in digests if not self._one("SELECT 1 FROM seen WHERE digest = ?", digest)}
            connection.executemany("INSERT OR IGNORE INTO pruned VALUES (?)", ((digest,) for digest in missing))
        return missing

    def pruned(self) -> int:
        """Return how many documents were pruned."""
        return int(self._connection.execute("SELECT COUNT(*) FROM pruned").fetchone()[0])

    def restart(self) -> None:
        """Forget everything."""
        self.progress = Progress()
        self.finish()
        self._connection = self._begun()

    def finish(self) -> None:
        """Close, and remove the file: there is nothing left to resume."""
        self.close()
        self._remove()

    def close(self) -> None:
        """Close; the file stays."""
        self._connection.close()

    def _one(self, query: str, digest: bytes) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._connection.execute(query, (digest,)).fetchone()
        return row

    def _set(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            connection = self._connection
            try:
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise IngestError(f"the checkpoint {self.path or ''} cannot be written: {error}") from error
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _resumed(self) -> sqlite3.Connection | None:
        """Return the file's connection if it can be gone on with."""
        if self.path is None or not self.path.exists():
            return None
        connection = None
        try:
            connection = _connect(self.path)
            if self._read(connection):
                return connection
        except (sqlite3.Error, ValueError, AttributeError, KeyError) as error:
            warnings.warn(f"ignoring the checkpoint {self.path}: {error}; what is stored is skipped", stacklevel=4)
        if connection is not None:
            connection.close()
        return None

    def _read(self, connection: sqlite3.Connection) -> bool:
        """Read how far the ingest was; return whether it was the same one."""
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("it is damaged")
        state = dict(connection.execute("SELECT name, value FROM state"))
        if state["identity"] != self._identity:
            return False
        counts = json.loads(state["progress"])
        if {name: type(value) for name, value in counts.items()} != {n: type(v) for n, v in asdict(Progress()).items()}:
            raise ValueError("its counts are damaged")
        self.progress = Progress(**counts)
        return True

    def _begun(self) -> sqlite3.Connection:
        try:
            self._remove()
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _connect(self.path)
        except (OSError, sqlite3.Error) as error:
            raise IngestError(f"the checkpoint {self.path or ''} cannot be made: {error}") from error
        with self._transaction() as connection:
            for statement in _SCHEMA:
                connection.execute(statement)
            self._set("identity", self._identity)
            self._set("progress", json.dumps(asdict(self.progress)))
        return self._connection

    def _remove(self) -> None:
        if self.path is not None:
            for suffix in ("", "-wal", "-shm", "-journal"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint, be it damaged; an empty one may become one."""
    with path.open("rb") as file:
        header = file.read(100)
    return not header or (header.startswith(b"SQLite format 3\0") and header[68:72] == _APPLICATION.to_bytes(4, "big"))


def _connect(path: Path | None) -> sqlite3.Connection:
    # "" is a database in a temporary file that SQLite removes itself
    connection = sqlite3.connect(path or "", isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # after a loss of power: an older state, but a whole one
    except BaseException:
        connection.close()
        raise
    return connection
