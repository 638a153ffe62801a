"""Rows as the model gives them, what decides them, and what keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from twinvec.vectors import Float32, SparseVector


class Key(NamedTuple):
    """What decides a row of one model. The role acts through the prompt alone."""

    prompt: str
    text: str
    max_length: int


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One text as the model gives it, before a caller's dims and sparse keys are applied.

    Attributes:
        dense: float32 [all dims], not normalised; None where the model has none, or it was not kept.
        sparse: by token id; None where the model has none, or it was not kept.
        tokens: that the model saw.
        full_length: tokens before the cut at the maximum length.
    """

    dense: Float32 | None
    sparse: SparseVector | None
    tokens: int
    full_length: int

    @property
    def nbytes(self) -> int:
        """Return the bytes of the arrays."""
        dense = 0 if self.dense is None else self.dense.nbytes
        return dense + (0 if self.sparse is None else self.sparse.indices.nbytes + self.sparse.values.nbytes)

    def has(self, *, dense: bool, sparse: bool) -> bool:
        """Return whether the halves that are needed are there."""
        return (self.dense is not None or not dense) and (self.sparse is not None or not sparse)

    def half(self, *, dense: bool) -> Row:
        """Return this row with its dense or its sparse half only."""
        return Row(self.dense if dense else None, None if dense else self.sparse, self.tokens, self.full_length)


class Namespaces(NamedTuple):
    """What decides each half of a row besides its key: another lexical head leaves the dense halves as they are."""

    dense: str
    sparse: str


class Cache(Protocol):
    """What the core needs of a persistent cache; ``twinvec.cache.VectorCache`` is one."""

    def get_many(self, namespace: str, keys: Sequence[Key]) -> list[Row | None]:
        """Return the kept row of each key, or None."""

    def put_many(self, namespace: str, rows: Sequence[tuple[Key, Row]]) -> None:
        """Keep rows."""


def find_rows(
    cache: Cache, namespaces: Namespaces, keys: Sequence[Key], *, dense: bool, sparse: bool
) -> list[Row | None]:
    """Return the rows that have all halves that are needed, None for the others; at least one half is needed."""
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
    """Keep each half of the rows under its own namespace, so that either can be found without the other."""
    for name, dense in zip(namespaces, (True, False), strict=True):
        halves = [(key, row.half(dense=dense)) for key, row in rows if row.has(dense=dense, sparse=not dense)]
        if halves:
            cache.put_many(name, halves)
