"""Stores on servers without transactions on their way to another model: who may write, and what a kill leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from stores import milvus, qdrant
from stores.conftest import local_clients
from stores.oracle import Row, batch, row
from stores.qdrant import Recorded
from twinvec.errors import ConfigurationError, StoreEngineError, StoreMismatchError, StoreReadOnlyError
from twinvec.flows import block
from twinvec_stores import And, HasId, HybridStore, StoreConfig
from twinvec_stores.engines.milvus.store import MilvusModelStore, MilvusStore
from twinvec_stores.engines.qdrant import QdrantModelStore, QdrantStore
from twinvec_stores.engines.serving import ModelStore, ServedStore, Serving, switching

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")
OLD = replace(qdrant.CONFIG, fields={"i": "integer"})
NEW = replace(OLD, fingerprint="two", model="models/two")
ROWS = qdrant.ROWS


@dataclass(frozen=True)
class Place:
    """A store with ``ROWS``, and how it and its models are opened."""

    open: Callable[..., ServedStore]
    open_model: Callable[..., ModelStore]


@pytest.fixture(params=["qdrant", pytest.param("milvus", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "qdrant":
        client, async_client = local_clients()
        given: dict[str, Any] = {"client": client, "async_client": async_client, "collection": "kb"}
        made = Place(lambda **o: QdrantStore(**given, **o), lambda **o: QdrantModelStore(**given, **o))
    else:
        given = {"url": milvus.url(), "collection": milvus.new_name()}
        made = Place(lambda **o: MilvusStore(**given, **o), lambda **o: MilvusModelStore(**given, **o))
    with made.open(config=OLD) as store:
        store.upsert(batch(ROWS, OLD))
    return made


def switch(place: Place, config: StoreConfig) -> None:
    with place.open() as serving, place.open_model(config=config) as model, switching(serving, model):
        model.upsert(batch(ROWS, config))


def held(store: HybridStore) -> list[Row]:
    records = [record for page in store.scroll_all(with_vectors=True) for record in page]
    return [row(record) for record in sorted(records, key=lambda record: record.id)]


WRITES: dict[str, Callable[[HybridStore], Any]] = {
    "upsert": lambda store: store.upsert(batch([Row("lost", sparse={1: 1.0})], OLD)),
    "delete": lambda store: store.delete(["r1"]),
    "delete where": lambda store: store.delete(filter=And()),
    "upsert, async": lambda store: asyncio.run(store.aupsert(batch([Row("lost", sparse={1: 1.0})], OLD))),
    "delete, async": lambda store: asyncio.run(store.adelete(filter=HasId(["r1"]))),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_store_that_was_open_writes_nothing_and_reads_what_it_read(place: Place, write: str) -> None:
    with place.open() as before:
        switch(place, NEW)
        with pytest.raises(StoreReadOnlyError, match="open the store again"):
            WRITES[write](before)
        assert held(before) == list(ROWS)
        switch(place, OLD)  # and back: what others have written meanwhile is not this one's to overwrite
        with pytest.raises(StoreReadOnlyError, match="open the store again"):
            WRITES[write](before)
    with place.open(config=OLD) as again:
        assert held(again) == list(ROWS)
        WRITES[write](again)
        assert held(again) != list(ROWS)


@pytest.mark.parametrize("write", WRITES)
def test_a_write_while_it_is_switched_is_refused_and_goes_on_if_nothing_comes_of_it(place: Place, write: str) -> None:
    with place.open() as serving, place.open_model(config=NEW) as model, place.open() as writer:
        switch = switching(serving, model)
        switch.__enter__()
        with pytest.raises(StoreReadOnlyError, match="is being switched"):
            WRITES[write](writer)
        assert switch.__exit__(OSError, OSError("disk full"), None) is False
        assert held(writer) == list(ROWS)
        WRITES[write](writer)
        assert held(writer) != list(ROWS)


@pytest.mark.parametrize("name", ["upsert", "delete"])
def test_a_write_that_the_switch_may_have_missed_is_not_acknowledged(name: str) -> None:
    """The server applies it, and before it is acknowledged another process begins to switch."""
    client, _ = local_clients()
    with QdrantStore(client=client, collection="kb", config=OLD) as first:
        first.upsert(batch(ROWS, OLD))
    other = QdrantStore(client=client, collection="kb")
    model = QdrantModelStore(client=client, collection="kb", config=NEW)
    begun = switching(other, model)

    def write(**arguments: Any) -> Any:
        answer = getattr(client, name)(**arguments)
        begun.__enter__()
        return answer

    with QdrantStore(client=Recorded(client, **{name: write}), collection="kb") as writer:  # type: ignore[arg-type]
        with pytest.raises(StoreReadOnlyError, match="is being switched"):
            WRITES[name](writer)
        begun.__exit__(None, None, None)


def test_a_killed_switch_ends_with_the_next_one(place: Place) -> None:
    with place.open() as serving, place.open() as writer:
        killed = switching(serving, place.open_model(config=NEW))
        killed.__enter__()
        with pytest.raises(StoreReadOnlyError, match="was killed, run it again"):
            WRITES["delete"](writer)
        with place.open() as second, place.open_model(config=NEW) as model:
            WRITES["delete"](writer)  # it may end in nothing, as after questions that the new model answers worse
            with switching(second, model):
                model.upsert(batch(ROWS[:1], NEW))
        with pytest.raises(StoreReadOnlyError, match="another process has begun"):
            killed.__exit__(None, None, None)  # it was not killed, only slow
    with place.open(config=NEW) as store:
        assert held(store) == list(ROWS[:1])


def test_of_two_switches_at_once_one_is_refused(place: Place) -> None:
    with place.open() as serving, place.open_model(config=NEW) as model, place.open() as other:
        with switching(serving, model), pytest.raises(StoreReadOnlyError, match="is being"), switching(other, model):
            pass
        with pytest.raises(StoreReadOnlyError, match="was re-embedded"), switching(other, model):
            pass
        with pytest.raises(StoreReadOnlyError, match="meanwhile"):  # as it serves now
            model.delete(filter=And())
    with place.open(config=NEW):
        pass


def test_the_first_model_is_switched_back_to_and_a_third_is_beside_both(place: Place) -> None:
    third = replace(NEW, fingerprint="three")
    for config in (NEW, OLD, third, NEW):
        switch(place, config)
        with place.open(config=config) as store:
            assert held(store) == list(ROWS)
    with place.open_model() as before:
        assert before.config.fingerprint == "three"


def test_there_is_nothing_to_go_back_to(place: Place) -> None:
    with pytest.raises(ConfigurationError, match="nothing to go back to"):
        place.open_model()


@pytest.mark.parametrize("damaged", [{"collection": "kb", "more": 1}, {"collection": 1}, {}, [1], "kb"])
def test_a_damaged_record_is_told(place: Place, damaged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinvec_stores.engines.qdrant.asdict", lambda _: damaged)
    monkeypatch.setattr("twinvec_stores.engines.milvus.store.asdict", lambda _: damaged)
    with place.open() as store:
        block(store._write_serving(Serving("kb")))
        for use in (place.open, lambda: store.delete(["r1"])):
            with pytest.raises(StoreMismatchError, match="damaged"):
                use()


def test_the_other_collection_is_spread_like_the_first() -> None:
    client, _ = local_clients()
    options = {"shard_number": 6, "replication_factor": 2, "write_consistency_factor": 2, "on_disk_payload": True}

    def described(**arguments: Any) -> Any:
        info = client.get_collection(**arguments)
        info.config.params = info.config.params.model_copy(update=options)
        info.config.hnsw_config.m = 48
        return info

    recorded = Recorded(client, get_collection=described)
    given: dict[str, Any] = {"client": recorded, "collection": "kb"}
    with QdrantStore(**given, config=OLD), QdrantModelStore(**given, config=NEW):
        first, second = recorded.asked("create_collection")
    assert {name: second[name] for name in options} == options
    assert second["hnsw_config"].m == 48
    assert second["collection_name"] == f"kb_{NEW.key}"
    assert {name: second[name] for name in first if name not in ("collection_name", "metadata")} == {
        name: first[name] for name in first if name not in ("collection_name", "metadata")
    }


def test_a_collection_that_is_gone_is_named(place: Place) -> None:
    with place.open() as store:
        block(store._write_serving(Serving("gone", switches=1)))
    with pytest.raises(StoreEngineError, match="gone"):
        place.open()


@pytest.mark.slow
def test_a_name_that_leaves_no_room_for_another_models_is_refused() -> None:
    name = "x" * 250
    with (
        MilvusStore(milvus.url(), name, OLD),
        pytest.raises(ConfigurationError, match="at most 255"),
        MilvusModelStore(milvus.url(), name, NEW),
    ):
        pass
