"""The routes of text-embeddings-inference: shapes, truncation, prompts, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModel

from server.conftest import client_of
from server.test_openai import reference_ids
from support import TEXTS, dense_of, sparse_of
from twinvec import Embedder, __version__
from twinvec.compute.packing import TokenBatch
from twinvec.server import Limits, create_app


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


async def test_states_of_tokens(client: httpx.AsyncClient, e5: Embedder, splade: Embedder) -> None:
    """They are those of transformers' own model, alone, for a text with special tokens and a prompt."""
    own = AutoModel.from_pretrained(e5.spec.model, dtype=torch.float64).eval()
    texts = ["a text", "", "Столица России", "a text"]
    async with client_of(create_app(e5, limits=Limits(max_texts=8))) as other:
        for name, prompt in ((None, ""), ("query", "query: ")):
            for given in (texts[:3], texts[2]):
                answer = await other.post("/embed_all", json={"inputs": given, "prompt_name": name})
                for states, text in zip(answer.json(), [given] if isinstance(given, str) else given, strict=True):
                    ids = next(token.ids for token in e5.tokenizer.encode([text], prompt))
                    with torch.inference_mode():
                        wanted = own(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0].numpy()
                    np.testing.assert_allclose(states, wanted, atol=1e-4)
        long = "word " * e5.max_length
        assert len((await other.post("/embed_all", json={"inputs": long})).json()[0]) == e5.max_length
        refused = await other.post("/embed_all", json={"inputs": [long, "a"]})
        assert (refused.status_code, refused.json()["error_type"]) == (413, "Validation")
        assert "send them in parts" in refused.json()["error"]
    both = await asyncio.gather(*(client.post(path, json={"inputs": texts}) for path in ("/embed_all", "/embed")))
    for states, row in zip(*(answer.json() for answer in both), strict=True):  # GTE pools the first token
        np.testing.assert_allclose(np.array(states[0]) / np.linalg.norm(states[0]), row, atol=1e-6)
    async with client_of(create_app(splade)) as other:
        refused = await other.post("/embed_all", json={"inputs": "a"})
    assert (refused.status_code, "no states of tokens" in refused.json()["error"]) == (422, True)


async def test_truncate(client: httpx.AsyncClient, gte: Embedder, gte_folder: Path) -> None:
    long = ["a", "word " * 200]
    with Embedder(gte_folder, dtype="float32", max_length=128, on_overflow="error") as strict:
        async with client_of(create_app(strict)) as other:
            for path in ("/embed", "/embed_sparse", "/embed_all"):
                assert (await other.post(path, json={"inputs": long})).status_code == 413
                assert (await other.post(path, json={"inputs": long, "truncate": True})).status_code == 200
            assert (await other.get("/info")).json()["auto_truncate"] is False
    for path in ("/embed", "/embed_sparse", "/embed_all"):
        assert (await client.post(path, json={"inputs": long})).status_code == 200
        for direction in ("Left", "left"):
            fields = {"inputs": long, "truncate": True, "truncation_direction": direction}
            refused = await client.post(path, json=fields)
            assert refused.status_code == 413
            assert "only the end of a text can be cut here" in refused.json()["error"]
            assert (await client.post(path, json={**fields, "inputs": "short"})).status_code == 200
        refused = await client.post(path, json={"inputs": long, "truncate": False})
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
        for name in ("clustering", "qeury", ""):
            refused = await client.post("/embed", json={"inputs": "a", "prompt_name": name})
            assert refused.status_code == 422
            assert "is not one of document, passage, query" in refused.json()["error"]
    async with client_of(create_app(giga)) as client:
        answer = (await client.post("/embed", json={"inputs": "a", "prompt_name": "similarity"})).json()
        assert answer == dense_of(giga.embed_queries(["a"], task="similarity")).tolist()
        for path in ("/embed", "/tokenize"):
            refused = await client.post(path, json={"inputs": "a", "prompt_name": "qeury"})
            assert refused.status_code == 422
            assert "prompt_name 'qeury' is not one of" in refused.json()["error"]


async def test_similarity(client: httpx.AsyncClient, gte: Embedder, giga: Embedder) -> None:
    inputs = {"source_sentence": "a text", "sentences": ["a text", "another text", "ещё один"]}
    rows = dense_of(gte.embed_documents(["a text", *inputs["sentences"]])).astype(np.float64)
    answer = await client.post("/similarity", json={"inputs": inputs})
    np.testing.assert_allclose(answer.json(), rows[1:] @ rows[0], atol=1e-6)
    async with client_of(create_app(giga)) as other:
        fields = {"inputs": inputs, "parameters": {"prompt_name": "query", "truncate": True}}
        answer = await other.post("/similarity", json=fields)
    rows = dense_of(giga.embed_queries(["a text", *inputs["sentences"]])).astype(np.float64)
    np.testing.assert_allclose(answer.json(), rows[1:] @ rows[0], atol=1e-6)
    refused = await client.post("/similarity", json={"inputs": {**inputs, "sentences": []}})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")


async def test_tokenize_and_decode(client: httpx.AsyncClient, gte: Embedder, giga: Embedder) -> None:
    texts = ["a text", "Столица  России", ""]
    ids = reference_ids(gte, texts)
    answer = (await client.post("/tokenize", json={"inputs": texts})).json()
    assert [[token["id"] for token in row] for row in answer] == [[0, *row, 2] for row in ids]
    for row, text in zip(answer, texts, strict=True):
        assert [token["special"] for token in row] == [True, *[False] * (len(row) - 2), True]
        assert (row[0]["start"], row[0]["stop"], row[0]["text"]) == (None, None, "<s>")
        assert all(token["text"] == text[token["start"] : token["stop"]] for token in row[1:-1])
    plain = (await client.post("/tokenize", json={"inputs": texts[0], "add_special_tokens": False})).json()
    assert [token["id"] for token in plain[0]] == ids[0]
    for given, expected in ((ids[0], ["a text"]), ([[0, *ids[0], 2], ids[0]], ["a text"] * 2)):
        assert (await client.post("/decode", json={"ids": given})).json() == expected
    kept = (await client.post("/decode", json={"ids": [0, *ids[0], 2], "skip_special_tokens": False})).json()
    assert kept[0].startswith("<s>")
    for wrong in ([600], [[-1]], [1, [2]], [], ["a"], [1.5]):
        refused = await client.post("/decode", json={"ids": wrong})
        assert refused.status_code == 422
    async with client_of(create_app(giga)) as other:
        answer = (await other.post("/tokenize", json={"inputs": "a", "prompt_name": "query"})).json()[0]
    prompt = giga.prompt_for("query")
    assert "".join(token["text"] for token in answer if not token["special"]) == prompt + "a"


async def test_token_ids_in_place_of_texts(client: httpx.AsyncClient, gte: Embedder) -> None:
    texts = ["a text", "another text of five words"]
    bare = reference_ids(gte, texts)
    expected = dense_of(gte.embed_documents(texts)).tolist()
    for ids in (bare, [[0, *row, 2] for row in bare]):
        assert (await client.post("/embed", json={"inputs": ids})).json() == expected
        assert (await client.post("/embed", json={"inputs": ids[0]})).json() == expected[:1]


def pooled_by_hand(gte: Embedder, text: str) -> Any:
    """Return the first token's last state: GTE's pooling."""
    model = gte._core.model
    with torch.inference_mode():
        return model.encoder.backbone(TokenBatch.pack(model.tokenizer.encode([text])))[0].numpy()


async def test_dimensions_and_normalize(client: httpx.AsyncClient, gte: Embedder) -> None:
    answer = (await client.post("/embed", json={"inputs": "a", "dimensions": 32, "normalize": True})).json()
    assert np.array(answer).shape == (1, 32)
    assert np.linalg.norm(answer) == pytest.approx(1)
    raw, unit = [(await client.post("/embed", json={"inputs": "a", "normalize": n})).json()[0] for n in (False, True)]
    assert np.linalg.norm(unit) == pytest.approx(1)
    pooled = pooled_by_hand(gte, "a")
    np.testing.assert_allclose(raw, pooled, rtol=1e-5)
    np.testing.assert_allclose(unit, pooled / np.linalg.norm(pooled), rtol=1e-5)
    both = {"inputs": "a", "normalize": False, "dimensions": 32}
    np.testing.assert_allclose((await client.post("/embed", json=both)).json()[0], pooled[:32], rtol=1e-5)
    refused = await client.post("/embed", json={"inputs": "a", "dimensions": 9})
    assert refused.status_code == 422
    assert "supports 10 to 64 dimensions" in refused.json()["error"]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "Validation"),
        ({"inputs": []}, "Validation"),
        ({"inputs": [1, 600]}, "Validation"),
        ({"inputs": ["a", 1]}, "Validation"),
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
    assert (info["auto_truncate"], info["version"]) == (True, __version__)
    assert info["limits"]["max_body_bytes"] == 2_000_000
    assert str(gte_folder.parent) not in json.dumps(info)
    assert (await client.get("/health")).status_code == 200
    async with client_of(create_app(splade)) as other:
        assert (await other.get("/info")).json()["model_type"] == {"embedding": {"pooling": "splade"}}


async def test_metrics_are_the_embedders_counters(client: httpx.AsyncClient, gte: Embedder, gte_folder: Path) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {s.name: s for family in text_string_to_metric_families(answer.text) for s in family.samples}
    assert samples["twinvec_texts_total"].value == gte.stats()["texts"]
    assert samples["twinvec_texts_total"].labels["model"] == gte_folder.name
    await client.post("/embed", json={"inputs": 3})
    await client.get("/nowhere")
    answer = await client.get("/metrics")
    counted = {
        (s.labels["route"], s.labels["status"]): s.value
        for family in text_string_to_metric_families(answer.text)
        for s in family.samples
        if s.name == "twinvec_requests_total"
    }
    assert counted == {("/metrics", "200"): 1, ("/embed", "422"): 1, ("other", "404"): 1}
