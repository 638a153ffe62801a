"""The models of a store: the same records with the vectors of each, one of which serves."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

from twinvec.errors import ConfigurationError
from twinvec.settings import Settings
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded import models
from twinvec_stores.engines.embedded.store import EmbeddedStore, ModelStore
from twinvec_stores.engines.qdrant import QdrantModelStore, QdrantStore
from twinvec_stores.engines.serving import switching
from twinvec_stores.protocol import HybridStore

_Switching: TypeAlias = Callable[[Any, Any], AbstractContextManager[None]]


def models_of(location: str | os.PathLike[str], collection: str | None) -> StoreModels:
    """Return the models of a store.

    Raises:
        ConfigurationError: the location is not a store's, or ``collection`` is for a folder.
    """
    where, name, settings = os.fspath(location), collection or "twinvec", Settings.from_env()
    if where.startswith(("http://", "https://")):
        return _ServerModels(QdrantStore, QdrantModelStore, switching, where, name, api_key=settings.qdrant_api_key)
    if where.startswith(("postgresql://", "postgres://")):
        from twinvec_stores.engines.postgres import models as postgres
        from twinvec_stores.engines.postgres.store import PostgresStore

        return _ServerModels(PostgresStore, postgres.ModelStore, postgres.switching, where, name)
    if where.startswith("milvus://"):
        from twinvec_stores.engines.milvus.store import MilvusModelStore, MilvusStore

        return _ServerModels(MilvusStore, MilvusModelStore, switching, where, name, token=settings.milvus_token)
    if "://" in where:
        raise ConfigurationError("reembed is for stores in a folder or on a server of Qdrant, PostgreSQL or Milvus")
    if collection is not None:
        raise ConfigurationError("collection: only for a server")
    return _FolderModels(Path(where))


class StoreModels(ABC):
    """A store, and what it would be with other models."""

    @abstractmethod
    def open(self) -> HybridStore:
        """Open the vectors that serve, to read them."""

    @abstractmethod
    def open_to_write(self) -> HybridStore:
        """Open the vectors that serve."""

    @abstractmethod
    def open_model(self, config: StoreConfig) -> HybridStore:
        """Open the vectors of a model that does not serve, as far as they are there."""

    @abstractmethod
    def open_before(self) -> HybridStore:
        """Open the vectors that served before the last switch.

        Raises:
            ConfigurationError: there was none.
        """

    @abstractmethod
    def switching(self, serving: HybridStore, model: HybridStore) -> AbstractContextManager[None]:
        """Keep writes waiting or refuse them, and then let a model serve, if what is done meanwhile succeeds.

        Args:
            serving: from ``open_to_write``.
            model: from ``open_model``.
        """


class _FolderModels(StoreModels):
    def __init__(self, path: Path) -> None:
        self._root = path.expanduser().resolve()

    def open(self) -> HybridStore:
        return EmbeddedStore(self._root, read_only=True)

    def open_to_write(self) -> HybridStore:
        return EmbeddedStore(self._root)

    def open_model(self, config: StoreConfig) -> HybridStore:
        folder = models.place(self._root, config)
        folder.parent.mkdir(exist_ok=True)
        return ModelStore(folder, config)

    def open_before(self) -> HybridStore:
        folder = models.before(self._root)
        if folder is None:
            raise ConfigurationError(f"{self._root} was not re-embedded: there is nothing to go back to")
        return ModelStore(folder)

    @contextmanager
    def switching(self, serving: HybridStore, model: HybridStore) -> Iterator[None]:
        source, target = cast(EmbeddedStore, serving), cast(ModelStore, model)
        with source._folder.retiring():
            yield
            models.switch(self._root, target.path.expanduser().resolve())
            target._folder.retired = False


class _ServerModels(StoreModels):
    def __init__(self, store: Any, model: Any, switching: _Switching, *place: str, **secret: str | None) -> None:
        self._open, self._open_model = partial(store, *place, **secret), partial(model, *place, **secret)
        self._switching = switching

    def open(self) -> HybridStore:
        return cast(HybridStore, self._open())

    def open_to_write(self) -> HybridStore:
        return self.open()

    def open_model(self, config: StoreConfig) -> HybridStore:
        return cast(HybridStore, self._open_model(config=config))

    def open_before(self) -> HybridStore:
        return cast(HybridStore, self._open_model())

    def switching(self, serving: HybridStore, model: HybridStore) -> AbstractContextManager[None]:
        return self._switching(serving, model)
