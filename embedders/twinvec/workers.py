"""Daemon threads that execute work in order, and a way to await it.

Not ``concurrent.futures`` executors or ``asyncio.to_thread``: the interpreter shuts those down when the main thread
ends, before it waits for the threads whose work still needs them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.process  # noqa: F401 - scikit-learn needs it, and it cannot be imported once main has ended
import contextlib
import contextvars
import functools
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_BLOCKING = 32  # threads for blocking work, such as calls of a store


class Workers:
    """At most ``most`` threads, each started when there is work and no thread is free."""

    def __init__(self, name: str, most: int = 1) -> None:
        self._name, self._most = name, most
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def run(self, work: Callable[[], object]) -> None:
        """Queue work; how it ends is not reported."""
        self._work.put(work)
        if self._idle.acquire(blocking=False):
            return
        with self._lock:
            if len(self._threads) < self._most:
                thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def close(self) -> None:
        """End the threads once all work queued before is done."""
        self._work.put(None)

    def join(self) -> None:
        """Wait for the threads to end, except the caller's own."""
        with self._lock:  # another caller may be just starting one
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException:
                _logger.exception("%s: unexpected error", self._name)
            del work
            self._idle.release()
        self._work.put(None)  # for the others


@functools.cache
def workers(name: str, most: int = 1) -> Workers:
    """Return this process's threads of the given name."""
    return Workers(name, most)


if hasattr(os, "register_at_fork"):  # a child does not inherit the threads
    os.register_at_fork(after_in_child=workers.cache_clear)


def executors_work() -> bool:
    """Return whether the interpreter still lets executors accept work, which it does until the main thread ends."""
    with ThreadPoolExecutor(1) as pool, contextlib.suppress(RuntimeError):
        pool.submit(int)
        return True
    return False


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a blocking function like ``asyncio.to_thread``, but also after the main thread has ended."""
    future: Future[_T] = Future()
    call = functools.partial(contextvars.copy_context().run, functools.partial(function, *args, **kwargs))
    workers("twinvec-blocking", _BLOCKING).run(functools.partial(_settle, future, call))
    return await asyncio.wrap_future(future)


def _settle(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
        del future  # the error's traceback holds this frame
