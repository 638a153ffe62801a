"""A store in a process of its own, which the driver and all workers open by its address, ``shared://NAME``."""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from twinvec_stores import HybridStore, MemoryStore, StoreConfig, open_store


class _Owner:
    """Holds the records; ``deaths`` are the writes (counted from 1) whose writers die before they hear of it."""

    def __init__(self, config: StoreConfig, deaths: set[int]) -> None:
        self._store, self._deaths, self._writes = MemoryStore(config), deaths, 0

    def call(self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, bool]:
        result = getattr(self._store, name)(*arguments, **keywords)
        self._writes += name == "upsert"
        return result, name == "upsert" and self._writes in self._deaths


class SharedStore(MemoryStore):
    """Its methods run where the records are."""

    def __init__(self, name: str) -> None:
        self._owner = ray.get_actor(name)
        super().__init__(ray.get(self._owner.config.remote()))


def _forwarded(name: str) -> Any:
    def method(self: SharedStore, *arguments: Any, **keywords: Any) -> Any:
        result, die = ray.get(self._owner.call.remote(name, arguments, keywords))
        if die:
            os._exit(1)
        return result

    return method


for _name in ("upsert", "delete", "get", "count", "scroll"):
    setattr(SharedStore, _name, _forwarded(_name))


class Owner(_Owner):
    def config(self) -> StoreConfig:
        return self._store.config


def create_shared(name: str, config: StoreConfig, deaths: set[int] | None = None) -> Any:
    """Make a store, on this node; it lives as long as what is returned."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Owner).options(name=name, num_cpus=0, scheduling_strategy=here).remote(config, deaths or set())


def open_shared() -> None:
    """Let ``open_store`` know such addresses, in this process."""
    import twinvec_ray.ingesting
    import twinvec_ray.worker

    def opened(address: Any, *arguments: Any, **options: Any) -> HybridStore:
        text = os.fspath(address)
        if text.startswith("shared://"):
            return SharedStore(text.removeprefix("shared://"))
        return open_store(address, *arguments, **options)

    for module in (twinvec_ray.ingesting, twinvec_ray.worker):
        module.open_store = opened  # type: ignore[attr-defined]
