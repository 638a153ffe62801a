"""A call and its caller: one deadline for all its models, one result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NoReturn, Protocol, cast

from twinvec.errors import DeadlineError
from twinvec.vectors import EmbeddingBatch
from twinvec.workers import in_thread

if TYPE_CHECKING:
    from tqdm import tqdm

_REFRESH = 0.1  # seconds between progress updates
_SMALL = 256  # up to this many texts, rows are assembled on the event loop


class Part(Protocol):
    """One model's part of a call."""

    future: Future[None]

    @property
    def given(self) -> Sequence[str]:
        """Return the texts."""

    @property
    def done(self) -> float:
        """Return the fraction of texts whose row is ready."""

    def start(self) -> None:
        """Start; never blocks."""

    def cancel(self) -> None:
        """Cancel work that nobody else waits for."""

    def batch(self) -> EmbeddingBatch:
        """Return the rows, once the future is resolved."""

    def figures(self) -> Mapping[str, float]:
        """Return figures about the work, once the future is resolved; see ``Job``."""


class Call:
    """The parts of one call; the first one supplies the token counts.

    Raises:
        DeadlineError: while waiting, after ``timeout`` seconds.
    """

    def __init__(self, parts: Sequence[Part], timeout: float | None) -> None:
        self._parts, self._timeout = parts, timeout
        self._futures = [part.future for part in parts]
        self._texts = len(parts[0].given)

    def wait(self, title: str | None = None) -> EmbeddingBatch:
        """Block until all parts are done or one has failed; ``title`` draws a progress bar."""
        end = None if self._timeout is None else time.monotonic() + self._timeout
        try:
            with _bar(title, self._texts) as bar:
                ended = self._start()
                while not self._over():
                    left = None if end is None else end - time.monotonic()
                    if left is not None and left <= 0:
                        break
                    with suppress(Empty):
                        ended.get(timeout=left if bar is None else min(left or _REFRESH, _REFRESH))
                    self._show(bar)
            return self._answer()
        except BaseException:
            self._cancel()
            raise

    async def wait_async(self, title: str | None = None) -> EmbeddingBatch:
        """Do the same without blocking the event loop."""
        end = None if self._timeout is None else time.monotonic() + self._timeout
        try:
            with _bar(title, self._texts) as bar:
                self._start()
                waiting = [_quiet(asyncio.wrap_future(future)) for future in self._futures]
                left = self._timeout
                while left is None or left > 0:
                    pause = left if bar is None else min(left or _REFRESH, _REFRESH)
                    await asyncio.wait(waiting, timeout=pause, return_when=FIRST_EXCEPTION)
                    self._show(bar)
                    if self._over():
                        break
                    left = None if end is None else end - time.monotonic()
                del waiting
            return self._answer() if self._texts <= _SMALL else await in_thread(self._answer)
        except BaseException:
            self._cancel()
            raise

    def figures(self) -> Mapping[str, float]:
        """Return figures about the first model's work, once the result is there."""
        return self._parts[0].figures()

    def _start(self) -> SimpleQueue[None]:
        """Begin; the queue gets an item whenever a part ends, which costs less than ``concurrent.futures.wait``."""
        ended: SimpleQueue[None] = SimpleQueue()
        for part in self._parts:
            part.future.add_done_callback(lambda _: ended.put(None))
            part.start()
        return ended

    def _show(self, bar: tqdm[NoReturn] | None) -> None:
        if bar is not None:
            bar.update(int(self._texts * min(part.done for part in self._parts)) - bar.n)

    def _cancel(self) -> None:
        for part in self._parts:
            part.cancel()
        self._parts, self._futures = (), []  # they hold the error, whose traceback holds this

    def _over(self) -> bool:
        return self._failure() is not None or all(future.done() for future in self._futures)

    def _failure(self) -> BaseException | None:
        return next(filter(None, (future.exception() for future in self._futures if future.done())), None)

    def _answer(self) -> EmbeddingBatch:
        if self._failure() is not None:
            raise cast(BaseException, self._failure())  # not in a variable, see _cancel
        if not self._over():
            raise DeadlineError(f"{self._texts} texts were not embedded within {self._timeout} s")
        batches = [part.batch() for part in self._parts]
        return replace(batches[0], sparse=batches[-1].sparse)


def _quiet(future: asyncio.Future[None]) -> asyncio.Future[None]:
    """Keep the event loop from logging an unretrieved error for a caller that has gone."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _bar(title: str | None, texts: int) -> AbstractContextManager[tqdm[NoReturn] | None]:
    if title is None:
        return nullcontext()
    from tqdm.auto import tqdm

    return tqdm(total=texts, unit="text", desc=title)
