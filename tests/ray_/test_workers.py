"""What fits into a cluster, against trying every way in which Ray may place the workers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinvec.errors import ConfigurationError
from twinvec_ray import embedding_app
from twinvec_ray.workers import Node, Workers, check_room

SHARES = st.sampled_from([0.25, 0.5, 0.7, 1, 1.5, 2])
NODES = st.lists(st.tuples(st.sampled_from([0, 0.5, 1, 2, 3]), st.sampled_from([0, 1, 2])), min_size=1, max_size=3)


def test_the_trap_of_half_workers_on_both_nodes_is_refused_with_the_arithmetic() -> None:
    two = [Node("10.0.0.1", 1, 0), Node("10.0.0.2", 1, 0)]
    workers = Workers(count=2, cpus=0.5)
    with pytest.raises(ConfigurationError, match=r"10\.0\.0\.1: 1 CPUs, 1 workers, 10\.0\.0\.2: 1 CPUs, 1 workers"):
        check_room(workers, two, reading=True)
    check_room(workers, two, reading=False)
    check_room(Workers(count=1, cpus=0.5), two, reading=True)


def test_workers_without_room_are_refused_with_the_arithmetic() -> None:
    found = [Node("a", 4, 1), Node("b", 3, 0)]
    with pytest.raises(ConfigurationError, match=r"it has room for 3 \(a: 4 CPUs and 1 GPUs for 2, b: .* for 1\)"):
        check_room(Workers(count=4, cpus=2), found, reading=False)
    check_room(Workers(count=4, gpus=0.25), found, reading=False)
    with pytest.raises(ConfigurationError, match="room for 1"):
        check_room(Workers(count=2, gpus=1), found, reading=False)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": True}, {"cpus": 0}, {"cpus": -1}, {"gpus": float("nan")}])
def test_impossible_shares_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Workers(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"max_count": 1}, {"waiting": 0}])
def test_impossible_numbers_of_replicas_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        embedding_app("owner/name", workers=Workers(count=2), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="outlive"):
        embedding_app("owner/name", workers=Workers(pack=True))


@given(NODES, st.integers(1, 5), SHARES, st.sampled_from([0, 0.5, 1]), st.booleans())
def test_the_verdict_is_that_of_every_placement(
    sizes: list[tuple[float, float]], count: int, cpus: float, gpus: float, reading: bool
) -> None:
    found = [Node(str(i), *size) for i, size in enumerate(sizes)]
    placements = [
        counts
        for counts in itertools.product(range(count + 1), repeat=len(found))
        if sum(counts) == count
        and all(n * cpus <= node.cpus and n * gpus <= node.gpus for n, node in zip(counts, found, strict=True))
    ]
    free = [any(node.cpus - n * cpus >= 1 for n, node in zip(counts, found, strict=True)) for counts in placements]
    if placements and (all(free) or not reading):
        check_room(Workers(count=count, cpus=cpus, gpus=gpus), found, reading=reading)
    else:
        with pytest.raises(ConfigurationError):
            check_room(Workers(count=count, cpus=cpus, gpus=gpus), found, reading=reading)
