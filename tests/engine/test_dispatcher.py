"""What the dispatcher promises, over random interleavings of all that can happen; sequences that went wrong once.

``make fuzz-engine`` tries 100,000 runs of 50 steps, the suite 2,000.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from engine.texts import CACHE, LIAR, TEXTS, request
from engine.world import LIMITS, SMALL, World
from twinvec.compute import out_of_memory
from twinvec.engine import dispatcher, lanes
from twinvec.engine.job import Request
from twinvec.engine.work import Batch

RUNS = int(os.environ.get("TWINVEC_FUZZ", "2000"))
HALVES = [(1, None), (None, "ids"), (1, "ids")]
REQUESTS = [
    request(prompt=prompt, dim=dim, keys=keys, urgent=urgent, memo=memo, cache=cache)
    for prompt, (dim, keys), urgent, memo, cache in product(
        ["", "p:"], HALVES, [False, True], [False, True], [None, CACHE, LIAR]
    )
]
STRICT = [
    request(max_length=max_length, fail_on_overflow=overflow, fail_on_overload=overload, urgent=urgent)
    for max_length, overflow, overload, urgent in product([100, 5], *3 * [[False, True]])
]
GOOD = TEXTS[:5]
MANY = [text + str(i) for text in GOOD for i in range(4)]

number = st.integers(0, 30)
texts = st.lists(st.sampled_from(GOOD), max_size=5) | st.lists(st.sampled_from(TEXTS + GOOD), min_size=1, max_size=8)
rare = st.sampled_from([False] * 9 + [True])


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """Small limits, so that 50 steps meet them all."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LIMITS.items():
            module = next(module for module in (lanes, out_of_memory, dispatcher) if hasattr(module, name))
            patch.setattr(module, name, value)
        patch.setattr(dispatcher.logger, "disabled", True)
        patch.setattr(out_of_memory.logger, "disabled", True)
        patch.setattr(dispatcher.logger, "exception", _raise_again)
        yield


def _raise_again(message: str) -> NoReturn:
    """A defect of the dispatcher is no loss of a device."""
    raise  # noqa: PLE0704


class Interleavings(RuleBasedStateMachine):
    """Each rule is one thing that may happen next."""

    world: World

    @initialize(devices=st.integers(1, 2), ahead=st.booleans())
    def begin(self, devices: int, ahead: bool) -> None:
        self.world = World(devices, ahead=ahead)

    @rule(wanted=st.sampled_from(REQUESTS + STRICT), given=texts)
    def submit(self, wanted: Request, given: list[str]) -> None:
        self.world.submit(wanted, given)

    @rule(wanted=st.sampled_from(REQUESTS[:18]), start=st.integers(0, len(MANY)))
    def submit_many(self, wanted: Request, start: int) -> None:
        self.world.submit(wanted, MANY[start:] + MANY[:start])

    @precondition(lambda self: self.world.waiting)
    @rule(which=number)
    def cancel(self, which: int) -> None:
        self.world.cancel(_pick(self.world.waiting, which))

    @precondition(lambda self: self.to_tokenise)
    @rule(which=number, halves=st.integers(0, 63), fail=rare)
    def tokenise(self, which: int, halves: int, fail: bool) -> None:
        self.world.tokenise(_pick(self.to_tokenise, which), halves, fail=fail)

    @precondition(lambda self: self.to_run)
    @rule(which=number, how=st.sampled_from([{}] * 6 + [{"fail": True}, {"out_of_memory": True}]))
    def run(self, which: int, how: dict[str, bool]) -> None:
        self.world.run(_pick(self.to_run, which), **how)

    @precondition(lambda self: self.to_run)
    @rule(which=number)
    def run_out(self, which: int) -> None:
        device = _pick(self.to_run, which).device
        assert device is not None
        self.world.run_out(device)

    @precondition(lambda self: self.world.work)
    @rule(steps=st.integers(1, 6))
    def go_on(self, steps: int) -> None:
        self.world.go_on(steps)

    @precondition(lambda self: self.to_run)
    @rule(which=number)
    def start_ahead(self, which: int) -> None:
        device = _pick(self.to_run, which).device
        assert device is not None
        self.world.start_ahead(device)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.002, 1.0]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @precondition(lambda self: self.world.late)
    @rule(which=number, how=number)
    def answer_late(self, which: int, how: int) -> None:
        self.world.answer_late(_pick(self.world.late, which), how)

    @precondition(lambda self: self.world.alive or self.world.dead)
    @rule(which=number, really=rare)
    def lose(self, which: int, really: bool) -> None:
        if really or len(self.world.alive) > 1:
            self.world.lose(_pick([*self.world.alive, *self.world.dead], which))

    @rule(devices=st.integers(1, 2), really=rare)
    def restart(self, devices: int, really: bool) -> None:
        if really or self.world.lost_all:
            self.world.restart(devices)

    @rule(drain=st.booleans(), really=rare)
    def close(self, drain: bool, really: bool) -> None:
        if really:
            self.world.close(drain=drain)

    @property
    def to_tokenise(self) -> list[Batch]:
        return [batch for batch in self.world.work if batch not in self.world.given]

    @property
    def to_run(self) -> list[Batch]:
        return [batch for batch in self.world.work if batch in self.world.given]

    def teardown(self) -> None:
        """Whatever has happened, it comes to an end."""
        if self.world.sound:
            self.world.end()


def _pick(some: list[Any], which: int) -> Any:
    return some[which % len(some)]


def test_every_caller_gets_its_own_rows_or_its_own_error_once() -> None:
    run_state_machine_as_test(
        Interleavings,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_what_is_still_under_way_at_the_end_is_let_go_and_its_answer_comes_too_late() -> None:
    world = World(1)
    job = world.submit(request(), ["a"])
    world.go_on()
    world.cancel(job)
    (batch,) = world.work
    world.close(drain=True)  # nobody waits
    assert world.stopped
    assert not world.dispatcher.expects(batch)
    world.answer_late(batch, 0)
    world.end()


def test_bulk_work_has_small_batches_while_queries_come_and_large_ones_again_when_they_stop() -> None:
    world = World(1, ahead=False)

    def sizes(runs: int) -> list[int]:
        found = []
        for _ in range(runs):
            batch = next(batch for batch in world.work if batch in world.given)
            found.append(batch.n_tokens)
            world.run(batch)
        return found

    world.submit(request(), [f"{i:02}" for i in range(40)])
    world.tokenise(world.work[0])
    assert sizes(1) == [6]  # a window of three texts, in one batch
    world.submit(request(urgent=True), ["q"])
    for batch in [batch for batch in world.work if batch not in world.given]:
        world.tokenise(batch)
    found = []
    while world.waiting:
        for batch in [batch for batch in world.work if batch not in world.given]:
            world.tokenise(batch)
        found += sizes(1)
    assert max(found[1:5]) <= SMALL
    assert max(found[5:]) > SMALL
    world.end()


def test_two_batches_of_one_budget_that_run_out_of_memory_halve_it_once() -> None:
    world = World(1)
    world.submit(request(), [f"aa{i:02}" for i in range(6)])
    for batch in list(world.work):
        world.tokenise(batch)
    (device,) = world.alive
    world.start_ahead(device)
    both = [batch for batch in world.work if batch in world.given]
    assert [batch.n_tokens for batch in both] == [12, 12]
    for batch in both:
        world.run(batch, out_of_memory=True)
    assert device.budget.tokens == 6
    world.end()


def test_an_idle_device_waits_for_callers_who_come_one_after_another() -> None:
    world = World(1, ahead=False)

    def ask(text: str, at: float) -> None:
        world.now = at
        world.submit(request(urgent=True), [text])
        for batch in [batch for batch in world.work if batch not in world.given]:
            world.tokenise(batch)

    def under_way() -> list[list[str]]:
        return [[entry.key.text for entry in batch.entries] for batch in world.work if batch in world.given]

    ask("a", at=0.0)
    assert under_way() == [["a"]]  # nobody else is there to be waited for
    for i, text in enumerate("bcde", 1):
        ask(text, at=0.001 * i)
    world.now = 0.0065
    world.run(world.work[0])
    assert under_way() == []  # though b has waited for longer than a device does: another may come
    ask("f", at=0.008)
    world.wait(0.004)
    assert [sorted(texts) for texts in under_way()] == [list("bcdef")]
    world.run(world.work[0])
    ask("g", at=0.05)
    assert under_way() == [["g"]]
    world.end()
