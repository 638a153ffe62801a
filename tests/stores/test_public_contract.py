"""The public contract, run against our own engines."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from qdrant_client import AsyncQdrantClient, QdrantClient

from stores import milvus, postgres
from stores.conftest import local_clients
from twinvec_stores import (
    EmbeddedStore,
    Filter,
    HybridStore,
    MemoryStore,
    MilvusStore,
    PostgresStore,
    QdrantStore,
    StoreConfig,
)
from twinvec_stores.records import Record
from twinvec_stores.testing import EngineUnderTest, StoreStateMachine, StoreTests
from twinvec_stores.testing.suite import CONFIG

SETTINGS = settings(max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))
local = pytest.mark.filterwarnings("ignore:Local mode performs exact", "ignore:Payload indexes")


class Memory(EngineUnderTest):
    persistent: ClassVar[bool] = False

    def open_store(self, config: StoreConfig, folder: Path) -> HybridStore:
        return MemoryStore(config)


class Embedded(EngineUnderTest):
    def open_store(self, config: StoreConfig, folder: Path) -> HybridStore:
        return EmbeddedStore(folder, config)


class Qdrant(EngineUnderTest):
    clients: ClassVar[dict[Path, tuple[QdrantClient, AsyncQdrantClient]]] = {}

    def open_store(self, config: StoreConfig, folder: Path) -> HybridStore:
        client, async_client = self.clients.setdefault(folder, local_clients())
        return QdrantStore(client=client, async_client=async_client, collection="records", config=config)


class Postgres(EngineUnderTest):
    collections: ClassVar[dict[Path, str]] = {}

    def open_store(self, config: StoreConfig, folder: Path) -> HybridStore:
        return PostgresStore(postgres.url(), self.collections.setdefault(folder, postgres.new_name()), config)


class Milvus(EngineUnderTest):
    collections: ClassVar[dict[Path, str]] = {}

    def open_store(self, config: StoreConfig, folder: Path) -> HybridStore:
        return MilvusStore(milvus.url(), self.collections.setdefault(folder, milvus.new_name()), config)


class TestMemory(Memory, StoreTests): ...


class TestEmbedded(Embedded, StoreTests): ...


@local
class TestQdrant(Qdrant, StoreTests):
    @pytest.mark.skip("the client's own engine is for one thread")
    def test_threads_write_and_read_at_once(self, store: HybridStore) -> None: ...


class TestPostgres(Postgres, StoreTests): ...


class TestMilvus(Milvus, StoreTests): ...


class MemoryStates(Memory, StoreStateMachine): ...


class EmbeddedStates(Embedded, StoreStateMachine): ...


class QdrantStates(Qdrant, StoreStateMachine): ...


class PostgresStates(Postgres, StoreStateMachine): ...


class MilvusStates(Milvus, StoreStateMachine): ...


TestMemoryStates = MemoryStates.TestCase
TestEmbeddedStates = EmbeddedStates.TestCase
TestQdrantStates = local(QdrantStates.TestCase)
TestPostgresStates = PostgresStates.TestCase
TestMilvusStates = MilvusStates.TestCase
for states in (TestMemoryStates, TestEmbeddedStates, TestQdrantStates, TestPostgresStates, TestMilvusStates):
    states.settings = SETTINGS


class Forgetful(MemoryStore):
    """A store that does not delete by filters."""

    async def _delete_where(self, filter: Filter) -> None:  # type: ignore[override]
        pass


class Shallow(MemoryStore):
    """A store that lets a caller change what it holds."""

    async def _get(self, ids: list[str], with_vectors: bool) -> list[Record]:  # type: ignore[override]
        return [self._all()[id] for id in ids if id in self._all()]


class ForgetfulStates(MemoryStates):
    def open_store(self, config: StoreConfig, folder: Path) -> HybridStore:
        return Forgetful(config)


@pytest.mark.slow
def test_a_store_that_is_wrong_does_not_pass() -> None:
    chosen = settings(SETTINGS, max_examples=100, database=None, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(ForgetfulStates, settings=chosen)


def test_a_store_that_shares_its_records_does_not_pass() -> None:
    with pytest.raises(AssertionError):
        StoreTests.test_nothing_is_shared_with_the_caller(TestMemory(), Shallow(CONFIG))
