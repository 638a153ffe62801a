"""Prometheus metrics: counters of embedders and of a server's requests.

    from prometheus_client import REGISTRY
    from twinvec.server.metrics import PrometheusCollector

    REGISTRY.register(PrometheusCollector(embedder))

Names begin with ``twinvec_``; every sample has the labels ``model`` and ``device``.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from twinvec.errors import ConfigurationError, TwinVecError
from twinvec.spec import ModelSpec

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ConfigurationError(
        "twinvec.server.metrics needs an optional package: pip install 'twinvec[metrics]'"
    ) from error

_Family = CounterMetricFamily | GaugeMetricFamily
_LABELS = ("model", "device")
# key of Embedder.stats() -> metric (prometheus_client adds _total to counters), help
_COUNTERS = {
    "forwards": ("forwards", "Forward passes."),
    "texts": ("texts", "Texts that went through a forward pass."),
    "tokens": ("tokens", "Tokens that went through a forward pass."),
    "truncated": ("truncated", "Texts cut at the maximum length."),
    "out_of_memory": ("out_of_memory", "Batches split because the device ran out of memory."),
    "failures": ("failures", "Batches that failed."),
    "memo_hits": ("memo_hits", "Texts answered by the memo."),
    "memo_misses": ("memo_misses", "Texts that the memo did not have."),
    "cache_hits": ("cache_hits", "Texts answered by the persistent cache."),
    "cache_misses": ("cache_misses", "Texts that the persistent cache did not have."),
    "queue_wait_seconds": ("queue_wait_seconds", "Time that texts waited for their batch."),
    "forward_seconds": ("forward_seconds", "Time in forward passes."),
}
_GAUGES = {
    "queued": ("queued_texts", "Texts waiting for a batch."),
    "token_budget": ("token_budget", "Maximum tokens per batch."),
    "batch_fill": ("batch_fill_ratio", "Tokens in batches relative to their budget, 0 to 1."),
    "healthy": ("healthy", "1 while the model is working, 0 after its device failed or it was closed."),
    "device_memory": ("device_memory_bytes", "Memory held on the device."),
}


_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class RequestMetrics:
    """Counters of one server's requests, in their own registry.

    Attributes:
        registry: holds these counters and whatever else is measured beside them.
        requests: requests by route, status and tenant.
        seconds: time from a request's headers to its sent response, by route.
        at_work: requests between their complete body and their sent response.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "twinvec_requests", "Requests answered.", ("route", "status", "tenant"), registry=registry
        )
        self.seconds = Histogram(
            "twinvec_request_seconds", "Time to answer.", ("route",), registry=registry, buckets=_SECONDS
        )
        self.at_work = Gauge("twinvec_requests_in_flight", "Requests in progress.", registry=registry)
        self._known: dict[tuple[str, int, str], tuple[Counter, Histogram]] = {}

    def count(self, route: str, status: int, tenant: str, seconds: float) -> None:
        """Count a request."""
        known = self._known.get(key := (route, status, tenant))
        if known is None:  # prometheus_client's own look-up takes a lock and strings
            known = self._known[key] = self.requests.labels(route, str(status), tenant), self.seconds.labels(route)
        known[0].inc()
        known[1].observe(seconds)


class ConnectionCollector(Collector):
    """Connections of a server: how many are open, and how many were closed and why."""

    def __init__(self, count: Callable[[], int], closed: Mapping[str, int]) -> None:
        self._count, self._closed = count, closed

    def collect(self) -> Iterator[_Family]:
        """Return the metrics."""
        yield GaugeMetricFamily("twinvec_connections", "Open connections.", value=self._count())
        closed = CounterMetricFamily(
            "twinvec_connections_closed", "Connections closed early by the server.", labels=("reason",)
        )
        for reason, number in self._closed.items():
            closed.add_metric((reason,), number)
        yield closed


class Measured(Protocol):
    """What the collector needs from an Embedder."""

    @property
    def spec(self) -> ModelSpec:
        """Return the spec; its model becomes the label."""
        ...

    def stats(self) -> Mapping[str, Any]:
        """Return the counters."""
        ...


@dataclass(slots=True)
class _Source:
    embedder: weakref.ref[Measured]
    device: str = "unknown"


class PrometheusCollector(Collector):
    """Collector for ``prometheus_client``: ``registry.register(PrometheusCollector(embedder))``.

    A registry takes one collector; further embedders of the process are added to it. Embedders are held weakly: once
    garbage-collected, they disappear from the metrics.

    Args:
        embedder: the embedder to measure.
        name: the ``model`` label; None uses the spec's model.
    """

    def __init__(self, embedder: Measured, *, name: str | None = None) -> None:
        self._sources: dict[str, _Source] = {}
        self._lock = threading.Lock()
        self.add(embedder, name=name)

    def add(self, embedder: Measured, *, name: str | None = None) -> None:
        """Measure one more embedder.

        Raises:
            ConfigurationError: the name belongs to another embedder that is still alive.
        """
        label = embedder.spec.model if name is None else name
        with self._lock:
            known = self._sources[label].embedder() if label in self._sources else None
            if known is not None and known is not embedder:
                raise ConfigurationError(f"another embedder already reports as {label!r}: pass name=")
            self._sources[label] = _Source(weakref.ref(embedder))

    def describe(self) -> Iterator[_Family]:
        """Return the metrics without samples, so that registration reads no counters."""
        yield from _families().values()

    def collect(self) -> Iterator[_Family]:
        """Return the metrics with one sample per embedder. A closed embedder only reports ``healthy`` 0."""
        families = _families()
        with self._lock:
            sources = list(self._sources.items())
        for label, source in sources:
            embedder = source.embedder()
            if embedder is None:
                continue
            stats: Mapping[str, Any]
            try:
                stats = embedder.stats()
            except TwinVecError:
                stats = {"healthy": False, "device": source.device}
            source.device = str(stats["device"])
            for key in families.keys() & stats.keys():
                families[key].add_metric((label, source.device), float(stats[key]))
        yield from families.values()


def _families() -> dict[str, _Family]:
    counters = {
        key: CounterMetricFamily(f"twinvec_{name}", text, labels=_LABELS) for key, (name, text) in _COUNTERS.items()
    }
    gauges = {key: GaugeMetricFamily(f"twinvec_{name}", text, labels=_LABELS) for key, (name, text) in _GAUGES.items()}
    return {**counters, **gauges}
