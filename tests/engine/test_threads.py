"""The threads around the dispatcher: what they lose, keep and let go. Fakes replace the forward pass or a device."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch

from engine.fakes import Gate, NoCache, core_of, lose_device, replace_forward, until
from reference.gte import build_gte
from reference.sentence_layouts import build_splade
from support import dense_of, sparse_of
from twinvec import Embedder
from twinvec.cache.rows import Row
from twinvec.compute.backbone import PackedTransformer
from twinvec.engine import waiting
from twinvec.engine.registry import REGISTRY
from twinvec.errors import ConfigurationError, DeadlineError, DeviceLostError

SHORT = [f"text {i}" for i in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gte(tmp_path_factory.mktemp("threads"), seed=21)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def lost(*args: Any) -> Any:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def broken(*args: Any) -> Any:
    raise AssertionError("a defect of ours")


def full(*args: Any) -> Any:
    raise torch.OutOfMemoryError("no room")


# --- devices


@pytest.mark.parametrize("how", ["lost", "defect"])
def test_a_device_that_goes_loses_nobody_and_later_callers_of_its_texts_get_their_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with Embedder(folder, dtype="float32", memo_bytes=0) as single:
        expected = dense_of(single.embed_documents(SHORT))
    with Embedder(folder, device="cpu,cpu", dtype="float32", memo_bytes=0, token_budget=16) as embedder:
        core = core_of(embedder)
        first, _ = core.model.encoders
        entered, go_on = threading.Event(), threading.Event()

        def fail(*args: Any) -> Any:
            entered.set()
            assert go_on.wait(60)
            return lost() if how == "lost" else full()

        monkeypatch.setattr(first, "start", fail)
        monkeypatch.setattr("twinvec.engine.core.free_memory", broken)  # its thread ends in the middle of what it does
        with ThreadPoolExecutor(len(SHORT) + 1) as pool:
            calls = [pool.submit(embedder.embed_documents, [text]) for text in SHORT]
            assert entered.wait(60)
            held = next(batch for device in core.state.devices for batch in device.running if device.running)
            joined = pool.submit(embedder.embed_documents, [entry.key.text for entry in held.entries])
            go_on.set()
            for call, row in zip(calls, expected, strict=True):
                np.testing.assert_allclose(dense_of(call.result(60))[0], row, atol=1e-5)
            assert len(joined.result(60)) == len(held.entries)
        assert embedder.healthy
        assert len(core.state.devices) == 1
        np.testing.assert_allclose(dense_of(embedder.embed_documents(SHORT)), expected, atol=1e-5)


def test_a_restart_beside_a_close_leaves_a_closed_core_and_nothing_of_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(folder, dtype="float32", memo_bytes=0)
    core = core_of(embedder)
    with monkeypatch.context() as patch:
        replace_forward(embedder, patch, lose_device)
        with pytest.raises(DeviceLostError):
            embedder.embed_documents(["x"])
    entered, go_on = threading.Event(), threading.Event()
    rebuild, built = core.model.rebuild, []

    def slow() -> Any:
        entered.set()
        assert go_on.wait(60)
        model = rebuild()
        built.append(weakref.ref(model.encoder.backbone))
        return model

    core.model = replace(core.model, rebuild=slow)
    with ThreadPoolExecutor(2) as pool:
        restarting = pool.submit(embedder.restart)
        assert entered.wait(60)
        closing = pool.submit(embedder.close)
        until(lambda: isinstance(core.state.error, ConfigurationError))
        go_on.set()
        restarting.result(60)
        closing.result(60)
    assert not core.healthy
    assert not core.state.devices
    assert not any(thread.is_alive() for thread in core._threads)
    assert built[0]() is None
    with pytest.raises(ConfigurationError, match="closed"):
        embedder.embed_documents(["y"])


def test_a_late_failure_of_an_old_generation_neither_counts_nor_hurts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Embedder(folder, dtype="float32", memo_bytes=0, cache=NoCache()) as embedder:  # so that a host tokenises
        core = core_of(embedder)
        encode, entered, go_on = core.model.tokenizer.encode, threading.Event(), threading.Event()

        def late(texts: list[str], *rest: Any) -> Any:
            if "late" in texts:
                entered.set()
                assert go_on.wait(60)
                raise RuntimeError("too late")
            return encode(texts, *rest)

        with ThreadPoolExecutor(2) as pool:
            with monkeypatch.context() as patch:
                patch.setattr(core.model.tokenizer, "encode", late)
                old = pool.submit(embedder.embed_queries, ["late"])
                assert entered.wait(60)
                replace_forward(embedder, patch, lose_device)
                with pytest.raises(DeviceLostError):
                    embedder.embed_documents(["x"])
                assert isinstance(old.exception(60), DeviceLostError)
            embedder.restart()
            failures = embedder.stats()["failures"]
            new = pool.submit(embedder.embed_queries, ["late"])
            until(lambda: len(core.state.jobs) == 1)
            go_on.set()
            assert len(new.result(60)) == 1
        assert embedder.stats()["failures"] == failures
        assert embedder.healthy


# --- calls


def test_one_timeout_is_one_deadline_over_both_models(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Embedder(folder, sparse=build_splade(tmp_path / "splade"), dtype="float32", memo_bytes=0) as embedder:
        dense, sparse = (lease.core for lease in embedder._leases)
        gates = Gate(), Gate()
        for core, gate in zip((dense, sparse), gates, strict=True):
            backbone = core.model.encoder.backbone
            monkeypatch.setattr(backbone, "forward", gate(backbone.forward))
        clock, waits = [100.0], []

        class Ended:
            """The first model ends after six seconds, the second does not."""

            def __init__(self) -> None:
                self._ended: SimpleQueue[Any] = SimpleQueue()
                self.put = self._ended.put

            def get(self, timeout: float) -> Any:
                waits.append(round(timeout, 6))
                clock[0] += min(timeout, 6.0)
                gates[0].open.set()
                if len(waits) > 1:
                    raise Empty
                return self._ended.get(timeout=60)

        monkeypatch.setattr(waiting, "SimpleQueue", Ended)
        monkeypatch.setattr("twinvec.engine.waiting.time.monotonic", lambda: clock[0])
        with pytest.raises(DeadlineError, match=r"within 10 s"):
            embedder.embed_documents(["a"], timeout=10)
        monkeypatch.undo()
        assert waits == [10, 4]
        assert not dense.state.jobs
        assert not sparse.state.jobs
        gates[1].open.set()


def test_64_threads_at_once_share_two_passes_and_equal_single_calls(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"query number {i} {'word ' * (i % 7)}" for i in range(64)]
    with Embedder(folder, dtype="float32", memo_bytes=0, token_budget=8192) as embedder:
        expected = [embedder.embed_queries([text]) for text in texts]
        gate = Gate()
        replace_forward(embedder, monkeypatch, gate)
        with ThreadPoolExecutor(64) as pool:
            calls = [pool.submit(embedder.embed_queries, [text]) for text in texts]
            until(lambda: embedder.stats()["queued"] == 63)
            gate.open.set()
            for call, wanted in zip(calls, expected, strict=True):
                np.testing.assert_allclose(dense_of(call.result(60)), dense_of(wanted), atol=1e-5)
                found, alone = (sparse_of(batch).to_dicts()[0] for batch in (call.result(), wanted))
                assert found == pytest.approx(alone, abs=1e-5)
        assert sorted(map(len, gate.batches)) == [1, 63]


def test_64_tasks_at_once_share_two_passes_and_their_event_loop_gets_one_message_of_each(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"query number {i} {'word ' * (i % 7)}" for i in range(64)]
    with Embedder(folder, dtype="float32", memo_bytes=0, token_budget=8192) as embedder:
        expected = dense_of(embedder.embed_queries(texts))
        gate, messages = Gate(), []
        replace_forward(embedder, monkeypatch, gate)

        async def ask() -> list[Any]:
            loop = asyncio.get_running_loop()
            send = loop.call_soon_threadsafe

            def counted(*message: Any) -> Any:
                messages.append(message)
                return send(*message)

            monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
            tasks = [asyncio.create_task(embedder.aembed_queries([text])) for text in texts]
            await asyncio.sleep(0)  # all have begun
            assert embedder.stats()["queued"] == 63
            gate.open.set()
            return await asyncio.gather(*tasks)

        for batch, row in zip(asyncio.run(ask()), expected, strict=True):
            np.testing.assert_allclose(dense_of(batch)[0], row, atol=1e-5)
    assert sorted(map(len, gate.batches)) == [1, 63]
    assert len(messages) == 2


class Liar(NoCache):
    """A user's cache that has rows of another shape for everything."""

    def __init__(self) -> None:
        self.asked, self.answer = threading.Event(), threading.Event()

    def get_many(self, namespace: str, keys: Any) -> Any:
        self.asked.set()
        assert self.answer.wait(60)
        return [Row(np.ones(3, np.float32), None, 1, 1)] * len(keys)


class Ending(NoCache):
    """A user's cache that ends its thread, or would."""

    def get_many(self, namespace: str, keys: Any) -> Any:
        raise SystemExit("the cache")


def test_a_faulty_cache_hurts_exactly_its_own_callers(folder: Path) -> None:
    liar = Liar()
    options: dict[str, Any] = {"dtype": "float32", "memo_bytes": 0, "sparse": None}
    with (
        Embedder(folder, **options) as good,
        Embedder(folder, cache=liar, **options) as lying,
        Embedder(folder, cache=Ending(), **options) as ending,
        ThreadPoolExecutor(3) as pool,
    ):
        core = core_of(good)
        assert core is core_of(lying) is core_of(ending)
        expected = dense_of(good.embed_documents(["shared"]))
        bad = pool.submit(lying.embed_documents, ["shared"])
        assert liar.asked.wait(60)
        joined = pool.submit(good.embed_documents, ["shared"])
        until(lambda: any(len(entry.waiters) == 2 for entry in core.state._entries.values()))
        liar.answer.set()
        assert isinstance(bad.exception(60), ValueError)
        np.testing.assert_array_equal(dense_of(joined.result(60)), expected)
        with pytest.raises(SystemExit):
            ending.embed_documents(["shared"])
        np.testing.assert_array_equal(dense_of(good.embed_documents(["shared"])), expected)


# --- what is left


def test_the_registry_does_not_grow(folder: Path) -> None:
    before, threads = len(REGISTRY), threading.active_count()
    for _ in range(100):
        Embedder(folder, dtype="float32").close()
    assert len(REGISTRY) == before
    assert threading.active_count() == threads


def test_the_memo_shrinks_with_its_largest_user(folder: Path) -> None:
    small = Embedder(folder, dtype="float32", memo_bytes=2_000)
    with Embedder(folder, dtype="float32", memo_bytes=1_000_000) as large:
        large.embed_documents(SHORT)
        memo = core_of(large).state.memo
        assert len(memo) == len(SHORT)
    assert 0 < len(memo) < 4
    before = small.stats()["texts"]
    small.embed_documents(SHORT[:1])
    assert small.stats()["texts"] == before + 1
    small.close()


def fail_and_go_on(embedder: Embedder, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PackedTransformer, "forward", broken)
    with pytest.raises(AssertionError):
        embedder.embed_documents(["x"])


def run_out(embedder: Embedder, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PackedTransformer, "forward", full)
    with pytest.raises(Exception, match="does not fit"):
        embedder.embed_documents(["x"])


def lose(embedder: Embedder, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PackedTransformer, "forward", lost)
    with pytest.raises(DeviceLostError):
        embedder.embed_documents(["x"])


@pytest.mark.parametrize("before", [None, fail_and_go_on, run_out, lose])
@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
@pytest.mark.usefixtures("no_collector")
def test_nothing_of_the_model_is_left_after_close_without_the_collector(
    folder: Path, before: Callable[..., None] | None, device: str
) -> None:
    embedder = Embedder(folder, dtype="float32", device=device)
    core = core_of(embedder)
    tensors = [weakref.ref(tensor) for tensor in core.model.encoder.backbone.parameters()]
    assert len(embedder.embed_documents(SHORT)) == len(SHORT)
    if before is not None:
        with pytest.MonkeyPatch.context() as patch:
            before(embedder, patch)
    embedder.close()
    assert [tensor for tensor in tensors if tensor() is not None] == []
