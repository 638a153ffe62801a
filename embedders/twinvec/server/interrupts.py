"""Interrupts: what a task waits for is given up, without the scopes of anyio, which cost ten times as much."""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType
from typing import Any


class Interrupt:
    """A block of one task that can be interrupted from the event loop; it then ends early and ``happened`` is true.

    A cancellation by anyone else goes on as usual.
    """

    def __init__(self) -> None:
        self.happened = False
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelled = task, _cancelled(task)
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> None:
        """Interrupt the block."""
        if not self.happened:
            self.happened = True
            self._task.cancel()

    def in_seconds(self, seconds: float) -> None:
        """Interrupt the block unless it ends before."""
        self._timer = self._loop.call_later(seconds, self)

    def __enter__(self) -> Interrupt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._timer is not None:
            self._timer.cancel()
        if not self.happened:
            return False
        if sys.version_info >= (3, 11):
            self._task.uncancel()  # whatever became of our own one
        return kind is asyncio.CancelledError and _cancelled(self._task) <= self._cancelled


def _cancelled(task: asyncio.Task[Any]) -> int:
    """Return how often a task was asked to end; before Python 3.11 nobody counts."""
    if sys.version_info >= (3, 11):
        return task.cancelling()
    return 0
