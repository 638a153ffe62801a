"""Stand-ins for the forward pass and for a cache, and what waits for other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from twinvec import Embedder
from twinvec.engine.core import InferenceCore

Forward = Callable[[Any], Any]


def core_of(embedder: Embedder) -> InferenceCore:
    return embedder._core


def replace_forward(embedder: Embedder, monkeypatch: pytest.MonkeyPatch, make: Callable[[Forward], Forward]) -> None:
    backbone = core_of(embedder).model.encoder.backbone
    monkeypatch.setattr(backbone, "forward", make(backbone.forward))


class Gate:
    """Holds the device inside of a forward pass until it is opened."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, forward: Forward) -> Forward:
        def held(batch: Any) -> Any:
            self.batches.append(batch.lengths)
            self.entered.set()
            assert self.open.wait(60)
            return forward(batch)

        return held


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do; bounded, without a fixed sleep."""
    waiter = threading.Event()
    for _ in range(6000):
        if condition():
            return
        waiter.wait(0.01)
    raise AssertionError("it did not happen within a minute")


def lose_device(forward: Forward) -> Forward:
    def lost(batch: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    return lost


class NoCache:
    def get_many(self, namespace: str, keys: Any) -> Any:
        return [None] * len(keys)

    def put_many(self, namespace: str, rows: Any) -> None:
        pass
