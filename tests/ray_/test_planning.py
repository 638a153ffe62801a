"""The simulator against what can be computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinvec.errors import ConfigurationError
from twinvec_ray import Plan, simulate


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


def test_the_drivers_limit_on_the_page_is_the_measured_one() -> None:
    root = Path(__file__).parents[2]
    layer = json.loads((root / "benchmarks/results/ray-ingest.json").read_text(encoding="utf-8"))["layer"]
    spent = layer["driver's CPU microseconds per document"]
    page = (root / "docs/cluster.md").read_text(encoding="utf-8")
    assert f"it spends {spent:.0f} µs of CPU" in page
