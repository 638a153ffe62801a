"""Overload, deadlines, cancellation."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.fakes import Gate, core_of, replace_forward, until
from twinvec import Embedder
from twinvec.errors import (
    DeadlineError,
    OverloadedError,
)


def test_a_full_queue_refuses_or_waits_as_the_caller_wants(
    folder: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinvec.engine.dispatcher.MAX_PENDING", 3)
    gate = Gate()
    replace_forward(embedder, monkeypatch, gate)
    with (
        Embedder(folder, dtype="float32", memo_bytes=0, on_overload="error") as strict,
        ThreadPoolExecutor(3) as pool,
    ):
        running = pool.submit(embedder.embed_documents, ["a", "b", "c"])
        assert gate.entered.wait(60)
        with pytest.raises(OverloadedError, match="3 texts are pending, the limit is 3"):
            strict.embed_queries(["x"])
        waiting = pool.submit(embedder.embed_documents, ["d", "e"])
        until(lambda: len(core_of(embedder).state._hungry) == 1)
        gate.open.set()
        assert len(running.result(60)) == 3
        assert len(waiting.result(60)) == 2
        assert len(strict.embed_queries(["x"])) == 1


def test_a_call_larger_than_the_limit_is_taken_when_nothing_is_pending(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinvec.engine.dispatcher.MAX_PENDING", 2)
    assert len(embedder.embed_documents([str(i) for i in range(50)])) == 50


def test_a_deadline_frees_the_caller_and_the_work(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    replace_forward(embedder, monkeypatch, gate)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(embedder.embed_documents, ["a"])
        assert gate.entered.wait(60)
        with pytest.raises(DeadlineError, match=r"2 texts were not embedded within 0\.01 s"):
            embedder.embed_documents(["b", "c"], timeout=0.01)
        with pytest.raises(TimeoutError):
            asyncio.run(embedder.aembed_queries(["d"], timeout=0.01))
        gate.open.set()
        assert len(running.result(60)) == 1
    assert len(embedder.embed_documents(["e"])) == 1
    assert [len(batch) for batch in gate.batches] == [1, 1]


def test_cancelled_callers_are_skipped(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    replace_forward(embedder, monkeypatch, gate)

    async def run() -> None:
        tasks = [asyncio.create_task(embedder.aembed_queries([f"text {i}"])) for i in range(5)]
        while not gate.entered.is_set():
            await asyncio.sleep(0)
        for task in tasks[1:]:
            task.cancel()
        gate.open.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert len(results[0]) == 1  # type: ignore[arg-type]
        assert all(isinstance(r, asyncio.CancelledError) for r in results[1:])

    asyncio.run(run())
    assert len(embedder.embed_documents(["after"])) == 1
