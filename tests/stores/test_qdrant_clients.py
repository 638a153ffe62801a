"""The Qdrant engine's clients: addresses, keys, event loops, closing."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import qdrant_client

from stores.conftest import local_clients
from stores.oracle import batch
from stores.qdrant import ASYNC_CALLS, CALLS, CONFIG, ROWS, Recorded, awaited, directly, open_store, recorded
from twinvec.errors import (
    ConfigurationError,
    StoreClosedError,
    StoreEngineError,
    StoreNotFoundError,
)
from twinvec_stores.engines.qdrant import QdrantStore
from twinvec_stores.filters.conditions import And, Eq

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")
KEY = "a-very-secret-key"


class Servers:
    """Stands for ``QdrantClient`` and ``AsyncQdrantClient``: every client that a store makes, on one engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.local, self.local_async = local_clients()
        self.made: list[tuple[str, dict[str, Any], Recorded]] = []
        self.loops: list[asyncio.AbstractEventLoop] = []
        monkeypatch.setattr(qdrant_client, "QdrantClient", self.make_sync)
        monkeypatch.setattr(qdrant_client, "AsyncQdrantClient", self.make_async)

    def make_sync(self, **options: Any) -> Recorded:
        return self._make("sync", Recorded(self.local, close=lambda: None), options)

    def make_async(self, **options: Any) -> Recorded:
        async def close() -> None:
            """The engine is still needed."""

        self.loops.append(asyncio.get_running_loop())
        return self._make("async", Recorded(self.local_async, close=close), options)

    def _make(self, kind: str, client: Recorded, options: dict[str, Any]) -> Recorded:
        self.made.append((kind, options, client))
        return client

    def of(self, kind: str) -> list[Recorded]:
        return [client for made, _, client in self.made if made == kind]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    return Servers(monkeypatch)


SYNC_ONLY: dict[str, Callable[[QdrantStore], Any]] = {
    "info": lambda store: store.info(),
    "flush": lambda store: store.flush(),
    "optimize": lambda store: store.optimize(),
}


# clients


def test_a_given_client_stays_open() -> None:
    local, local_async = local_clients()
    client, async_client = Recorded(local), Recorded(local_async)
    store = open_store(client, async_client=async_client)
    store.close()
    asyncio.run(store.aclose())
    assert client.asked("close") == async_client.asked("close") == []
    assert open_store(client).count() == 0


@pytest.mark.parametrize("call", [*CALLS, *SYNC_ONLY])
def test_a_closed_store_says_so(call: str) -> None:
    store = open_store(recorded())
    store.close()
    store.close()
    for use, calls in ((directly, {**CALLS, **SYNC_ONLY}), (awaited, ASYNC_CALLS)):
        if call in calls:
            with pytest.raises(StoreClosedError, match="kb"):
                use(calls[call], store)


def test_clients_of_a_url_are_made_as_asked_and_closed(servers: Servers) -> None:
    store = QdrantStore(
        "https://qdrant.example:6333",
        "kb",
        CONFIG,
        api_key=KEY,
        prefer_grpc=True,
        timeout=7,
        client_options={"grpc_port": 7334, "headers": {"x": "y"}},
    )
    expected = {
        "url": "https://qdrant.example:6333",
        "api_key": KEY,
        "prefer_grpc": True,
        "timeout": 7,
        "grpc_port": 7334,
        "headers": {"x": "y"},
    }

    async def use() -> None:
        await store.aupsert(batch(ROWS, CONFIG))
        assert await store.acount() == 5
        await store.aclose()

    asyncio.run(use())
    assert [kind for kind, _, _ in servers.made] == ["sync", "async"]
    for _, options, client in servers.made:
        assert {name: options.get(name) for name in expected} == expected
        assert len(client.asked("close")) == 1
    with pytest.raises(StoreClosedError):
        store.count()


def test_event_loops_one_after_the_other_have_clients_of_their_own(servers: Servers) -> None:
    store = QdrantStore("http://localhost:6333", "kb", CONFIG)
    awaited(ASYNC_CALLS["upsert"], store)

    async def twice() -> list[int]:
        return [await store.acount(), await store.acount(Eq("i", 1))]

    assert [asyncio.run(twice()), asyncio.run(twice())] == [[5, 1], [5, 1]]
    first, second, third = servers.of("async")
    assert len(set(map(id, servers.loops))) == 3
    assert [len(client.calls) for client in (first, second, third)] == [3, 2, 2]

    async def in_a_fourth() -> None:
        await store.acount()
        await store.aclose()

    asyncio.run(in_a_fourth())
    assert [len(client.asked("close")) for client in servers.of("async")] == [0, 0, 0, 1]  # the others' loops are gone
    assert len(servers.of("sync")[0].asked("close")) == 1


def test_a_store_that_cannot_be_opened_closes_its_client(servers: Servers) -> None:
    with pytest.raises(StoreNotFoundError):
        QdrantStore("http://localhost:6333", "kb")
    assert len(servers.of("sync")[0].asked("close")) == 1


def test_a_password_in_the_address_is_never_shown(servers: Servers) -> None:
    store = QdrantStore("https://reader:s3cret@host:6333/qdrant", "kb", CONFIG)
    assert servers.made[0][1]["url"] == "https://reader:s3cret@host:6333/qdrant"
    assert store.url == "https://host:6333/qdrant"
    assert "s3cret" not in repr(store)
    store.close()
    with QdrantStore("reader:s3cret@host:6333", "kb", CONFIG) as store:  # which its client reads as http://
        assert store.url == "http://host:6333"


@pytest.mark.parametrize(
    "url",
    [
        "http://qdrant.example:6333",
        "HTTP://qdrant.example",
        "qdrant.example:6333",
        "qdrant.example",
        "http://10.0.0.7:6333",
        "http://localhost.evil.example",
        "http://localhost@evil.example",
        "http://127.0.0.1.evil.example",
    ],
)
def test_an_api_key_does_not_travel_in_the_clear(servers: Servers, url: str) -> None:
    with pytest.raises(ConfigurationError, match="unencrypted") as caught:
        QdrantStore(url, "kb", CONFIG, api_key=KEY)
    assert KEY not in str(caught.value)
    assert servers.made == []


@pytest.mark.parametrize(
    "url",
    [
        "https://qdrant.example",
        "HTTPS://qdrant.example",
        "http://localhost:6333",
        "http://127.0.0.1",
        "http://[::1]:6333",
    ],
)
def test_an_api_key_goes_where_nobody_listens(servers: Servers, url: str) -> None:
    store = QdrantStore(url, "kb", CONFIG, api_key=KEY)
    assert servers.made[0][1]["api_key"] == KEY
    for text in (repr(store), str(store.info())):
        assert KEY not in text


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.parametrize("prefer_grpc", [False, True])
def test_a_server_that_is_not_there_is_an_engine_error(prefer_grpc: bool) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]  # nobody listens there
        with pytest.raises(StoreEngineError, match=f"http://127.0.0.1:{port}, collection kb") as caught:
            QdrantStore(
                f"http://127.0.0.1:{port}",
                "kb",
                CONFIG,
                api_key=KEY,
                prefer_grpc=prefer_grpc,
                timeout=2,
                client_options={"grpc_port": port, "check_compatibility": False},
            )
    assert KEY not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_contradictions_are_refused(servers: Servers) -> None:
    given = cast(Any, recorded())
    for options, words in [
        ({}, "either url= or client="),
        ({"url": "http://localhost", "client": given}, "either url= or client="),
        ({"client": given, "api_key": KEY}, "given client"),
        ({"client": given, "client_options": {"prefix": "x"}}, "given client"),
        ({"url": "http://localhost", "client_options": {"api_key": KEY, "timeout": 5}}, "api_key, timeout"),
    ]:
        with pytest.raises(ConfigurationError, match=words) as caught:
            QdrantStore(collection="kb", config=CONFIG, **cast(Any, options))
        assert KEY not in str(caught.value)
    assert servers.made == []


def test_the_client_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'twinvec\[qdrant\]'"):
        QdrantStore("http://localhost:6333", "kb", CONFIG)


def test_deleting_everything_must_be_said() -> None:
    with open_store(recorded()) as store:
        store.upsert(batch(ROWS, CONFIG))
        store.delete(filter=And())
        assert store.count() == 0
