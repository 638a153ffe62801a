"""The scheduler alone: no model, no clock; entries are numbers with a size."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from twinvec.engine.scheduler import Scheduler


@dataclass(eq=False)
class Text:
    n_tokens: int
    live: bool = True


def sizes(batch: list[Text] | None) -> list[int]:
    assert batch is not None
    return [item.n_tokens for item in batch]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=80), st.lists(st.integers(1, 50), max_size=80), st.integers(1, 90)
)
def test_every_entry_comes_out_once_within_the_budget(bulk: list[int], urgent: list[int], budget: int) -> None:
    scheduler: Scheduler[Text] = Scheduler()
    items = [Text(n) for n in bulk], [Text(n) for n in urgent]
    scheduler.put(items[0], urgent=False)
    scheduler.put(items[1], urgent=True)
    assert scheduler.queued == len(bulk) + len(urgent)
    taken: list[Text] = []
    while scheduler.queued:
        batch = scheduler.take(budget)
        assert batch
        assert len(batch) == 1 or sum(sizes(batch)) <= budget
        taken += batch
    assert {id(item) for item in taken} == {id(item) for lane in items for item in lane}
    assert len(taken) == len(bulk) + len(urgent)


def test_queries_go_before_bulk_at_every_boundary() -> None:
    scheduler: Scheduler[Text] = Scheduler()
    scheduler.put([Text(10) for _ in range(6)], urgent=False)
    assert sizes(scheduler.take(20)) == [10, 10]
    scheduler.put([Text(3)], urgent=True)
    assert sizes(scheduler.take(20)) == [3]
    assert sizes(scheduler.take(20)) == [10, 10]


def test_bulk_work_does_not_starve_under_endless_queries() -> None:
    scheduler: Scheduler[Text] = Scheduler()
    scheduler.put([Text(7)], urgent=False)
    batches = []
    for _ in range(30):
        scheduler.put([Text(1)], urgent=True)
        batches.append(sizes(scheduler.take(1)))
    assert [7] in batches


def test_bulk_of_several_callers_is_sorted_by_length_together() -> None:
    scheduler: Scheduler[Text] = Scheduler()
    scheduler.put([Text(n) for n in (1, 9, 2)], urgent=False)
    scheduler.put([Text(n) for n in (8, 3, 7)], urgent=False)
    assert sizes(scheduler.take(10)) == [9]
    assert sizes(scheduler.take(10)) == [8]
    assert sizes(scheduler.take(10)) == [7, 3]
    assert sizes(scheduler.take(10)) == [2, 1]


def test_cancelled_entries_take_no_room() -> None:
    scheduler: Scheduler[Text] = Scheduler()
    scheduler.put([Text(50, live=False), Text(5), Text(50, live=False), Text(5)], urgent=True)
    batch = scheduler.take(10)
    assert batch is not None
    assert [item.n_tokens for item in batch if item.live] == [5, 5]


def test_an_unfilled_batch_waits_for_those_who_are_on_the_way() -> None:
    scheduler: Scheduler[Text] = Scheduler()
    scheduler.announce()
    scheduler.put([Text(1)], urgent=True)
    scheduler.announce()

    def second_caller() -> None:
        scheduler.put([Text(2)], urgent=True)
        scheduler.arrived()
        scheduler.arrived()

    thread = threading.Thread(target=second_caller)
    thread.start()
    batch = sizes(scheduler.take(100))
    thread.join()
    assert 1 in batch  # with or without the second one: the wait is short, never a hang


def test_closing_wakes_everyone_and_drops_the_rest() -> None:
    scheduler: Scheduler[Text] = Scheduler()
    results: list[list[Text] | None] = []
    threads = [threading.Thread(target=lambda: results.append(scheduler.take(10))) for _ in range(3)]
    for thread in threads:
        thread.start()
    scheduler.close()
    for thread in threads:
        thread.join()
    assert results == [None, None, None]
    scheduler.put([Text(1)], urgent=True)
    scheduler.put_back([Text(1)])
    assert scheduler.queued == 0


def test_what_a_lost_device_held_goes_first() -> None:
    scheduler: Scheduler[Text] = Scheduler()
    scheduler.put([Text(4)], urgent=False)
    held = [Text(6), Text(5)]
    scheduler.put_back(held)
    assert scheduler.take(100) == held


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 60))
def test_a_busy_device_takes_full_batches_only(bulk: list[int], budget: int) -> None:
    scheduler: Scheduler[Text] = Scheduler()
    scheduler.put([Text(n) for n in bulk], urgent=False)
    batch = scheduler.take(budget, wait=False)
    assert bool(batch) == (sum(bulk) >= budget)


def test_a_busy_device_takes_queries_at_once_and_the_rest_of_a_plan() -> None:
    scheduler: Scheduler[Text] = Scheduler()
    assert scheduler.take(20, wait=False) == []
    scheduler.put([Text(9), Text(9), Text(9)], urgent=False)
    assert sizes(scheduler.take(20, wait=False)) == [9, 9]
    assert sizes(scheduler.take(20, wait=False)) == [9]
    scheduler.put([Text(2)], urgent=True)
    assert sizes(scheduler.take(20, wait=False)) == [2]
    scheduler.close()
    assert scheduler.take(20, wait=False) is None
