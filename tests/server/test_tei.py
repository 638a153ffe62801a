"""The routes of text-embeddings-inference: shapes, truncation, prompts, errors."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.conftest import client_of
from support import TEXTS, dense_of, sparse_of
from twinvec import Embedder, __version__
from twinvec.server import create_app


@pytest.fixture
async def client(gte: Embedder) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(gte)) as client:
        yield client


async def test_one_text_or_a_list(client: httpx.AsyncClient, gte: Embedder) -> None:
    expected = dense_of(gte.embed_documents(TEXTS)).tolist()
    assert (await client.post("/embed", json={"inputs": TEXTS, "unknown": "is ignored"})).json() == expected
    for path in ("/embed", "/"):
        assert (await client.post(path, json={"inputs": TEXTS[0]})).json() == expected[:1]


async def test_sparse(client: httpx.AsyncClient, gte: Embedder, giga: Embedder, e5: Embedder) -> None:
    answer = (await client.post("/embed_sparse", json={"inputs": TEXTS})).json()
    rows = [{pair["index"]: pair["value"] for pair in row} for row in answer]
    assert rows == sparse_of(gte.embed_documents(TEXTS)).to_dicts()
    async with client_of(create_app(giga)) as other:
        answer = (await other.post("/embed_sparse", json={"inputs": "a quick fox", "prompt_name": "query"})).json()
    expected = sparse_of(giga.embed_queries(["a quick fox"])).to_dicts()
    assert [{pair["index"]: pair["value"] for pair in row} for row in answer] == expected
    async with client_of(create_app(e5)) as other:
        refused = await other.post("/embed_sparse", json={"inputs": "a"})
    assert refused.status_code == 422
    assert "no sparse half" in refused.json()["error"]


async def test_truncate(client: httpx.AsyncClient, gte: Embedder) -> None:
    long = ["a", "word " * 200]
    for path in ("/embed", "/embed_sparse"):
        refused = await client.post(path, json={"inputs": long})
        assert refused.status_code == 413
        assert refused.json()["error_type"] == "Validation"
        assert refused.json()["error"].startswith("inputs[1] has 802 tokens with its prompt, the limit is 128")
        assert "truncate=true" in refused.json()["error"]
        assert (await client.post(path, json={"inputs": long, "truncate": True})).status_code == 200
    with pytest.warns(UserWarning, match="1 of 2 texts were cut"):
        expected = dense_of(gte.embed_documents(long)).tolist()
    assert (await client.post("/embed", json={"inputs": long, "truncate": True})).json() == expected


async def test_a_prompt_goes_before_a_text_only_where_it_is_asked_for(e5: Embedder, giga: Embedder) -> None:
    async with client_of(create_app(e5)) as client:
        for name, prompt in ((None, ""), ("query", "query: "), ("passage", "passage: "), ("document", "passage: ")):
            answer = (await client.post("/embed", json={"inputs": "a", "prompt_name": name})).json()
            assert answer == dense_of(e5.embed_documents(["a"], prompt=prompt)).tolist()
        refused = await client.post("/embed", json={"inputs": "a", "prompt_name": "clustering"})
        assert refused.status_code == 422
        assert "was not trained with instructions" in refused.json()["error"]
    async with client_of(create_app(giga)) as client:
        answer = (await client.post("/embed", json={"inputs": "a", "prompt_name": "similarity"})).json()
        assert answer == dense_of(giga.embed_queries(["a"], task="similarity")).tolist()


async def test_dimensions_and_normalize(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/embed", json={"inputs": "a", "dimensions": 32, "normalize": True})).json()
    assert np.array(answer).shape == (1, 32)
    assert np.linalg.norm(answer) == pytest.approx(1)
    for fields, message in (
        ({"normalize": False}, "the vectors of this server have length 1"),
        ({"dimensions": 9}, "gives 10 to 64 dimensions"),
        ({"truncation_direction": "Left"}, "only the tail of a text is cut"),
    ):
        refused = await client.post("/embed", json={"inputs": "a", **fields})
        assert refused.status_code == 422
        assert message in refused.json()["error"]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "Validation"),
        ({"inputs": []}, "Validation"),
        ({"inputs": [1, 2]}, "Validation"),
        ({"inputs": ["a", "\ud800"]}, "Tokenizer"),
        ({"inputs": "a", "truncate": "yes"}, "Validation"),
        ({"inputs": "a", "prompt_name": 3}, "Validation"),
    ],
)
async def test_errors_have_teis_shape(client: httpx.AsyncClient, fields: dict[str, Any], kind: str) -> None:
    answer = await client.post("/embed", content=json.dumps(fields))
    assert answer.status_code == 422
    assert answer.json().keys() == {"error", "error_type"}
    assert answer.json()["error_type"] == kind


async def test_info_and_health(client: httpx.AsyncClient, gte_folder: Path, splade: Embedder) -> None:
    info = (await client.get("/info")).json()
    assert info["model_id"] == gte_folder.name
    assert info["model_dtype"] == "float32"
    assert info["model_type"] == {"embedding": {"pooling": "cls"}}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (128, 2048)
    assert (info["auto_truncate"], info["version"]) == (False, __version__)
    assert (await client.get("/health")).status_code == 200
    async with client_of(create_app(splade)) as other:
        assert (await other.get("/info")).json()["model_type"] == {"embedding": {"pooling": "splade"}}


async def test_metrics_are_the_embedders_counters(
    client: httpx.AsyncClient, gte: Embedder, gte_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {s.name: s for family in text_string_to_metric_families(answer.text) for s in family.samples}
    assert samples["twinvec_texts_total"].value == gte.stats()["texts"]
    assert samples["twinvec_texts_total"].labels["model"] == gte_folder.name
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert "pip install 'twinvec[metrics]'" in (await client.get("/metrics")).json()["error"]
