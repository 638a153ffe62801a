"""Daemon threads that take work in turn, and a way to await it.

Not ``concurrent.futures`` executors and ``asyncio.to_thread``: the interpreter shuts those down when main ends, before
it waits for the threads whose work still needs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_BLOCKING = 32  # threads for what blocks, such as the calls of a store


class Workers:
    """At most ``most`` threads, each started when there is work and none is free."""

    def __init__(self, name: str, most: int = 1) -> None:
        self._name, self._most = name, most
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def run(self, work: Callable[[], object]) -> None:
        """Have work done; how it ends is its own matter."""
        self._work.put(work)
        if self._idle.acquire(blocking=False):
            return
        with self._lock:
            if len(self._threads) < self._most:
                thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def close(self) -> None:
        """End the threads once the work is done that was given before."""
        self._work.put(None)

    def join(self) -> None:
        """Wait for the threads' end, but for the caller's own."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _serve(self) -> None:
        while True:
            try:
                work = self._work.get_nowait()
            except Empty:
                self._idle.release()
                work = self._work.get()
            if work is None:
                self._work.put(None)  # for the others
                return
            try:
                work()
            except BaseException:
                _logger.exception("%s: a defect", self._name)
            del work


@functools.cache
def workers(name: str, most: int = 1) -> Workers:
    """Return the process's own threads of a name."""
    return Workers(name, most)


if hasattr(os, "register_at_fork"):  # the threads do not come along
    os.register_at_fork(after_in_child=workers.cache_clear)


def executors_work() -> bool:
    """Return whether the interpreter still lets executors take work; it does until main ends."""
    with ThreadPoolExecutor(1) as pool, contextlib.suppress(RuntimeError):
        pool.submit(int)
        return True
    return False


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function that blocks, as ``asyncio.to_thread`` does, also after main has ended."""
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
        del future  # the error's traceback has this frame
