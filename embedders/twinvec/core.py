"""The inference core: tokenizer thread, device thread, and the jobs that pass through them.

All calls of an Embedder end up here as jobs; synchronous and asynchronous callers wait on the same futures. Texts are
tokenised a window ahead of the device, sorted by length inside the window, and put back into the caller's order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from twinvec.encoder import Request
from twinvec.errors import ConfigurationError, InvalidTextError, TextTooLongError
from twinvec.loading import Loaded
from twinvec.packing import plan
from twinvec.tokenizer import TokenizedText
from twinvec.vectors import EmbeddingBatch, Float32, Int64, SparseBatch

_WINDOW = 2048  # texts tokenised ahead: long enough to sort well, short enough to start at once


@dataclass
class Job:
    """Texts of one call with one prompt.

    Attributes:
        texts: in the caller's order; equal texts are computed once.
        prompt: goes before each text.
        dense, sparse: which halves to compute.
        fail_on_overflow: raise instead of cutting.
        on_progress: called on the device thread with the number of texts just finished.
    """

    texts: Sequence[str]
    prompt: str
    dense: bool
    sparse: bool
    fail_on_overflow: bool = False
    on_progress: Callable[[int], object] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)


class InferenceCore:
    """One loaded model and the two threads that serve it."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.truncated = 0
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="twinvec-tokenize")
        self._device = ThreadPoolExecutor(1, thread_name_prefix="twinvec-device")
        self._pid = os.getpid()
        self._closed = False

    def submit(self, job: Job) -> Future[EmbeddingBatch]:
        """Queue a job.

        Raises:
            ConfigurationError: after ``close``, or in a process forked after the model was loaded.
        """
        if self._closed:
            raise ConfigurationError("this Embedder is closed; make a new one")
        if os.getpid() != self._pid:
            raise ConfigurationError(
                "this Embedder was made before the process forked, and its threads did not come along: make it in the "
                'child, or start workers with the "spawn" method'
            )
        return self._device.submit(self._run, job)

    def close(self) -> None:
        """Finish the job in hand, reject the queued ones and release the model."""
        self._closed = True
        self._device.shutdown(wait=True, cancel_futures=True)
        self._tokenizing.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: Job) -> EmbeddingBatch:
        rows = {text: row for row, text in enumerate(dict.fromkeys(job.texts))}
        texts = list(rows)
        order = np.fromiter((rows[text] for text in job.texts), dtype=np.int64, count=len(job.texts))
        copies = np.bincount(order, minlength=len(texts))
        first = np.zeros(len(texts), dtype=np.int64)
        first[order[::-1]] = np.arange(len(order))[::-1]
        results = _Results(len(texts), self._request(job))
        windows = [range(start, min(start + _WINDOW, len(texts))) for start in range(0, len(texts), _WINDOW)]
        ahead = self._tokenize(job, texts, windows[0]) if windows else None
        for number, window in enumerate(windows):
            assert ahead is not None
            tokenized = ahead.result()
            if number + 1 < len(windows):
                ahead = self._tokenize(job, texts, windows[number + 1])
            self._check_texts(job, tokenized, first[window.start : window.stop])
            self.truncated += sum(int(copies[window[i]]) for i, t in enumerate(tokenized) if t.truncated)
            budget = self.loaded.encoder.token_budget
            for batch in plan([len(t.ids) for t in tokenized], budget):
                if job.cancelled.is_set():
                    raise CancelledError
                chosen = [tokenized[i] for i in batch]
                where = np.array([window[i] for i in batch])
                encoded = self.loaded.encoder.encode(chosen, first[where].tolist(), results.request)
                results.put(where, chosen, encoded.dense, encoded.sparse)
                if job.on_progress is not None:
                    job.on_progress(int(copies[where].sum()))
        return results.finish()[order]

    def _tokenize(self, job: Job, texts: list[str], window: range) -> Future[list[TokenizedText]]:
        return self._tokenizing.submit(self.loaded.tokenizer.encode, texts[window.start : window.stop], job.prompt)

    def _request(self, job: Job) -> Request:
        keys = None
        if job.sparse:
            tokenizer = self.loaded.tokenizer
            keys = tokenizer.surface_keys if self.loaded.spec.sparse_keys == "surface" else tokenizer.id_keys
        return Request(self.loaded.spec.dim if job.dense else None, keys)

    def _check_texts(self, job: Job, tokenized: list[TokenizedText], first: Int64) -> None:
        if empty := [i for i, t in enumerate(tokenized) if len(t.ids) == 0]:
            raise InvalidTextError(
                f"texts[{first[empty[0]]}] has no tokens and this model adds no special ones, so no vector is defined "
                "for it: leave it out"
            )
        too_long = [i for i, t in enumerate(tokenized) if t.truncated]
        if too_long and job.fail_on_overflow:
            text = tokenized[too_long[0]]
            raise TextTooLongError(
                f"texts[{first[too_long[0]]}] has {text.full_length} tokens with its prompt, the limit is "
                f"{self.loaded.tokenizer.max_length} ({len(too_long)} such texts in this window): split it, raise "
                'max_length, or pass on_overflow="truncate"'
            )


class _Results:
    """Rows of the distinct texts, filled batch by batch in any order."""

    def __init__(self, n: int, request: Request) -> None:
        self.request = request
        self._dense = None if request.dim is None else np.zeros((n, request.dim), dtype=np.float32)
        self._sparse: list[SparseBatch] = []
        self._sparse_rows = [np.zeros(0, dtype=np.int64)]
        self._counts = np.zeros(n, dtype=np.int32)
        self._truncated = np.zeros(n, dtype=np.bool_)

    def put(self, rows: Int64, texts: list[TokenizedText], dense: Float32 | None, sparse: SparseBatch | None) -> None:
        self._counts[rows] = [len(t.ids) for t in texts]
        self._truncated[rows] = [t.truncated for t in texts]
        if self._dense is not None:
            self._dense[rows] = dense
        if sparse is not None:
            self._sparse.append(sparse)
            self._sparse_rows.append(rows)

    def finish(self) -> EmbeddingBatch:
        sparse = None
        if self.request.keys is not None:
            sparse = SparseBatch.concatenate(self._sparse)[np.argsort(np.concatenate(self._sparse_rows))]
        return EmbeddingBatch(self._dense, sparse, self._counts, self._truncated)
