"""One call's part in one model: its distinct texts, its rows as they come, its result."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from twinvec.cache.rows import Cache, Row
from twinvec.compute.sparse import reduce_token_weights
from twinvec.errors import InvalidTextError, TextError, TextTooLongError
from twinvec.spec import SparseKeys
from twinvec.vectors import EmbeddingBatch, Float32, SparseBatch

if TYPE_CHECKING:
    from twinvec.engine.core import InferenceCore


@dataclass(frozen=True)
class Request:
    """What a caller wants.

    Attributes:
        max_length: tokens per text.
        prompt: goes before each text.
        dim: dense dimensions to slice and normalise; None: no dense half.
        keys: how to name sparse columns; None: no sparse half.
        normalize: False leaves dense rows as the model gives them: scores of pairs.
        urgent: queries go before bulk work.
        memo: whether recent rows may answer, and be kept.
        cache: persistent rows; None for none.
        fail_on_overflow: raise instead of cutting.
        fail_on_overload: raise instead of waiting when the queue is full.
    """

    max_length: int
    prompt: str
    dim: int | None
    keys: SparseKeys | None
    urgent: bool
    memo: bool = True
    cache: Cache | None = None
    normalize: bool = True
    fail_on_overflow: bool = False
    fail_on_overload: bool = False


@dataclass(eq=False)
class Job:
    """Texts of one call; a dispatcher owns it from its submission to its end.

    Attributes:
        given: the caller's texts.
        request: what is wanted of each.
        core: the model's.
        future: resolved when all rows are there.
        texts: the distinct texts.
        rows: of them, as they come.
        fed, finished: how many of them are on their way or have their row, and how many have it.
        admitted: whether it counts as pending; else it waits until others have ended.
        live: whether its caller still waits.
        memo_hits, cache_hits: texts whose row was there already.
        submitted, began, ended: when it came, when a device began with the first of its texts (None: it had nothing to
            do, or did it for others already), and when it was resolved.
    """

    given: Sequence[str]
    request: Request
    core: InferenceCore
    future: Future[None] = field(default_factory=Future)
    fed: int = 0
    finished: int = 0
    admitted: bool = False
    live: bool = True
    memo_hits: int = 0
    cache_hits: int = 0
    submitted: float = 0.0
    began: float | None = None
    ended: float = 0.0

    def __post_init__(self) -> None:
        self._numbers = {text: number for number, text in enumerate(dict.fromkeys(self.given))}
        self.texts = list(self._numbers)
        self.rows: list[Row | None] = [None] * len(self.texts)

    def start(self) -> None:
        """Hand it to its model; never blocks."""
        self.core.submit(self)

    def cancel(self) -> None:
        """Let go of its work, as far as nobody else waits for it."""
        self.core.cancel(self)

    @property
    def done(self) -> float:
        """Return the share of the texts that have their row."""
        return self.finished / max(len(self.texts), 1)

    def figures(self) -> dict[str, float]:
        """Return what there was to do, for traces: seconds until a device began, and from then on; known rows."""
        began = self.ended if self.began is None else self.began
        return {
            "wait_seconds": began - self.submitted,
            "compute_seconds": self.ended - began,
            "memo_hits": self.memo_hits,
            "cache_hits": self.cache_hits,
        }

    @property
    def halves(self) -> dict[str, bool]:
        """Return which halves are wanted, by name."""
        return {"dense": self.request.dim is not None, "sparse": self.request.keys is not None}

    def position(self, number: int) -> int:
        """Return the first position of a distinct text in the caller's list."""
        return self.given.index(self.texts[number])

    def refusal(self, number: int, tokens: int, full_length: int) -> TextError | None:
        """Return the error of a text that has no vector, or that is too long for a caller who wants nothing cut."""
        if tokens == 0:
            reason = "has no tokens and this model adds no special ones, so no vector is defined for it: leave it out"
            return InvalidTextError(reason, position=self.position(number))
        if full_length > tokens and self.request.fail_on_overflow:
            reason = f"has {full_length} tokens with its prompt, the limit is {self.request.max_length}: split it, "
            reason += 'raise max_length, or pass on_overflow="truncate"'
            return TextTooLongError(reason, position=self.position(number))
        return None

    def batch(self) -> EmbeddingBatch:
        """Return the rows as the caller asked for them, in the caller's order."""
        rows = [row for row in self.rows if row is not None]
        assert len(rows) == len(self.texts)
        dense = None if self.request.dim is None else _dense(rows, self.request.dim, normalize=self.request.normalize)
        sparse = None if self.request.keys is None else self._sparse(rows)
        tokens = np.fromiter((row.tokens for row in rows), dtype=np.int32, count=len(rows))
        lengths = np.fromiter((row.full_length for row in rows), dtype=np.int64, count=len(rows))
        batch = EmbeddingBatch(dense, sparse, tokens, lengths > tokens)
        return batch if len(rows) == len(self.given) else batch[[self._numbers[text] for text in self.given]]

    def _sparse(self, rows: list[Row]) -> SparseBatch:
        """Stack rows by token id and give them the caller's keys, the maximum of equal ones."""
        batch = SparseBatch.stack([row.sparse for row in rows if row.sparse is not None])
        assert len(batch) == len(rows)
        tokenizer = self.core.model.tokenizer
        keys = tokenizer.surface_keys if self.request.keys == "surface" else tokenizer.id_keys
        return reduce_token_weights(batch.values, batch.indices.astype(np.int64), np.diff(batch.indptr).tolist(), keys)


def _dense(rows: list[Row], dim: int, *, normalize: bool) -> Float32:
    dense = np.zeros((len(rows), dim), dtype=np.float32)
    for i, row in enumerate(rows):
        assert row.dense is not None
        dense[i] = row.dense[:dim]
    if normalize:
        dense /= np.maximum(np.sqrt(np.einsum("ij,ij->i", dense, dense)), 1e-12)[:, None]
    return dense
