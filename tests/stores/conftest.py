"""Stores of every engine, behind one driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient

from stores import milvus, postgres
from stores.oracle import Driver
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.engines.memory import MemoryStore
from twinvec_stores.engines.milvus.store import MilvusStore
from twinvec_stores.engines.postgres.store import PostgresStore
from twinvec_stores.engines.qdrant import QdrantStore
from twinvec_stores.protocol import HybridStore

Make = Callable[[StoreConfig], Driver]
ENGINES = ["memory", "embedded", "qdrant", "postgres", pytest.param("milvus", marks=pytest.mark.slow)]


def local_clients() -> tuple[QdrantClient, AsyncQdrantClient]:
    """Two clients of one local engine."""
    client, async_client = QdrantClient(":memory:"), AsyncQdrantClient(":memory:")
    cast(Any, async_client)._client.collections = cast(Any, client)._client.collections
    return client, async_client


def make_driver(engine: str, config: StoreConfig, folder: Path, *, through_async: bool = False) -> Driver:
    if engine == "memory":
        store = MemoryStore(config)
        return _Kept(lambda: store, through_async=through_async)
    if engine == "embedded":
        return Driver(lambda: EmbeddedStore(folder, config), through_async=through_async)
    if engine == "postgres":
        collection = postgres.new_name()
        return Driver(lambda: PostgresStore(postgres.url(), collection, config), through_async=through_async)
    if engine == "milvus":
        name = milvus.new_name()
        return Driver(lambda: MilvusStore(milvus.url(), name, config), through_async=through_async)
    client, async_client = local_clients()

    def make() -> HybridStore:
        return QdrantStore(client=client, async_client=async_client, collection="records", config=config)

    return Driver(make, through_async=through_async)


class _Kept(Driver):
    """A store that forgets everything when it is closed."""

    def reopen(self) -> None:
        """Nothing to open again."""


@pytest.fixture(scope="module", params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Give an empty store of a configuration, on each engine; it is made once."""
    yield from makers(str(request.param), tmp_path_factory, through_async=False)


@pytest.fixture(scope="module", params=ENGINES)
def make_async(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """The same through the async methods."""
    yield from makers(str(request.param), tmp_path_factory, through_async=True)


def makers(engine: str, folders: pytest.TempPathFactory, *, through_async: bool) -> Iterator[Make]:
    made: dict[str, Driver] = {}

    def make(config: StoreConfig) -> Driver:
        if repr(config) not in made:
            made[repr(config)] = make_driver(engine, config, folders.mktemp("store"), through_async=through_async)
        made[repr(config)].clear()
        return made[repr(config)]

    yield make
    for driver in made.values():
        driver.end()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"
