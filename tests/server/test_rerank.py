"""Rerankers over HTTP: scores are those of a Reranker in this process, in the shapes of each dialect."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from reference.rerankers import build_cross_encoder
from rerankers.pairs import random_pairs
from server.conftest import Hosts, client_of
from twinvec import Embedder, RemoteReranker, Reranker
from twinvec.errors import ConfigurationError, DeadlineError, RemoteError, TextTooLongError
from twinvec.server import Limits, create_app
from twinvec.server.reranking import rerank_extension
from twinvec_stores import HybridIndex, MemoryStore, RemoteIndex, StoreConfig
from twinvec_stores.serving import search_extension

QUERY = "what is the capital of china"
TEXTS = [text for _, text in random_pairs(9, longest=6) if 0 < len(text) < 60]
LONG = "the capital of russia " * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cross_encoder(tmp_path_factory.mktemp("reranker"), "bert")


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Iterator[Reranker]:
    with Reranker(folder, dtype="float32", reproducible=True, max_length=64) as made:
        yield made


@pytest.fixture(scope="module")
def index(gte: Embedder) -> Iterator[HybridIndex]:
    with HybridIndex(gte, MemoryStore(StoreConfig.for_embedder(gte))) as made:
        made.add(TEXTS, ids=[str(i) for i in range(len(TEXTS))])
        yield made


@pytest.fixture(scope="module")
def app(gte: Embedder, reranker: Reranker, index: HybridIndex) -> Any:
    extension = rerank_extension({"mine": reranker}) + search_extension(index, reranker)
    return create_app(gte, limits=Limits(max_texts=16), extension=extension)


@pytest.fixture
def client(app: Any) -> httpx.AsyncClient:
    return client_of(app)


@pytest.fixture
def remote(app: Any, hosts: Hosts) -> Iterator[RemoteReranker]:
    hosts.answering["there"] = httpx.ASGITransport(app=app)
    with RemoteReranker("http://there") as made:
        yield made


@pytest.fixture(scope="module")
def logits(reranker: Reranker) -> dict[str, float]:
    scores = reranker.score([(QUERY, text) for text in TEXTS])
    return {text: float(score) for text, score in zip(TEXTS, scores, strict=True)}


def ranking(logits: dict[str, float]) -> list[int]:
    return sorted(range(len(TEXTS)), key=lambda i: (-logits[TEXTS[i]], i))


def sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


async def test_tei(client: httpx.AsyncClient, logits: dict[str, float]) -> None:
    asked = {"query": QUERY, "texts": TEXTS}
    ranks = (await client.post("/rerank", json=asked)).json()
    assert [rank["index"] for rank in ranks] == ranking(logits)
    for rank in ranks:
        assert rank.keys() == {"index", "score"}
        assert rank["score"] == pytest.approx(sigmoid(logits[TEXTS[rank["index"]]]), abs=1e-6)
    raw = (await client.post("/rerank", json={**asked, "raw_scores": True, "return_text": True})).json()
    assert [(rank["text"], rank["score"]) for rank in raw] == [(TEXTS[i], logits[TEXTS[i]]) for i in ranking(logits)]


async def test_tei_of_several_rerankers(gte: Embedder, reranker: Reranker, tmp_path: Path) -> None:
    asked = {"query": QUERY, "texts": TEXTS, "raw_scores": True}
    with Reranker(build_cross_encoder(tmp_path, "bert", seed=9), dtype="float32") as other:
        async with client_of(create_app(gte, extension=rerank_extension({"mine": reranker, "other": other}))) as client:
            for fields, asked_for in (({}, reranker), ({"model": "mine"}, reranker), ({"model": "other"}, other)):
                ranks = (await client.post("/rerank", json=asked | fields)).json()
                scores = asked_for.score([(QUERY, text) for text in TEXTS])
                found = [score for _, score in sorted((rank["index"], rank["score"]) for rank in ranks)]
                np.testing.assert_allclose(found, scores, atol=1e-5)
            refused = await client.post("/rerank", json=asked | {"model": "third"})
            assert (refused.status_code, refused.json()["error_type"]) == (404, "Validation")


async def test_tei_cuts_texts_where_it_may(client: httpx.AsyncClient, reranker: Reranker) -> None:
    asked = {"query": QUERY, "texts": [TEXTS[0], LONG], "raw_scores": True}
    with pytest.warns(UserWarning, match="were cut"):
        wanted = reranker.score([(QUERY, TEXTS[0]), (QUERY, LONG)])
    for fields in ({}, {"truncate": True}):
        found = {rank["index"]: rank["score"] for rank in (await client.post("/rerank", json=asked | fields)).json()}
        assert found == {0: float(wanted[0]), 1: float(wanted[1])}
    for refusing in ({"truncate": False}, {"truncation_direction": "Left"}):
        refused = await client.post("/rerank", json=asked | refusing)
        assert (refused.status_code, refused.json()["error_type"]) == (413, "Validation")
        assert "texts[1] is too long" in refused.json()["error"]


@pytest.mark.parametrize(("path", "by_default"), [("/v1/rerank", True), ("/v2/rerank", False)])
async def test_jina_and_cohere(
    client: httpx.AsyncClient, logits: dict[str, float], path: str, by_default: bool
) -> None:
    documents = [{"text": text} if i % 2 else text for i, text in enumerate(TEXTS)]
    asked = {"model": "mine", "query": QUERY, "documents": documents, "top_n": 3}
    for fields, shown in (({}, by_default), ({"return_documents": False}, False), ({"return_documents": True}, True)):
        answer = (await client.post(path, json=asked | fields)).json()
        assert answer["model"] == "mine"
        assert [found["index"] for found in answer["results"]] == ranking(logits)[:3]
        for found in answer["results"]:
            text = TEXTS[found["index"]]
            assert found["relevance_score"] == pytest.approx(sigmoid(logits[text]), abs=1e-6)
            assert found.get("document") == ({"text": text} if shown else None)


async def test_documents_at_teis_path(client: httpx.AsyncClient) -> None:
    """What litellm sends to servers of vLLM."""
    asked = {"model": "mine", "query": QUERY, "documents": TEXTS[:5], "top_n": 2}
    for fields in ({}, {"return_documents": False}, {"return_documents": True}):
        here, there = [(await client.post(path, json=asked | fields)).json() for path in ("/rerank", "/v1/rerank")]
        assert here["results"] == there["results"]
    for wrong, says in (({"texts": TEXTS[:2]}, "either texts or documents"), ({"model": "other"}, "only 'mine'")):
        refused = await client.post("/rerank", json=asked | wrong)
        assert (refused.status_code in (404, 422), says in refused.json()["error"]) == (True, True)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/rerank", {"query": "a", "texts": []}, 422, "texts cannot be empty"),
        ("/rerank", {"query": "a"}, 422, "missing required field `texts`"),
        ("/rerank", {"query": "a", "texts": ["b"] * 17}, 413, "maximum allowed batch size 16"),
        ("/v1/rerank", {"query": "a", "documents": []}, 400, "documents cannot be empty"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "model": "other"}, 404, "only 'mine'"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, 400, "top_n"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "max_tokens_per_doc": 5}, 400, "max_tokens_per_doc"),
        ("/v2/rerank", {"query": LONG, "documents": ["b"]}, 400, "leaves no room"),
        ("/v1/twinvec/score", {"pairs": [["a"]]}, 400, "pairs"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, path: str, body: Any, status: int, message: str) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == status
    told = answer.json()
    assert message in (told["message"] if path in ("/v1/rerank", "/v2/rerank") else str(told["error"]))


async def test_rerankers_alone(reranker: Reranker, hosts: Hosts, logits: dict[str, float]) -> None:
    app = create_app({}, extension=rerank_extension({"mine": reranker}))
    hosts.answering["alone"] = httpx.ASGITransport(app=app)
    with RemoteReranker("http://alone") as remote:
        assert remote.rerank(QUERY, TEXTS) == reranker.rerank(QUERY, TEXTS)
    async with client_of(app) as client:
        ranks = (await client.post("/rerank", json={"query": QUERY, "texts": TEXTS})).json()
        assert [rank["index"] for rank in ranks] == ranking(logits)
        info = (await client.get("/info")).json()
        assert (info["model_id"], info["max_input_length"]) == ("mine", 64)
        assert info["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
        assert reranker.spec.model not in str(info)
        for path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/models/mine", "/openapi.json", "/docs"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/embed", "/v1/embeddings", "/v1/twinvec/embed", "/tokenize"):
            assert (await client.post(path, json={"inputs": "a"})).status_code == 404, path
        assert "/embed" not in (await client.get("/openapi.json")).json()["paths"]


def test_nothing_to_serve_and_two_of_a_name(gte: Embedder, reranker: Reranker) -> None:
    with pytest.raises(ConfigurationError, match="no model to serve"):
        create_app({})
    with pytest.raises(ConfigurationError, match="two models are called 'same'"):
        create_app({"same": gte}, extension=rerank_extension({"same": reranker}))


async def test_a_reranker_is_listed_measured_and_watched(
    app: Any, client: httpx.AsyncClient, reranker: Reranker
) -> None:
    listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
    assert "mine" in listed
    for name in listed:
        assert (await client.get(f"/v1/models/{name}")).json()["id"] == name
    assert 'twinvec_forwards_total{device="cpu",model="mine"}' in (await client.get("/metrics")).text
    assert app.state.serving.held["mine"] is reranker


def test_a_remote_reranker_is_the_reranker(remote: RemoteReranker, reranker: Reranker, hosts: Hosts) -> None:
    pairs = [pair for pair in random_pairs(40, longest=6, seed=3) if len(" ".join(pair)) < 120]
    np.testing.assert_array_equal(remote.score(pairs), reranker.score(pairs))
    assert sum(request.url.path == "/v1/twinvec/score" for request in hosts.requests) == -(-len(pairs) // 16)
    assert remote.rerank(QUERY, TEXTS, top_n=2, activation="sigmoid") == reranker.rerank(
        QUERY, TEXTS, top_n=2, activation="sigmoid"
    )
    assert asyncio.run(remote.arerank(QUERY, TEXTS)) == reranker.rerank(QUERY, TEXTS)
    assert remote.score([]).shape == (0,)
    assert remote.spec.fingerprint == reranker.spec.fingerprint
    assert (remote.family, remote.max_length, remote.healthy) == (reranker.family, reranker.max_length, True)
    np.testing.assert_array_equal(
        remote.score([(QUERY, LONG)], windows=True), reranker.score([(QUERY, LONG)], windows=True)
    )
    with pytest.warns(UserWarning, match="were cut"):
        remote.score([(QUERY, LONG)])
    again = pickle.loads(pickle.dumps(remote))
    assert again.rerank(QUERY, TEXTS) == reranker.rerank(QUERY, TEXTS)
    again.close()
    with pytest.raises(ConfigurationError, match="closed"):
        again.rerank(QUERY, TEXTS)


def test_errors_of_a_remote_reranker(remote: RemoteReranker, folder: Path, gte: Embedder, hosts: Hosts) -> None:
    with pytest.raises(DeadlineError):
        remote.score([(QUERY, TEXTS[0])], timeout=1e-9)
    with pytest.raises(ConfigurationError, match="leaves no room"):
        remote.score([(LONG, "a")])
    with pytest.raises(RemoteError, match="serves no reranker other"):
        RemoteReranker("http://there", model="other")
    hosts.answering["plain"] = httpx.ASGITransport(app=create_app(gte))
    with pytest.raises(RemoteError, match="serves no reranker"):
        RemoteReranker("http://plain")
    with Reranker(folder, dtype="float32", on_overflow="error", max_length=64) as strict:
        app = create_app(gte, limits=Limits(max_texts=2), extension=rerank_extension({"strict": strict}))
        hosts.answering["strict"] = httpx.ASGITransport(app=app)
        with RemoteReranker("http://strict") as other, pytest.raises(TextTooLongError) as raised:
            other.score([(QUERY, text) for text in (*TEXTS[:4], LONG)])
        assert raised.value.position == 4


@pytest.mark.parametrize(
    "answer",
    [{}, {"scores": [1.0]}, {"scores": [1.0], "truncated": [0]}, {"scores": ["1"], "truncated": [False]},
     {"scores": [1e39], "truncated": [False]}, {"scores": [1.0, 2.0], "truncated": [False, False]}],
)  # fmt: skip
def test_nothing_is_believed(remote: RemoteReranker, hosts: Hosts, answer: Any) -> None:
    hosts.answering["there"] = httpx.MockTransport(lambda request: httpx.Response(200, json=answer))
    with pytest.raises(RemoteError, match="did not return 1 valid scores"):
        remote.score([("a", "b")])


async def test_searches_are_reranked(
    client: httpx.AsyncClient, index: HybridIndex, reranker: Reranker, remote: RemoteReranker
) -> None:
    asked = {"query": QUERY, "k": 3, "rerank": True, "rerank_k": 5, "explain": True}
    answer = (await client.post("/v1/search", json=asked)).json()["results"][0]
    wanted = index.search(QUERY, k=3, rerank=reranker, rerank_k=5, explain=True)
    assert answer == [result.to_dict() for result in wanted]
    with RemoteIndex("http://there") as elsewhere:
        found = elsewhere.search(QUERY, k=3, rerank=remote, rerank_k=5, explain=True)
        assert [result.to_dict() for result in found] == answer
        with pytest.raises(ConfigurationError, match="a server uses its own reranker"):
            elsewhere.search(QUERY, rerank=reranker)


async def test_a_server_without_a_reranker_says_so(gte: Embedder, index: HybridIndex) -> None:
    async with client_of(create_app(gte, extension=search_extension(index))) as client:
        refused = await client.post("/v1/search", json={"query": "a", "rerank": True})
    assert (refused.status_code, refused.json()["error"]["field"]) == (400, "rerank")
