"""A call and its caller: one deadline for all its models, one result, one way to wake up threads and event loops."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from twinvec.errors import DeadlineError
from twinvec.flows import call, on_thread
from twinvec.vectors import EmbeddingBatch

if TYPE_CHECKING:
    from tqdm import tqdm

_REFRESH = 0.1  # seconds between progress updates
_SMALL = 256  # up to this many texts, rows are assembled on the event loop


class Bell:
    """Wakes up a call's caller whenever one of its parts has ended; ``tell`` rings it.

    Attributes:
        rings: one item for each.
        sleeper: to be resolved if the caller waits on an event loop.
    """

    def __init__(self) -> None:
        self.rings: SimpleQueue[None] = SimpleQueue()
        self.sleeper: asyncio.Future[None] | None = None

    def wait(self, seconds: float | None) -> None:
        """Block until it rings; no longer than this."""
        with suppress(Empty):
            self.rings.get(timeout=seconds)

    async def wait_async(self, seconds: float | None) -> None:
        """Do the same without blocking the event loop."""
        loop = asyncio.get_running_loop()
        self.sleeper = loop.create_future()
        alarm = None if seconds is None else loop.call_later(seconds, _wake, [self.sleeper])
        try:
            if self.rings.empty():  # else it rang before anybody could be woken
                await self.sleeper
        finally:
            if alarm is not None:
                alarm.cancel()
        with suppress(Empty):
            self.rings.get_nowait()


@dataclass(eq=False)
class Part(ABC):
    """One model's part of a call.

    Attributes:
        given: the texts.
        bell: rings once the part has ended.
        over: whether its caller has been told that all rows are there, or that ``error`` says why they are not.
    """

    given: Sequence[str]
    bell: Bell = field(init=False)
    over: bool = field(default=False, init=False)
    error: BaseException | None = field(default=None, init=False)

    @property
    @abstractmethod
    def done(self) -> float:
        """Return the fraction of texts whose row is ready."""

    @abstractmethod
    def start(self) -> None:
        """Start; never blocks."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel work that nobody else waits for."""

    @abstractmethod
    def batch(self) -> EmbeddingBatch:
        """Return the rows, once it is over."""

    def figures(self) -> Mapping[str, float]:
        """Return figures about the work, once it is over."""
        return {}


def tell(parts: Sequence[Part]) -> None:
    """Let the callers of these parts know that they are over; an event loop gets one message for all its callers."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for part in parts:
        part.over = True
        part.bell.rings.put(None)
        if (sleeper := part.bell.sleeper) is not None:
            loops.setdefault(sleeper.get_loop(), []).append(sleeper)
    for loop, sleepers in loops.items():
        with suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(_wake, sleepers)


def _wake(sleepers: Sequence[asyncio.Future[None]]) -> None:
    for sleeper in sleepers:
        if not sleeper.done():
            sleeper.set_result(None)


async def gather(parts: list[Part], timeout: float | None, title: str | None = None) -> EmbeddingBatch:
    """Run the parts of one call, a flow; the first one supplies the token counts.

    Args:
        parts: one for each model.
        timeout: seconds for all of them together.
        title: of a progress bar; None draws none.

    Raises:
        DeadlineError: the time is over.
    """
    end = None if timeout is None else time.monotonic() + timeout
    bell, texts = Bell(), len(parts[0].given)
    try:
        with _bar(title, texts) as bar:
            for part in parts:
                part.bell = bell
                part.start()
            while not _over(parts):
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise DeadlineError(f"{texts} texts were not embedded within {timeout} s")
                await call(bell.wait, bell.wait_async, left if bar is None else min(left or _REFRESH, _REFRESH))
                if bar is not None:
                    bar.update(int(texts * min(part.done for part in parts)) - bar.n)
        return _joined(parts) if texts <= _SMALL else await on_thread(_joined, parts)
    except BaseException:
        for part in parts:
            part.cancel()
        del parts[:], part  # they hold the error, whose traceback holds this frame
        raise


def _over(parts: Sequence[Part]) -> bool:
    return all(part.over for part in parts) or _has_failed(parts)


def _has_failed(parts: Sequence[Part]) -> bool:
    return any(part.over and part.error is not None for part in parts)


def _joined(parts: Sequence[Part]) -> EmbeddingBatch:
    if _has_failed(parts):
        raise next(part.error for part in parts if part.error is not None)
    batches = [part.batch() for part in parts]
    return batches[0] if len(batches) == 1 else replace(batches[0], sparse=batches[-1].sparse)


def _bar(title: str | None, texts: int) -> AbstractContextManager[tqdm[NoReturn] | None]:
    if title is None:
        return nullcontext()
    from tqdm.auto import tqdm

    return tqdm(total=texts, unit="text", desc=title)
