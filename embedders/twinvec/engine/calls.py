"""One call of an Embedder: what it asks for, its view of a shared core, its progress, its result."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from twinvec.errors import InvalidTextError
from twinvec.settings import Settings
from twinvec.spec import ModelSpec
from twinvec.text.bm25 import Bm25
from twinvec.text.prompts import Role, Task
from twinvec.text.unicode import lone_surrogate
from twinvec.vectors import EmbeddingBatch, Int32, SparseBatch

if TYPE_CHECKING:
    from tqdm import tqdm

    from twinvec.engine.core import InferenceCore
    from twinvec.engine.jobs import Request
    from twinvec.engine.loading import Source
    from twinvec.families import Description
    from twinvec.options import EmbedderOptions

_BM25_WINDOW = 64  # texts, some milliseconds


@dataclass(frozen=True)
class Wanted:
    """What one call asks for.

    Attributes:
        task, prompt, dense, sparse, timeout: see ``Embedder.embed_queries``.
        dim: dense dimensions in place of the Embedder's.
        fail_on_overflow: in place of the Embedder's ``on_overflow``.
    """

    task: Task | str | None = None
    prompt: str | None = None
    dense: bool = True
    sparse: bool | None = None
    timeout: float | None = None
    dim: int | None = None
    fail_on_overflow: bool | None = None


@dataclass(frozen=True)
class Checked:
    """A call that can be answered: ``prompt`` goes before each text, ``dense`` and ``sparse`` halves are computed."""

    role: Role
    texts: list[str]
    prompt: str
    dense: bool
    sparse: bool


class Job(Protocol):
    """The texts of one call on their way through one model; ``twinvec.engine.jobs.Job`` and ``Bm25Job`` are such."""

    future: Future[EmbeddingBatch]
    on_progress: Callable[[int], object] | None

    def __len__(self) -> int:
        """Return the number of texts."""


@dataclass(frozen=True)
class Half:
    """What one model does for a call.

    Attributes:
        job: not yet started.
        start: starts it, never blocks, and returns its future.
    """

    job: Job
    start: Callable[[], Future[EmbeddingBatch]]


@dataclass(frozen=True)
class View:
    """One Embedder's way of looking at a shared core."""

    core: InferenceCore
    spec: ModelSpec
    description: Description

    @classmethod
    def open(cls, spec: ModelSpec, *, device: str, source: Source, budget: int | None, memo_bytes: int) -> View:
        """Share the model where it is loaded already, else load it."""
        from twinvec.engine.core import InferenceCore
        from twinvec.engine.loading import build_model, open_model
        from twinvec.engine.registry import SHARED

        opened = open_model(spec, device, source)
        core = SHARED.acquire(opened.key, lambda: InferenceCore(build_model(opened, budget), opened.namespaces))
        core.memo.max_bytes = max(core.memo.max_bytes, memo_bytes)
        return cls(core, opened.spec, opened.description)

    def half(self, texts: list[str], request: Callable[..., Request], **options: Any) -> Half:
        """Make a job for this view's core."""
        from twinvec.engine.jobs import Job

        job = Job(texts, request(self.core.model.tokenizer, max_length=self.spec.max_length, **options))
        return Half(job, functools.partial(self.core.submit, job))

    def close(self, *, drain: bool = False) -> None:
        """Give the share back; the last one closes the core."""
        from twinvec.engine.registry import SHARED

        SHARED.release(self.core, drain=drain)


def open_views(spec: ModelSpec, options: EmbedderOptions) -> list[View]:
    """Open the model, and the second one where ``spec.sparse`` names one."""
    from twinvec.engine.loading import Source, names_other_checkpoint

    settings = Settings.from_env()
    source = Source(
        cache_dir=options.cache_dir or settings.cache_dir,
        token=options.token,
        offline=settings.offline if options.offline is None else options.offline,
    )
    view = functools.partial(
        View.open,
        device=options.device if options.device != "auto" else settings.device,
        source=source,
        budget=options.token_budget or settings.token_budget,
        memo_bytes=options.memo_bytes,
    )
    if (bm25 := Bm25.parse(spec.sparse)) is not None:
        bm25.prepare()
        return [view(replace(spec, sparse=None))]
    if not names_other_checkpoint(spec.sparse):
        return [view(spec)]
    dense_digest, _, sparse_digest = (spec.digest or "").partition("+")
    main = view(replace(spec, sparse=None, digest=dense_digest or None))
    other = ModelSpec(
        model=str(spec.sparse),
        dtype=spec.dtype,
        sparse="head",
        sparse_keys=spec.sparse_keys,
        reproducible=spec.reproducible,
        quantization=spec.quantization,
        digest=sparse_digest or None,
    )
    try:
        return [main, view(other)]
    except BaseException:
        main.close()
        raise


class Bm25Job:
    """Texts on their way to BM25 rows, a window at a time, so that callers take turns and a cancelled one stops."""

    def __init__(self, bm25: Bm25, role: Role, texts: list[str], *, urgent: bool) -> None:
        self.future: Future[EmbeddingBatch] = Future()
        self.on_progress: Callable[[int], object] | None = None
        self._bm25, self._role, self._texts, self._urgent = bm25, role, texts, urgent
        self._rows: list[SparseBatch] = []
        self._lengths: list[Int32] = []
        self._done = 0

    def __len__(self) -> int:
        return len(self._texts)

    def start(self) -> Future[EmbeddingBatch]:
        """Go on, on a thread beside the caller's and the device's."""
        _bm25_thread(self._urgent).submit(self._advance)
        return self.future

    def _advance(self) -> None:
        try:
            if self.future.done():
                return
            window = self._texts[self._done : self._done + _BM25_WINDOW]
            rows, lengths = self._bm25.weigh(self._role, window)
            self._rows.append(rows)
            self._lengths.append(lengths)
            self._done += len(window)
            if self.on_progress is not None:
                self.on_progress(len(window))
            if self._done < len(self):
                self.start()
                return
            counts = np.concatenate(self._lengths)
            batch = EmbeddingBatch(None, SparseBatch.stack(self._rows), counts, np.zeros(len(self), np.bool_))
            with contextlib.suppress(InvalidStateError):  # cancelled in this moment
                self.future.set_result(batch)
        except BaseException as error:
            with contextlib.suppress(InvalidStateError):
                self.future.set_exception(error)


@functools.cache
def _bm25_thread(urgent: bool) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=f"twinvec-bm25-{'query' if urgent else 'bulk'}")


if hasattr(os, "register_at_fork"):  # the threads do not come along
    os.register_at_fork(after_in_child=_bm25_thread.cache_clear)


def close_later(views: list[View]) -> None:
    """Close on a thread of its own: the collector may run anywhere, under any lock.

    The interpreter waits for the thread: one that is inside of torch when the interpreter ends aborts the process.
    """
    for view in views:
        with contextlib.suppress(RuntimeError):  # the interpreter is at its end already
            threading.Thread(target=view.close, name="twinvec-close", daemon=False).start()


def check_texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Return the texts as a list.

    Raises:
        TypeError: a single string, or an item that is no string.
        InvalidTextError: a lone surrogate.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{name} must be a list of strings, not one {type(texts).__name__}: pass [{name}]")
    checked = list(texts)
    for position, text in enumerate(checked):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{position}] must be a string, not {type(text).__name__}")
        if reason := lone_surrogate(text):
            raise InvalidTextError(
                f"has {reason}, which is not text: decode the source as UTF-8, or clean it with "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')",
                position=position,
                name=name,
            )
    return checked


def show_progress_of(jobs: list[Job], title: str) -> tqdm[NoReturn]:
    """Draw a bar that counts a text when all models have it."""
    from tqdm.auto import tqdm

    bar = tqdm(total=len(jobs[0]), unit="text", desc=title)
    finished, lock = [0] * len(jobs), threading.Lock()

    def advance(number: int, texts: int) -> None:
        with lock:
            finished[number] += texts
            bar.update(min(finished) - bar.n)

    for number, job in enumerate(jobs):
        job.on_progress = functools.partial(advance, number)
    return bar


def cancel(jobs: list[Job]) -> None:
    """Let go of the work that nobody else waits for."""
    for job in jobs:
        job.future.cancel()


def merge(batches: list[EmbeddingBatch]) -> EmbeddingBatch:
    """Lay the halves of a dense and a sparse model side by side; counts are the dense model's."""
    if len(batches) == 1:
        return batches[0]
    return replace(batches[0], sparse=batches[1].sparse)
