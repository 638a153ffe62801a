"""A forward pass that waits, and an event loop that is seen to go on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any


class Gate:
    """Stands in for a forward pass: holds the device until it is opened, and counts the texts of each pass."""

    def __init__(self, forward: Callable[[Any], Any]) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.batches: list[int] = []
        self._forward = forward

    def __call__(self, batch: Any) -> Any:
        self.batches.append(len(batch.lengths))
        self.entered.set()
        assert self.open.wait(60)
        return self._forward(batch)


async def turns_while_held(gate: Gate, work: asyncio.Task[Any], wanted: int = 100) -> int:
    """Return how often the event loop comes round while the device is held; ends by opening the gate."""
    turns = 0
    while not gate.entered.is_set() or turns < wanted:
        await asyncio.sleep(0)
        turns += gate.entered.is_set()
        assert not work.done()
    gate.open.set()
    return turns
