"""OpenAI's routes: their exact shapes, and what TwinVec adds."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from server.conftest import client_of
from support import TEXTS, dense_of
from twinvec import Embedder, Task
from twinvec.server import create_app

PATH = "/v1/embeddings"


@pytest.fixture
async def client(gte: Embedder) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(gte)) as client:
        yield client


async def test_the_answer_has_openais_shape(client: httpx.AsyncClient, gte: Embedder, gte_folder: Path) -> None:
    fields = {"model": gte_folder.name, "input": TEXTS, "encoding_format": "float", "user": "somebody"}
    answer = (await client.post(PATH, json=fields)).json()
    expected = gte.embed_documents(TEXTS)
    tokens = int(expected.token_counts.sum())
    assert answer == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(dense_of(expected))
        ],
        "model": gte_folder.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def test_base64_is_float32_little_endian(client: httpx.AsyncClient, gte: Embedder) -> None:
    answer = (await client.post(PATH, json={"input": "a text", "encoding_format": "base64"})).json()
    row = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    assert row.tobytes() == dense_of(gte.embed_documents(["a text"])).tobytes()


async def test_roles_and_tasks(giga: Embedder) -> None:
    async with client_of(create_app(giga)) as client:
        for fields, expected in (
            ({}, giga.embed_documents(["a"])),
            ({"input_type": "document", "task": "Find it"}, giga.embed_documents(["a"])),
            ({"input_type": "query"}, giga.embed_queries(["a"])),
            ({"input_type": "query", "task": "Find it"}, giga.embed_queries(["a"], task="Find it")),
            (
                {"task": {"instruction": "Find it", "symmetric": True}},
                giga.embed_documents(["a"], task=Task("Find it", symmetric=True)),
            ),
        ):
            answer = (await client.post(PATH, json={"input": "a", **fields})).json()
            row = np.array(answer["data"][0]["embedding"], dtype=np.float32)
            assert row.tobytes() == dense_of(expected).tobytes()


async def test_dimensions_are_those_of_an_embedder_with_so_many(
    client: httpx.AsyncClient, gte_folder: Path, giga: Embedder, splade: Embedder
) -> None:
    with Embedder(gte_folder, dtype="float32", reproducible=True, dim=32) as short:
        expected = dense_of(short.embed_documents(["a text"]))
    answer = (await client.post(PATH, json={"input": "a text", "dimensions": 32})).json()
    assert np.array(answer["data"][0]["embedding"], dtype=np.float32).tobytes() == expected.tobytes()
    for dimensions in (0, 5, 65):
        refused = await client.post(PATH, json={"input": "a", "dimensions": dimensions})
        assert refused.status_code == 400
        assert f"{gte_folder.name} gives 10 to 64 dimensions" in refused.json()["error"]["message"]
        assert refused.json()["error"]["param"] == "dimensions"
    async with client_of(create_app(giga)) as other:
        refused = await other.post(PATH, json={"input": "a", "dimensions": 32})
        assert refused.status_code == 400
        assert "was not trained for fewer dimensions" in refused.json()["error"]["message"]
    async with client_of(create_app(splade)) as other:
        assert "no dense half" in (await other.post(PATH, json={"input": "a"})).json()["error"]["message"]


async def test_what_was_cut_is_told(client: httpx.AsyncClient, gte_folder: Path) -> None:
    answer = (await client.post(PATH, json={"input": ["a", "word " * 200]})).json()
    assert answer["truncated"] == [1]
    with Embedder(gte_folder, dtype="float32", max_length=128, on_overflow="error") as strict:
        async with client_of(create_app(strict)) as other:
            refused = await other.post(PATH, json={"input": ["a", "word " * 200]})
    assert refused.status_code == 413
    error = refused.json()["error"]
    assert error["param"] == "input"
    assert error["message"].startswith("input[1] has 802 tokens")


async def test_models(client: httpx.AsyncClient, gte_folder: Path) -> None:
    answer = (await client.get("/v1/models")).json()
    assert answer["object"] == "list"
    assert [(m["id"], m["object"], m["owned_by"]) for m in answer["data"]] == [(gte_folder.name, "model", "twinvec")]
    assert isinstance(answer["data"][0]["created"], int)


@pytest.mark.parametrize(
    ("fields", "status", "param", "code", "message"),
    [
        ({"input": [1, 2]}, 400, "input", None, "check_embedding_ctx_length=False"),
        ({"input": [[1, 2]]}, 400, "input", None, "token ids of another tokenizer mean nothing here"),
        ({"input": []}, 400, "input", None, "input must have at least one text"),
        ({"input": None}, 400, "input", None, "input is missing"),
        ({"model": "text-embedding-3-small"}, 404, "model", "model_not_found", "there is no model"),
        ({"model": 3}, 400, "model", None, "model must be a string"),
        ({"encoding_format": "int8"}, 400, "encoding_format", None, "not one of float, base64"),
        ({"dimensions": 1.5}, 400, "dimensions", None, "dimensions must be a whole number, not a number"),
        ({"dimensions": True}, 400, "dimensions", None, "dimensions must be a whole number"),
        ({"input_type": "search_query"}, 400, "input_type", None, "not one of query, document"),
        ({"input_typ": "query"}, 400, "input_typ", None, "input_typ is not a field of this request"),
        ({"task": "Find it"}, 400, None, None, "was not trained with instructions"),
    ],
)
async def test_errors_have_openais_shape(
    client: httpx.AsyncClient,
    fields: dict[str, Any],
    status: int,
    param: str | None,
    code: str | None,
    message: str,
) -> None:
    answer = await client.post(PATH, json={"input": "a", **fields})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error.pop("message")
    assert error == {"type": "invalid_request_error", "param": param, "code": code}


async def test_no_key_has_openais_shape(gte: Embedder) -> None:
    async with client_of(create_app(gte, api_key="key")) as client:
        error = (await client.post(PATH, json={"input": "a"})).json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
