"""The queue that all callers of a model share: what goes into the next forward pass.

Queries go before bulk work at every batch boundary, but not for ever; bulk work is planned by length over many callers.
A lone query never waits; while other callers are still being tokenised, an unfilled batch waits for them a moment.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from itertools import chain, islice
from typing import Generic, Protocol, TypeVar

from twinvec.compute.packing import plan

_PATIENCE = 0.002  # seconds that an unfilled batch waits for callers that are being tokenised
_PLAN_BATCHES = 16  # batches planned at once: enough to sort by length, few enough to stay fair
_GLANCE = 4096  # entries that are looked at to see whether a batch is full
_STREAK = 8  # batches of queries in a row while bulk work waits


class Item(Protocol):
    """What the scheduler needs to know of an entry."""

    @property
    def n_tokens(self) -> int:
        """Return its size."""

    @property
    def live(self) -> bool:
        """Return whether anyone still waits for it."""


T = TypeVar("T", bound=Item)


class Scheduler(Generic[T]):
    """Two lanes, urgent and bulk; thread safe; any number of devices may take batches."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._urgent: deque[T] = deque()
        self._bulk: deque[T] = deque()
        self._planned: deque[list[T]] = deque()
        self._arriving = 0
        self._streak = 0
        self._closed = False

    def announce(self) -> None:
        """Say that a caller's texts are on the way; ``arrived`` must follow."""
        with self._changed:
            self._arriving += 1

    def arrived(self) -> None:
        """Take one announcement back: its texts are queued, or will not come."""
        with self._changed:
            self._arriving -= 1
            self._changed.notify_all()

    def put(self, items: Iterable[T], *, urgent: bool) -> None:
        """Queue entries; after ``close`` they are dropped, their callers have been told."""
        with self._changed:
            if not self._closed:
                (self._urgent if urgent else self._bulk).extend(items)
                self._changed.notify_all()

    def put_back(self, batch: list[T]) -> None:
        """Queue a batch again, before all other bulk work: the device that took it is gone."""
        with self._changed:
            if not self._closed:
                self._planned.appendleft(batch)
                self._changed.notify_all()

    def take(self, token_budget: int, *, wait: bool = True) -> list[T] | None:
        """Return the next batch: at most ``token_budget`` tokens of live entries, or one longer entry.

        Entries that nobody waits for any more come along and are not counted. None after ``close``.

        Args:
            token_budget: see above.
            wait: for a batch; False takes queries and full batches only, and else nothing: the device is busy, and
                what arrives meanwhile makes the batch better.
        """
        with self._changed:
            patience: float | None = None
            while not self._closed:
                if not wait:
                    ready = self._urgent or self._planned or self._queued_tokens() >= token_budget
                    return self._pop(token_budget) if ready else []
                if not (self._urgent or self._bulk or self._planned):
                    patience = None
                    self._changed.wait()
                    continue
                if self._arriving and self._queued_tokens() < token_budget:
                    patience = patience or time.monotonic() + _PATIENCE
                    if (left := patience - time.monotonic()) > 0:
                        self._changed.wait(left)
                        continue
                return self._pop(token_budget)
            return None

    def close(self) -> None:
        """Drop what is queued and let every ``take`` return None."""
        with self._changed:
            self._closed = True
            for lane in (self._urgent, self._bulk, self._planned):
                lane.clear()
            self._changed.notify_all()

    @property
    def queued(self) -> int:
        """Return the number of entries that wait for a device."""
        with self._changed:
            return len(self._urgent) + len(self._bulk) + sum(map(len, self._planned))

    def _queued_tokens(self) -> int:
        waiting = self._planned[0] if self._planned else chain(self._urgent, islice(self._bulk, _GLANCE))
        return sum(item.n_tokens for item in waiting)

    def _pop(self, token_budget: int) -> list[T]:
        bulk_waits = bool(self._bulk or self._planned)
        if self._urgent and (self._streak < _STREAK or not bulk_waits):
            self._streak += 1
            return sorted(_fill(self._urgent, token_budget), key=lambda item: -item.n_tokens)
        self._streak = 0
        if not self._planned:
            items = _fill(self._bulk, _PLAN_BATCHES * token_budget)
            batches = plan([item.n_tokens for item in items], token_budget)
            self._planned.extend([items[i] for i in batch] for batch in batches)
        return self._planned.popleft()


def _fill(lane: deque[T], token_budget: int) -> list[T]:
    batch: list[T] = []
    room = token_budget
    while lane and (not batch or lane[0].n_tokens <= room or not lane[0].live):
        item = lane.popleft()
        batch.append(item)
        room -= item.n_tokens if item.live else 0
    return batch
