"""Serving: the models of a server, its state, and admission control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from twinvec.errors import ConfigurationError, DeviceLostError, OverloadedError
from twinvec.server.limits import Limits
from twinvec.server.metrics import RequestMetrics
from twinvec.server.service import EmbeddingService, Service, find_name

if TYPE_CHECKING:
    from twinvec.embedder import Embedder
    from twinvec.local import LocalModel


class Place:
    """One request's place among those in progress: from ``take``, once its body is complete, to its sent response."""

    def __init__(self, serving: Serving) -> None:
        self._serving, self._taken = serving, 0

    def take(self) -> None:
        """Take the place.

        Raises:
            OverloadedError: too many requests are in progress.
        """
        at_work = self._serving.at_work
        if at_work >= self._serving.limits.max_requests:
            raise OverloadedError(f"{at_work} requests are in progress, which is the limit: try again later")
        self._taken = 1
        self._serving.at_work += 1

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self._serving.at_work -= self._taken


class Serving:
    """A server: its models and its state.

    Attributes:
        models: embedders by the names that clients use; the first is the default.
        held: all models by name: the embedders, then those of an extension.
        limits: request limits.
        metrics: request metrics.
        draining: the server is about to stop and wants no more requests.
        restarting: a lost device is being restarted.
        at_work: requests in progress.
    """

    def __init__(
        self, embedders: Mapping[str, Embedder], limits: Limits, others: Mapping[str, LocalModel] | None = None
    ) -> None:
        others = others or {}
        if not embedders and not others:
            raise ConfigurationError("there is no model to serve")
        if twice := embedders.keys() & others.keys():
            raise ConfigurationError(f"two models are called {min(twice)!r}: give one of them another name")
        self.limits = limits
        self._embedders = embedders
        self.models = {name: EmbeddingService(self, name, embedder) for name, embedder in embedders.items()}
        self.held: Mapping[str, LocalModel] = {**embedders, **others}
        self.metrics = RequestMetrics()
        self.draining = self.restarting = False
        self.at_work = 0
        self.metrics.at_work.set_function(lambda: self.at_work)

    @property
    def first(self) -> Service:
        """Return the model of routes that name none: an embedder, if there is one."""
        for service in self.models.values():
            return service
        return Service(self, *next(iter(self.held.items())))

    @property
    def healthy(self) -> bool:
        """Return whether every model can answer."""
        return all(model.healthy for model in self.held.values())

    def named(self, name: str | None) -> EmbeddingService:
        """Return an embedder by its name; without a name, the first.

        Raises:
            RefusedError: no embedder has this name.
        """
        return self.models[find_name(name, self._embedders, "model")]

    def check_healthy(self) -> None:
        """Fail if a device is lost for good.

        Raises:
            DeviceLostError: no device works any more.
        """
        if not (self.healthy or self.restarting):
            raise DeviceLostError("unhealthy: no device works any more, restart the server")
