"""Search over HTTP: results are those of a HybridIndex in this process, for every way of asking."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

import langchain_twinvec
import llama_index_twinvec
from server.conftest import Hosts, client_of
from twinvec import Embedder
from twinvec.errors import ConfigurationError, FilterError, PromptError, RemoteError, StoreError
from twinvec.server import Limits, create_app
from twinvec_stores import (
    And,
    Contains,
    Eq,
    Exists,
    Fusion,
    HasId,
    HasWords,
    HybridIndex,
    In,
    MemoryStore,
    Ne,
    Not,
    Or,
    Range,
    Record,
    RecordBatch,
    RemoteIndex,
    Result,
    StartsWith,
    StoreConfig,
)
from twinvec_stores.serving import search_extension

TEXTS = [f"{what} {where}" for what in ("столица", "the river", "погода") for where in ("России", "of France", "Китая")]
METADATA: list[dict[str, Any]] = [
    {"year": 2000 + i, "lang": "en" if "e" in text else "ru", "day": f"2025-01-{i + 1:02}T12:00:00+03:00", "big": 2**60}
    for i, text in enumerate(TEXTS)
]
NOON = datetime.datetime(2025, 1, 3, 9, tzinfo=datetime.timezone.utc)
FILTERS = [
    Eq("year", 2004),
    Eq("day", NOON),
    Ne("day", NOON),
    Ne("lang", "ru"),
    In("year", [2001, 2002]),
    In("day", [NOON, "x"]),
    Range("year", gt=2001, lte=2005),
    Range("day", gte=NOON),
    Contains("lang", "R", case_sensitive=False),
    StartsWith("lang", "r"),
    HasWords("lang", "RU"),
    Exists("lang"),
    HasId(["2", "3"]),
    Not(Or(Eq("lang", "ru"), Exists("none"))),
    And(),
    Or(),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 2, "mode": "dense"},
    {"mode": "sparse", "min_sparse": 0.0},
    {"fusion": "rrf", "explain": True, "score_threshold": 0.001},
    {"fusion": Fusion("weighted", 1.0, 0.5), "fetch_k": 50, "dense_k": 3, "sparse_k": 4},
    {"min_dense": 0.0, "exact": True, "mmr": 0.5},
    {"group_by": "lang", "group_size": 2},
    {"group_by": "document", "expand": 1},
    *({"filter": filter} for filter in FILTERS),
]


@pytest.fixture(scope="module")
def index(gte: Embedder) -> Iterator[HybridIndex]:
    """Texts, and the chunks of one document."""
    with HybridIndex(gte, MemoryStore(StoreConfig.for_embedder(gte))) as index:
        index.add(TEXTS, ids=list(map(str, range(len(TEXTS)))), metadata=METADATA)
        rows = gte.embed_documents(["Москва стоит", "на Москве-реке"])
        where = [{"document": "d", "chunk": i, "chunks": 2, "start": 9 * i, "end": 9 * i + 14} for i in range(2)]
        index.store.upsert(
            RecordBatch(["d#0", "d#1"], ["Москва стоит", "на Москве-реке"], rows.dense, rows.sparse, None, where)
        )
        yield index


@pytest.fixture
def remote(index: HybridIndex, gte: Embedder, hosts: Hosts) -> Iterator[RemoteIndex]:
    app = create_app(gte, extension=search_extension(index), limits=Limits(max_texts=100))
    hosts.answering["there"] = httpx.ASGITransport(app=app)
    with RemoteIndex("http://there", retries=0) as remote:
        yield remote


def facts(results: list[list[Result]]) -> Any:
    def of(record: Record) -> Any:
        return record.id, record.text, dict(record.metadata), dict(record.provenance)

    return [[(of(r.record), r.score, r.explanation, r.context) for r in found] for found in results]


# --- RemoteIndex


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: str(options)[:60])
async def test_a_remote_index_finds_the_same(remote: RemoteIndex, index: HybridIndex, options: Any) -> None:
    queries = ["столица России", "weather", "Москва"]
    expected = facts(index.search_many(queries, **options))
    assert facts(remote.search_many(queries, **options)) == expected
    assert facts(await remote.asearch_many(queries, **options)) == expected
    assert facts([remote.search(queries[0], **options)]) == expected[:1]


async def test_searches_by_vectors_are_the_same(remote: RemoteIndex, index: HybridIndex, gte: Embedder) -> None:
    rows = gte.embed_queries(["столица России", "weather"])
    for dense, sparse in ((rows.dense, rows.sparse), (rows.dense, None), (None, rows.sparse)):
        expected = facts(index.search_vectors(dense, sparse, explain=True))
        assert facts(remote.search_vectors(dense, sparse, explain=True)) == expected
        assert facts(await remote.asearch_vectors(dense, sparse, explain=True)) == expected


def test_many_queries_take_several_requests(remote: RemoteIndex, index: HybridIndex, hosts: Hosts) -> None:
    queries = [f"вопрос {i}" for i in range(130)]
    del hosts.requests[:]
    assert facts(remote.search_many(queries, k=1)) == facts(index.search_many(queries, k=1))
    assert [len(json.loads(request.content)["query"]) for request in hosts.requests] == [64, 64, 2]
    assert remote.search_many([]) == []


def test_errors_are_those_of_the_index(remote: RemoteIndex) -> None:
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (ConfigurationError, {"k": 0}),
        (ConfigurationError, {"k": 5000}),  # the server's own limit
        (FilterError, {"filter": {"lang": "ru"}}),
        (PromptError, {"task": "a task of a model without instructions"}),
    ]
    for error, options in wrong:
        with pytest.raises(error):
            remote.search("a", **options)
    for refused in (lambda: remote.add(["a"]), remote.store.count, lambda: remote.scoped(Eq("a", 1))):
        with pytest.raises(StoreError, match="http://there"):
            refused()


def test_a_server_without_a_store(hosts: Hosts, gte: Embedder) -> None:
    hosts.answering["there"] = httpx.ASGITransport(app=create_app(gte))
    with pytest.raises(RemoteError, match="/v1/search/info is not a route"):
        RemoteIndex("http://there", retries=0)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"results": [[]] * 2},
        {"results": [[{"id": 1, "score": 1, "text": "", "metadata": {}}]]},
        {"results": [[{"id": "a", "score": "1", "text": "", "metadata": {}}]]},
        {"results": [[{"id": "a", "score": 1e999, "text": "", "metadata": {}}]]},
        {"results": [[{"id": "a", "score": 1, "text": "", "metadata": []}]]},
        {"results": [[{"id": "a", "score": 1, "text": "", "metadata": {}}] * 2]},
        {"results": [[{"id": "a", "score": 1, "text": "", "metadata": {}, "explanation": {"terms": [1]}}]]},
    ],
)
def test_nothing_is_believed(remote: RemoteIndex, hosts: Hosts, answer: Any) -> None:
    content = json.dumps(answer)
    hosts.answering["there"] = httpx.MockTransport(lambda request: httpx.Response(200, content=content))
    with pytest.raises(RemoteError, match="http://there returned invalid results"):
        remote.search("a", k=1)


# --- the frameworks


def test_langchain_searches_a_remote_index(remote: RemoteIndex, index: HybridIndex) -> None:
    near, far = (langchain_twinvec.TwinVecVectorStore.from_index(each) for each in (index, remote))
    options: dict[str, Any] = {"k": 3, "filter": {"year": {"$gte": 2002}}, "explain": True}
    expected = near.as_retriever(**options).invoke("столица России")
    assert len(expected) == 3
    assert far.as_retriever(**options).invoke("столица России") == expected
    assert far.as_retriever(**options).batch(["столица России"]) == [expected]
    assert far.similarity_search("river", fusion="rrf") == near.similarity_search("river", fusion="rrf")
    with pytest.raises(StoreError, match="can only be searched"):
        far.add_texts(["a"])


async def test_llama_index_searches_a_remote_index(gte: Embedder, hosts: Hosts) -> None:
    model = llama_index_twinvec.TwinVecEmbedding(embedder=gte)
    store = llama_index_twinvec.TwinVecVectorStore(model)
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    VectorStoreIndex.from_vector_store(store, embed_model=model).insert_nodes([TextNode(text=t) for t in TEXTS])
    hosts.answering["there"] = httpx.ASGITransport(app=create_app(gte, extension=search_extension(store.index)))
    expected = llama_index_twinvec.HybridRetriever(store, similarity_top_k=3).retrieve("столица России")
    with RemoteIndex("http://there") as remote:
        far = llama_index_twinvec.TwinVecVectorStore.from_index(remote)
        found = llama_index_twinvec.HybridRetriever(far, similarity_top_k=3)
        assert found.retrieve("столица России") == expected
        assert await found.aretrieve("столица России") == expected


# --- the route


async def test_the_route_as_people_use_it(index: HybridIndex, gte: Embedder) -> None:
    async with client_of(create_app(gte, extension=search_extension(index))) as client:
        asked = {"query": "столица России", "k": 1, "filter": {"lang": "ru"}, "explain": True}
        answer = await client.post("/v1/search", json=asked)
        page = (await client.get("/openapi.json")).json()
    expected = index.search("столица России", k=1, filter=Eq("lang", "ru"), explain=True)[0]
    [[found]] = answer.json()["results"]
    assert (found["id"], found["text"], found["metadata"]) == ("0", "столица России", METADATA[0])
    assert found["score"] == expected.score
    assert expected.explanation is not None
    why = json.loads(json.dumps(dataclasses.asdict(expected.explanation)))
    assert found["explanation"] == why
    assert "provenance" not in found
    assert page["paths"]["/v1/search"]["post"]["requestBody"]["required"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "query is missing"),
        ({"query": "a", "dense": [[1.0]]}, 400, "not both"),
        ({"query": []}, 400, "cannot be empty"),
        ({"query": ["a"] * 101}, 413, "batch size 101"),
        ({"query": "a", "k": 0}, 400, "k: "),
        ({"query": "a", "k": 10**6}, 400, "k: "),
        ({"query": "a", "fetch_k": 10**6}, 400, "fetch_k: "),
        ({"query": "a", "kk": 1}, 400, "unknown field `kk`"),
        ({"query": "a", "filter": {"$nor": []}}, 400, "'$nor' is not a field"),
        ({"query": "a", "filter": {"a": {"$regex": "x"}}}, 400, "$regex"),
        ({"query": "a", "fusion": "sum"}, 400, "fusion"),
        ({"query": "a", "fusion": {"dense_weight": 0, "sparse_weight": 0}}, 400, "must not both be 0"),
        ({"query": "a", "mode": "both"}, 400, "mode"),
        ({"query": "a", "task": "x"}, 400, "instruction"),
        ({"query": "a", "mmr": 0.5, "group_by": "year"}, 400, "group_by and mmr"),
        ({"dense": [[0.5], [0.5, 0.5]]}, 400, "rows of equal length"),
        ({"dense": [[0.5]]}, 400, "shape"),
        ({"dense": [[1e300] * 64]}, 400, "infinity"),
        ({"sparse": [{"indices": [1, 1], "values": [1.0, 2.0]}]}, 400, "sparse[0]"),
        ({"sparse": [{"indices": [1], "values": [-1.0]}]}, 400, "greater than 0"),
    ],
)
async def test_what_is_refused(index: HybridIndex, gte: Embedder, body: Any, status: int, said: str) -> None:
    app = create_app(gte, extension=search_extension(index), limits=Limits(max_texts=100))
    async with client_of(app) as client:
        answer = await client.post("/v1/search", json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]["message"]


async def test_a_deep_filter_is_refused(index: HybridIndex, gte: Embedder) -> None:
    async with client_of(create_app(gte, extension=search_extension(index))) as client:
        for depth in (40, 400, 20_000):
            body = '{"query":"a","filter":' + '{"$not":' * depth + '{"a":1}' + "}" * depth + "}"
            answer = await client.post("/v1/search", content=body)
            assert answer.status_code == 400, answer.text


async def test_a_broken_store_is_not_shown(
    index: HybridIndex, gte: Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: Any, **options: Any) -> Any:
        raise StoreError("/secret/path is broken")

    monkeypatch.setattr(index, "asearch_many", broken)
    async with client_of(create_app(gte, extension=search_extension(index))) as client:
        answer = await client.post("/v1/search", json={"query": "a"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "StoreError")
    assert "secret" not in answer.text
    assert "/secret/path is broken" in caplog.text


async def test_search_needs_the_key(index: HybridIndex, gte: Embedder) -> None:
    async with client_of(create_app(gte, api_key="k", extension=search_extension(index))) as client:
        for method, path in (("POST", "/v1/search"), ("GET", "/v1/search/info")):
            assert (await client.request(method, path, json={"query": "a"})).status_code == 401


async def test_the_stores_own_way_of_searching_is_followed(index: HybridIndex, gte: Embedder, hosts: Hosts) -> None:
    app = create_app(gte, extension=search_extension(index))
    hosts.answering["there"] = httpx.ASGITransport(app=app)
    plain = facts([index.search("столица России")])
    index.set_search(fusion=Fusion("rrf", 2.0, 1.0))
    try:
        own = facts([index.search("столица России")])
        assert own != plain
        with RemoteIndex("http://there") as remote:
            assert facts([remote.search("столица России")]) == own
            assert facts([remote.search("столица России", fusion="relative")]) == plain
        async with client_of(app) as client:
            [[best, *_]] = (await client.post("/v1/search", json={"query": "столица России"})).json()["results"]
        assert best["score"] == own[0][0][1]
    finally:
        index.set_search()


def test_scores_travel_exactly(remote: RemoteIndex, index: HybridIndex, gte: Embedder) -> None:
    query = gte.embed_queries(["столица России"]).dense
    assert query is not None
    [[best, *_]] = remote.search_vectors(query, mode="dense")
    document = gte.embed_documents([best.record.text]).dense
    assert document is not None
    assert best.score == pytest.approx(float(np.dot(query[0].astype(np.float64), document[0])), abs=1e-6)
