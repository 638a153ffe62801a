"""The simulator against what can be computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from twinvec.errors import ConfigurationError
from twinvec_ray import Plan, simulate

ROOT = Path(__file__).parents[2]


def test_workers_multiply_until_the_driver_is_the_limit() -> None:
    found = {
        n: simulate(Plan(documents=1_000_000, worker_rate=500, driver_rate=5_000, workers=n)) for n in (1, 4, 10, 40)
    }
    assert found[1].rate == pytest.approx(500, rel=0.01)
    assert found[4].rate == pytest.approx(2_000, rel=0.01)
    assert found[10].rate == pytest.approx(5_000, rel=0.01)
    assert found[40].rate == pytest.approx(5_000, rel=0.01)
    assert [round(found[n].busy, 2) for n in (1, 4, 40)] == [1.0, 1.0, 0.25]


def test_a_small_run_by_hand() -> None:
    """Two pages of 10 and one of 5: the driver takes 1 s for a page, a worker 4 s."""
    one = simulate(Plan(documents=25, worker_rate=2.5, driver_rate=10, batch_size=10, load_seconds=7, price=360))
    assert one.seconds == pytest.approx(1 + 4 + 4 + 2 + 7)
    assert one.cost == pytest.approx(1.8)
    two = simulate(Plan(documents=25, worker_rate=2.5, driver_rate=10, batch_size=10, workers=2))
    assert two.seconds == pytest.approx(1 + 4 + 2)
    assert two.busy == pytest.approx(10 / 14)


def test_nothing_is_planned_with_nothing() -> None:
    with pytest.raises(ConfigurationError, match="worker_rate=0"):
        simulate(Plan(documents=1, worker_rate=0, driver_rate=1))


MEASURED = json.loads((ROOT / "benchmarks/results/ray-ingest.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
SPENT = MEASURED["layer"]["driver's CPU microseconds per document"]


def measured_runs() -> Iterator[tuple[Plan, float]]:
    """Yield what each run would have been planned with, and the rate that it had."""
    real, size = MEASURED["real"], MEASURED["batch size"]
    for run in MEASURED["planned"]["runs"][1:]:
        plan = {name: run[name] for name in ("documents", "workers", "worker_rate", "driver_rate")}
        yield Plan(batch_size=size, **plan), run["rate"]
    for way, workers in {"1 worker": 1, "2 workers": 2}.items():
        for run in real["runs"][way]:
            rates = {"worker_rate": run["worker_rate"], "driver_rate": 1e6 / SPENT}
            yield Plan(documents=real["documents"], workers=workers, batch_size=size, **rates), run["rate"]


def test_forecasts_are_as_close_to_the_measured_runs_as_the_page_says() -> None:
    errors = [abs(simulate(plan).rate / rate - 1) for plan, rate in measured_runs()]
    assert len(errors) == 3 + 2 * len(MEASURED["real"]["runs"]["1 worker"])
    assert f"within {math.ceil(100 * max(errors))}% of the measured rates" in PAGE


def test_the_numbers_of_the_page_are_the_measured_ones() -> None:
    layer, overhead = MEASURED["layer"], MEASURED["real"]["overhead of 1 worker"]
    assert layer["documents"] == 1_000_000
    assert f"it spends {SPENT:.0f} µs of CPU on a document" in PAGE
    assert f"One worker costs {overhead:.0%} of its documents per second" in PAGE
    assert overhead <= 0.1
