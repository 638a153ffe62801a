"""Which collection serves a store, on servers without transactions.

A store begins with the collection of its own name. The vectors of other models are in collections beside it, and a
record, kept as a property of the first one, names the collection that serves. Whoever opens the store reads the record
and stays with one collection: an alias would show another model's vectors to programs that still ask with the old one.
"""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from twinvec.errors import ConfigurationError, StoreEngineError, StoreMismatchError, StoreReadOnlyError
from twinvec.flows import Flow, block
from twinvec_stores.config import StoreConfig
from twinvec_stores.protocol import HybridStore


@dataclass(frozen=True)
class Serving:
    """The record of a store.

    Attributes:
        collection: the collection that serves.
        before: the one that served before the last switch.
        switches: how many there were.
        switching: names whoever is about to switch; nobody writes meanwhile.
    """

    collection: str
    before: str | None = None
    switches: int = 0
    switching: str | None = None

    @classmethod
    def from_dict(cls, data: Any, first: str, where: str) -> Serving:
        """Read a record; a store without one is served by its first collection.

        Raises:
            StoreMismatchError: it is damaged.
        """
        if data is None:
            return cls(first)
        try:
            record = cls(**data)
        except TypeError as error:
            raise StoreMismatchError(f"{where}: the record of what serves is damaged: {error}") from None
        if not isinstance(record.collection, str) or not isinstance(record.switches, int):
            raise StoreMismatchError(f"{where}: the record of what serves is damaged: {data!r:.200}")
        return record


class ServedStore(HybridStore):
    """A store in collections of a server, one of which serves.

    Attributes:
        collection: the store's name, and its first collection.
    """

    collection: str
    _place: str  # the store's name in errors
    _current: str  # the collection that is read and written
    _serving: Serving  # the record when it was opened

    @abstractmethod
    def _make_missing(self, config: StoreConfig | None) -> None:
        """Make the current collection if there is none; without a configuration, it is an error."""

    @abstractmethod
    def _stored(self) -> StoreConfig:
        """Return the configuration of the current collection."""

    @abstractmethod
    def _prepare(self, config: StoreConfig) -> None:
        """Make the indexes that are missing, and whatever else a search needs."""

    @abstractmethod
    def _read_serving(self) -> Flow[Serving]: ...

    @abstractmethod
    def _write_serving(self, serving: Serving) -> Flow[None]: ...

    def _open(self, config: StoreConfig | None) -> StoreConfig:
        self._current = self.collection
        self._make_missing(config)
        self._serving = block(self._read_serving())
        self._current = self._serving.collection
        return self._use(config)

    def _use(self, config: StoreConfig | None) -> StoreConfig:
        """Return the configuration of the current collection, and make it ready."""
        stored = self._stored()
        if config is not None:
            stored.check(config, self._place)
        self._prepare(stored)
        return stored

    async def _claim(self) -> None:
        """Refuse to write into what no longer serves.

        It is asked before a write, which must not change those vectors, and again after it: a write counts only if
        whoever switches has begun to look for changes after it.
        """
        self._check(await self._read_serving())

    def _check(self, now: Serving) -> None:
        if now.switches != self._serving.switches:
            raise StoreReadOnlyError(f"{self._place} was re-embedded with another model: open the store again")
        if now.switching is not None:
            raise StoreReadOnlyError(
                f"{self._place} is being switched to another model: write when that is done; if `twinvec store "
                "reembed` was killed, run it again"
            )


class ModelStore(ServedStore):
    """Mixed into a store: the vectors of a model that does not serve; its collection is made if there is none."""

    def _open(self, config: StoreConfig | None) -> StoreConfig:
        super()._open(None)
        if config is None:
            if self._serving.before is None:
                raise ConfigurationError(f"{self._place} was not re-embedded: there is nothing to go back to")
            self._current = self._serving.before
            return self._use(None)
        if self._serving.switching is not None:  # by a process that was killed; one that was not will notice
            block(self._write_serving(replace(self._serving, switching=None)))
        self._current = self.collection
        if self._stored().identity != config.identity:
            self._current = f"{self.collection}_{config.key}"
            self._make_missing(config)
        return self._use(config)

    def _check(self, now: Serving) -> None:
        if now.collection == self._current:
            raise StoreReadOnlyError(f"{self._place}: another process has switched to this model meanwhile")


@contextmanager
def switching(serving: ServedStore, model: ModelStore) -> Iterator[None]:
    """Refuse the writes of all processes, and then let a model serve, if what is done meanwhile succeeds.

    Raises:
        StoreReadOnlyError: another process switches, or has switched.
        StoreEngineError: the server failed; nothing has changed.
    """
    before = block(serving._read_serving())
    serving._check(before)
    held = replace(before, switching=uuid.uuid4().hex)
    try:
        block(serving._write_serving(held))
        yield
        if block(serving._read_serving()) != held:
            raise StoreReadOnlyError(f"{serving._place}: another process has begun to switch it meanwhile")
        block(serving._write_serving(Serving(model._current, before.collection, before.switches + 1)))
    except BaseException:
        with suppress(StoreEngineError):  # the first error says what is wrong
            if block(serving._read_serving()) == held:
                block(serving._write_serving(before))
        raise
