"""OpenAI's routes: their exact shapes, and what TwinVec adds."""

from __future__ import annotations

import base64
import json
import sys
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


def body_of(fields: dict[str, Any]) -> bytes:
    """JSON with numbers of any length, and lone surrogates escaped."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(fields).encode()
    finally:
        sys.set_int_max_str_digits(limit)


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
        assert f"{gte_folder.name} supports 10 to 64 dimensions" in refused.json()["error"]["message"]
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


async def test_one_model(client: httpx.AsyncClient, gte_folder: Path) -> None:
    answer = (await client.get(f"/v1/models/{gte_folder.name}")).json()
    assert (answer["id"], answer["object"]) == (gte_folder.name, "model")
    refused = await client.get("/v1/models/owner/another")
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"


async def test_token_ids_of_this_model(client: httpx.AsyncClient, gte: Embedder) -> None:
    texts = ["a text", "another text of five words"]
    ids = [[0, *row, 2] for row in reference_ids(gte, texts)]
    expected = dense_of(gte.embed_documents(texts)).tolist()
    for given, rows in ((ids, expected), (ids[0], expected[:1])):
        answer = (await client.post(PATH, json={"input": given})).json()
        assert [row["embedding"] for row in answer["data"]] == rows


def reference_ids(embedder: Embedder, texts: list[str]) -> list[list[int]]:
    """Token ids by the tokenizers library, without special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(embedder.spec.model) / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


async def test_several_models(gte: Embedder, giga: Embedder) -> None:
    async with client_of(create_app({"small": gte, "owner/large": giga})) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["small", "owner/large"]
        for name, embedder in ((None, gte), ("small", gte), ("owner/large", giga)):
            answer = (await client.post(PATH, json={"input": "a", "model": name})).json()
            assert answer["data"][0]["embedding"] == dense_of(embedder.embed_documents(["a"])).tolist()[0]
            assert answer["model"] == (name or "small")
        answer = await client.post("/models/owner/large/embed", json={"inputs": "a"})
        assert answer.json() == dense_of(giga.embed_documents(["a"])).tolist()
        assert (await client.get("/models/owner/large/info")).json()["model_id"] == "owner/large"


@pytest.mark.parametrize(
    ("fields", "status", "param", "code", "message"),
    [
        ({"input": [1, 2]}, 400, "input", None, "check_embedding_ctx_length=False"),
        ({"input": [[1, 2]]}, 400, "input", None, "ids of another tokenizer are meaningless here"),
        (
            {"input": [[0, 10**9, 2]]},
            400,
            "input",
            None,
            "input[0] must be a non-empty list of token ids from 0 to 599",
        ),
        ({"input": [[0, 10**400, 2]]}, 400, "input", None, "input[0][1]: expected `int`"),
        ({"input": [[0, -1, 2]]}, 400, "input", None, "input[0][1]: expected `int` >= 0"),
        ({"input": ["a", 1]}, 400, "input", None, "input[1] must be a string or a list of token ids"),
        ({"input": [[]]}, 400, "input", None, "a non-empty list"),
        ({"input": []}, 400, "input", None, "it must have at least one text"),
        ({"input": None}, 400, "input", None, "input: expected `str | array`, got `null`"),
        ({"model": "text-embedding-3-small"}, 404, "model", "model_not_found", "there is no model"),
        ({"model": 3}, 400, "model", None, "model: expected `str | null`, got `int`"),
        ({"encoding_format": "int8"}, 400, "encoding_format", None, "invalid enum value 'int8'"),
        ({"dimensions": 1.5}, 400, "dimensions", None, "dimensions: expected `int | null`, got `float`"),
        ({"dimensions": True}, 400, "dimensions", None, "dimensions: expected `int | null`, got `bool`"),
        ({"dimensions": 10**5000}, 400, "dimensions", None, "dimensions: "),
        ({"input_type": "search_query"}, 400, "input_type", None, "invalid enum value 'search_query'"),
        ({"input_typ": "query"}, 400, "input_typ", None, "unknown field `input_typ`"),
        ({"\ud800": 1}, 400, None, None, "lone surrogate"),
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
    answer = await client.post(PATH, content=body_of({"input": "a", **fields}))
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error.pop("message")
    assert error == {"type": "invalid_request_error", "param": param, "code": code}


async def test_no_key_has_openais_shape(gte: Embedder) -> None:
    async with client_of(create_app(gte, api_key="key")) as client:
        error = (await client.post(PATH, json={"input": "a"})).json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
