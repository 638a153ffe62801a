"""One call's work in one model: its distinct texts, the rows as they arrive, the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from twinvec.cache.rows import Cache, Key, Row
from twinvec.compute.sparse import merge_keys
from twinvec.engine.waiting import Part
from twinvec.errors import InvalidTextError, TextError, TextTooLongError
from twinvec.spec import SparseKeys
from twinvec.vectors import EmbeddingBatch, Float32, MultiBatch, Spans

if TYPE_CHECKING:
    from twinvec.engine.core import InferenceCore


class Request(NamedTuple):
    """What a call asks for.

    Attributes:
        max_length: tokens per text.
        prompt: goes before each text.
        dim: dense dimensions to slice and normalise; None: no dense half.
        keys: how to name sparse columns; None: no sparse half.
        normalize: whether to normalise dense rows; False for the scores of pairs.
        multi: what vectors of single tokens are requested as well, if any; see ``Key``.
        urgent: queries go before bulk work.
        memo: whether recent rows may be used and kept.
        cache: cache of persistent rows, if any.
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
    multi: str = ""
    fail_on_overflow: bool = False
    fail_on_overload: bool = False


@dataclass(eq=False)
class Job(Part):
    """The texts of one call; owned by a dispatcher from submission to completion.

    Attributes:
        request: what to compute for each text.
        core: the model's core.
        texts: the distinct texts.
        rows: rows of the distinct texts, as they arrive.
        fed, finished: how many distinct texts are in flight or done, and how many are done.
        admitted: whether it counts as pending; if not, it waits for other jobs to end.
        live: whether its caller is still waiting.
        memo_hits, cache_hits: texts whose row was already known.
        submitted, began, ended: when it was submitted, when a device started on the first of its texts (None: it had
            nothing left to compute, or others' entries computed it), and when it was resolved.
    """

    request: Request
    core: InferenceCore
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
        self.texts: Sequence[str] = list(dict.fromkeys(self.given))
        self.rows: list[Row | None] = [None] * len(self.texts)

    def start(self) -> None:
        """Hand the job to its model; never blocks."""
        self.core.submit(self)

    def cancel(self) -> None:
        """Cancel its work, except for what others are waiting for."""
        self.core.cancel(self)

    @property
    def done(self) -> float:
        """Return the fraction of texts whose row is ready."""
        return self.finished / max(len(self.texts), 1)

    def figures(self) -> dict[str, float]:
        """Return figures for traces: seconds before and after a device started on it, and the number of known rows."""
        began = self.ended if self.began is None else self.began
        return {
            "wait_seconds": began - self.submitted,
            "compute_seconds": self.ended - began,
            "memo_hits": self.memo_hits,
            "cache_hits": self.cache_hits,
        }

    @property
    def halves(self) -> dict[str, bool]:
        """Return which halves are requested, by name."""
        return {"dense": self.request.dim is not None, "sparse": self.request.keys is not None}

    def key(self, number: int) -> Key:
        """Return what decides the row of a distinct text."""
        return Key(self.request.prompt, self.texts[number], self.request.max_length, self.request.multi)

    def position(self, number: int) -> int:
        """Return the first position of a distinct text in the caller's list."""
        return self.given.index(self.texts[number])

    def refusal(self, number: int, tokens: int, full_length: int) -> TextError | None:
        """Return the error for a text without a vector, or for one that is too long if nothing may be cut."""
        if tokens == 0:
            reason = "has no tokens, and this model adds no special tokens, so its vector is undefined: leave it out"
            return InvalidTextError(reason, position=self.position(number))
        if full_length > tokens and self.request.fail_on_overflow:
            reason = f"has {full_length} tokens with its prompt, the limit is {self.request.max_length}: split it, "
            reason += 'raise max_length, or pass on_overflow="truncate"'
            return TextTooLongError(reason, position=self.position(number))
        return None

    def batch(self) -> EmbeddingBatch:
        """Return the rows in the form and order that the caller asked for."""
        rows = [row for row in self.rows if row is not None]
        assert len(rows) == len(self.texts)
        batch = self._stack(rows)
        if len(self.texts) == len(self.given):
            return batch
        numbers = {text: number for number, text in enumerate(self.texts)}
        return batch[[numbers[text] for text in self.given]]

    def _stack(self, rows: Sequence[Row]) -> EmbeddingBatch:
        request, sparse = self.request, None
        dense = None if request.dim is None else _dense(rows, request.dim, normalize=request.normalize)
        if request.keys is not None:
            tokenizer = self.core.model.tokenizer
            keys = tokenizer.surface_keys if request.keys == "surface" else tokenizer.id_keys
            sparse = merge_keys([row.sparse for row in rows if row.sparse is not None], keys)
            assert len(sparse) == len(rows)
        tokens = np.array([row.tokens for row in rows], dtype=np.int32)
        lengths = np.array([row.full_length for row in rows], dtype=np.int64)
        multi = MultiBatch.stack([row.multi for row in rows if row.multi is not None]) if request.multi else None
        return EmbeddingBatch(dense, sparse, tokens, lengths > tokens, multi)


@dataclass(eq=False)
class SpanJob(Job):
    """Texts none of which may be cut, and the spans of each, whose rows come from one pass over it: late chunking."""

    spans: Sequence[Spans] = ()

    def __post_init__(self) -> None:
        self.texts = self.given  # equal texts may have other spans
        self.rows = [None] * len(self.texts)

    def key(self, number: int) -> Key:
        """Return what decides the rows of a text."""
        return super().key(number)._replace(spans=tuple(self.spans[number]))

    def position(self, number: int) -> int:
        """Return a text's position in the caller's list."""
        return number

    def refusal(self, number: int, tokens: int, full_length: int) -> TextError | None:
        """Return the error of a text that is too long, or with a span that has no vector."""
        if tokens == 0:
            reason = "has a span without a token, so no vector is defined for it: leave the span out"
            return InvalidTextError(reason, position=number)
        if full_length > tokens:
            reason = f"has {full_length} tokens with its prompt, the limit is {self.request.max_length}: give its "
            return TextTooLongError(f"{reason}spans with shorter parts of it", position=number)
        return None

    def batch(self) -> EmbeddingBatch:
        """Return a row for each span, text by text."""
        return self._stack([part for row in self.rows if row is not None for part in row.parts])


def _dense(rows: Sequence[Row], dim: int, *, normalize: bool) -> Float32:
    dense = np.empty((len(rows), dim), dtype=np.float32)
    for own, row in zip(dense, rows, strict=True):
        assert row.dense is not None
        own[:] = row.dense[:dim]
        if normalize:
            np.divide(own, max(math.sqrt(own.dot(own)), 1e-12), out=own)
    return dense
