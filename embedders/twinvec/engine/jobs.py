"""One call's way through the core: its distinct texts, its rows as they come, its future."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

import numpy as np

from twinvec.cache.rows import Cache, Row
from twinvec.compute.pooling import reduce_token_weights
from twinvec.errors import InvalidTextError, TextTooLongError
from twinvec.spec import SparseKeys
from twinvec.text.tokenizer import TextTokenizer
from twinvec.vectors import EmbeddingBatch, Int64, SparseBatch, SparseVector

WINDOW = 2048  # texts tokenised ahead: long enough to sort well, short enough to start at once


@dataclass(frozen=True)
class Request:
    """What a caller wants.

    Attributes:
        tokenizer: the model's.
        max_length: tokens per text.
        prompt: goes before each text.
        dim: dense dimensions to slice and normalise; None: no dense half.
        keys: how to name sparse columns; None: no sparse half.
        urgent: queries go before bulk work.
        memo: whether recent rows may answer, and be kept.
        cache: persistent rows; None for none.
        fail_on_overflow: raise instead of cutting.
        fail_on_overload: raise instead of waiting when the queue is full.
    """

    tokenizer: TextTokenizer
    max_length: int
    prompt: str
    dim: int | None
    keys: SparseKeys | None
    urgent: bool
    memo: bool = True
    cache: Cache | None = None
    fail_on_overflow: bool = False
    fail_on_overload: bool = False


class Job:
    """Texts of one call; rows may arrive in any order and from any thread.

    Attributes:
        future: resolves to the EmbeddingBatch; cancelling it frees the work that nobody else waits for.
        texts: the distinct texts, once ``prepare`` has run.
        windows: positions in ``texts`` that are not tokenised yet.
        outstanding: texts that are tokenised and not finished.
        feeding: whether a thread is tokenising for this job.
        on_progress: called with the number of texts just finished, on a thread of the core.
    """

    def __init__(self, texts: Sequence[str], request: Request) -> None:
        self.request = request
        self.future: Future[EmbeddingBatch] = Future()
        self.texts: list[str] = []
        self.windows: deque[range] = deque()
        self.outstanding = 0
        self.feeding = True
        self.on_progress: Callable[[int], object] | None = None
        self.lock = threading.Lock()
        self.cost = min(len(texts), 2 * WINDOW)
        self._given = texts

    def __len__(self) -> int:
        return len(self._given)

    @property
    def live(self) -> bool:
        """Return whether the caller still waits."""
        return not self.future.done()

    def prepare(self) -> None:
        """Find the distinct texts and make room for their rows."""
        numbers = {text: number for number, text in enumerate(dict.fromkeys(self._given))}
        self.texts = list(numbers)
        n, asked = len(self.texts), len(self._given)
        self._order = np.fromiter((numbers[text] for text in self._given), dtype=np.int64, count=asked)
        self._copies = np.bincount(self._order, minlength=n)
        self._first = np.zeros(n, dtype=np.int64)
        self._first[self._order[::-1]] = np.arange(asked)[::-1]
        self._dense = None if self.request.dim is None else np.zeros((n, self.request.dim), dtype=np.float32)
        self._sparse: list[SparseVector | None] = [None] * n
        self._counts = np.zeros(n, dtype=np.int32)
        self._truncated = np.zeros(n, dtype=np.bool_)
        self._missing = n
        self.windows.extend(range(start, min(start + WINDOW, n)) for start in range(0, n, WINDOW))

    def position(self, number: int) -> int:
        """Return the first position of a distinct text in the caller's list."""
        return int(self._first[number])

    def check(self, number: int, tokens: int, full_length: int) -> None:
        """Refuse a text that has no vector, or that is too long for a caller who does not want it cut.

        Raises:
            InvalidTextError: no token at all.
            TextTooLongError: with ``fail_on_overflow``.
        """
        if tokens == 0:
            raise InvalidTextError(
                "has no tokens and this model adds no special ones, so no vector is defined for it: leave it out",
                position=self.position(number),
            )
        if full_length > tokens and self.request.fail_on_overflow:
            raise TextTooLongError(
                f"has {full_length} tokens with its prompt, the limit is {self.request.max_length}: split it, raise "
                'max_length, or pass on_overflow="truncate"',
                position=self.position(number),
            )

    def put(self, rows: Sequence[tuple[int, Row]]) -> bool:
        """Take finished rows (number of the distinct text, row); return whether they were the last ones."""
        with self.lock:
            for number, row in rows:
                if self._dense is not None and row.dense is not None:
                    part = row.dense[: self._dense.shape[1]]
                    self._dense[number] = part / max(float(np.linalg.norm(part)), 1e-12)
                if self.request.keys is not None:
                    self._sparse[number] = row.sparse
                self._counts[number] = row.tokens
                self._truncated[number] = row.full_length > row.tokens
            self._missing -= len(rows)
            last = self._missing == 0
        if self.on_progress is not None:
            self.on_progress(sum(int(self._copies[number]) for number, _ in rows))
        return last

    def finish(self) -> EmbeddingBatch:
        """Put the rows into the caller's order and resolve the future."""
        sparse = None
        if self.request.keys is not None:
            tokenizer = self.request.tokenizer
            keys = tokenizer.surface_keys if self.request.keys == "surface" else tokenizer.id_keys
            sparse = _stack(self._sparse, keys)
        batch = EmbeddingBatch(self._dense, sparse, self._counts, self._truncated)[self._order]
        with contextlib.suppress(InvalidStateError):  # cancelled in this moment
            self.future.set_result(batch)
        return batch

    def fail(self, error: BaseException) -> None:
        """Reject the caller."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


def _stack(rows: Sequence[SparseVector | None], keys: Int64) -> SparseBatch:
    """Stack rows by token id and give them the caller's keys, the maximum of equal ones."""
    vectors = [row for row in rows if row is not None]
    counts = [len(row) for row in vectors]
    ids = np.concatenate([np.zeros(0, np.int64), *(row.indices for row in vectors)])
    weights = np.concatenate([np.zeros(0, np.float32), *(row.values for row in vectors)])
    return reduce_token_weights(weights, ids, counts, keys)
