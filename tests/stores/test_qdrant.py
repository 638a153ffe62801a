"""The Qdrant engine: collections and requests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest
from qdrant_client import models
from qdrant_client.http.exceptions import UnexpectedResponse

from stores.conftest import local_clients
from stores.oracle import Row, batch, dense_query, sparse_query
from stores.qdrant import ASYNC_CALLS, CALLS, CONFIG, ROWS, Recorded, awaited, directly, open_store, recorded
from twinvec.errors import (
    ConfigurationError,
    FingerprintMismatchError,
    StoreEngineError,
    StoreMismatchError,
    StoreNotFoundError,
)
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import Eq, HasId
from twinvec_stores.records import StoreQuery

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


# making a collection


def test_what_a_collection_is_made_with() -> None:
    client = recorded()
    options = {"shard_number": 6, "replication_factor": 2, "write_consistency_factor": 2, "on_disk_payload": True}
    open_store(client, collection_options=options)
    open_store(client, collection_options=options)
    [asked] = client.asked("create_collection")
    assert asked["collection_name"] == "kb"
    assert {name: asked[name] for name in options} == options
    assert asked["vectors_config"] == {"dense": models.VectorParams(size=4, distance=models.Distance.DOT)}
    assert set(asked["sparse_vectors_config"]) == {"sparse"}
    assert asked["quantization_config"] is None
    assert asked["metadata"] == {"twinvec": CONFIG.to_dict()}


def test_quantization_is_the_servers() -> None:
    client = recorded()
    with open_store(client, StoreConfig(fingerprint="one", dim=4, sparse=False, quantization="int8")) as store:
        store.search([dense_query(1, 0, 0, 0)], limit=3, exact=True)
    [asked] = client.asked("create_collection")
    assert asked["quantization_config"].scalar.type == models.ScalarType.INT8
    assert asked["sparse_vectors_config"] is None
    [request] = client.asked("query_batch_points")[0]["requests"]
    assert request.params.exact is True
    assert request.params.quantization.rescore is True


@pytest.mark.parametrize("quantization", ["int8", "binary", "first_dim=2"])
def test_what_a_first_pass_reads_is_in_memory_and_the_full_vectors_on_the_disk(quantization: str) -> None:
    client = recorded()
    config = StoreConfig(fingerprint="one", dim=4, sparse=False, quantization=quantization)
    rows = [Row(f"r{i}", dense=(0.8, 0.0, *values)) for i, values in enumerate([(0.6, 0.0), (0.0, 0.6), (-0.6, 0.0)])]
    with open_store(client, config) as store:
        store.upsert(batch([*rows, Row("far", dense=(-1.0, 0.0, 0.0, 0.0))], config))
        for exact in (False, True):
            [hits] = store.search([dense_query(0.8, 0, 0.6, 0)], limit=1, exact=exact)
            assert [hit.id for hit in hits] == ["r0"]
            assert hits[0].score == pytest.approx(1, abs=1e-6)
    [asked] = client.asked("create_collection")
    assert asked["vectors_config"]["dense"].on_disk is True
    first, exactly = (asked["requests"][0] for asked in client.asked("query_batch_points"))
    assert exactly.prefetch is None
    if quantization == "first_dim=2":
        assert asked["vectors_config"]["first"] == models.VectorParams(size=2, distance=models.Distance.DOT)
        assert asked["vectors_config"]["dense"].hnsw_config.m == 0
        [pass_] = first.prefetch
        assert (pass_.using, pass_.query, pass_.limit) == ("first", [1.0, 0.0], 4 * first.limit)
    else:
        kind = asked["quantization_config"]
        assert (kind.scalar if quantization == "int8" else kind.binary).always_ram is True
        assert first.params.quantization.oversampling > 1


@pytest.mark.parametrize(
    "name", ["vectors_config", "sparse_vectors_config", "quantization_config", "metadata", "collection_name"]
)
def test_what_follows_from_the_config_cannot_be_given(name: str) -> None:
    client = recorded()
    with pytest.raises(ConfigurationError, match=name):
        open_store(client, collection_options={name: {}})
    assert client.asked("create_collection") == []


def test_declared_fields_and_terms_are_indexed_once() -> None:
    def with_schema(**arguments: Any) -> Any:
        info = client.client.get_collection(**arguments)
        index = models.PayloadIndexInfo(data_type=models.PayloadSchemaType.KEYWORD, points=0)
        info.payload_schema = dict.fromkeys(indexed, index)
        return info

    indexed: list[str] = []
    client = recorded(get_collection=with_schema)
    open_store(client)
    asked = client.asked("create_payload_index")
    assert {(a["field_name"], a["field_schema"], a["wait"]) for a in asked} == {
        ("metadata.i", "integer", True),
        ('metadata."a b"', "keyword", True),
        ("terms", "integer", True),
    }
    indexed += ["metadata.i", "terms"]  # the third was not made any more, by a process that was killed
    client.calls.clear()
    open_store(client, None)
    assert [a["field_name"] for a in client.asked("create_payload_index")] == ['metadata."a b"']


def test_vectors_of_tokens_are_only_read_with_vectors() -> None:
    client = recorded()
    store = open_store(client, replace(CONFIG, token_pool=1))
    for with_vectors in (False, True):
        store.get(["a"], with_vectors=with_vectors)
        store.scroll(with_vectors=with_vectors)
    asked = [a["with_payload"] for name in ("retrieve", "scroll") for a in client.asked(name)]
    without = models.PayloadSelectorExclude(exclude=["tokens"])
    assert asked == [without, True, without, True]


def test_nothing_is_made_without_a_config() -> None:
    client = recorded()
    with pytest.raises(StoreNotFoundError, match="no collection kb"):
        open_store(client, None)
    assert client.asked("create_collection") == []


def test_a_foreign_collection_is_left_alone() -> None:
    client = recorded()
    client.client.create_collection("kb", vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT))
    for config in (None, CONFIG):
        with pytest.raises(StoreMismatchError, match="not created by TwinVec"):
            open_store(client, config)
    assert {name for name, _ in client.calls} == {"collection_exists", "get_collection"}


def test_another_model_is_refused_and_both_are_named() -> None:
    client = recorded()
    open_store(client)
    with pytest.raises(FingerprintMismatchError) as caught:
        open_store(client, StoreConfig(fingerprint="two", model="models/two", dim=4, idf=True))
    assert (caught.value.stored, caught.value.given) == ("one", "two")
    with pytest.raises(StoreMismatchError, match="dim=4 instead of 8"):
        open_store(client, StoreConfig(fingerprint="one", dim=8, idf=True))
    assert open_store(client, StoreConfig(fingerprint="one", dim=4, idf=True)).config == CONFIG


@pytest.mark.parametrize("metadata", [{"schema_version": 2}, {"schema_version": 1}, [], "x", {}])
def test_metadata_that_cannot_be_read_is_refused(metadata: Any) -> None:
    client = recorded()
    client.client.create_collection("kb", vectors_config={}, metadata={"twinvec": metadata})
    with pytest.raises(StoreMismatchError, match="collection kb"):
        open_store(client)


@pytest.mark.parametrize("others", [CONFIG, StoreConfig(fingerprint="two", dim=4)])
def test_of_two_that_make_a_collection_at_once_the_slower_one_opens_it(others: StoreConfig) -> None:
    def create(**arguments: Any) -> Any:
        open_store(client.client, others).upsert(batch(ROWS, others))
        return client.client.create_collection(**arguments)  # which exists now

    client = recorded(create_collection=create)
    if others == CONFIG:
        assert open_store(client).count() == 5
    else:
        with pytest.raises(FingerprintMismatchError):
            open_store(client)


def test_a_collection_that_cannot_be_made_is_an_engine_error() -> None:
    def refuse(**arguments: Any) -> Any:
        raise answered(403, "Forbidden", b'{"status":{"error":"Global manage access is required"}}')

    with pytest.raises(StoreEngineError, match=r"kb.*Global manage access is required"):
        open_store(recorded(create_collection=refuse))


# requests


def test_one_request_answers_all_queries_and_large_batches_go_in_parts() -> None:
    client = recorded()
    with open_store(client) as store:
        rows = [Row(f"r{i}", sparse={1: 1.0}) for i in range(600)]
        store.upsert(batch(rows, CONFIG))
        upserts = client.asked("upsert")
        assert [len(a["points"]) for a in upserts] == [256, 256, 88]
        assert {a["wait"] for a in upserts} == {True}
        queries: list[StoreQuery] = [dense_query(1, 0, 0, 0), sparse_query({}), sparse_query({1: 1.0})]
        rankings = store.search(queries, limit=3, filter=HasId(["r5", "r4"]))
        assert [[hit.id for hit in hits] for hits in rankings] == [["r4", "r5"], [], ["r4", "r5"]]
        [asked] = client.asked("query_batch_points")
        assert [request.using for request in asked["requests"]] == ["dense", "sparse"]
        store.search([sparse_query({})], limit=3)
        assert len(client.asked("query_batch_points")) == 1
        store.delete(["r1"])
        store.delete(filter=Eq("i", 1))
        assert [a["wait"] for a in client.asked("delete")] == [True, True]


def answered(status: int, reason: str, content: bytes) -> UnexpectedResponse:
    return UnexpectedResponse(status, reason, content, httpx.Headers())


METHODS = {"get": "retrieve", "delete_where": "delete", "search": "query_batch_points", "document_frequencies": "count"}


def requests(call: str) -> list[str]:
    """What a call asks the server; around a write, whether the collection serves."""
    method = METHODS.get(call, call)
    return ["get_collection", method, "get_collection"] if method in ("upsert", "delete") else [method]


@pytest.mark.parametrize("call", CALLS)
def test_async_methods_use_the_async_client(call: str) -> None:
    local, local_async = local_clients()
    client, async_client = Recorded(local), Recorded(local_async)
    store = open_store(client, async_client=async_client)
    client.calls.clear()
    answer = awaited(ASYNC_CALLS[call], store)
    assert client.calls == []
    assert [name for name, _ in async_client.calls] == requests(call)
    by_sync = CALLS[call](store)
    assert str(answer) == str(by_sync)
    assert [name for name, _ in client.calls] == requests(call)
    assert str(client.calls) == str(async_client.calls)


@pytest.mark.parametrize("call", CALLS)
def test_async_methods_do_without_an_async_client(call: str) -> None:
    client = recorded()
    store = open_store(client)
    client.calls.clear()
    awaited(ASYNC_CALLS[call], store)
    assert [name for name, _ in client.calls] == requests(call)


@pytest.mark.parametrize("call", CALLS)
def test_what_the_server_says_reaches_the_caller(call: str) -> None:
    def refuse(**arguments: Any) -> Any:
        raise answered(400, "Bad Request", b'{"status":{"error":"Wrong input: strict mode"},"time":0.1}')

    async def refuse_async(**arguments: Any) -> Any:
        refuse()

    local, local_async = local_clients()
    method = METHODS.get(call, call)
    store = open_store(
        Recorded(local, **{method: refuse}), async_client=Recorded(local_async, **{method: refuse_async})
    )
    for use, calls in ((directly, CALLS), (awaited, ASYNC_CALLS)):
        with pytest.raises(StoreEngineError, match=r"collection kb.*400.*Wrong input: strict mode"):
            use(calls[call], store)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interruption_is_none_of_the_servers(interruption: type[BaseException]) -> None:
    def interrupt(**arguments: Any) -> Any:
        raise interruption

    store = open_store(recorded(count=interrupt))
    with pytest.raises(interruption):
        store.count()


def test_optimize_waits_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(**arguments: Any) -> Any:
        info = client.client.get_collection(**arguments)
        info.status = models.CollectionStatus(statuses.pop(0) if statuses else "green")
        return info

    monkeypatch.setattr("twinvec_stores.engines.qdrant._POLL_SECONDS", 0)
    statuses: list[str] = []
    client = recorded(get_collection=status)
    store = open_store(client)
    statuses += ["yellow", "yellow", "green", "red"]
    steps: list[tuple[float, int]] = []
    store.optimize(lambda seconds, size: steps.append((seconds, size)))
    assert len(steps) == 2
    assert statuses == ["red"]
    with pytest.raises(StoreEngineError, match="red"):
        store.optimize()


def test_info_tells_what_is_there() -> None:
    with open_store(recorded()) as store:
        store.upsert(batch(ROWS, CONFIG))
        info = store.info()
        assert (info.engine, info.records, info.bytes, info.config) == ("qdrant", 5, None, CONFIG)
        assert "kb" in info.location
        assert "kb" in repr(store)
