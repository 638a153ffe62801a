"""Rows as the model returns them, the keys that decide them, and the interface of caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from twinvec.vectors import Float32, SparseVector

STATES = "states"  # instead of a role: the state of every token, as the model has it


class Key(NamedTuple):
    """Everything that decides a row of one model, or the rows of spans. The role matters only through the prompt."""

    prompt: str
    text: str
    max_length: int
    multi: str = ""  # the role whose vectors of single tokens are wanted as well, or STATES
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One text's output from the model, before a caller's dims and sparse keys are applied.

    Attributes:
        dense: float32 [all dims], not normalised; None if the model has none, or it was not stored.
        sparse: by token id; None if the model has none, or it was not stored.
        tokens: number of tokens seen by the model.
        full_length: tokens before the cut at the maximum length.
        multi: float32 [vectors, dim], of single tokens, as the key wants them; None where it does not.
        parts: if the key has spans, the row of each, instead of the two halves.
    """

    dense: Float32 | None
    sparse: SparseVector | None
    tokens: int
    full_length: int
    multi: Float32 | None = None
    parts: tuple[Row, ...] = ()

    @property
    def nbytes(self) -> int:
        """Return the size of the arrays in bytes."""
        dense = 0 if self.dense is None else self.dense.nbytes
        return dense + (0 if self.sparse is None else self.sparse.indices.nbytes + self.sparse.values.nbytes)

    def has(self, *, dense: bool, sparse: bool) -> bool:
        """Return whether the required halves are present."""
        return (self.dense is not None or not dense) and (self.sparse is not None or not sparse)

    def half(self, *, dense: bool) -> Row:
        """Return this row with only its dense or only its sparse half."""
        return Row(self.dense if dense else None, None if dense else self.sparse, self.tokens, self.full_length)


class Namespaces(NamedTuple):
    """Whatever decides each half of a row besides its key: another lexical head does not affect dense halves."""

    dense: str
    sparse: str


class Cache(Protocol):
    """What the core needs from a persistent cache; ``twinvec.cache.VectorCache`` implements it."""

    def get_many(self, namespace: str, keys: Sequence[Key]) -> list[Row | None]:
        """Return the stored row of each key, or None."""

    def put_many(self, namespace: str, rows: Sequence[tuple[Key, Row]]) -> None:
        """Store rows."""


def find_rows(
    cache: Cache, namespaces: Namespaces, keys: Sequence[Key], *, dense: bool, sparse: bool
) -> list[Row | None]:
    """Return the rows with all required halves, None for the others; at least one half is required."""
    halves = [cache.get_many(name, keys) for name, needed in zip(namespaces, (dense, sparse), strict=True) if needed]
    if len(halves) == 1:
        return [row if row is not None and row.has(dense=dense, sparse=sparse) else None for row in halves[0]]
    return [
        None
        if one is None or other is None or one.dense is None or other.sparse is None
        else Row(one.dense, other.sparse, one.tokens, one.full_length)
        for one, other in zip(*halves, strict=True)
    ]


def keep_rows(cache: Cache, namespaces: Namespaces, rows: Sequence[tuple[Key, Row]]) -> None:
    """Store each half of the rows under its own namespace, so that either can be found without the other."""
    for name, dense in zip(namespaces, (True, False), strict=True):
        halves = [(key, row.half(dense=dense)) for key, row in rows if row.has(dense=dense, sparse=not dense)]
        if halves:
            cache.put_many(name, halves)
