"""Sync and async from one body: a flow is written once; ``block`` drives it for threads, ``wait`` for an event loop.

A flow is a coroutine that awaits only other flows and calls; a call is an outside operation in two forms.

    @blocking
    async def answer(self, query: str) -> list[Hit]:
        batch = await call(self.embedder.embed_queries, self.embedder.aembed_queries, [query])
        return await on_thread(self._rank, batch)

    aanswer = awaiting(answer)

``blocking`` makes a flow a method for threads, driven by ``block``; ``awaiting`` makes its async twin, driven by
``wait``. ``block`` takes the blocking form of each call, on the caller's own thread and without an event loop, so that
it works inside a running one, too. ``wait`` awaits the other form. Errors and cancellation of a call are raised inside
the flow, at the point where it awaits the call, so that ``try`` and ``finally`` work as usual under both drivers.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar

from twinvec.workers import in_thread

_P = ParamSpec("_P")
_T = TypeVar("_T")
Flow: TypeAlias = Coroutine[Any, Any, _T]


@dataclass(frozen=True)
class Call(Generic[_T]):
    """An operation that a flow needs from the outside.

    Attributes:
        blocking: performs it on this thread.
        awaiting: performs it without blocking the event loop.
    """

    blocking: Callable[[], _T]
    awaiting: Callable[[], Awaitable[_T]]

    def __await__(self) -> Generator[Any, Any, _T]:
        value: _T = yield self
        return value


def call(
    blocking: Callable[_P, _T], awaiting: Callable[..., Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs
) -> Call[_T]:
    """Return the call of a method or its async twin, with the same arguments."""
    return Call(functools.partial(blocking, *args, **kwargs), functools.partial(awaiting, *args, **kwargs))


def on_thread(blocking: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Call[_T]:
    """Return the call of a blocking function without an async twin: under an event loop it runs on a thread."""
    work = functools.partial(blocking, *args, **kwargs)
    return Call(work, functools.partial(in_thread, work))


def together(calls: Sequence[Call[_T]]) -> Call[list[_T]]:
    """Return the call of all of them: one after another on a thread, concurrently on an event loop."""

    async def gathered() -> list[_T]:
        return list(await asyncio.gather(*(one.awaiting() for one in calls)))

    return Call(lambda: [one.blocking() for one in calls], gathered)


def threaded(blocking: Callable[_P, _T]) -> Callable[_P, Call[_T]]:
    """Turn a blocking method into one that a flow can await; see ``on_thread``."""

    @functools.wraps(blocking)
    def made(*args: _P.args, **kwargs: _P.kwargs) -> Call[_T]:
        return on_thread(blocking, *args, **kwargs)

    return made


def blocking(flow: Callable[_P, Flow[_T]]) -> Callable[_P, _T]:
    """Turn a flow into a function that runs it on the caller's thread; see ``awaiting`` for its async twin."""

    @functools.wraps(flow)
    def method(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return block(flow(*args, **kwargs))

    return method


def awaiting(method: Callable[_P, _T], name: str | None = None) -> Callable[_P, Flow[_T]]:
    """Return the async twin of a ``blocking`` function; its name has the prefix ``a``, unless it is given."""
    flow: Callable[_P, Flow[_T]] = inspect.unwrap(method)
    plain = method.__name__.lstrip("_")

    @functools.wraps(flow)
    async def twin(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await wait(flow(*args, **kwargs))

    twin.__name__ = name or method.__name__.removesuffix(plain) + f"a{plain}"
    twin.__qualname__ = method.__qualname__.removesuffix(method.__name__) + twin.__name__
    twin.__doc__ = f"See ``{method.__name__}``."
    return twin


def block(flow: Flow[_T]) -> _T:
    """Run a flow on this thread."""
    step: Callable[[], Call[Any]] = functools.partial(flow.send, None)
    try:
        while True:
            wanted = step()
            try:
                step = functools.partial(flow.send, wanted.blocking())
            except BaseException as error:
                step = functools.partial(flow.throw, error)
    except StopIteration as done:
        result: _T = done.value
        return result
    finally:
        del step  # it may hold an error whose traceback holds this frame


async def wait(flow: Flow[_T]) -> _T:
    """Run a flow on the event loop."""
    step: Callable[[], Call[Any]] = functools.partial(flow.send, None)
    try:
        while True:
            wanted = step()
            try:
                step = functools.partial(flow.send, await wanted.awaiting())
            except BaseException as error:
                step = functools.partial(flow.throw, error)
    except StopIteration as done:
        result: _T = done.value
        return result
    finally:
        del step  # it may hold an error whose traceback holds this frame
