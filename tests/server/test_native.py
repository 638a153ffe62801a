"""TwinVec's own routes, and what all routes share: limits, keys, overload, failures, clients that go away."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from langchain_.gate import Gate
from reference.gte import build_gte
from server.conftest import client_of
from support import TEXTS, dense_of, sparse_of
from twinvec import Embedder
from twinvec.errors import ConfigurationError
from twinvec.server import KeysFile, Limits, create_app
from twinvec.server.operations import OPERATIONS
from twinvec.server.wire import unpack_batch, unpack_offsets
from twinvec.settings import Settings

KEY = "a-secret-key"
EMBED, OPENAI, TEI = "/v1/twinvec/embed", "/v1/embeddings", "/embed"


@pytest.fixture
async def client(gte: Embedder) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(gte)) as client:
        yield client


async def test_the_answer_is_the_embedders_batch_bit_for_bit(client: httpx.AsyncClient, gte: Embedder) -> None:
    answer = await client.post(EMBED, json={"role": "document", "texts": TEXTS})
    assert answer.headers["content-type"] == "application/vnd.safetensors"
    assert answer.headers["x-twinvec-fingerprint"] == gte.spec.fingerprint
    found, expected = unpack_batch(answer.content), gte.embed_documents(TEXTS)
    assert dense_of(found).tobytes() == dense_of(expected).tobytes()
    assert sparse_of(found).values.tobytes() == sparse_of(expected).values.tobytes()
    assert sparse_of(found).indices.tobytes() == sparse_of(expected).indices.tobytes()
    assert found.token_counts.tolist() == expected.token_counts.tolist()
    assert found.truncated.tolist() == expected.truncated.tolist()


async def test_halves_tasks_and_prompts(giga: Embedder) -> None:
    async with client_of(create_app(giga)) as client:

        async def embed(**fields: Any) -> Any:
            answer = await client.post(EMBED, json={"role": "query", "texts": ["a b"], **fields})
            assert answer.status_code == 200, answer.text
            return unpack_batch(answer.content)

        assert (await embed(sparse=False)).sparse is None
        assert (await embed(dense=False)).dense is None
        symmetric = {"instruction": "Find the same", "symmetric": True}
        for fields, prompt in (
            ({"task": "Find it"}, "Instruct: Find it\nQuery: "),
            ({"task": symmetric, "role": "document"}, "Instruct: Find the same\nQuery: "),
            ({"prompt": "p: "}, "p: "),
            ({"role": "document"}, ""),
        ):
            expected = dense_of(giga.embed_documents(["a b"], prompt=prompt))
            assert dense_of(await embed(**fields)).tobytes() == expected.tobytes()


async def test_info_offsets_terms_and_stats(client: httpx.AsyncClient, gte: Embedder, giga: Embedder) -> None:
    info = (await client.get("/v1/twinvec/info")).json()
    assert info["fingerprint"] == gte.spec.fingerprint
    assert info["spec"]["digest"] == gte.spec.digest
    assert (info["dim"], info["max_length"], info["has_sparse"], info["needs_idf"]) == (64, 128, True, False)
    assert info["vocabulary_size"] == 600
    assert info["special_tokens"] == 2
    assert info["family"] == gte.family
    found = unpack_offsets((await client.post("/v1/twinvec/offsets", json={"texts": TEXTS})).content)
    assert [o.tolist() for o in found] == [o.tolist() for o in gte.token_offsets(TEXTS)]
    keys = [5, 17, 5]
    terms = (await client.post("/v1/twinvec/terms", json={"keys": keys})).json()["terms"]
    assert terms == [gte._core.model.tokenizer.token_texts[key] for key in keys]
    assert (await client.get("/v1/twinvec/stats")).json()["forwards"] == gte.stats()["forwards"]
    async with client_of(create_app(giga)) as other:
        assert (await other.get("/v1/twinvec/info")).json()["vocabulary_size"] == 2**31 - 1


# --- requests that are refused, each naming the field


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"texts": None}, "texts", "texts: expected `array`, got `null`"),
        ({"texts": 3}, "texts", "texts: expected `array`, got `int`"),
        ({"texts": ["a", None]}, "texts", "texts[1]: expected `str`, got `null`"),
        ({"texts": ["a", 1.5]}, "texts", "texts[1]: expected `str`, got `float`"),
        ({"texts": ["a", True]}, "texts", "texts[1]: expected `str`, got `bool`"),
        ({"texts": [[1, 2]]}, "texts", "texts[0]: expected `str`, got `array`"),
        ({"texts": ["a", float("nan")]}, None, "not valid JSON"),
        ({"texts": ["a", "\ud800"]}, None, "a lone surrogate"),
        ({"prompt": "\udfff"}, None, "a lone surrogate"),
        ({"\ud800": 1}, None, "a lone surrogate"),
        ({"task": {"\ud800": 1}}, None, "a lone surrogate"),
        ({"prompt": 3}, "prompt", "prompt: expected `str | null`, got `int`"),
        ({"role": "answer"}, "role", "role: invalid enum value 'answer'"),
        ({"role": None}, "role", "role: expected `str`, got `null`"),
        ({"dense": 1}, "dense", "dense: expected `bool | null`, got `int`"),
        ({"timeout": "1"}, "timeout", "timeout: expected `float | null`, got `str`"),
        ({"timeout": True}, "timeout", "timeout: expected"),
        ({"timeout": float("nan")}, None, "not valid JSON"),
        ({"timeout": float("inf")}, None, "not valid JSON"),
        ({"timeout": 10**400}, "timeout", "timeout: number out of range"),
        ({"timeout": 0}, "timeout", "timeout: expected `float` > 0"),
        ({"task": 3}, "task", "task: expected `str | object | null`, got `int`"),
        ({"task": {"instruction": ""}}, "task", "task: the instruction must not be empty"),
        ({"task": {"instruction": 3}}, "task", "task.instruction: expected `str`, got `int`"),
        ({"task": {"instruction": "a", "more": 1}}, "task", "task.more: object contains unknown field"),
        ({"rolle": "query"}, "rolle", "rolle: object contains unknown field"),
        ({"task": "Find it"}, None, "was not trained with instructions"),
        ({"task": "a", "prompt": "b"}, None, "pass task= or prompt=, not both"),
        ({"dense": False, "sparse": False}, None, "leave nothing to compute"),
        ({"prompt": "word " * 200}, None, "leaves no room for a text"),
    ],
)
async def test_bad_fields(client: httpx.AsyncClient, fields: dict[str, Any], field: str | None, message: str) -> None:
    body = json.dumps({"role": "query", "texts": ["a"], **fields})
    answer = await client.post(EMBED, content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["field"] == field


@pytest.mark.parametrize("path", [EMBED, "/v1/twinvec/offsets", "/v1/twinvec/terms", OPENAI, TEI, "/embed_sparse"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b'"text"', b"[]", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"{}"]
)
async def test_bodies_that_are_no_json_object(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    answer = await client.post(path, content=body)
    assert answer.status_code == (422 if path.startswith("/embed") else 400)
    assert answer.headers["content-type"] == "application/json"
    assert re.search("JSON|missing|unknown field", answer.text)


@pytest.mark.parametrize("keys", [[-1], [600], [1.0], ["a"], [True], "1", None])
async def test_columns_that_do_not_exist(client: httpx.AsyncClient, keys: object) -> None:
    answer = await client.post("/v1/twinvec/terms", json={"keys": keys})
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == "keys"


async def test_limits(gte: Embedder) -> None:
    limits = Limits(max_texts=2, max_body_bytes=200)
    async with client_of(create_app(gte, limits=limits)) as client:
        for texts, kind, message in (
            (["a", "b", "c"], "ConfigurationError", "batch size 3 > maximum allowed batch size 2"),
            (["я" * 100], "TextTooLongError", "the request body exceeds the limit of 200 bytes"),
        ):
            answer = await client.post(EMBED, json={"role": "query", "texts": texts})
            assert answer.status_code == 413
            assert answer.json()["error"]["type"] == kind
            assert message in answer.json()["error"]["message"]
        assert (await client.post(EMBED, json={"role": "query", "texts": ["a" * 5, "b" * 5]})).status_code == 200
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(ConfigurationError, match="max_texts="):
            Limits(max_texts=wrong)  # type: ignore[arg-type]
    for seconds in (0, -1, True, float("nan"), float("inf"), "1"):
        with pytest.raises(ConfigurationError, match="body_seconds="):
            Limits(body_seconds=seconds)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="unready_seconds=5 must be less than drain_seconds=5"):
        Limits(unready_seconds=5, drain_seconds=5)


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/v1/twinvec/nowhere", "/rerank", "/predict"])
async def test_unknown_routes_and_methods_say_what_there_is(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert "/v1/embeddings" in answer.text
    assert "error" in answer.json()
    assert (await client.get(OPENAI)).status_code == 405
    assert (await client.get(OPENAI)).headers["allow"] == "POST"


# --- keys


@pytest.mark.parametrize("path", [EMBED, OPENAI, TEI])
async def test_without_the_key_nobody_gets_in(gte: Embedder, path: str) -> None:
    async with client_of(create_app(gte, api_key=KEY)) as client:
        for headers in ({}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}, {"authorization": "Bearer x"}):
            answer = await client.post(path, headers=headers, content=b"not even read")
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer KEY" in answer.text
            assert KEY not in answer.text
        fields = {"role": "query", "texts": ["a"]} if path == EMBED else {"input": "a", "inputs": "a"}
        if path == OPENAI:
            del fields["inputs"]
        for scheme in ("Bearer", "bearer"):
            answer = await client.post(path, headers={"authorization": f"{scheme} {KEY}"}, json=fields)
            assert answer.status_code == 200
        for closed in ("/info", "/metrics", "/v1/models", "/v1/twinvec/info"):
            assert (await client.get(closed)).status_code == 401
        assert (await client.get("/health")).status_code == 200


async def test_the_key_comes_from_the_environment_too(gte: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINVEC_API_KEY", KEY)
    assert KEY not in repr(Settings.from_env())
    async with client_of(create_app(gte)) as client:
        assert (await client.get("/info")).status_code == 401
        assert (await client.get("/info", headers={"authorization": f"Bearer {KEY}"})).status_code == 200


def test_the_pages_need_no_key_and_name_every_route(gte: Embedder) -> None:
    with TestClient(create_app(gte, api_key="k")) as client:
        described, shown = client.get("/openapi.json").json(), client.get("/docs")
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert {o.path.replace(":path", "") for o in OPERATIONS} == set(described["paths"])
    for name in (*described["paths"], *described["components"]["schemas"]):
        assert f">{name}<" in shown.text, name
    ids, links = (re.findall(pattern, shown.text) for pattern in (r' id="(\w+)"', r'href="#(\w+)"'))
    assert set(links) <= set(ids)
    assert "http://" not in shown.text
    assert "https://" not in shown.text


def test_a_file_of_keys_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nalice old\n\nplain\n")
    keys = KeysFile(path)

    def tenants() -> list[str | None]:
        return [keys.tenant(b"Bearer " + key) for key in (b"old", b"new", b"plain")]

    assert tenants() == ["alice", None, ""]
    path.write_text("alice old\nbob new\n")
    assert tenants() == ["alice", None, ""]
    keys.refresh()
    assert tenants() == ["alice", "bob", None]
    for broken in ("", "a b c\n", "\u043a\u043b\u044e\u0447\n"):
        path.write_text(broken)
        keys.refresh()
        assert tenants() == ["alice", "bob", None]
    path.unlink()
    keys.refresh()
    assert tenants() == ["alice", "bob", None]
    assert caplog.text.count("keeping the current API keys") == 4
    path.write_text("last\n")
    keys.refresh()
    assert (keys.tenant(b"Bearer last"), *tenants()) == ("", None, None, None)


@pytest.mark.parametrize("key", ["", "with space", "ключ", "line\n"])
def test_keys_that_no_header_can_carry(gte: Embedder, key: str) -> None:
    with pytest.raises(ConfigurationError, match="printable ASCII") as caught:
        create_app(gte, api_key=key)
    assert not key or key not in str(caught.value)


# --- load and failures

NUMBERS = itertools.count()


def query() -> dict[str, Any]:
    """A text that no other request has: equal ones that are on the device together are one."""
    return {"role": "query", "texts": [f"question number {next(NUMBERS)}"]}


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.wait, 60)


async def test_more_requests_than_the_limit_are_told_to_come_back(quick: Embedder, gate: Gate) -> None:
    async with client_of(create_app(quick, limits=Limits(max_requests=1))) as client:
        first = asyncio.ensure_future(client.post(EMBED, json=query()))
        await entered(gate)
        for path, message in ((EMBED, "type"), (OPENAI, "rate_limit_exceeded"), (TEI, "Overloaded")):
            answer = await client.post(path, json=query())
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "1"
            assert message in answer.text
        assert (await client.get("/health")).status_code == 200
        gate.open.set()
        assert (await first).status_code == 200
        assert (await client.post(EMBED, json=query())).status_code == 200


async def test_a_full_queue_is_429(quick: Embedder, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinvec.engine.dispatcher.MAX_PENDING", 1)
    async with client_of(create_app(quick)) as client:
        first = asyncio.ensure_future(client.post(EMBED, json=query()))
        await entered(gate)
        answer = await client.post(EMBED, json=query())
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "OverloadedError")
        assert answer.headers["retry-after"] == "1"
        gate.open.set()
        assert (await first).status_code == 200


async def test_a_deadline_is_504(quick: Embedder, gate: Gate) -> None:
    async with client_of(create_app(quick)) as client:
        answer = await client.post(EMBED, json={**query(), "timeout": 0.01})
        assert (answer.status_code, answer.json()["error"]["type"]) == (504, "DeadlineError")


async def gone_after(app: Any, gate: Gate) -> tuple[asyncio.Task[None], asyncio.Event]:
    """Send a request whose client goes away once its text is on the device."""
    gone = asyncio.Event()
    messages = iter([{"type": "http.request", "body": json.dumps(query()).encode(), "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": EMBED, "headers": [], "query_string": b"", "root_path": ""}
    task = asyncio.ensure_future(app({**scope, "asgi": {"version": "3.0"}}, receive, send))
    await entered(gate)
    return task, gone


async def test_a_client_that_goes_away_takes_its_work_along(quick: Embedder, gate: Gate) -> None:
    app = create_app(quick)
    request, gone = await gone_after(app, gate)
    core = quick._core
    assert len(core.state.jobs) == 1
    gone.set()
    await request
    assert not core.state.jobs
    gate.open.set()


async def test_a_lost_device_is_503_and_unhealthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(batch: Any) -> Any:
        raise RuntimeError("CUDA error: device lost")

    with Embedder(build_gte(tmp_path, seed=63), dtype="float32") as embedder:
        monkeypatch.setattr(embedder._core.model.encoder.backbone, "forward", lost)
        async with client_of(create_app(embedder)) as client:
            assert (await client.get("/health")).status_code == 200
            for path, fields in ((EMBED, query()), (OPENAI, {"input": "a"}), (TEI, {"inputs": "a"})):
                assert (await client.post(path, json=fields)).status_code == 503
            answer = await client.get("/health")
            assert answer.status_code == 503
            assert answer.json()["error_type"] == "Unhealthy"


async def test_a_defect_is_500_and_in_the_log_only(
    gte: Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("an inner matter")

    monkeypatch.setattr(gte, "_parts", fail)
    async with client_of(create_app(gte)) as client:
        with caplog.at_level(logging.ERROR):
            answer = await client.post(EMBED, json=query())
    assert answer.status_code == 500
    assert "inner matter" not in answer.text
    assert "an inner matter" in caplog.text


async def test_requests_of_one_moment_share_forward_passes(quick: Embedder, gate: Gate) -> None:
    async with client_of(create_app(quick)) as client:
        before = quick.stats()
        first = asyncio.ensure_future(client.post(EMBED, json=query()))
        await entered(gate)
        rest = [
            asyncio.ensure_future(client.post(EMBED, json={"role": "query", "texts": [f"question {i}"]}))
            for i in range(63)
        ]
        while quick.stats()["queued"] < 63:
            await asyncio.sleep(0)
        gate.open.set()
        answers = await asyncio.gather(first, *rest)
    after = quick.stats()
    assert after["texts"] - before["texts"] == 64
    assert after["forwards"] - before["forwards"] <= 3
    for i, answer in enumerate(answers[1:]):
        expected = dense_of(quick.embed_queries([f"question {i}"]))
        np.testing.assert_allclose(dense_of(unpack_batch(answer.content)), expected, atol=1e-5)


async def test_cut_texts_warn_nobody_at_the_server(client: httpx.AsyncClient) -> None:
    answer = await client.post(EMBED, json={"role": "document", "texts": ["a", "word " * 200]})
    assert unpack_batch(answer.content).truncated.tolist() == [False, True]
