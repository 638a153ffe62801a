"""One core for every caller: sharing, dynamic batches, priorities, failures, the memo, replicas. Fakes replace only the
forward pass."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reference.giga import build_giga_0826
from reference.gte import build_gte
from reference.sentence_layouts import build_splade
from support import TEXTS, dense_of, sparse_of
from twinvec import Embedder
from twinvec.cache import VectorCache
from twinvec.compute.encoder import Encoder
from twinvec.engine import loading
from twinvec.engine.core import InferenceCore
from twinvec.engine.registry import REGISTRY
from twinvec.errors import (
    ConfigurationError,
    DeadlineError,
    DeviceLostError,
    NonFiniteError,
    OverloadedError,
    TextTooLongError,
)

Forward = Callable[[Any], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gte(tmp_path_factory.mktemp("core"), seed=11)


@pytest.fixture(autouse=True, params=[False, True], ids=["waiting", "working ahead"])
def asynchronous(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test runs with a device whose thread waits for it, and with one that gets the next batch meanwhile."""
    monkeypatch.setattr(Encoder, "asynchronous", request.param)
    return bool(request.param)


@pytest.fixture
def embedder(folder: Path) -> Iterator[Embedder]:
    with Embedder(folder, dtype="float32", memo_bytes=0) as made:
        yield made


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


# --- sharing


def test_prompts_dims_keys_lengths_and_halves_share_one_model(folder: Path) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"dim": 16},
        {"sparse": None},
        {"sparse_keys": "ids"},
        {"max_length": 8},
        {"prompts": {"query": "q: "}},
        {"memo_bytes": 0},
    ]
    made = [Embedder(folder, dtype="float32", **option) for option in options]
    assert len({id(core_of(e)) for e in made}) == 1
    full = dense_of(made[0].embed_documents(["the capital"]))
    small = dense_of(made[1].embed_documents(["the capital"]))
    np.testing.assert_allclose(small[0], full[0, :16] / np.linalg.norm(full[0, :16]), atol=1e-6)
    for e in made:
        e.close()


@pytest.mark.parametrize("option", [{"dtype": "bfloat16"}, {"dtype": "float32", "reproducible": True}])
def test_what_changes_the_forward_pass_is_another_model(folder: Path, option: dict[str, Any]) -> None:
    with Embedder(folder, dtype="float32") as one, Embedder(folder, **option) as other:
        assert core_of(one) is not core_of(other)


def test_threads_that_load_at_once_load_once(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Embedder(folder, dtype="float32"), range(8)))
    assert len({id(core_of(e)) for e in made}) == 1
    for e in made:
        e.close()


def test_closing_one_user_leaves_the_others_working_and_the_last_one_frees(folder: Path) -> None:
    one, other = Embedder(folder, dtype="float32"), Embedder(folder, dtype="float32", dim=32)
    core = core_of(one)
    one.close()
    with pytest.raises(ConfigurationError, match="closed"):
        one.embed_documents(["a"])
    assert not one.healthy
    assert len(other.embed_documents(["a"])) == 1
    other.close()
    assert not any(thread.is_alive() for thread in core._threads)
    assert core not in [slot.core for slot in REGISTRY._slots.values()]


def test_a_collected_embedder_gives_its_share_back(folder: Path) -> None:
    made = Embedder(folder, dtype="float32")
    threads = core_of(made)._threads
    del made
    gc.collect()
    until(lambda: not any(thread.is_alive() for thread in threads))


def test_a_failed_load_leaves_nothing_behind(tmp_path: Path) -> None:
    dense, sparse = build_gte(tmp_path / "dense", seed=12), build_splade(tmp_path / "sparse")
    (sparse / "model.safetensors").write_bytes(b"broken")
    before = len(REGISTRY)
    with pytest.raises(Exception, match="Download it again"):
        Embedder(dense, sparse=sparse)
    assert len(REGISTRY) == before


# --- dynamic batches


def test_64_concurrent_queries_take_at_most_3_passes(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"query number {i} {'word ' * (i % 7)}" for i in range(64)]
    expected = [dense_of(embedder.embed_queries([text]))[0] for text in texts]
    gate = Gate()  # holds the first pass until all have come, however long a busy machine takes
    replace_forward(embedder, monkeypatch, gate)

    async def run() -> list[Any]:
        calls = [asyncio.ensure_future(embedder.aembed_queries([text])) for text in texts]
        while embedder.stats()["queued"] + sum(map(len, gate.batches)) < len(texts):
            await asyncio.sleep(0)
        gate.open.set()
        return await asyncio.gather(*calls)

    batches = asyncio.run(asyncio.wait_for(run(), 60))
    assert 0 < len(gate.batches) <= 3
    for batch, wanted in zip(batches, expected, strict=True):
        np.testing.assert_allclose(dense_of(batch)[0], wanted, atol=1e-5)


def test_callers_that_come_while_the_device_works_share_the_next_pass(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    replace_forward(embedder, monkeypatch, gate)
    with ThreadPoolExecutor(16) as pool:
        first = pool.submit(embedder.embed_queries, ["first"])
        assert gate.entered.wait(60)
        others = [pool.submit(embedder.embed_queries, [f"other {i}"]) for i in range(12)]
        until(lambda: embedder.stats()["queued"] == 12)
        gate.open.set()
        assert all(len(future.result(60)) == 1 for future in [first, *others])
    assert [len(batch) for batch in gate.batches] == [1, 12]


def test_equal_texts_of_several_callers_in_flight_are_computed_once(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    replace_forward(embedder, monkeypatch, gate)
    before = embedder.stats()["texts"]
    with ThreadPoolExecutor(4) as pool:
        blocker = pool.submit(embedder.embed_queries, ["blocker"])
        assert gate.entered.wait(60)
        same = [pool.submit(embedder.embed_queries, ["the same"]) for _ in range(3)]
        until(lambda: sum(len(e.waiters) for e in core_of(embedder).state._entries.values()) == 4)
        gate.open.set()
        rows = [dense_of(future.result(60)) for future in [*same, blocker]]
    assert embedder.stats()["texts"] - before == 2
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_queries_overtake_a_bulk_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Embedder(folder, dtype="float32", memo_bytes=0, token_budget=32) as embedder:
        gate = Gate()
        replace_forward(embedder, monkeypatch, gate)
        with ThreadPoolExecutor(2) as pool:
            bulk = pool.submit(embedder.embed_documents, [f"{i} two three four five" for i in range(200)])
            assert gate.entered.wait(60)
            until(lambda: embedder.stats()["queued"] > 100)
            query = pool.submit(embedder.embed_queries, ["a"])
            until(lambda: any(urgent for _, urgent in core_of(embedder).state._entries))
            until(lambda: core_of(embedder).state.lanes.urgent)  # type: ignore[arg-type, return-value]
            gate.open.set()
            assert len(query.result(60)) == 1
            assert len(bulk.result(60)) == 200
        assert len(gate.batches[1]) == 1  # the query alone, at the first boundary


def test_several_event_loops_at_once_share_the_model(embedder: Embedder) -> None:
    expected = dense_of(embedder.embed_queries(TEXTS))

    async def one_loop() -> list[Any]:
        return list(await asyncio.gather(*(embedder.aembed_queries([text]) for text in TEXTS)))

    with ThreadPoolExecutor(4) as pool:
        loops = [pool.submit(asyncio.run, one_loop()) for _ in range(4)]
        for loop in loops:
            rows = np.concatenate([dense_of(batch) for batch in loop.result(60)])
            np.testing.assert_allclose(rows, expected, atol=1e-5)


def _embed_there(embedder: Embedder, texts: list[str]) -> Any:
    return dense_of(embedder.embed_documents(texts))


def test_a_pickled_embedder_works_in_another_process(folder: Path, embedder: Embedder) -> None:
    expected = dense_of(embedder.embed_documents(TEXTS))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = pool.submit(_embed_there, embedder, TEXTS).result(120)
    np.testing.assert_allclose(rows, expected, atol=1e-5)


# --- overload, deadlines, cancellation


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


# --- failures


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


def lose_device(forward: Forward) -> Forward:
    def lost(batch: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    return lost


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


def test_closing_rejects_what_is_pending(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(folder, dtype="float32", memo_bytes=0)
    gate = Gate()
    replace_forward(embedder, monkeypatch, gate)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(embedder.embed_documents, [str(i)]) for i in range(2)]
        assert gate.entered.wait(60)
        until(lambda: len(core_of(embedder).state.jobs) == 2)
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
        calls = [pool.submit(embedder.embed_documents, [str(i)]) for i in range(2)]
        assert gate.entered.wait(60)
        until(lambda: len(core_of(embedder).state.jobs) == 2)
        closing = pool.submit(embedder.close, drain=True)
        until(lambda: not embedder.healthy)
        gate.open.set()
        assert all(len(call.result(60)) == 1 for call in calls)
        closing.result(60)


class NoCache:
    def get_many(self, namespace: str, keys: Any) -> Any:
        return [None] * len(keys)

    def put_many(self, namespace: str, rows: Any) -> None:
        pass


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


# --- replicas


def test_replicas_share_one_queue_and_the_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Embedder(folder, device="cpu,cpu", dtype="float32", memo_bytes=0, token_budget=16) as embedder:
        encoders = core_of(embedder).model.encoders
        assert len(encoders) == 2
        assert encoders[0].backbone is encoders[1].backbone
        both = threading.Barrier(2)

        def together(forward: Forward) -> Forward:
            def run(batch: Any) -> Any:
                both.wait(60)  # passes only when both devices work at the same time
                return forward(batch)

            return run

        with monkeypatch.context() as patch:
            replace_forward(embedder, patch, together)
            batch = embedder.embed_documents(["one two three four", "five six seven eight"])
        with Embedder(folder, dtype="float32", memo_bytes=0) as single:
            wanted = single.embed_documents(["one two three four", "five six seven eight"])
        np.testing.assert_allclose(dense_of(batch), dense_of(wanted), atol=1e-5)
        assert all(encoder.forwards == 1 for encoder in encoders)


def test_a_failing_replica_is_taken_out_and_its_work_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Embedder(folder, device="cpu,cpu", dtype="float32", memo_bytes=0, token_budget=16) as embedder:
        first, second = core_of(embedder).model.encoders

        def lost(*args: Any) -> Any:
            raise RuntimeError("CUDA error: device lost")

        monkeypatch.setattr(first, "start", lambda texts: lost)
        batch = embedder.embed_documents([f"text number {i}" for i in range(40)])
        while embedder.stats()["failures"] == 0:  # the healthy one may have been faster
            batch = embedder.embed_documents([f"text number {i}" for i in range(40)])
        assert len(batch) == 40
        assert embedder.healthy
        assert second.forwards > 0
        assert "was removed, 1 devices continue" in caplog.text


# --- memo


def test_dense_then_sparse_of_the_same_texts_is_one_pass(folder: Path) -> None:
    with Embedder(folder, dtype="float32") as embedder:
        dense = embedder.embed_documents(TEXTS, sparse=False)
        sparse = embedder.embed_documents(TEXTS, dense=False)
        both = embedder.embed_documents(TEXTS)
        assert embedder.stats()["forwards"] == 1
        assert embedder.stats()["texts"] == len(TEXTS)
        assert embedder.stats()["memo_hits"] == 2 * len(TEXTS)
    np.testing.assert_array_equal(dense_of(dense), dense_of(both))
    assert sparse_of(sparse).to_dicts() == sparse_of(both).to_dicts()
    np.testing.assert_array_equal(sparse.token_counts, dense.token_counts)


def test_the_memo_never_mixes_prompts_lengths_or_dims(tmp_path: Path) -> None:
    folder = build_giga_0826(tmp_path)
    text = "how to sort a list in python " * 3
    with (
        Embedder(folder, dtype="float32") as embedder,
        Embedder(folder, dtype="float32", max_length=12) as short,
        Embedder(folder, dtype="float32", memo_bytes=0) as fresh,
    ):
        document, query = embedder.embed_documents([text]), embedder.embed_queries([text])
        other = embedder.embed_queries([text], task="Another task")
        with pytest.warns(UserWarning, match="12 tokens"):
            cut = short.embed_documents([text])
        np.testing.assert_allclose(dense_of(document), dense_of(fresh.embed_documents([text])), atol=1e-6)
        np.testing.assert_allclose(dense_of(query), dense_of(fresh.embed_queries([text])), atol=1e-6)
        rows = [dense_of(b)[0] for b in (document, query, other, cut)]
        for i, row in enumerate(rows):
            for later in rows[i + 1 :]:
                assert np.abs(row - later).max() > 1e-4
        with (
            Embedder(folder, dtype="float32", max_length=12, on_overflow="error") as strict,
            pytest.raises(TextTooLongError),
        ):
            strict.embed_documents([text])  # answered by the memo, and refused all the same


def test_the_memo_stays_within_its_bytes() -> None:
    from twinvec.cache.memo import Memo
    from twinvec.cache.rows import Key, Row

    row = Row(np.zeros(256, np.float32), None, 3, 3)
    memo = Memo(max_bytes=10 * 1500)
    for i in range(100):
        memo.put(Key("", f"{i:04}", 512), row)
    assert 5 <= len(memo) <= 10
    assert memo.get(Key("", "0099", 512)) is row
    assert memo.get(Key("", "0000", 512)) is None
    memo.put(Key("", "huge", 512), Row(np.zeros(10**6, np.float32), None, 3, 3))
    assert memo.get(Key("", "huge", 512)) is None


def test_without_a_memo_every_call_computes(embedder: Embedder) -> None:
    before = embedder.stats()["forwards"]
    embedder.embed_documents(["x"])
    embedder.embed_documents(["x"])
    assert embedder.stats()["forwards"] - before == 2


# --- persistent cache


def test_the_cache_answers_a_later_model_exactly(tmp_path: Path, folder: Path) -> None:
    with VectorCache(tmp_path / "cache") as cache:
        with Embedder(folder, dtype="float32", cache=cache, dim=32) as embedder:
            first = embedder.embed_documents(TEXTS)
        with Embedder(folder, dtype="float32", cache=cache, memo_bytes=0, sparse_keys="ids") as embedder:
            until(lambda: cache.stats()["entries"] == 2 * len(TEXTS))  # dense and sparse halves
            again = embedder.embed_documents(TEXTS)
            stats = embedder.stats()
            assert (stats["forwards"], stats["cache_hits"], stats["cache_misses"]) == (0, len(TEXTS), 0)
            embedder.embed_documents(TEXTS, prompt="another prompt: ")
            assert embedder.stats()["texts"] == len(TEXTS)
        sliced = dense_of(again)[:, :32] / np.linalg.norm(dense_of(again)[:, :32], axis=1, keepdims=True)
        np.testing.assert_allclose(sliced, dense_of(first), atol=1e-6)
        with Embedder(folder, dtype="bfloat16", cache=cache, memo_bytes=0) as embedder:
            embedder.embed_documents(TEXTS)
            assert embedder.stats()["cache_hits"] == 0  # another precision is another vector


def test_a_cache_that_fails_costs_no_vectors(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def get_many(self, namespace: str, keys: Any) -> Any:
            return [None] * len(keys)

        def put_many(self, namespace: str, rows: Any) -> None:
            raise OSError("disk full")

    with Embedder(folder, dtype="float32", cache=Broken(), memo_bytes=0) as embedder:
        assert len(embedder.embed_documents(TEXTS)) == len(TEXTS)
        until(lambda: "persistent cache failed" in caplog.text)


def test_loading_leaves_no_thread_behind_that_has_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP keeps workers for every such thread, and all of them slow each other down."""
    threads = []
    build = loading._build_backbone

    def recorded(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return build(*args)

    monkeypatch.setattr(loading, "_build_backbone", recorded)
    with Embedder(folder, dtype="float16"):
        (thread,) = threads
        assert thread is not threading.current_thread()
        assert not thread.is_alive()


def test_a_collected_embedder_is_closed_before_the_interpreter_ends(folder: Path) -> None:
    """A thread that is inside of torch when the interpreter ends aborts the process."""
    script = f"""
import threading
from twinvec import Embedder
from twinvec.engine.core import InferenceCore

close = InferenceCore.close
def late(self, **options):
    threading.main_thread().join()
    close(self, **options)
    print("closed")

InferenceCore.close = late
Embedder({str(folder)!r}, dtype="float32").embed_queries(["a"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
