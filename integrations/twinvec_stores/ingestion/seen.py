"""The documents of a source, identified by digests in a temporary file, since a hundred million would fill memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from hashlib import blake2b

_SCHEMA = (
    # place: where the document was read; NULL: only a bad row has this id
    "CREATE TABLE seen (digest BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID",
    "CREATE TABLE missed (digest BLOB PRIMARY KEY) WITHOUT ROWID",
)
_CLAIM = "INSERT INTO seen VALUES (?, ?) ON CONFLICT DO UPDATE SET place = excluded.place WHERE place IS NULL"


class Seen:
    """The documents seen in one run; discarded with it."""

    def __init__(self) -> None:
        # "" is a database in a temporary file that SQLite removes by itself; it need not be durable
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (*_SCHEMA, "BEGIN"):
            self._connection.execute(statement)

    def claim(self, id: str, place: str) -> str | None:
        """Claim a document's id for the row at ``place``; return the place of an earlier claim, if any."""
        if self._connection.execute(_CLAIM, (_digest(id), place)).rowcount:
            return None
        [taken] = self._connection.execute("SELECT place FROM seen WHERE digest = ?", (_digest(id),)).fetchone()
        return str(taken)

    def mention(self, id: str) -> None:
        """Remember that the source has this document, although its row is bad."""
        self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?, NULL)", (_digest(id),))

    def missing(self, ids: Iterable[str]) -> set[str]:
        """Return those that are not in the source."""
        query = "SELECT 1 FROM seen WHERE digest = ?"
        found = {id for id in ids if not self._connection.execute(query, (_digest(id),)).fetchone()}
        self._connection.executemany("INSERT OR IGNORE INTO missed VALUES (?)", ((_digest(id),) for id in found))
        return found

    def missed(self) -> int:
        """Return the number of missing documents."""
        return int(self._connection.execute("SELECT COUNT(*) FROM missed").fetchone()[0])

    def close(self) -> None:
        """Remove the file."""
        self._connection.close()


def _digest(id: str) -> bytes:
    return blake2b(id.encode(), digest_size=16).digest()
