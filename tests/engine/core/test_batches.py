"""Dynamic batches: who shares a pass, who goes first, from threads, event loops and processes."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.fakes import Gate, core_of, replace_forward, until
from support import TEXTS, dense_of
from twinvec import Embedder


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
