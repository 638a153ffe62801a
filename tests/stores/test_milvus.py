"""The Milvus engine on milvus-lite's server: addresses, collections, limits, what it reads itself."""

from __future__ import annotations

import asyncio
import json
import logging
import operator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient

from stores import milvus, test_random_filters
from stores.conftest import makers
from stores.oracle import Row, batch, dense_query, sparse_query
from stores.servers import CONFIG, ROWS, assert_is_not_repeated
from twinvec.errors import (
    ConfigurationError,
    FingerprintMismatchError,
    InvalidRecordError,
    StoreEngineError,
    StoreMismatchError,
    StoreNotFoundError,
)
from twinvec_stores import MilvusStore, StoreConfig, open_store
from twinvec_stores.engines.milvus import store as engine
from twinvec_stores.engines.milvus.address import Address
from twinvec_stores.filters.conditions import Range
from twinvec_stores.records import DenseQuery

COMPARED = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}

# addresses


@pytest.mark.parametrize(
    "url",
    [
        "milvus://user:hunter2@extra@host/db",
        "milvus://user:hunter2@host:port/db",
        "milvus://user:hunter2@host/db?tls=perhaps",
        "milvus://user:hunter2@host/db?password=hunter2",
        "milvus://user:hunter2@/db",
        "milvus://hunter2@host",
        "milvus://user:hunter2@host/db/more",
        "milvus+grpc://user:hunter2@host/db",
    ],
)
def test_an_address_that_cannot_be_read_is_not_repeated(url: str) -> None:
    assert_is_not_repeated(url)


@pytest.mark.parametrize(
    ("url", "token", "uri", "sent"),
    [
        ("milvus://localhost", None, "http://localhost:19530", ""),
        ("milvus://host:1/db", None, "http://host:1", ""),
        ("milvus://[::1]:2", "key", "http://[::1]:2", "key"),
        ("milvus://host", "key", "https://host:19530", "key"),
        ("milvus://host?tls=false", "key", "http://host:19530", "key"),
        ("milvus://host?tls=true", None, "https://host:19530", ""),
        ("milvus://u:p%40%2F@host", "key", "https://host:19530", "u:p@/"),
    ],
)
def test_secrets_go_through_tls(url: str, token: str | None, uri: str, sent: str) -> None:
    address = Address.parse(url, token)
    assert (address.uri, address.token) == (uri, sent)
    assert "key" not in repr(address)
    assert "p@/" not in repr(address)


def test_a_secret_is_never_shown(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG)
    url = milvus.url().replace("://", "://user:hunter2@")
    with MilvusStore(url, milvus.new_name(), CONFIG) as store:
        shown = f"{store!r} {store.info()} {vars(store)}"
    monkeypatch.setenv("TWINVEC_MILVUS_TOKEN", "hunter2")
    with pytest.raises(StoreEngineError) as caught:
        open_store("milvus://localhost:1/db", CONFIG, timeout=0.5)
    assert "localhost:1/db" in str(caught.value)
    assert "hunter2" not in shown + str(caught.value) + repr(caught.value.__cause__) + caplog.text


@pytest.mark.parametrize("name", ["", "x" * 256, "1st", "a b", "é", "a-b"])
def test_names_that_a_collection_cannot_have(name: str) -> None:
    with pytest.raises(ConfigurationError, match="collection="):
        MilvusStore("milvus://localhost:1", name, CONFIG)


# collections


def test_stores_of_a_server_are_apart() -> None:
    names = [milvus.new_name() for _ in range(3)]
    stores = [MilvusStore(milvus.url(), name, replace(CONFIG, fingerprint=name)) for name in names]
    for i, store in enumerate(stores):
        store.upsert(batch(ROWS[: i + 1], CONFIG))
    assert [store.count() for store in stores] == [1, 2, 3]
    with pytest.raises(FingerprintMismatchError):
        MilvusStore(milvus.url(), names[0], replace(CONFIG, fingerprint=names[1]))
    stores[0].delete(["r0"])
    assert [store.document_frequencies(np.array([0], np.int32)).tolist() for store in stores] == [[0], [1], [1]]
    stores[0].close()  # others share its connection
    assert [store.count() for store in stores[1:]] == [2, 3]


def test_databases_are_apart_and_must_exist() -> None:
    client, name = milvus.client(), milvus.new_name()
    client.create_database("other")
    with open_store(milvus.url(), CONFIG, collection=name) as store:
        store.upsert(batch(ROWS, CONFIG))
    with open_store(f"{milvus.url()}/other", CONFIG, collection=name) as store:
        assert store.count() == 0
    for config in (None, CONFIG):
        with pytest.raises(StoreEngineError, match="missing"):
            open_store(f"{milvus.url()}/missing", config, collection=name)


def test_nothing_is_created_without_a_config() -> None:
    name = milvus.new_name()
    with pytest.raises(StoreNotFoundError, match=name):
        open_store(milvus.url(), collection=name)
    assert not milvus.client().has_collection(name)


def test_a_collection_of_others_is_left_alone() -> None:
    client, name = milvus.client(), milvus.new_name()
    client.create_collection(name, 4)
    for config in (None, CONFIG):
        with pytest.raises(StoreMismatchError, match="choose another collection="):
            open_store(milvus.url(), config, collection=name)
    assert [field["name"] for field in client.describe_collection(name)["fields"]] == ["id", "vector"]


def test_the_columns_are_typed_and_can_be_read_by_others() -> None:
    config = replace(CONFIG, fields={"i": "integer", "at": "datetime", "f": "float"})
    with milvus.new_store(config) as store:
        metadata = {"i": [3, 7], "at": "1970-01-01T00:00:01", "f": 0.5, "lang": "ru"}
        store.upsert(batch([Row("r", "text", metadata, sparse={7: 0.5})], config))
        client = milvus.client()
        kinds = {field["name"]: field["type"] for field in client.describe_collection(store.collection)["fields"]}
        [row] = client.query(store.collection, filter='metadata["lang"] == "ru"', output_fields=[*kinds])
    assert (kinds["low_0"], kinds["low_2"], kinds["metadata"]) == (DataType.INT64, DataType.DOUBLE, DataType.JSON)
    assert (row["low_0"], row["high_0"], row["low_1"], row["high_2"]) == (3, 7, 1_000_000, 0.5)
    assert (row["id"], row["text"], row["metadata"], row["keys"]) == ("r", "text", metadata, [7])
    kinds = {name: client.describe_index(store.collection, name)["index_type"] for name in ("dense", "sparse", "low_0")}
    assert kinds == {"dense": "HNSW", "sparse": "SPARSE_INVERTED_INDEX", "low_0": "INVERTED"}


def test_another_process_may_be_faster_in_creating_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    with milvus.new_store(CONFIG) as store:
        store.upsert(batch(ROWS, CONFIG))
        answers, ask = iter([False]), MilvusClient.has_collection
        monkeypatch.setattr(
            MilvusClient, "has_collection", lambda *args, **options: next(answers, ask(*args, **options))
        )
        with MilvusStore(milvus.url(), store.collection, CONFIG) as other:
            assert other.count() == 5


def test_what_an_interrupted_creation_lacks_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    name = milvus.new_name()
    with monkeypatch.context() as patched:
        patched.setattr(MilvusClient, "create_index", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(StoreEngineError, match="killed"):
            MilvusStore(milvus.url(), name, CONFIG)
    with open_store(milvus.url(), collection=name) as store:
        store.upsert(batch(ROWS, CONFIG))
        assert len(store.search([dense_query(1, 0, 0, 0)], limit=9)[0]) == 5


def test_stores_that_a_server_does_not_take() -> None:
    for config, message in (
        (replace(CONFIG, quantization="int8"), "quantization"),
        (replace(CONFIG, dim=40_000), "32768"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            milvus.new_store(config)


def test_what_is_too_large_is_refused_and_nothing_of_its_batch_is_written() -> None:
    large: list[tuple[Row, str]] = [
        (Row("x", "é" * 40_000), "text has 80000 bytes"),
        (Row("x", metadata={"a": "é" * 40_000}), "metadata has 80008 bytes of JSON"),
        (Row("x", metadata={"a": list(range(5000))}), "metadata has 5001 values"),
        (Row("x", provenance={"a": "x" * 70_000}), "provenance has"),
        (Row("x", sparse=dict.fromkeys(range(5000), 1.0)), "sparse has 5000 keys"),
    ]
    with milvus.new_store(CONFIG) as store:
        for row, message in large:
            with pytest.raises(InvalidRecordError, match=message) as caught:
                store.upsert(batch([ROWS[0], row], CONFIG))
            assert caught.value.id == "x"
        assert store.count() == 0
        store.upsert(
            batch([Row("x", "é" * 32_767, {"a": list(range(4000))}, sparse=dict.fromkeys(range(4096), 1.0))], CONFIG)
        )
        assert len(store.get(["x"])[0].text) == 32_767


# answers


def test_random_filters_find_what_they_say(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any) -> None:
    monkeypatch.setattr(test_random_filters, "FILTERS", 12)
    for make in makers("milvus", tmp_path_factory, through_async=False):
        test_random_filters.test_random_filters_find_what_they_say(make)


def test_a_range_between_the_numbers_of_a_list() -> None:
    fields: Any = {"i": "integer", "f": "float"}
    config = StoreConfig(fingerprint="f", dim=4, fields=fields)
    lists = {"a": [1, 5, 9], "b": [1, 9], "c": [5], "d": [], "e": [1, 4, 6, 9]}
    with milvus.new_store(config) as store:
        rows = [Row(id, metadata={"i": values, "f": [value + 0.5 for value in values]}) for id, values in lists.items()]
        store.upsert(batch(rows, config))
        for low, high, expected in ((5, 5, "ac"), (4, 6, "ace"), (2, 3, ""), (6, 4, ""), (-9, 99, "abce")):
            for field, shift in (("i", 0.0), ("f", 0.5)):
                found, _ = store.scroll(filter=Range(field, gte=low + shift, lte=high + shift))
                assert sorted(record.id for record in found) == list(expected)
        assert store.count(Range("i", gt=4, lt=6)) == 2
        ends: dict[str, Any]
        for ends in (
            {"gt": 5.5},
            {"lt": 1.5},
            {"gt": 9.5},
            {"gt": 1.5, "lt": 9.5},
            {"gt": 5.5, "lte": 6.5},
            {"lte": 1.5},
        ):
            found, _ = store.scroll(filter=Range("f", **ends))
            within = [
                row.id
                for row in rows
                if any(all(COMPARED[n](v, end) for n, end in ends.items()) for v in row.metadata["f"])
            ]
            assert sorted(record.id for record in found) == within


def test_dense_rankings_are_exact_whichever_way_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    config = StoreConfig(fingerprint="f", dim=16, sparse=False, fields={"i": "integer"})
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(600, 16)).astype(np.float32)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    queries = [DenseQuery(row) for row in dense[:3]]
    with milvus.new_store(config) as store:
        store.upsert(
            batch([Row(f"{i:03}", metadata={"i": i}, dense=tuple(row)) for i, row in enumerate(dense.tolist())], config)
        )
        reports: list[float] = []
        store.optimize(lambda seconds, written: reports.append(seconds))
        for exact, most, filter in ((False, 16_384, None), (True, 16_384, None), (False, 10, Range("i", gte=590))):
            monkeypatch.setattr(engine, "_MAX_HITS", most)
            for hits, query in zip(store.search(queries, limit=9, exact=exact, filter=filter), queries, strict=True):
                scores = dense.astype(np.float64) @ query.vector
                chosen = range(590, 600) if filter else range(600)
                expected = sorted(chosen, key=lambda i: -scores[i])[:9]
                assert [hit.id for hit in hits] == [f"{i:03}" for i in expected]
                assert [hit.score for hit in hits] == pytest.approx(scores[expected].tolist(), abs=1e-5)


def test_a_graph_that_finds_too_few_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    with milvus.new_store(CONFIG) as store:
        store.upsert(batch(ROWS, CONFIG))
        ask = MilvusClient.search

        def short(client: MilvusClient, *args: Any, **options: Any) -> Any:
            return [hits[:2] for hits in ask(client, *args, **options)]

        monkeypatch.setattr(MilvusClient, "search", short)
        [hits] = store.search([dense_query(1, 0, 0, 0)], limit=4)
        assert [hit.id for hit in hits] == ["r0", "r1", "r2", "r3"]


def test_reads_ask_for_the_chosen_consistency(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for method in ("query", "search"):
        original = getattr(MilvusClient, method)

        def spy(client: MilvusClient, *args: Any, original: Any = original, **options: Any) -> Any:
            asked.append(options["consistency_level"])
            return original(client, *args, **options)

        monkeypatch.setattr(MilvusClient, method, spy)
    for options, level in (({}, "Strong"), ({"consistency": "Bounded"}, "Bounded")):
        with milvus.new_store(CONFIG, **options) as store:
            asked.clear()
            store.upsert(batch(ROWS, CONFIG))
            store.count()
            store.get(["r0"])
            store.search([dense_query(1, 0, 0, 0), sparse_query({1: 1.0})], limit=2)
            assert set(asked) == {level}


def test_an_event_loop_is_not_blocked() -> None:
    with milvus.new_store(CONFIG) as store:

        async def ask() -> list[int]:
            await asyncio.gather(*(store.aupsert(batch([row], CONFIG)) for row in ROWS))
            return list(await asyncio.gather(*(store.acount(Range("i", lt=i)) for i in range(4))))

        assert asyncio.run(ask()) == [0, 1, 2, 3]


# failures


@pytest.mark.slow
def test_a_killed_server_has_everything_that_it_acknowledged() -> None:
    server = milvus.Server()
    try:
        with MilvusStore(server.url, "kb", CONFIG) as store:
            store.upsert(batch(ROWS, CONFIG))
            store.delete(["r1"])
            store.set_search({"fusion": "rrf"})
            server.kill()
            server.start()
            assert store.count() == 4
            store.upsert(batch(ROWS, CONFIG))
        with MilvusStore(server.url, "kb", CONFIG) as store:
            assert store.config.search == {"fusion": "rrf"}
            assert store.count() == 5
            [dense, sparse] = store.search([dense_query(1, 0, 0, 0), sparse_query({1: 1.0})], limit=9)
            assert ([hit.id for hit in dense], [hit.id for hit in sparse]) == (
                ["r0", "r1", "r2", "r3", "r4"],
                ["r1", "r4"],
            )
    finally:
        server.stop()


def test_a_configuration_that_cannot_be_read_is_told() -> None:
    client = milvus.client()
    with milvus.new_store(CONFIG) as store:
        for damaged in (json.dumps({"schema_version": 99}), "not JSON", "[]"):
            client.alter_collection_properties(store.collection, {"twinvec": damaged})
            with pytest.raises(StoreMismatchError, match=store.collection):
                open_store(milvus.url(), collection=store.collection)
