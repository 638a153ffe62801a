"""Groups of results: documents instead of chunks, and the text around a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twinvec_stores.filters.fields import field_values
from twinvec_stores.filters.numbers import comparable
from twinvec_stores.records import Hit, Record


def group_of(record: Record, by: str) -> tuple[str, Any]:
    """Return a record's group: its document, or the first value of a field; failing that, a group of its own."""
    if by == "document":
        document = record.provenance.get("document")
        return ("document", document if isinstance(document, str) else record.id)
    values = [value for value in field_values(record.metadata, by) if isinstance(value, (str, int, float))]
    if not values:
        return ("record", record.id)
    value = values[0]
    if isinstance(value, (str, bool)):
        return (type(value).__name__, value)
    return ("number", comparable(value))


class Groups:
    """The first k groups of a ranking, with the best hits of each."""

    def __init__(self, k: int, size: int, by: str) -> None:
        self._k, self._size, self._by = k, size, by
        self._groups: dict[tuple[str, Any], list[Hit]] = {}

    def add(self, hit: Hit, record: Record) -> None:
        """Add the next hit of the ranking."""
        key = group_of(record, self._by)
        if key not in self._groups and len(self._groups) == self._k:
            return
        members = self._groups.setdefault(key, [])
        if len(members) < self._size:
            members.append(hit)

    @property
    def full(self) -> bool:
        """Return whether further hits cannot change the result."""
        return len(self) == self._k and all(len(members) == self._size for members in self._groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def hits(self) -> list[Hit]:
        """Return the hits, group by group."""
        return [hit for members in self._groups.values() for hit in members]


def neighbours(record: Record, n: int) -> list[str]:
    """Return the ids of a chunk and up to n chunks on each side; nothing for a record that is not a chunk."""
    document, chunk = record.provenance.get("document"), record.provenance.get("chunk")
    chunks = record.provenance.get("chunks")
    if not isinstance(document, str) or not isinstance(chunk, int) or not isinstance(chunks, int):
        return []
    return [f"{document}#{i}" for i in range(max(chunk - n, 0), min(chunk + n + 1, chunks))]


def joined(pieces: Sequence[Record]) -> str:
    """Join consecutive chunks into one text, without repeating their overlap."""
    text, end = "", None
    for piece in pieces:
        start = piece.provenance["start"]
        text += piece.text if end is None else piece.text[max(end - start, 0) :]
        end = piece.provenance["end"]
    return text
