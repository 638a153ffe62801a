"""RemoteEmbedder: the same vectors, errors and answers as the Embedder behind the server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from langchain_.gate import Gate
from server.conftest import Connect, Hosts
from server.remote import assert_same
from support import TEXTS, dense_of, sparse_of
from twinvec import BaseEmbedder, Embedder, EmbeddingBatch, Task, TruncationWarning
from twinvec.errors import (
    ConfigurationError,
    DeadlineError,
    TextTooLongError,
)
from twinvec.server import Limits

TASK = "Given a question, find a paragraph with the answer"
MANY = [f"text number {i}" for i in range(23)]


# --- the same as the Embedder


def test_vectors_are_the_embedders_bit_for_bit(connect: Connect, gte: Embedder) -> None:
    remote = connect(gte)
    for texts in (TEXTS, [], ["one"], iter(TEXTS[:3])):
        texts = list(texts)
        assert_same(remote.embed_documents(texts), gte.embed_documents(texts))
        assert_same(remote.embed_queries(texts), gte.embed_queries(texts))
    assert_same(remote.embed_queries(TEXTS, dense=False), gte.embed_queries(TEXTS, dense=False))
    assert_same(remote.embed_queries(TEXTS, sparse=False), gte.embed_queries(TEXTS, sparse=False))
    batch = remote.embed_documents(["a"])
    dense_of(batch)[0, 0] = 1  # arrays of its own, as the Embedder's


async def test_the_async_methods_too(connect: Connect, giga: Embedder) -> None:
    remote = connect(giga)
    assert_same(await remote.aembed_documents(TEXTS), giga.embed_documents(TEXTS))
    assert_same(await remote.aembed_queries(TEXTS, task=TASK), giga.embed_queries(TEXTS, task=TASK))
    prompted = giga.embed_queries(TEXTS, prompt="p: ")
    assert_same(await remote.aembed_queries(TEXTS, prompt="p: "), prompted)


@pytest.mark.parametrize("name", ["gte", "giga", "e5", "splade"])
def test_it_says_of_itself_what_the_embedder_does(connect: Connect, name: str, request: pytest.FixtureRequest) -> None:
    local: Embedder = request.getfixturevalue(name)
    remote: BaseEmbedder = connect(local)
    public = replace(local.spec, model=Path(local.spec.model).name)
    assert remote.spec == public
    assert remote.spec.fingerprint == local.spec.fingerprint
    for attribute in ("dim", "max_length", "has_sparse", "needs_idf", "prompts", "task", "family", "healthy"):
        assert getattr(remote, attribute) == getattr(local, attribute)
    assert remote.stats() == local.stats()
    for role in ("query", "document"):
        assert remote.prompt_for(role) == local.prompt_for(role)
        assert remote.token_room(role) == local.token_room(role)
    for found, expected in zip(remote.token_offsets(TEXTS), local.token_offsets(TEXTS), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert remote.token_offsets([]) == []
    if local.has_sparse:
        sparse = sparse_of(local.embed_documents(TEXTS))
        assert remote.token_weights(sparse) == local.token_weights(sparse)


def test_prompts_and_tasks(connect: Connect, giga: Embedder, gte_folder: Path) -> None:
    remote = connect(giga)
    for task in (TASK, "similarity", Task("Find the same", symmetric=True)):
        for role in ("query", "document"):
            assert remote.prompt_for(role, task) == giga.prompt_for(role, task)
            assert remote.token_room(role, task) == giga.token_room(role, task)
    with Embedder(gte_folder, dtype="float32", prompts={"query": "q: ", "sts": "s: "}, task="sts") as local:
        remote = connect(local)
        assert (remote.prompts, remote.task) == ({"query": "q: ", "sts": "s: "}, "sts")
    with Embedder(giga.spec, task=Task("Find the same", symmetric=True)) as local:
        assert connect(local).task == Task("Find the same", symmetric=True)


def test_pairs_are_scored_as_by_the_embedder(connect: Connect, gte: Embedder, giga: Embedder) -> None:
    pairs = [(q, d) for q in TEXTS[:4] for d in TEXTS[:4]]
    np.testing.assert_array_equal(connect(gte).score_pairs(pairs), gte.score_pairs(pairs))
    with pytest.raises(ConfigurationError, match="BM25 scores need the idf"):
        connect(giga).score_pairs(pairs)


def test_what_is_wrong_is_refused_as_by_the_embedder(
    connect: Connect, hosts: Hosts, gte: Embedder, e5: Embedder
) -> None:
    for local in (gte, e5):
        remote = connect(local)
        before = len(hosts.requests)
        calls: list[Callable[[BaseEmbedder], object]] = [
            lambda e: e.embed_documents("one text"),
            lambda e: e.embed_documents(["a", 3]),  # type: ignore[list-item]
            lambda e: e.embed_documents(["a", "\ud800"]),
            lambda e: e.embed_queries(["a"], task=TASK),
            lambda e: e.embed_queries(["a"], task="document"),
            lambda e: e.embed_queries(["a"], task="a", prompt="b"),
            lambda e: e.embed_queries(["a"], dense=False, sparse=False),
            lambda e: e.prompt_for("answer"),
            lambda e: e.token_offsets("one text"),
        ]
        for call in calls:
            with pytest.raises(Exception) as expected:  # noqa: PT011 - whatever it is
                call(local)
            with pytest.raises(expected.type) as found:
                call(remote)
            assert type(found.value) is expected.type
            assert str(found.value) == str(expected.value)
        assert len(hosts.requests) == before, "nothing of that needs a request"


def test_texts_that_are_cut_warn_here(connect: Connect, gte: Embedder) -> None:
    long = ["a", "b", "word " * 200]
    with pytest.warns(TruncationWarning) as expected:
        gte.embed_documents(long)
    with pytest.warns(TruncationWarning) as found:
        connect(gte).embed_documents(long)
    assert str(found[0].message) == str(expected[0].message)
    assert found[0].filename == __file__


# --- many texts


def test_many_texts_travel_in_parts(connect: Connect, hosts: Hosts, gte: Embedder) -> None:
    remote = connect(gte, limits=Limits(max_texts=5, max_body_bytes=340))
    before = len(hosts.requests)
    assert_same(remote.embed_documents(MANY), gte.embed_documents(MANY))
    sent = [json.loads(request.content)["texts"] for request in hosts.requests[before:]]
    assert [text for texts in sorted(sent, key=lambda texts: MANY.index(texts[0])) for text in texts] == MANY
    assert all(len(texts) <= 5 for texts in sent)
    assert any(len(texts) < 5 for texts in sent[:-1])
    assert all(len(request.content) <= 340 for request in hosts.requests[before:])
    for found, expected in zip(remote.token_offsets(MANY), gte.token_offsets(MANY), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_escapes_fit_into_the_servers_limit_of_bytes(connect: Connect, gte: Embedder) -> None:
    texts = ["\x01" * 30, "\x02" * 30, "я" * 30] * 4
    remote = connect(gte, limits=Limits(max_body_bytes=1000))
    assert_same(remote.embed_documents(texts), gte.embed_documents(texts))


def test_errors_name_the_text_in_the_whole_list(connect: Connect, gte: Embedder, gte_folder: Path) -> None:
    with Embedder(gte_folder, dtype="float32", max_length=128, on_overflow="error") as strict:
        remote = connect(strict, limits=Limits(max_texts=5))
        with pytest.raises(TextTooLongError, match=r"^texts\[17\] has 802 tokens"):
            remote.embed_documents([*MANY[:17], "word " * 200, *MANY])
    with pytest.raises(TextTooLongError, match=r"texts\[17\] has 602 bytes as JSON, http://host-1 accepts \d+"):
        connect(gte, limits=Limits(max_body_bytes=600)).embed_documents([*MANY[:17], "x" * 600])


async def test_few_parts_are_in_flight(connect: Connect, hosts: Hosts, gte: Embedder) -> None:
    remote = connect(gte, limits=Limits(max_texts=1))
    below, most, now = hosts.answering["host-0"], 0, 0

    class Counting(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal most, now
            now += 1
            most = max(most, now)
            try:
                return await below.handle_async_request(request)
            finally:
                now -= 1

    hosts.answering["host-0"] = Counting()
    texts = [f"{text} in flight" for text in MANY]  # which no test before has had: those are answered at once
    assert_same(await remote.aembed_documents(texts), gte.embed_documents(texts))
    assert 1 < most <= 4


def test_progress(connect: Connect, gte: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    remote = connect(gte, limits=Limits(max_texts=5))
    assert_same(remote.embed_documents(MANY, show_progress=True), gte.embed_documents(MANY))
    assert "Embedding documents: 100%" in capsys.readouterr().err


# --- callers


async def test_64_queries_of_one_moment_cost_few_forward_passes(connect: Connect, quick: Embedder, gate: Gate) -> None:
    remote = connect(quick)
    before = quick.stats()
    first = asyncio.ensure_future(remote.aembed_queries(["the first question"]))
    assert await asyncio.to_thread(gate.entered.wait, 60)
    rest = [asyncio.ensure_future(remote.aembed_queries([f"question {i}"])) for i in range(63)]
    while quick.stats()["queued"] < 63:
        await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(first, *rest)
    after = quick.stats()
    assert after["texts"] - before["texts"] == 64
    assert after["forwards"] - before["forwards"] <= 3


async def test_a_cancelled_task_cancels_its_request_and_the_work(connect: Connect, quick: Embedder, gate: Gate) -> None:
    remote = connect(quick)
    task = asyncio.ensure_future(remote.aembed_queries(["to be cancelled"]))
    assert await asyncio.to_thread(gate.entered.wait, 60)
    core = quick._core
    assert len(core.state.jobs) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while core.state.jobs:
        await asyncio.sleep(0)


async def test_the_event_loop_goes_on(connect: Connect, quick: Embedder, gate: Gate) -> None:
    remote = connect(quick)
    task = asyncio.ensure_future(remote.aembed_queries(["while the loop goes on"]))
    turns = 0
    while not gate.entered.is_set() or turns < 100:
        await asyncio.sleep(0)
        turns += 1
    assert not task.done()
    gate.open.set()
    await task


def test_any_number_of_event_loops_and_threads(connect: Connect, gte: Embedder) -> None:
    remote = connect(gte)
    expected = gte.embed_queries(["a"])
    for _ in range(3):
        assert_same(asyncio.run(remote.aembed_queries(["a"])), expected)
    found: list[EmbeddingBatch] = []
    threads = [threading.Thread(target=lambda: found.append(remote.embed_queries(["a"]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch in found:
        assert_same(batch, expected)
    assert len(found) == 8


async def test_a_sync_call_inside_of_a_running_loop(connect: Connect, gte: Embedder) -> None:
    assert_same(connect(gte).embed_queries(["a"]), gte.embed_queries(["a"]))


def test_deadlines(connect: Connect, quick: Embedder, gate: Gate) -> None:
    remote = connect(quick)
    with pytest.raises(DeadlineError, match=r"^2 texts were not embedded within 0\.02 s$"):
        remote.embed_queries(["too late", "also too late"], timeout=0.02)


async def test_async_deadlines(connect: Connect, quick: Embedder, gate: Gate) -> None:
    remote = connect(quick)
    with pytest.raises(DeadlineError, match=r"^1 texts were not embedded within 0\.02 s$"):
        await remote.aembed_queries(["too late again"], timeout=0.02)
