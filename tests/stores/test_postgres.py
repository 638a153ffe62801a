"""The PostgreSQL engine on a real server: schemas, privileges, graphs, connections."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from psycopg.conninfo import conninfo_to_dict

from stores import postgres, tls
from stores.oracle import Row, batch, dense_query, sparse_query
from stores.servers import CONFIG, ROWS, assert_is_not_repeated
from twinvec.errors import (
    ConfigurationError,
    FingerprintMismatchError,
    StoreEngineError,
    StoreMismatchError,
    StoreNotFoundError,
)
from twinvec.vectors import Float32
from twinvec_stores import MemoryStore, PostgresStore, StoreConfig, open_store, verify_store
from twinvec_stores.config import Quantization
from twinvec_stores.engines.postgres import searching
from twinvec_stores.engines.postgres.address import Address
from twinvec_stores.filters.conditions import Eq, HasId, Range
from twinvec_stores.records import DenseQuery, StoreQuery

DOCS = Path(__file__).parents[2] / "docs" / "postgresql.md"


def database(name: str, options: str = "") -> str:
    """Create a database, and return its address."""
    postgres.execute("CREATE DATABASE {name} " + options, name=name)
    return postgres.url().replace("/postgres?", f"/{name}?")


def unit(generator: np.random.Generator, *shape: int) -> Float32:
    rows = generator.normal(size=shape).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


# addresses


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@extra@host/db",
        "postgresql://user:hunter2@host:port/db",
        "postgresql://user:hunter2@host/db?sslmod=require",
        "postgresql://user:hunter2%zz@host/db",
        "postgresql+psycopg://user:hunter2@host/db",
        "mysql://user:hunter2@host/db",
    ],
)
def test_an_address_that_cannot_be_read_is_not_repeated(url: str) -> None:
    assert_is_not_repeated(url)


def test_a_password_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = postgres.url().replace("postgres:@", "postgres:hunter2@")
    with PostgresStore(url, postgres.new_name(), CONFIG) as store:
        shown = f"{store!r} {store.info()} {vars(store)}"
    with pytest.raises(StoreEngineError) as caught:
        open_store("postgresql://user:hunter2@localhost:1/db?password=hunter2", CONFIG)
    assert "localhost:1/db" in str(caught.value)
    assert "hunter2" not in shown + str(caught.value) + repr(caught.value.__cause__) + caplog.text


@pytest.mark.parametrize(
    ("url", "mode"),
    [
        ("postgresql://u@db.example.com/x", "require"),
        ("postgresql://u@localhost,db.example.com/x", "require"),
        ("postgresql://u@db.example.com/x?sslmode=verify-full", "verify-full"),
        ("postgresql://u@db.example.com/x?sslmode=disable", "disable"),
        ("postgresql://u@db.example.com/x?service=production", None),
        ("postgresql://u@127.0.0.1:5433/x", None),
        ("postgresql:///x?host=/var/run/postgresql", None),
        ("postgresql:///x", None),
    ],
)
def test_other_machines_are_spoken_to_through_tls(url: str, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGSSLMODE", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    assert conninfo_to_dict(Address.parse(url, 30).conninfo).get("sslmode") == mode


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the server has another address")
def test_who_answers_is_checked(tmp_path: Path) -> None:
    trusted, served = tls.authority(tmp_path, "trusted")
    others, _ = tls.authority(tmp_path, "others")
    server = f"{conninfo_to_dict(postgres.url())['host']}/.s.PGSQL.5432"
    name = postgres.new_name()

    def address(port: int, parameters: str, host: str = "localhost") -> str:
        return f"postgresql://postgres:hunter2@{host}:{port}/postgres?hostaddr=127.0.0.1&{parameters}"

    async def count(store: PostgresStore) -> int:
        return await store.acount()

    with tls.front(server, served) as (port, versions):
        with PostgresStore(address(port, f"sslmode=verify-full&sslrootcert={trusted}"), name, CONFIG) as store:
            store.upsert(batch(ROWS, CONFIG))
            assert asyncio.run(count(store)) == 5
            assert len(store.search([dense_query(1, 0, 0, 0)], limit=9)[0]) == 5
        assert len(versions) >= 3  # while it was opened, of the pool, of the event loop
        assert set(versions) <= {"TLSv1.2", "TLSv1.3"}
        for parameters, host, reason in (
            (f"sslmode=verify-full&sslrootcert={others}", "localhost", "certificate verify failed"),
            (f"sslmode=verify-full&sslrootcert={tmp_path / 'none.crt'}", "localhost", "does not exist"),
            (f"sslmode=verify-full&sslrootcert={trusted}", "elsewhere", "does not match host name"),
        ):
            with pytest.raises(StoreEngineError, match=reason) as caught:
                PostgresStore(address(port, parameters, host), name)
            assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r}"
    with tls.front(server, None) as (port, _):
        for parameters, host in (("sslmode=require", "localhost"), ("", "elsewhere")):  # without asking for it, too
            with pytest.raises(StoreEngineError, match="does not support SSL") as caught:
                PostgresStore(address(port, parameters, host), name)
            assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r}"


@pytest.mark.parametrize("name", ["", "x" * 64, "é" * 32, "pg_mine", "a\x00b", "50%"])
def test_names_that_a_schema_cannot_have(name: str) -> None:
    with pytest.raises(ConfigurationError, match="collection="):
        PostgresStore(postgres.url(), name, CONFIG)


# schemas


def test_stores_of_a_database_are_apart() -> None:
    names = [postgres.new_name(), postgres.new_name() + "; DROP", 'quo"ted ' + postgres.new_name()]
    stores = [PostgresStore(postgres.url(), name, replace(CONFIG, fingerprint=name)) for name in names]
    for i, store in enumerate(stores):
        store.upsert(batch(ROWS[: i + 1], CONFIG))
    assert [store.count() for store in stores] == [1, 2, 3]
    with pytest.raises(FingerprintMismatchError):
        PostgresStore(postgres.url(), names[0], replace(CONFIG, fingerprint=names[1]))
    stores[0].delete(["r0"])
    assert [store.document_frequencies(np.array([0], np.int32)).tolist() for store in stores] == [[0], [1], [1]]


def test_nothing_is_created_without_a_config() -> None:
    name = postgres.new_name()
    with pytest.raises(StoreNotFoundError, match=name):
        open_store(postgres.url(), collection=name)
    assert postgres.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", name) == []


def test_a_schema_of_others_is_left_alone() -> None:
    name = postgres.new_name()
    postgres.execute("CREATE SCHEMA {name}", name=name)
    postgres.execute("CREATE TABLE {table} (x integer)", table=f"{name}/records")
    for config in (None, CONFIG):
        with pytest.raises(StoreMismatchError, match="choose another collection="):
            open_store(postgres.url(), config, collection=name)
    assert postgres.execute("SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace", f'"{name}"') == [
        ("records",)
    ]


def test_threads_that_create_a_store_at_once_share_it() -> None:
    name, stores = postgres.new_name(), []
    threads = [
        threading.Thread(target=lambda: stores.append(PostgresStore(postgres.url(), name, CONFIG))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stores[0].upsert(batch(ROWS, CONFIG))
    assert [store.count() for store in stores] == [5, 5, 5, 5]


def test_servers_that_will_not_do() -> None:
    latin = database("latin", "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    with pytest.raises(StoreEngineError, match="LATIN1"):
        open_store(latin, CONFIG)
    for dim, quantization, message in (
        (4, "int8", 'no vectors of 8 bits: take quantization="binary"'),
        (8_000, "first_dim=4001", "no graph of quantization='first_dim=4001'"),
        (16_001, None, "16000"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            postgres.new_store(StoreConfig(fingerprint="f", dim=dim, quantization=quantization))


def test_pgvector_may_be_in_any_schema() -> None:
    url = database("elsewhere")
    with open_store(url, StoreConfig(fingerprint="f")) as store:  # without dense vectors it is not needed
        assert store.count() == 0
    postgres.execute_at(url, "CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
    with open_store(url, CONFIG, collection="dense") as store:
        store.upsert(batch(ROWS, CONFIG))
        store.optimize()
        assert store.info().has_graph
        [hits] = store.search([dense_query(1, 0, 0, 0)], limit=2, filter=Eq("kw", "even"))
        assert [hit.id for hit in hits] == ["r0", "r2"]


def grants() -> Iterator[str]:
    """Yield the statements of the page on PostgreSQL."""
    lines = [line.strip() for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("    ")]
    yield from (line for line in lines if line.startswith(("CREATE ROLE", "GRANT")))


def test_readers_and_writers_need_the_documented_privileges_only() -> None:
    url = database("privileges")
    with open_store(url, CONFIG, collection="kb") as store:
        store.upsert(batch(ROWS, CONFIG))
        store.optimize()
    for statement in grants():
        postgres.execute_at(url, statement.replace("mydb", "privileges"))
    with open_store(url.replace("postgres:@", "kb_reader:@"), collection="kb") as reader:
        assert len(reader.search([dense_query(1, 0, 0, 0), sparse_query({1: 1.0})], limit=9)[1]) == 2
        assert reader.document_frequencies(np.array([1], np.int32)).tolist() == [2]
        assert verify_store(reader).intact
        with pytest.raises(StoreEngineError, match="permission denied"):
            reader.upsert(batch(ROWS, CONFIG))
        with pytest.raises(StoreEngineError, match="permission denied"):
            reader.delete(["r0"])
    with open_store(url.replace("postgres:@", "kb_writer:@"), CONFIG, collection="kb") as writer:
        writer.upsert(batch([Row("new")], CONFIG))
        writer.delete(["r1"])
        writer.set_search({"fusion": "rrf"})
        writer.flush()
        assert writer.count() == 5
        with pytest.raises(StoreEngineError, match="must be owner"):
            writer.optimize()
    with pytest.raises(StoreEngineError, match="permission denied"):
        open_store(url.replace("postgres:@", "kb_writer:@"), CONFIG, collection="another")


# graphs


@pytest.mark.parametrize(
    ("dim", "n", "quantization", "value"),
    [
        (64, 1500, None, "(dense vector_ip_ops)"),
        (2_100, 200, None, "((dense)::halfvec(2100)) halfvec_ip_ops"),
        (512, 1200, "binary", "((binary_quantize(dense))::bit(512)) bit_hamming_ops"),
        (2_100, 200, "binary", "((binary_quantize(dense))::bit(2100)) bit_hamming_ops"),
        (128, 1200, "first_dim=64", "(l2_normalize(subvector(dense, 1, 64)))::vector(64)) vector_ip_ops"),
        (2_300, 200, "first_dim=2100", "::vector(2100))::halfvec(2100)) halfvec_ip_ops"),
    ],
)
def test_a_graph_finds_what_an_exact_search_finds(dim: int, n: int, quantization: str | None, value: str) -> None:
    config = StoreConfig(fingerprint="f", dim=dim, sparse=False, fields={"i": "integer"}, quantization=quantization)
    generator = np.random.default_rng(0)
    topics = unit(generator, 20, dim)
    dense = topics[np.arange(n) % 20] + unit(generator, n, dim)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    queries = [DenseQuery(row) for row in 2 * topics[:10] + unit(generator, 10, dim)]
    name = postgres.new_name()
    # so few records are sooner read than found in a graph
    with PostgresStore(f"{postgres.url()}&options=-c%20enable_seqscan%3Doff", name, config) as store:
        rows = [Row(f"{i:04}", metadata={"i": i}, dense=tuple(row)) for i, row in enumerate(dense.tolist())]
        store.upsert(batch(rows, config))
        reports: list[float] = []
        store.optimize(lambda seconds, written: reports.append(seconds))
        assert store.info().has_graph
        for some in (None, Range("i", gte=n // 5)):
            found = store.search(queries, limit=10, filter=some)
            exact = store.search(queries, limit=10, filter=some, exact=True)
            overlap = [len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)]  # ids and scores
            assert sum(overlap) >= 98
        # a filter that few match: the graph ends before ten are found, or is not used at all
        narrow = Range("i", gte=n - 7)
        for hits, query in zip(store.search(queries, limit=10, filter=narrow), queries, strict=True):
            scores = dense[n - 7 :] @ query.vector
            assert [hit.id for hit in hits] == [f"{n - 7 + i:04}" for i in np.argsort(-scores)]
        new = queries[0].vector / np.linalg.norm(queries[0].vector)
        store.upsert(batch([replace(rows[0], dense=tuple(new.tolist()))], config))
        [best, *_] = store.search(queries[:1], limit=1)[0]
        assert best.id == "0000"
        assert best.score == pytest.approx(1, abs=1e-6)
    [(scans, definition)] = postgres.execute(
        "SELECT idx_scan, pg_get_indexdef(indexrelid) FROM pg_stat_user_indexes WHERE schemaname = %s "
        "AND indexrelname = %s",
        name,
        "records_graph",
    )
    assert scans > 0
    assert value in definition
    assert "ef_construction='128'" in definition


@pytest.mark.parametrize(("many", "follows"), [(20_000, False), (100, True)])
@pytest.mark.parametrize("quantization", [None, "binary"])
def test_a_hybrid_search_follows_the_graph_where_many_records_match(
    quantization: Quantization | None, many: int, monkeypatch: pytest.MonkeyPatch, *, follows: bool
) -> None:
    monkeypatch.setattr(searching, "_MANY", many)
    config = StoreConfig(fingerprint="f", dim=32, quantization=quantization)
    rows = [
        Row(f"{i:03}", metadata={"i": i}, dense=tuple(vector), sparse={i % 7: 1})
        for i, vector in enumerate(unit(np.random.default_rng(0), 300, 32).tolist())
    ]
    halves: list[StoreQuery] = [dense_query(*rows[7].dense), sparse_query({0: 1})]
    name = postgres.new_name()
    with PostgresStore(f"{postgres.url()}&options=-c%20enable_seqscan%3Doff", name, config) as store:
        store.upsert(batch(rows, config))
        store.optimize()
        found = store.search(halves, limit=5, filter=Range("i", gte=50))
        exact = store.search(halves, limit=5, filter=Range("i", gte=50), exact=True)
    assert found == exact
    wait_for(lambda: scans(name, "records_record_key") > 0)
    assert (scans(name, "records_graph") > 0) is follows


def test_a_graph_that_outgrows_the_memory_for_building_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = StoreConfig(fingerprint="f", dim=256, sparse=False)
    vectors = unit(np.random.default_rng(0), 1000, 256).tolist()
    rows = [Row(f"{i}", dense=tuple(vector)) for i, vector in enumerate(vectors)]
    url = postgres.url() + "&options=-c%20maintenance_work_mem%3D"
    with PostgresStore(f"{url}1MB", postgres.new_name(), config) as store:
        store.upsert(batch(rows, config))
        store.optimize()
    assert "no longer fits into maintenance_work_mem" in caplog.text
    assert "?options=-c%20maintenance_work_mem%3D4GB" in caplog.text
    caplog.clear()
    with PostgresStore(f"{url}64MB", postgres.new_name(), config) as store:
        store.upsert(batch(rows, config))
        store.optimize()
    assert not caplog.text


def scans(name: str, index: str) -> int:
    """Return how often an index of a store was used."""
    [(n,)] = postgres.execute(
        "SELECT idx_scan FROM pg_stat_user_indexes WHERE schemaname = %s AND indexrelname = %s", name, index
    )
    return int(n)


def test_a_sparse_search_of_a_table_that_was_just_filled_reads_only_its_keys() -> None:
    config = StoreConfig(fingerprint="f", dim=4)
    keys = np.random.default_rng(0).integers(0, 5_000, (3_000, 30)).tolist()
    rows = [Row(f"{i:04}", sparse=dict.fromkeys(own, 1.0)) for i, own in enumerate(keys)]
    name = postgres.new_name()
    with PostgresStore(postgres.url(), name, config) as store:
        store.upsert(batch(rows, config))
        [[best, *_]] = store.search([sparse_query(dict.fromkeys(keys[7], 1.0))], limit=10)
        assert best.id == "0007"

    def reads() -> tuple[int, int]:
        [counted] = postgres.execute(
            "SELECT idx_scan, seq_tup_read FROM pg_stat_user_tables WHERE schemaname = %s AND relname = 'terms'", name
        )
        return counted[0], counted[1]

    wait_for(lambda: reads() != (0, 0))
    assert reads()[1] == 0


@pytest.mark.parametrize("many", [100, 20_000])
@pytest.mark.parametrize("analyzed", [False, True])
def test_a_filtered_sparse_search_asks_for_few_records(
    many: int, monkeypatch: pytest.MonkeyPatch, *, analyzed: bool
) -> None:
    """Not for that of each term, with which a planner that had statistics took seconds."""
    monkeypatch.setattr(searching, "_MANY", many)
    config = StoreConfig(fingerprint="f", dim=768, fields={"half": "integer"})
    random = np.random.default_rng(0)
    rows = [
        Row(f"{i:04}", metadata={"half": i % 2}, dense=tuple(vector), sparse=dict.fromkeys(keys, 1 + i / 10_000))
        for i, (vector, keys) in enumerate(
            zip(unit(random, 1_500, 768).tolist(), random.integers(0, 1_000, (1_500, 30)).tolist(), strict=True)
        )
    ]
    query = sparse_query(dict.fromkeys(range(25), 1.0))
    name = postgres.new_name()

    with PostgresStore(postgres.url(), name, config) as store:
        store.upsert(batch(rows, config))
        if analyzed:
            postgres.execute("ANALYZE {records}, {terms}", records=f"{name}/records", terms=f"{name}/terms")
        found = store.search([query], limit=10, filter=Eq("half", 1))[0]
        with MemoryStore(config) as memory:
            memory.upsert(batch(rows, config))
            expected = memory.search([query], limit=10, filter=Eq("half", 1))[0]
    assert [hit.id for hit in found] == [hit.id for hit in expected]
    wait_for(lambda: scans(name, "records_record_key") > 0)
    assert scans(name, "records_record_key") < 100


@pytest.mark.parametrize("characters", [500, 6_000])
@pytest.mark.parametrize("dim", [768, 1_024, 1_536, 2_000])
def test_vectors_are_in_their_rows(dim: int, characters: int) -> None:
    """Those beside the table cost a second read each, which the planner does not count when it plans with a graph."""
    config, random = StoreConfig(fingerprint="f", dim=dim), np.random.default_rng(0)
    vectors = random.normal(size=(50, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = ["".join(chr(c) for c in random.integers(32, 127, characters)) for _ in vectors]
    rows = [
        Row(f"{i:02}", dense=tuple(v), text=t) for i, (v, t) in enumerate(zip(vectors.tolist(), texts, strict=True))
    ]
    name = postgres.new_name()
    with PostgresStore(postgres.url(), name, config) as store:
        store.upsert(batch(rows, config))
        [[best, *_]] = store.search([dense_query(*vectors[7].tolist())], limit=10)
        assert best.id == "07"

    [(beside,)] = postgres.execute(
        "SELECT count(pg_column_toast_chunk_id(dense)) FROM {records}", records=f"{name}/records"
    )
    assert beside == 0


def test_a_graph_whose_building_was_interrupted_is_built_again() -> None:
    with postgres.new_store(CONFIG) as store:
        store.upsert(batch(ROWS, CONFIG))
        store.optimize()
        postgres.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass",
            f'"{store.collection}".records_graph',
        )
        assert store.info().has_graph is False
        store.optimize()
        assert store.info().has_graph is True
        assert len(store.search([dense_query(1, 0, 0, 0)], limit=9)[0]) == 5


# connections


def connections(name: str) -> int:
    return len(postgres.execute("SELECT 1 FROM pg_stat_activity WHERE application_name = %s", name))


def test_no_connection_is_left() -> None:
    name = postgres.new_name()
    url = f"{postgres.url()}&application_name={name.replace(' ', '%20')}"
    store = PostgresStore(url, name, CONFIG, pool_size=3)

    async def ask() -> None:
        await asyncio.gather(*(store.aupsert(batch(ROWS, CONFIG)) for _ in range(10)))  # the same records
        assert await store.acount() == 5
        assert 0 < connections(name) <= 3
        await store.aclose()

    asyncio.run(ask())
    wait_for(lambda: connections(name) == 0)
    store = PostgresStore(url, name, CONFIG)
    assert asyncio.run(store.acount()) == 5  # a loop that ends without aclose
    assert asyncio.run(store.acount()) == 5
    assert store.count() == 5
    store.close()
    wait_for(lambda: connections(name) == 0)


def wait_for(done: object) -> None:
    """Wait for the server, which ends a connection a moment after its client."""
    for _ in range(200):
        if done():  # type: ignore[operator]
            return
        threading.Event().wait(0.05)
    raise AssertionError("it does not come")


def test_a_lost_connection_is_made_again() -> None:
    name = postgres.new_name()
    with PostgresStore(f"{postgres.url()}&application_name=lost", name, CONFIG) as store:
        store.upsert(batch(ROWS, CONFIG))
        postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lost'")
        assert store.count() == 5
        postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lost'")
        store.upsert(batch([Row("new")], CONFIG))
        assert [record.id for record in store.get(["new"])] == ["new"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_its_own_connections() -> None:
    with postgres.new_store(CONFIG) as store:
        store.upsert(batch(ROWS, CONFIG))
        child = os.fork()
        if child == 0:
            store.upsert(batch([Row("child")], CONFIG))
            os._exit(0 if store.count() == 6 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert store.count() == 6
        store.delete(filter=HasId(["child"]))
        assert store.count() == 5
