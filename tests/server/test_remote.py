"""RemoteEmbedder: the same vectors, errors and answers as the Embedder behind the server, and what a network does."""

from __future__ import annotations

import asyncio
import copy
import gc
import gzip
import json
import pickle
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save

from langchain_.gate import Gate
from server.conftest import Connect, Hosts
from support import TEXTS, dense_of, sparse_of
from twinvec import BaseEmbedder, Embedder, EmbeddingBatch, RemoteEmbedder, Task, TruncationWarning
from twinvec.errors import (
    ConfigurationError,
    DeadlineError,
    DeviceLostError,
    InvalidTextError,
    OverloadedError,
    PromptError,
    RemoteError,
    TextTooLongError,
)
from twinvec.server import Limits, create_app
from twinvec.server.wire import pack_batch, pack_offsets

KEY = "a-secret-key"
TASK = "Given a question, find a paragraph with the answer"
MANY = [f"text number {i}" for i in range(23)]


def assert_same(found: EmbeddingBatch, expected: EmbeddingBatch) -> None:
    """Bit for bit."""
    for name in ("dense", "token_counts", "truncated"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if other is not None:
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    assert (found.sparse is None) == (expected.sparse is None)
    if expected.sparse is not None:
        for name in ("indptr", "indices", "values"):
            assert getattr(found.sparse, name).tobytes() == getattr(expected.sparse, name).tobytes()


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
    with pytest.raises(TextTooLongError, match=r"texts\[17\] has 602 bytes as JSON, http://host-1 takes \d+: split it"):
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
    assert_same(await remote.aembed_documents(MANY), gte.embed_documents(MANY))
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
    core = quick._view.core
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


# --- a network, and servers that fail


class Scripted(httpx.AsyncBaseTransport):
    """Fails as told, then answers as the server would."""

    def __init__(self, below: httpx.AsyncBaseTransport, *script: httpx.Response | Exception) -> None:
        self._below, self._script = below, list(script)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._script:
            return await self._below.handle_async_request(request)
        step = self._script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


def overloaded(**headers: str) -> httpx.Response:
    error = {"error": {"type": "OverloadedError", "message": "later", "field": None}}
    return httpx.Response(429, json=error, headers=headers)


def test_failures_that_pass_are_waited_for(connect: Connect, hosts: Hosts, gte: Embedder, waits: list[float]) -> None:
    remote = connect(gte, retries=5)
    hosts.answering["host-0"] = Scripted(
        hosts.answering["host-0"],
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
        overloaded(),
        overloaded(**{"retry-after": "7"}),
        httpx.Response(503, text="starting", headers={"retry-after": "900"}),
    )
    assert_same(remote.embed_queries(["a"]), gte.embed_queries(["a"]))
    assert len(waits) == 5
    assert 0.125 <= waits[0] <= 0.25
    assert 0.25 <= waits[1] <= 0.5
    assert 0.5 <= waits[2] <= 1
    assert waits[3:] == [7, 30]


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (httpx.ConnectError("refused"), RemoteError, "http://host-0 cannot be reached: refused"),
        (httpx.ReadError(""), RemoteError, "http://host-0 cannot be reached: ReadError"),
        (overloaded(), OverloadedError, "later"),
        (httpx.Response(503, json={"error": {"type": "DeviceLostError", "message": "cpu"}}), DeviceLostError, "cpu"),
        (httpx.Response(502, text="<html>bad gateway"), RemoteError, "status 502: <html>bad gateway"),
    ],
)
def test_failures_that_stay_are_raised(
    connect: Connect,
    hosts: Hosts,
    gte: Embedder,
    waits: list[float],
    failure: httpx.Response | Exception,
    error: type[Exception],
    message: str,
) -> None:
    remote = connect(gte, retries=3)
    hosts.answering["host-0"] = Scripted(hosts.answering["host-0"], *[failure] * 4)
    with pytest.raises(error, match=message) as caught:
        remote.embed_queries(["a"])
    assert type(caught.value) is error
    assert len(waits) == 3
    assert_same(remote.embed_queries(["a"]), gte.embed_queries(["a"]))


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (httpx.ReadTimeout(""), RemoteError, "http://host-0 did not answer within 60 s"),
        (httpx.Response(401, json={}), RemoteError, "asks for another API key: pass api_key=, or set TWINVEC_API_KEY"),
        (httpx.Response(302, headers={"location": "http://elsewhere"}), RemoteError, "status 302: nothing more"),
        (httpx.Response(500, json={"error": {"type": "SystemExit", "message": "x"}}), RemoteError, "status 500"),
        (httpx.Response(400, json={"error": "none"}), RemoteError, "status 400"),
        (httpx.Response(200, content=b"hello"), RemoteError, "has another model now"),
        (httpx.Response(504, json={"error": {"type": "DeadlineError", "message": "late"}}), DeadlineError, "late"),
        (
            httpx.Response(400, json={"error": {"type": "InvalidTextError", "reason": "has no tokens", "position": 0}}),
            InvalidTextError,
            r"texts\[0\] has no tokens",
        ),
        (httpx.Response(400, json={"error": {"type": "PromptError", "message": "p"}}), PromptError, "p"),
    ],
)
def test_failures_that_are_not_tried_again(
    connect: Connect,
    hosts: Hosts,
    gte: Embedder,
    waits: list[float],
    failure: httpx.Response | Exception,
    error: type[Exception],
    message: str,
) -> None:
    remote = connect(gte)
    hosts.answering["host-0"] = Scripted(hosts.answering["host-0"], failure)
    with pytest.raises(error, match=message) as caught:
        remote.embed_queries(["a"])
    assert type(caught.value) is error
    assert waits == []


@pytest.mark.parametrize("content", [b"hello", b"", b"\x00" * 100])
def test_answers_that_are_no_vectors(connect: Connect, hosts: Hosts, gte: Embedder, content: bytes) -> None:
    remote = connect(gte)
    headers = {"x-twinvec-fingerprint": gte.spec.fingerprint}
    answer = httpx.Response(200, content=content, headers=headers)
    hosts.answering["host-0"] = Scripted(hosts.answering["host-0"], answer)
    with pytest.raises(RemoteError, match="answered no vectors: not safetensors"):
        remote.embed_queries(["a"])


def answered(hosts: Hosts, gte: Embedder, content: bytes, **headers: str) -> None:
    """Let the next answer be this one."""
    headers = {"x-twinvec-fingerprint": gte.spec.fingerprint, **{k.replace("_", "-"): v for k, v in headers.items()}}
    answer = httpx.Response(200, content=content, headers=headers)
    hosts.answering["host-0"] = Scripted(hosts.answering["host-0"], answer)


def _lie(name: str, value: Any, start: Any = None) -> Callable[[dict[str, Any]], None]:
    """Return what puts a value into an array of an answer, or another array into its place."""

    def change(arrays: dict[str, Any]) -> None:
        if start is None:
            arrays[name] = np.asarray(value)
        else:
            arrays[name][start] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _lie("dense", np.nan, (0, 0)),
        _lie("dense", np.inf, (1, 3)),
        _lie("dense", 0.0, 0),
        _lie("dense", 2.0, (0, 0)),
        _lie("dense", np.zeros((2, 63), np.float32)),
        _lie("dense", np.zeros((3, 64), np.float32)),
        _lie("dense", np.zeros(128, np.float32)),
        _lie("dense", np.zeros((2, 64), np.float64)),
        _lie("sparse.indices", 600, -1),
        _lie("sparse.indices", -1, 0),
        _lie("sparse.values", np.nan, 0),
        _lie("sparse.values", -1.0, 0),
        _lie("sparse.indptr", 10**9, -1),
        _lie("sparse.indptr", np.array([0, 0], np.int64)),
        _lie("token_counts", -5, 0),
        _lie("token_counts", np.zeros(3, np.int32)),
        _lie("truncated", np.zeros((2, 1), np.bool_)),
        lambda arrays: arrays.pop("dense"),
        lambda arrays: [arrays.pop(name) for name in list(arrays) if name.startswith("sparse")],
        lambda arrays: arrays.update(more=np.zeros(1, np.float32)),
    ],
)
def test_vectors_that_no_embedder_would_give(
    connect: Connect, hosts: Hosts, gte: Embedder, change: Callable[[dict[str, Any]], object]
) -> None:
    remote = connect(gte)
    arrays = {name: array.copy() for name, array in load(pack_batch(gte.embed_documents(["a b", "c d e"]))).items()}
    change(arrays)
    answered(hosts, gte, save(arrays))
    with pytest.raises(RemoteError, match="answered no vectors: "):
        remote.embed_documents(["a b", "c d e"])
    assert_same(remote.embed_documents(["a b", "c d e"]), gte.embed_documents(["a b", "c d e"]))


def test_halves_that_were_not_asked_for(connect: Connect, hosts: Hosts, gte: Embedder) -> None:
    remote = connect(gte)
    answered(hosts, gte, pack_batch(gte.embed_documents(["a"])))
    with pytest.raises(RemoteError, match="the sparse half is there, though not asked for"):
        remote.embed_documents(["a"], sparse=False)


@pytest.mark.parametrize("pairs", [[[0, 2]], [[-1, 0]], [[1, 0]]])
def test_offsets_outside_of_their_text(connect: Connect, hosts: Hosts, gte: Embedder, pairs: list[list[int]]) -> None:
    remote = connect(gte)
    answered(hosts, gte, pack_offsets([np.array(pairs, np.int64)]))
    with pytest.raises(RemoteError, match="lie outside of it"):
        remote.token_offsets(["a"])
    answered(hosts, gte, pack_offsets([]))
    with pytest.raises(RemoteError, match="offsets of 0 texts for 1"):
        remote.token_offsets(["a"])


@pytest.mark.parametrize("terms", [{}, {"terms": ["a"]}, {"terms": ["a", 3]}, {"terms": "ab"}, [], "[" * 60_000])
def test_terms_that_are_none(connect: Connect, hosts: Hosts, gte: Embedder, terms: Any) -> None:
    remote = connect(gte)
    answered(hosts, gte, terms.encode() if isinstance(terms, str) else json.dumps(terms).encode())
    with pytest.raises(RemoteError, match="answered no terms of 2 columns"):
        remote._token_texts([5, 17])


def test_answers_have_a_size(connect: Connect, hosts: Hosts, gte: Embedder) -> None:
    remote = connect(gte)
    answered(hosts, gte, b"\0" * 2_000_000)
    with pytest.raises(RemoteError, match=r"answered more than the \d+ bytes that can be right"):
        remote.embed_queries(["a"])
    answered(hosts, gte, gzip.compress(b"\0" * 2_000_000), content_encoding="gzip")
    with pytest.raises(RemoteError, match="in a compressed form that it was not asked for"):
        remote.embed_queries(["a"])


def test_one_deadline_for_a_request_with_its_retries(connect: Connect, hosts: Hosts, gte: Embedder) -> None:
    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, content=self.drip(), headers={"x-twinvec-fingerprint": gte.spec.fingerprint})

        async def drip(self) -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.01)
                yield b"x"

    remote = connect(gte, timeout=0.2)
    hosts.answering["host-0"] = Slow()
    with pytest.raises(RemoteError, match=r"did not answer within 0\.2 s"):
        remote.embed_queries(["a"])
    hosts.answering["host-0"] = Scripted(Slow(), *[overloaded(**{"retry-after": "1"})] * 9)
    with pytest.raises(RemoteError, match=r"did not answer within 0\.2 s"):
        remote.embed_queries(["a"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spec", {"model": "m", "dim": -1}),
        ("spec", {"model": "m", "more": 1}),
        ("spec", []),
        ("vocabulary_size", 0),
        ("vocabulary_size", None),
        ("special_tokens", -1),
        ("special_tokens", "2"),
        ("template", {"named": {}, "query": 3}),
        ("template", {"named": [["a", 3]]}),
        ("prompts", {"a": None}),
        ("task", 3),
        ("family", None),
        ("limits", {"max_texts": 0, "max_body_bytes": 1}),
        ("limits", {"max_texts": 1}),
        ("limits", {"max_texts": 10**30, "max_body_bytes": 1}),
    ],
)
def test_a_server_that_tells_nonsense_of_itself(
    connect: Connect, hosts: Hosts, gte: Embedder, name: str, value: Any
) -> None:
    connect(gte)
    hosts.answering["other"] = Scripted(hosts, httpx.Response(200, json={**_info(hosts), name: value}))
    with pytest.raises(RemoteError, match="is no TwinVec server that this version knows"):
        RemoteEmbedder("http://other")


def test_a_key_goes_where_it_was_meant_for(
    connect: Connect, hosts: Hosts, gte: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(gte)
    monkeypatch.setenv("TWINVEC_API_KEY", KEY)

    def sent(**options: Any) -> bool:
        with RemoteEmbedder("http://host-0", **options):
            return bool(hosts.requests[-1].headers.get("authorization") == f"Bearer {KEY}")

    assert sent()
    assert not sent(from_data=True)
    for url, meant in (
        ("http://host-0/other/path", True),
        ("http://host-0:80", True),
        ("http://host-0:81", False),
        ("https://host-0", False),
        ("http://host-00", False),
        ("http://host-0@elsewhere", False),
    ):
        monkeypatch.setenv("TWINVEC_URL", url)
        assert sent() is meant
        assert sent(from_data=True) is meant
    assert sent(api_key=KEY)
    monkeypatch.setenv("TWINVEC_URL", "nonsense")
    with pytest.raises(ConfigurationError, match="url must begin with"):
        sent()


def test_a_server_that_has_another_model_by_now(connect: Connect, hosts: Hosts, gte: Embedder, quick: Embedder) -> None:
    remote = connect(gte)
    hosts.answering["host-0"] = httpx.ASGITransport(app=create_app(quick))
    with pytest.raises(RemoteError, match="has another model now: make a new RemoteEmbedder"):
        remote.embed_queries(["a"])


def test_what_is_no_twinvec_server(hosts: Hosts, waits: list[float], connect: Connect, gte: Embedder) -> None:
    with pytest.raises(RemoteError, match="http://nowhere cannot be reached"):
        RemoteEmbedder("http://nowhere", retries=0)
    for answer, message in (
        (httpx.Response(404, text="not found"), "status 404: not found"),
        (httpx.Response(200, text="welcome"), "is no TwinVec server: its /v1/twinvec/info is no JSON object"),
        (httpx.Response(200, json={}), "is no TwinVec server that this version knows"),
        (httpx.Response(200, json={"protocol": 2, "version": "9.0"}), "is TwinVec 9.0, this is"),
    ):
        hosts.answering["other"] = Scripted(hosts, answer)
        with pytest.raises(RemoteError, match=message):
            RemoteEmbedder("http://other")
    connect(gte)
    info = httpx.Response(200, json={**_info(hosts), "fingerprint": "0" * 32})
    hosts.answering["other"] = Scripted(hosts, info)
    with pytest.raises(RemoteError, match="its fingerprint is not that of its spec"):
        RemoteEmbedder("http://other")
    assert waits == []


def _info(hosts: Hosts) -> dict[str, Any]:
    async def get() -> dict[str, Any]:
        async with httpx.AsyncClient(transport=hosts) as client:
            answer: dict[str, Any] = (await client.get("http://host-0/v1/twinvec/info")).json()
        return answer

    return asyncio.run(get())


def test_healthy_asks_the_server(connect: Connect, hosts: Hosts, gte: Embedder, waits: list[float]) -> None:
    remote = connect(gte, retries=0)
    assert remote.healthy
    del hosts.answering["host-0"]
    assert not remote.healthy


# --- secrets, pickles, closing


def test_the_key_is_sent_and_never_shown(connect: Connect, gte: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = connect(gte, api_key=KEY)
    assert_same(remote.embed_queries(["a"]), gte.embed_queries(["a"]))
    with pytest.raises(RemoteError, match="asks for another API key") as refused:
        RemoteEmbedder(remote.url, api_key="another-key")
    shown = [repr(remote), str(remote), repr(pickle.dumps(remote)), repr(vars(remote)), str(refused.value)]
    assert not [text for text in shown if KEY in text or "another-key" in text]
    monkeypatch.setenv("TWINVEC_API_KEY", KEY)
    with pickle.loads(pickle.dumps(remote)) as made:
        assert_same(made.embed_queries(["a"]), gte.embed_queries(["a"]))
    for key in ("key\n", "ключ"):
        with pytest.raises(ConfigurationError, match="printable ASCII") as caught:
            RemoteEmbedder(remote.url, api_key=key)
        assert key not in str(caught.value)


def test_a_password_in_the_url_is_sent_and_never_shown(connect: Connect, hosts: Hosts, gte: Embedder) -> None:
    connect(gte)
    with RemoteEmbedder("http://somebody:pass-word@host-0/?token=pass-word#x") as remote:
        assert hosts.requests[-1].headers["authorization"].startswith("Basic ")
        assert remote.url == "http://host-0"
        shown = [repr(remote), repr(pickle.dumps(remote)), repr(vars(remote))]
        assert not [text for text in shown if "pass-word" in text or "somebody" in text]
    with pytest.raises(ConfigurationError, match="not both"):
        RemoteEmbedder("http://somebody:pass-word@host-0", api_key=KEY)
    with pytest.raises(RemoteError) as caught:
        RemoteEmbedder("http://somebody:pass-word@nowhere", retries=0)
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("host:8000", {}),
        ("ftp://host", {}),
        ("http://", {}),
        ("http://host:port", {}),
        (3, {}),
        ("http://host", {"timeout": 0}),
        ("http://host", {"timeout": True}),
        ("http://host", {"retries": -1}),
        ("http://host", {"retries": 1.5}),
    ],
)
def test_arguments_that_make_no_sense(url: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        RemoteEmbedder(url, **options)


def test_a_prefix_in_the_url(hosts: Hosts, gte: Embedder) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    hosts.answering["host"] = httpx.ASGITransport(app=Starlette(routes=[Mount("/models/gte", create_app(gte))]))
    with RemoteEmbedder("http://host/models/gte/") as remote:
        assert_same(remote.embed_queries(["a"]), gte.embed_queries(["a"]))


def test_pickles_and_copies(connect: Connect, gte: Embedder) -> None:
    remote = connect(gte)
    with pickle.loads(pickle.dumps(remote)) as made:
        assert made.spec == remote.spec
        assert_same(made.embed_queries(["a"]), gte.embed_queries(["a"]))
    assert copy.copy(remote) is remote
    assert copy.deepcopy([remote])[0] is remote


def test_closed_is_closed(connect: Connect, gte: Embedder) -> None:
    remote = connect(gte)
    with remote:
        pass
    remote.close()
    for call in (
        lambda: remote.embed_queries(["a"]),
        lambda: asyncio.run(remote.aembed_queries(["a"])),
        lambda: remote.token_offsets(["a"]),
        remote.stats,
    ):
        with pytest.raises(ConfigurationError, match="this RemoteEmbedder is closed"):
            call()
    assert not remote.healthy
    assert remote.spec.fingerprint == gte.spec.fingerprint


@pytest.mark.parametrize("drain", [False, True])
def test_closing_while_a_call_waits(connect: Connect, quick: Embedder, gate: Gate, drain: bool) -> None:
    remote = connect(quick)
    outcome: list[object] = []

    def call() -> None:
        try:
            outcome.append(len(remote.embed_queries([f"pending {drain}"])))
        except ConfigurationError as error:
            outcome.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    assert gate.entered.wait(60)
    closer = threading.Thread(target=remote.close, kwargs={"drain": drain})
    closer.start()
    if drain:
        assert not outcome
        gate.open.set()
    closer.join()
    caller.join()
    assert outcome == [1 if drain else "this RemoteEmbedder is closed; make a new one"]


def test_a_forgotten_one_ends_its_thread(connect: Connect, hosts: Hosts, gte: Embedder) -> None:
    connect(gte)
    remote = RemoteEmbedder("http://host-0")
    thread = remote._line._thread
    del remote
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_no_warning_is_left_by_loops_that_end(connect: Connect, gte: Embedder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        remote = connect(gte)
        asyncio.run(remote.aembed_queries(["a"]))
        remote.close()
        gc.collect()
