"""Poisonous texts, lost devices, memory that runs out, closing: nobody is lost, and nobody else is hurt."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.fakes import Forward, Gate, NoCache, core_of, lose_device, replace_forward, until
from support import TEXTS, dense_of
from twinvec import Embedder, EmbeddingBatch
from twinvec.compute.encoder import Encoder
from twinvec.errors import (
    ConfigurationError,
    DeadlineError,
    DeviceLostError,
    NonFiniteError,
)


def test_a_poisonous_text_hurts_only_its_own_caller(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    poison = "a poisonous text is longer than all others"
    length = len(core_of(embedder).model.tokenizer.encode([poison])[0].ids)

    def poisoned(forward: Forward) -> Forward:
        def run(batch: Any) -> Any:
            states = forward(batch).clone()
            for i in np.flatnonzero(np.array(batch.lengths) == length):
                states[int(batch.cu_seqlens[i]) : int(batch.cu_seqlens[i + 1])] = torch.nan
            return states

        return gate(run)

    replace_forward(embedder, monkeypatch, poisoned)
    with ThreadPoolExecutor(6) as pool:
        blocker = pool.submit(embedder.embed_queries, ["hello"])
        assert gate.entered.wait(60)
        good = [pool.submit(embedder.embed_queries, [text]) for text in ("the", "a", "capital")]
        bad = pool.submit(embedder.embed_queries, ["fine", poison])
        until(lambda: embedder.stats()["queued"] == 5)
        gate.open.set()
        with pytest.raises(NonFiniteError, match=r"texts\[1\]"):
            bad.result(60)
        assert all(len(future.result(60)) == 1 for future in [*good, blocker])
    assert embedder.stats()["failures"] == 1


def test_a_caller_who_shares_a_clean_text_with_a_failing_one_gets_it(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    poison = "a poisonous text is longer than all others"
    length = len(core_of(embedder).model.tokenizer.encode([poison])[0].ids)

    def fail(forward: Forward) -> Forward:
        def run(batch: Any) -> Any:
            if length in batch.lengths:
                raise RuntimeError("poison")
            return forward(batch)

        return gate(run)

    replace_forward(embedder, monkeypatch, fail)
    with ThreadPoolExecutor(3) as pool:
        blocker = pool.submit(embedder.embed_documents, ["hello"])
        assert gate.entered.wait(60)
        bad = pool.submit(embedder.embed_documents, ["shared", poison])
        until(lambda: embedder.stats()["queued"] == 2)
        good = pool.submit(embedder.embed_documents, ["shared"])
        until(lambda: sum(len(e.waiters) for e in core_of(embedder).state._entries.values()) == 4)
        gate.open.set()
        with pytest.raises(RuntimeError, match="poison"):
            bad.result(60)
        assert len(good.result(60)) == len(blocker.result(60)) == 1


def test_errors_of_the_host_side_reach_only_their_caller(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = core_of(embedder).model.tokenizer
    encode = tokenizer.encode

    def fail(texts: list[str], *rest: Any) -> Any:
        if "bad" in texts:
            raise MemoryError("tokenizer")
        return encode(texts, *rest)

    monkeypatch.setattr(tokenizer, "encode", fail)
    with pytest.raises(MemoryError, match="tokenizer"):
        embedder.embed_documents(["bad"])
    assert len(embedder.embed_documents(["good"])) == 1


def test_a_failing_progress_function_rejects_its_caller(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, n: float = 1) -> None:
        raise OSError("broken terminal")

    monkeypatch.setattr("tqdm.auto.tqdm.update", fail)
    with pytest.raises(OSError, match="broken terminal"):
        embedder.embed_documents(["x"], show_progress=True)
    assert len(embedder.embed_documents(["y"])) == 1


def test_a_lost_device_rejects_everything_and_can_be_restarted(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = dense_of(embedder.embed_documents(TEXTS))
    gate = Gate()
    with monkeypatch.context() as patch:
        replace_forward(embedder, patch, lambda forward: gate(lose_device(forward)))
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(embedder.embed_documents, [f"text {i}"]) for i in range(3)]
            assert gate.entered.wait(60)
            gate.open.set()
            for call in calls:
                with pytest.raises(DeviceLostError, match="illegal memory access"):
                    call.result(60)
        assert not embedder.healthy
        assert embedder.stats()["healthy"] is False
        with pytest.raises(DeviceLostError):
            embedder.embed_queries(["x"])
    embedder.restart()
    assert embedder.healthy
    np.testing.assert_allclose(dense_of(embedder.embed_documents(TEXTS)), expected, atol=1e-5)


def test_a_device_lost_while_a_failed_batch_is_tried_again_is_lost(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, passes = Gate(), iter([None, "some failure", *["CUDA error: lost"] * 9])

    def fail(forward: Forward) -> Forward:
        def run(batch: Any) -> Any:
            if (message := next(passes)) is not None:
                raise RuntimeError(message)
            return forward(batch)

        return gate(run)

    with ThreadPoolExecutor(3) as pool, monkeypatch.context() as patch:
        replace_forward(embedder, patch, fail)
        blocker = pool.submit(embedder.embed_documents, ["hello"])
        assert gate.entered.wait(60)
        others = [pool.submit(embedder.embed_documents, [text]) for text in ("a", "b")]
        until(lambda: embedder.stats()["queued"] == 2)
        gate.open.set()
        blocker.exception(60)  # finished, or rejected in the moment before
        for other in others:
            with pytest.raises(DeviceLostError):
                other.result(60)
    assert not embedder.healthy
    embedder.restart()


def test_a_new_embedder_restarts_a_lost_core_for_all_its_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Embedder(folder, dtype="float32")
    with monkeypatch.context() as patch:
        replace_forward(old, patch, lose_device)
        with pytest.raises(DeviceLostError):
            old.embed_documents(["x"])
    with Embedder(folder, dtype="float32") as new:
        assert core_of(new) is core_of(old)
        assert len(new.embed_documents(["x"])) == 1
        assert len(old.embed_documents(["z"])) == 1
        old.close()
        assert len(new.embed_documents(["y"])) == 1


def test_a_lost_core_does_not_keep_its_embedder_alive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Embedder(folder, dtype="float32")
    with monkeypatch.context() as patch:
        replace_forward(made, patch, lose_device)
        with pytest.raises(DeviceLostError):
            made.embed_documents(["x"])
    alive = weakref.ref(made)
    del made
    gc.collect()
    until(lambda: alive() is None)


def test_a_timed_out_or_cancelled_task_leaves_no_noise_in_the_loop(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    replace_forward(embedder, monkeypatch, gate)

    async def run() -> None:
        with pytest.raises(DeadlineError):
            await embedder.aembed_queries(["a"], timeout=0.001)
        task = asyncio.create_task(embedder.aembed_queries(["b"], timeout=30))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        gc.collect()

    asyncio.run(run())
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"]


def test_the_next_batch_is_on_the_device_before_the_last_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    events = ""
    start = Encoder.start

    def starting(self: Encoder, *args: Any) -> Any:
        nonlocal events
        events += "s"
        finish = start(self, *args)

        def finishing() -> Any:
            nonlocal events
            events += "f"
            return finish()

        return finishing

    texts = [f"text number {i}" for i in range(60)]
    with Embedder(folder, dtype="float32", memo_bytes=0, token_budget=32) as embedder:
        expected = dense_of(embedder.embed_documents(texts))
        monkeypatch.setattr(Encoder, "start", starting)
        np.testing.assert_array_equal(dense_of(embedder.embed_documents(texts)), expected)
    assert events.count("s") == events.count("f") > 5
    assert ("ss" in events) == asynchronous
    assert "sss" not in events
    assert events.endswith("f")


def test_a_device_that_is_lost_takes_the_batch_behind_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = iter([False, False, True])

    def fail_late(forward: Forward) -> Forward:
        def run(batch: Any) -> Any:
            if next(passes, True):
                raise RuntimeError("CUDA error: device-side assert triggered")
            return forward(batch)

        return run

    with Embedder(folder, dtype="float32", memo_bytes=0, token_budget=16) as embedder:
        replace_forward(embedder, monkeypatch, fail_late)
        with ThreadPoolExecutor(8) as pool:
            texts = [[f"text number {i} of {j}" for j in range(9)] for i in range(8)]
            calls = [pool.submit(embedder.embed_documents, some) for some in texts]
            assert all(isinstance(call.exception(60), DeviceLostError) for call in calls)


def test_a_lowered_token_budget_is_won_back(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinvec.compute.out_of_memory.CALM", 4)
    full = embedder.stats()["token_budget"]
    attempts = iter([True, True])

    def short_of_memory(forward: Forward) -> Forward:
        def run(batch: Any) -> Any:
            if next(attempts, False):
                raise torch.OutOfMemoryError("another process has it")
            return forward(batch)

        return run

    replace_forward(embedder, monkeypatch, short_of_memory)
    embedder.embed_documents([f"text {i} with some words" for i in range(200)])
    assert embedder.stats()["out_of_memory"] == 2
    for i in range(30):
        embedder.embed_documents([f"another {i}"])
    assert embedder.stats()["token_budget"] == full


def test_a_defect_in_the_device_thread_hangs_nobody(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise AssertionError("a defect of ours")

    with monkeypatch.context() as patch:
        patch.setattr(core_of(embedder).state, "failed", broken)
        replace_forward(embedder, patch, lambda _: broken)
        with pytest.raises(DeviceLostError, match="a defect of ours"):
            embedder.embed_documents(["x"])
    embedder.restart()
    assert len(embedder.embed_documents(["x"])) == 1


def two_pending(embedder: Embedder, gate: Gate, pool: ThreadPoolExecutor) -> list[Future[EmbeddingBatch]]:
    """Return two calls, one of which the device is held at."""
    calls = [pool.submit(embedder.embed_documents, [str(i)]) for i in range(2)]
    assert gate.entered.wait(60)
    until(lambda: len(core_of(embedder).state.jobs) == 2)
    return calls


def test_closing_rejects_what_is_pending(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(folder, dtype="float32", memo_bytes=0)
    gate = Gate()
    replace_forward(embedder, monkeypatch, gate)
    with ThreadPoolExecutor(3) as pool:
        calls = two_pending(embedder, gate, pool)
        closing = pool.submit(embedder.close)
        for call in calls:
            with pytest.raises(ConfigurationError, match="closed"):
                call.result(60)
        gate.open.set()
        closing.result(60)


def test_draining_lets_what_is_pending_finish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(folder, dtype="float32", memo_bytes=0)
    gate = Gate()
    replace_forward(embedder, monkeypatch, gate)
    with ThreadPoolExecutor(3) as pool:
        calls = two_pending(embedder, gate, pool)
        closing = pool.submit(embedder.close, drain=True)
        until(lambda: not embedder.healthy)
        gate.open.set()
        assert all(len(call.result(60)) == 1 for call in calls)
        closing.result(60)


def test_a_text_that_was_on_its_way_when_the_device_died_is_computed_after_the_restart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(folder, dtype="float32", memo_bytes=0, cache=NoCache())  # so that a host thread tokenises
    core = core_of(embedder)
    tokenizer = core.model.tokenizer
    encode, entered, release = tokenizer.encode, threading.Event(), threading.Event()

    def slow(texts: list[str], *rest: Any) -> Any:
        if "late" in texts and not release.is_set():
            entered.set()
            assert release.wait(60)
        return encode(texts, *rest)

    monkeypatch.setattr(tokenizer, "encode", slow)
    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        late = pool.submit(embedder.embed_queries, ["late"])
        assert entered.wait(60)
        replace_forward(embedder, patch, lose_device)
        with pytest.raises(DeviceLostError):
            embedder.embed_documents(["x"])
        with pytest.raises(DeviceLostError):
            late.result(60)
        release.set()
    embedder.restart()
    assert len(embedder.embed_queries(["late"], timeout=60)) == 1
    embedder.close()
