"""RemoteEmbedder in a network, and before servers that fail or lie."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save

from server.conftest import Connect, Hosts
from server.remote import KEY, assert_same
from twinvec import Embedder, RemoteEmbedder
from twinvec.errors import (
    ConfigurationError,
    DeadlineError,
    DeviceLostError,
    InvalidTextError,
    OverloadedError,
    PromptError,
    RemoteError,
)
from twinvec.server import create_app
from twinvec.server.wire import pack_batch, pack_offsets


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
        (httpx.ReadTimeout(""), RemoteError, "http://host-0 did not respond within 60 s"),
        (httpx.Response(401, json={}), RemoteError, "rejected the API key: pass api_key=, or set both TWINVEC_API_KEY"),
        (httpx.Response(302, headers={"location": "http://elsewhere"}), RemoteError, "status 302: nothing more"),
        (httpx.Response(500, json={"error": {"type": "SystemExit", "message": "x"}}), RemoteError, "status 500"),
        (httpx.Response(400, json={"error": "none"}), RemoteError, "status 400"),
        (httpx.Response(200, content=b"hello"), RemoteError, "serves a different model now"),
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
    with pytest.raises(RemoteError, match="returned invalid vectors: not safetensors"):
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
    with pytest.raises(RemoteError, match="returned invalid vectors: "):
        remote.embed_documents(["a b", "c d e"])
    assert_same(remote.embed_documents(["a b", "c d e"]), gte.embed_documents(["a b", "c d e"]))


def test_halves_that_were_not_asked_for(connect: Connect, hosts: Hosts, gte: Embedder) -> None:
    remote = connect(gte)
    answered(hosts, gte, pack_batch(gte.embed_documents(["a"])))
    with pytest.raises(RemoteError, match="the sparse half is present, but was not requested"):
        remote.embed_documents(["a"], sparse=False)


@pytest.mark.parametrize("pairs", [[[0, 2]], [[-1, 0]], [[1, 0]]])
def test_offsets_outside_of_their_text(connect: Connect, hosts: Hosts, gte: Embedder, pairs: list[list[int]]) -> None:
    remote = connect(gte)
    answered(hosts, gte, pack_offsets([np.array(pairs, np.int64)]))
    with pytest.raises(RemoteError, match="lie outside it"):
        remote.token_offsets(["a"])
    answered(hosts, gte, pack_offsets([]))
    with pytest.raises(RemoteError, match="offsets for 0 texts, expected 1"):
        remote.token_offsets(["a"])


NO_TERMS, NO_OBJECT = "did not return the terms of 2 columns", "/v1/twinvec/terms did not return a JSON object"


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, NO_TERMS),
        ({"terms": ["a"]}, NO_TERMS),
        ({"terms": ["a", 3]}, NO_TERMS),
        ({"terms": "ab"}, NO_TERMS),
        ([], NO_OBJECT),
        ("[" * 60_000, NO_OBJECT),
    ],
)
def test_terms_that_are_none(connect: Connect, hosts: Hosts, gte: Embedder, terms: Any, message: str) -> None:
    remote = connect(gte)
    answered(hosts, gte, terms.encode() if isinstance(terms, str) else json.dumps(terms).encode())
    with pytest.raises(RemoteError, match=message):
        remote._token_texts([5, 17])


def test_answers_have_a_size(connect: Connect, hosts: Hosts, gte: Embedder) -> None:
    remote = connect(gte)
    answered(hosts, gte, b"\0" * 2_000_000)
    with pytest.raises(RemoteError, match=r"sent more than \d+ bytes, the largest plausible response"):
        remote.embed_queries(["a"])
    answered(hosts, gte, gzip.compress(b"\0" * 2_000_000), content_encoding="gzip")
    with pytest.raises(RemoteError, match="sent a compressed response, which was not requested"):
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
    with pytest.raises(RemoteError, match=r"did not respond within 0\.2 s"):
        remote.embed_queries(["a"])
    hosts.answering["host-0"] = Scripted(Slow(), *[overloaded(**{"retry-after": "1"})] * 9)
    with pytest.raises(RemoteError, match=r"did not respond within 0\.2 s"):
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
    with pytest.raises(RemoteError, match="is not a TwinVec server that this version understands"):
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
    with pytest.raises(RemoteError, match="serves a different model now: create a new RemoteEmbedder"):
        remote.embed_queries(["a"])


def test_what_is_no_twinvec_server(hosts: Hosts, waits: list[float], connect: Connect, gte: Embedder) -> None:
    with pytest.raises(RemoteError, match="http://nowhere cannot be reached"):
        RemoteEmbedder("http://nowhere", retries=0)
    for answer, message in (
        (httpx.Response(404, text="not found"), "status 404: not found"),
        (httpx.Response(200, text="welcome"), "is not a TwinVec server: /v1/twinvec/info did not return a JSON object"),
        (httpx.Response(200, json={}), "is not a TwinVec server that this version understands"),
        (httpx.Response(200, json={"protocol": 2, "version": "9.0"}), "runs TwinVec 9.0, which is incompatible with"),
    ):
        hosts.answering["other"] = Scripted(hosts, answer)
        with pytest.raises(RemoteError, match=message):
            RemoteEmbedder("http://other")
    connect(gte)
    info = httpx.Response(200, json={**_info(hosts), "fingerprint": "0" * 32})
    hosts.answering["other"] = Scripted(hosts, info)
    with pytest.raises(RemoteError, match="its fingerprint does not match its spec"):
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
