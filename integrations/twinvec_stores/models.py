"""The models of a store: the same records with the vectors of each, one of which serves."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

from twinvec.errors import ConfigurationError
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded import models
from twinvec_stores.engines.embedded.store import EmbeddedStore, ModelStore
from twinvec_stores.protocol import HybridStore


def models_of(location: str | os.PathLike[str], collection: str | None) -> StoreModels:
    """Return the models of a store.

    Raises:
        ConfigurationError: stores of this kind have only one.
    """
    where = os.fspath(location)
    if where.startswith(("postgresql://", "postgres://")):
        return _PostgresModels(where, collection or "twinvec")
    if "://" in where:
        raise ConfigurationError(
            "reembed is for folders and PostgreSQL: on another server, twinvec_stores.reembed(old, new, embedder) "
            "fills another collection"
        )
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
        """Keep writes waiting, and then let a model serve, if what is done meanwhile succeeds; reads go on.

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


class _PostgresModels(StoreModels):
    def __init__(self, url: str, collection: str) -> None:
        from twinvec_stores.engines.postgres import models, store

        self._place, self._store, self._models = (url, collection), store, models

    def open(self) -> HybridStore:
        return self._store.PostgresStore(*self._place)

    def open_to_write(self) -> HybridStore:
        return self.open()

    def open_model(self, config: StoreConfig) -> HybridStore:
        return self._models.ModelStore(*self._place, config)

    def open_before(self) -> HybridStore:
        return self._models.ModelStore(*self._place)

    def switching(self, serving: HybridStore, model: HybridStore) -> AbstractContextManager[None]:
        return self._models.switching(cast(Any, serving), cast(Any, model))
