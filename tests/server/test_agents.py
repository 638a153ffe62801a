"""MCP: the SDK's own client finds through the tool what the index finds, over stdio and over HTTP."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from reference.rerankers import build_cross_encoder
from server.test_running import COMMAND, Running
from twinvec import Embedder, Reranker
from twinvec.server import Limits
from twinvec_stores import EmbeddedStore, Eq, HybridIndex, StoreConfig
from twinvec_stores.agents import mcp_extension, mcp_server

TEXTS = ["Столица России - Москва.", "The capital of France is Paris.", "Волга впадает в Каспийское море."]
METADATA = [{"lang": "ru"}, {"lang": "en"}, {"lang": "ru"}]
ASKED = {"query": "столица России", "k": 2, "filter": {"lang": "ru"}, "explain": True}


@pytest.fixture(scope="module")
def folder(gte: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents") / "store"
    with HybridIndex(gte, EmbeddedStore(folder, StoreConfig.for_embedder(gte))) as index:
        index.add(TEXTS, ids=["a", "b", "c"], metadata=METADATA)
    return folder


@pytest.fixture
def index(gte: Embedder, folder: Path) -> Iterator[HybridIndex]:
    with HybridIndex(gte, EmbeddedStore(folder)) as index:
        yield index


@pytest.fixture(scope="module")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cross_encoder(tmp_path_factory.mktemp("reranker"), "bert")


@pytest.fixture(scope="module")
def reranker(reranker_folder: Path) -> Iterator[Reranker]:
    with Reranker(reranker_folder, dtype="float32", reproducible=True) as made:
        yield made


def expected(index: HybridIndex, **options: Any) -> Any:
    found = index.search("столица России", k=2, filter=Eq("lang", "ru"), explain=True, **options)
    return {"results": json.loads(json.dumps([result.to_dict() for result in found]))}


async def check_reranked(client: Client, wanted: Any, *, within: float = 1e-5) -> None:
    answer = await client.call_tool("search", {**ASKED, "rerank": True})
    assert not answer.is_error
    assert answer.structured_content is not None
    for found, due in zip(answer.structured_content["results"], wanted["results"], strict=True):
        assert found["id"] == due["id"]
        assert found["score"] == pytest.approx(due["score"], abs=within)
        assert found["explanation"]["rerank_rank"] == due["explanation"]["rerank_rank"] is not None


async def check_search(client: Client, wanted: Any) -> None:
    (tool,) = (await client.list_tools()).tools
    assert tool.name == "search"
    options = {"query", "k", "filter", "mode", "fusion", "explain", "group_by", "rerank"}
    assert options <= set(tool.input_schema["properties"])
    answer = await client.call_tool("search", ASKED)
    assert not answer.is_error
    assert answer.structured_content == wanted
    (content,) = answer.content
    assert json.loads(content.text) == wanted  # type: ignore[union-attr]
    assert "Москва" in content.text  # type: ignore[union-attr]


async def test_the_tool_says_what_is_wrong(index: HybridIndex) -> None:
    async with Client(mcp_server(index)) as client:
        await check_search(client, expected(index))
        for wrong, said in (
            ({"query": "a", "filter": {"lang": {"$regex": "x"}}}, "$regex"),
            ({"query": "a", "k": 0}, "k"),
            ({"query": ""}, "query"),
            ({"query": "a", "fusion": "sum"}, "fusion"),
            ({"query": "a", "dense_weight": 0, "sparse_weight": 0}, "must not both be 0"),
            ({"query": "a", "rerank": True}, "there is no reranker here"),
        ):
            answer = await client.call_tool("search", wrong)
            assert answer.is_error
            assert said in answer.content[0].text  # type: ignore[union-attr]


async def test_over_stdio(index: HybridIndex, folder: Path, reranker: Reranker, reranker_folder: Path) -> None:
    wanted, reranked = expected(index), expected(index, rerank=reranker)
    index.close()  # one process has the folder
    command = [*COMMAND[1:-1], "mcp", str(folder), "--device", "cpu", "--reranker", str(reranker_folder)]
    server = StdioServerParameters(command=sys.executable, args=command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    async with Client(server) as client:
        await check_search(client, wanted)
        await check_reranked(client, reranked, within=0.02)  # bfloat16 on some machines


@pytest.fixture
def serve(
    gte: Embedder, index: HybridIndex, reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(**options: Any) -> Running:
        running.append(Running(gte, monkeypatch, extension=mcp_extension(index, reranker), **options))
        return running[-1]

    yield start
    for server in running:
        server.stop()
        server.thread.join(60)
        assert not server.thread.is_alive()


async def test_over_http(serve: Callable[..., Running], index: HybridIndex, reranker: Reranker) -> None:
    server = serve(api_key="k", limits=Limits(unready_seconds=0, max_body_bytes=10_000))
    for mode in ("auto", "legacy"):
        async with (
            httpx2.AsyncClient(headers={"Authorization": "Bearer k"}) as http,
            Client(streamable_http_client(f"{server.url}/mcp", http_client=http), mode=mode) as client,
        ):
            await check_search(client, expected(index))
            await check_reranked(client, expected(index, rerank=reranker))
    assert httpx.post(f"{server.url}/mcp", json={}).status_code == 401
    headers = {"Authorization": "Bearer k"}
    assert httpx.post(f"{server.url}/mcp", content=b"a" * 20_000, headers=headers).status_code == 413
    assert httpx.get(f"{server.url}/mcp", headers=headers).status_code == 405
    assert b'route="/mcp",status="200"' in httpx.get(f"{server.url}/metrics", headers=headers).content
