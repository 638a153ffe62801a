"""The Prometheus collector: names, labels and values, as a scraper reads them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from twinvec.embedder import Embedder
from twinvec.errors import ConfigurationError
from twinvec.server.metrics import Measured, PrometheusCollector
from twinvec.spec import ModelSpec

STATS: dict[str, Any] = {
    "forwards": 3,
    "texts": 70,
    "tokens": 900,
    "truncated": 2,
    "out_of_memory": 1,
    "failures": 4,
    "memo_hits": 5,
    "memo_misses": 6,
    "cache_hits": 7,
    "cache_misses": 8,
    "queue_wait_seconds": 0.25,
    "forward_seconds": 1.5,
    "batch_fill": 0.75,
    "queued": 9,
    "token_budget": 16384,
    "healthy": True,
    "device": "cuda:0",
    "dtype": "bfloat16",
    "attention": "varlen",
    "device_memory": 2**30,
}
VALUES = {
    "twinvec_forwards_total": 3,
    "twinvec_texts_total": 70,
    "twinvec_tokens_total": 900,
    "twinvec_truncated_total": 2,
    "twinvec_out_of_memory_total": 1,
    "twinvec_failures_total": 4,
    "twinvec_memo_hits_total": 5,
    "twinvec_memo_misses_total": 6,
    "twinvec_cache_hits_total": 7,
    "twinvec_cache_misses_total": 8,
    "twinvec_queue_wait_seconds_total": 0.25,
    "twinvec_forward_seconds_total": 1.5,
    "twinvec_batch_fill_ratio": 0.75,
    "twinvec_queued_texts": 9,
    "twinvec_token_budget": 16384,
    "twinvec_healthy": 1,
    "twinvec_device_memory_bytes": 2**30,
}


class Counted:
    """What a collector reads of an Embedder."""

    def __init__(self, model: str = "org/model", **changed: Any) -> None:
        self.spec = ModelSpec(model=model)
        self.counters = STATS | changed
        self.closed = False
        self.asked = 0

    def stats(self) -> Mapping[str, Any]:
        self.asked += 1
        if self.closed:
            raise ConfigurationError("closed")
        return self.counters


def embedder_is_measured(embedder: Embedder) -> Measured:
    """Let mypy check that the real class fits."""
    return embedder


def scrape(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, sample.labels["model"], sample.labels["device"]): sample.value
        for family in families
        for sample in family.samples
    }


def registered(collector: PrometheusCollector) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(collector)
    return registry


def test_every_counter_and_gauge_is_exposed_with_its_labels() -> None:
    embedder = Counted()
    assert scrape(registered(PrometheusCollector(embedder))) == {
        (name, "org/model", "cuda:0"): value for name, value in VALUES.items()
    }


def test_counters_are_counters_and_gauges_are_gauges() -> None:
    embedder = Counted()
    text = generate_latest(registered(PrometheusCollector(embedder))).decode()
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert kinds == {name.removesuffix("_total"): "counter" if name.endswith("_total") else "gauge" for name in VALUES}
    assert all(family.documentation for family in text_string_to_metric_families(text))


def test_values_are_read_at_scrape_time_only() -> None:
    embedder = Counted()
    registry = registered(PrometheusCollector(embedder))
    assert embedder.asked == 0
    scrape(registry)
    embedder.counters["forwards"] = 10
    embedder.counters["healthy"] = False
    values = scrape(registry)
    assert values["twinvec_forwards_total", "org/model", "cuda:0"] == 10
    assert values["twinvec_healthy", "org/model", "cuda:0"] == 0
    assert embedder.asked == 2


def test_a_name_replaces_the_model_as_label() -> None:
    embedder = Counted('/srv/models/a folder with "quotes"')
    assert {model for _, model, _ in scrape(registered(PrometheusCollector(embedder, name="search")))} == {"search"}
    assert {model for _, model, _ in scrape(registered(PrometheusCollector(embedder)))} == {embedder.spec.model}


def test_several_embedders_share_one_collector() -> None:
    first, second = Counted("a"), Counted("b", device="cpu", forwards=11)
    collector = PrometheusCollector(first)
    collector.add(second)
    collector.add(first)
    values = scrape(registered(collector))
    assert len(values) == 2 * len(VALUES)
    assert values["twinvec_forwards_total", "a", "cuda:0"] == 3
    assert values["twinvec_forwards_total", "b", "cpu"] == 11


def test_one_name_for_two_embedders_is_refused_while_both_live() -> None:
    first, second = Counted(), Counted()
    collector = PrometheusCollector(first)
    with pytest.raises(ConfigurationError, match="name="):
        collector.add(second)
    del first
    collector.add(second)
    assert scrape(registered(collector))


def test_a_collected_embedder_is_left_out_and_not_kept_alive() -> None:
    embedder = Counted()
    registry = registered(PrometheusCollector(embedder))
    del embedder
    assert scrape(registry) == {}


def test_a_closed_embedder_is_unhealthy_and_does_not_break_the_scrape() -> None:
    first, second = Counted("a"), Counted("b")
    collector = PrometheusCollector(first)
    collector.add(second)
    registry = registered(collector)
    scrape(registry)
    first.closed = True
    values = scrape(registry)
    assert {name: value for (name, model, _), value in values.items() if model == "a"} == {"twinvec_healthy": 0}
    assert values["twinvec_healthy", "a", "cuda:0"] == 0
    assert values["twinvec_healthy", "b", "cuda:0"] == 1


def test_without_prometheus_client_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    monkeypatch.delitem(sys.modules, "twinvec.server.metrics")
    with pytest.raises(ConfigurationError, match=r"pip install 'twinvec\[metrics\]'"):
        importlib.import_module("twinvec.server.metrics")
