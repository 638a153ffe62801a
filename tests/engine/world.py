"""Everything around a dispatcher, without a thread: callers, hosts, devices and a clock, as slow and bad as one wants.

It plays the threads' part, knows from the texts alone what each caller must get, and checks every command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

from engine.texts import (
    CACHE,
    LIAR,
    NOT_FINITE,
    TOO_LARGE,
    UNRUNNABLE,
    UNTOKENISABLE,
    WRONG,
    FaultError,
    is_computable,
    is_row_of,
    keys_of,
    lengths,
    request,
    row_of,
    tokenized,
)
from twinvec.cache.rows import Row
from twinvec.compute.out_of_memory import Budget
from twinvec.engine.dispatcher import Dispatcher
from twinvec.engine.job import Job, Request
from twinvec.engine.work import Answer, Batch, Command, Device, Entry, Event, Keep, Run, Stop, Tokenise, Wake
from twinvec.errors import (
    ConfigurationError,
    DeviceLostError,
    InvalidTextError,
    NonFiniteError,
    OutOfMemoryError,
    OverloadedError,
    TextTooLongError,
)
from twinvec.text.tokenizer import TokenizedText

# in the tests; in the product they are larger, and no 50 steps would meet them
LIMITS = {"WINDOW": 3, "MAX_PENDING": 10, "CALM": 3, "_STREAK": 2, "_PLAN_BATCHES": 2, "_QUIET": 3}
BUDGETS = (12, 8)
SMALL = 4  # tokens of a bulk batch while queries come


class World:
    """See above.

    Attributes:
        work: what hosts and devices were told to do and have not done.
        late: what they have done, or what nobody wants any more; a slow thread may still answer.
    """

    def __init__(self, devices: int = 2, *, ahead: bool = True) -> None:
        self.now, self.ahead, self.sound = 0.0, ahead, True
        self.dispatcher = Dispatcher()
        self.dispatcher.memo.limit(3000)  # about six rows
        self.work: list[Batch] = []
        self.late: list[Batch] = []
        self.wakes: dict[Device, float] = {}
        self.alive: list[Device] = []
        self.dead: list[Device] = []
        self.budgets: dict[Device, int] = {}
        self.floors: dict[Device, int] = {}  # half of the smallest batch that ran out of memory since it was raised
        self.calm: dict[Device, int] = {}  # passes since it ran out of memory
        self.given: dict[Batch, int] = {}  # a device's budget when it was given the batch
        self.jobs: list[Job] = []
        self.waiting: list[Job] = []  # for an answer
        self.entries: dict[Entry, int | None] = {}  # and how many waited when it was no longer to be joined
        self.fresh: list[Entry] = []  # tokenised, and not yet tried
        self.again: list[Entry] = []  # tried
        self.streak = self.passed = self.deaths = 0
        self.bulk = 99  # batches of bulk work since a query came
        self.closed = self.stopped = False
        self.lost_all = True
        self.restart(devices)

    # --- what may happen

    def submit(self, wanted: Request, texts: Sequence[str]) -> Job:
        job = Job(texts, wanted, cast(Any, None))
        may: type[BaseException] | None = None
        if self.closed:
            may = ConfigurationError
        elif self.lost_all:
            may = DeviceLostError
        elif wanted.fail_on_overload and sum(_cost(other) for other in [*self.waiting, job]) > LIMITS["MAX_PENDING"]:
            may = OverloadedError
        self.jobs.append(job)
        self.waiting.append(job)
        surely = self.closed or self.lost_all
        self._step(partial(self.dispatcher.submitted, job), {job: may} if may else {}, {job} if surely else ())
        return job

    def cancel(self, job: Job) -> None:
        if job in self.waiting:
            self.waiting.remove(job)
        self._step(partial(self.dispatcher.cancelled, job))

    def tokenise(self, batch: Batch, halves: int = 0, *, fail: bool = False) -> None:
        """``halves``: what the persistent cache has of the texts in turn: nothing, the dense half, the other, both."""
        self._done(batch)
        if fail or any(entry.key.text == UNTOKENISABLE for entry in batch.entries):
            self._fail(batch, UNTOKENISABLE, random=fail)
            return
        found: list[TokenizedText | Row] = []
        for i, entry in enumerate(batch.entries):
            has = halves >> 2 * (i % 3) & 3 if batch.cache is not None and is_computable(entry.key) else 0
            if has:
                key = WRONG if batch.cache is LIAR else entry.key
                found.append(row_of(key, dense=bool(has & 1), sparse=bool(has & 2)))
            else:
                found.append(tokenized(entry.key))
                self.fresh.append(entry)
                self.bulk = 0 if entry.urgent else self.bulk
        self._step(partial(self.dispatcher.tokenised, batch, found))

    def run(self, batch: Batch, *, fail: bool = False, out_of_memory: bool = False) -> None:
        texts = [entry.key.text for entry in batch.entries]
        self._done(batch)
        if fail or UNRUNNABLE in texts:
            self._fail(batch, UNRUNNABLE, random=fail)
        elif out_of_memory or TOO_LARGE in texts:
            self._run_out(batch)
        else:
            rows = [
                None if text == NOT_FINITE else row_of(entry.key)
                for text, entry in zip(texts, batch.entries, strict=True)
            ]
            blamed = self._callers(entry for entry in batch.entries if entry.key.text == NOT_FINITE)
            self._bury(batch.entries)
            device = cast(Device, batch.device)
            self.calm[device] = self.calm.get(device, 0) + 1
            if self.calm[device] % LIMITS["CALM"] == 0:
                self.budgets[device] = min(2 * self.budgets[device], device.budget.full)
                self.floors[device] = self.budgets[device]
            self._step(partial(self.dispatcher.ran, batch, rows), dict.fromkeys(blamed, NonFiniteError), blamed)

    def run_out(self, device: Device) -> None:
        """Let all that a device was given run out of memory, as it does where others have taken it."""
        self.start_ahead(device)
        for batch in [batch for batch in self.work if batch.device is device]:
            if batch in self.work:  # the first may have been the last that anybody waited for
                self.run(batch, out_of_memory=True)

    def _run_out(self, batch: Batch) -> None:
        device = cast(Device, batch.device)
        budget, tokens = self.budgets[device], sum(lengths(entry.key)[0] for entry in batch.entries)
        blamed: set[Job] = set()
        if len(batch.entries) == 1:
            blamed = self._callers(batch.entries)
            self._bury(batch.entries)
        else:
            self.again += batch.entries
            self.floors[device] = min(self.floors[device], max(tokens // 2, 1))
            if self.given[batch] <= budget:
                budget = max(min(budget, tokens) // 2, 1)
        self.budgets[device], self.calm[device] = budget, 0
        may = dict.fromkeys(blamed, OutOfMemoryError)
        self._step(partial(self.dispatcher.ran_out, batch, "no room"), may, blamed)

    def _fail(self, batch: Batch, text: str, *, random: bool) -> None:
        """Fail: if all callers are the same they are rejected, else none is, and the batch is tried again in parts."""
        callers = {frozenset(self._callers([entry])) for entry in batch.entries}
        everyone = self._callers(batch.entries)
        self._bury(batch.entries)
        if any(entry.tokens is not None for entry in batch.entries):
            self.again += batch.entries
        may = dict.fromkeys(everyone, FaultError) if len(callers - {frozenset()}) == 1 else {}
        if not random:  # the text's fault: nobody else pays for it
            may = {job: error for job, error in may.items() if text in job.given}
        self._step(partial(self.dispatcher.failed, batch, FaultError(text)), may)
        if len(callers) == 1:
            assert not everyone & set(self.waiting), "a batch of the same callers failed: they must know"

    def lose(self, device: Device) -> None:
        if device not in self.alive:  # its thread speaks twice
            self._step(partial(self.dispatcher.lost, device, FaultError("lost")))
            return
        self.alive.remove(device)
        self.dead.append(device)
        self.wakes.pop(device, None)
        for batch in [batch for batch in self.work if batch.device is device]:
            self._done(batch)
            self.again += [entry for entry in batch.entries if entry.tokens is not None]
        everyone = set(self.waiting) if not self.alive else set()
        if not self.alive:
            self.lost_all = True
            self._drop_everything()
        may = dict.fromkeys(everyone, DeviceLostError)
        self._step(partial(self.dispatcher.lost, device, FaultError("lost")), may, everyone)

    def start_ahead(self, device: Device) -> None:
        self._step(partial(self.dispatcher.started, device))

    def wait(self, seconds: float) -> None:
        """Let time pass; who has slept long enough wakes up."""
        self.now += seconds
        for device in [device for device, time in self.wakes.items() if time <= self.now]:
            if self.wakes.pop(device, None) is not None:
                self._step(partial(self.dispatcher.woken, device))

    def restart(self, devices: int = 2) -> None:
        new = [Device(str(i), Budget(BUDGETS[i]), SMALL, self.ahead) for i in range(devices)]
        wanted = self.lost_all and not self.closed
        if wanted:
            self.lost_all = False
            self.alive = list(new)
            self.budgets.update((device, device.budget.full) for device in new)
            self.floors.update(self.budgets)
        commands = self._step(partial(self.dispatcher.restarted, new))
        if not wanted:
            assert [c.device for c in commands if isinstance(c, Stop)][: len(new)] == new, "they would never end"

    def close(self, *, drain: bool) -> None:
        self.closed = True
        everyone = set() if drain else set(self.waiting)
        if not drain:
            self._drop_everything()
        may = dict.fromkeys(everyone, ConfigurationError)
        self._step(partial(self.dispatcher.closed, drain=drain), may, everyone)

    def answer_late(self, batch: Batch, how: int) -> None:
        """Say something of a batch that is answered already, or that was taken away."""
        rows = [row_of(entry.key) for entry in batch.entries]
        tokens = [tokenized(entry.key) for entry in batch.entries]
        d = self.dispatcher
        finished = [job.finished for job in self.jobs]
        counters = d.failures, d.out_of_memory, d.cache_hits, len(d.memo), len(d.jobs)
        events: list[Event] = [
            partial(d.ran, batch, rows),
            partial(d.failed, batch, FaultError("late")),
            partial(d.ran_out, batch, "late"),
            partial(d.tokenised, batch, tokens),
            partial(d.tokenised, batch, rows),
        ]
        commands = self._step(events[how % len(events)])
        assert not [command for command in commands if isinstance(command, Answer | Tokenise | Keep)]
        assert finished == [job.finished for job in self.jobs]
        assert counters == (d.failures, d.out_of_memory, d.cache_hits, len(d.memo), len(d.jobs))

    def go_on(self, steps: int = 1) -> None:
        """Do what there is to do, the oldest first."""
        for _ in range(steps):
            if self.work:
                batch = self.work[0]
                self.run(batch) if batch in self.given else self.tokenise(batch)
            elif self.wakes:
                self.wait(max(0.0, max(self.wakes.values()) - self.now))
            else:
                break

    def drain(self) -> None:
        """Let everything end by itself: every caller has an answer after finitely many steps."""
        if self.lost_all and not self.closed:
            self.restart()
        self.go_on(100 + 40 * sum(len(job.given) for job in self.jobs))
        assert not self.work
        assert not self.waiting, "somebody waits for ever"
        self._check_nothing_left()

    def end(self) -> None:
        """Drain, close, and look for what is left."""
        self.drain()
        if not self.closed:
            self.submit(request(), ["a", "bb"])
            self.drain()
            self.close(drain=True)
        assert self.stopped
        assert not self.alive
        assert not self.dispatcher.devices
        self._check_nothing_left()

    # --- what must hold

    def _step(self, event: Event, may: dict[Job, type[Any]] | None = None, surely: Iterable[Job] = ()) -> list[Command]:
        """Pass an event on; ``may``: whom it may reject, with what; ``surely``: who must be answered now."""
        self.sound = False
        self.now += 1e-6
        commands = self.dispatcher.step(self.now, event)
        for command in commands:
            self._check(command, may or {})
        assert not set(surely) & set(self.waiting), "a rejection was dropped"
        for entry, waiters in self.entries.items():
            assert waiters is None or len(entry.waiters) <= waiters, "somebody joined an entry that is dead"
        for device in self.alive:
            runs = sum(batch.device is device and batch in self.given for batch in self.work)
            assert runs <= 1 + device.ahead
            tokens = device.budget.tokens
            assert tokens >= self.floors[device], "less than half of the smallest batch that ran out of memory"
            assert tokens == self.budgets[device], "running out of memory once halves once"
        assert not self.waiting or self.work or self.wakes, "somebody waits, and nobody does anything"
        assert self.stopped == (self.closed and not self.waiting)
        self.sound = True
        return commands

    def _check(self, command: Command, may: dict[Job, type[Any]]) -> None:
        match command:
            case Tokenise(batch):
                assert batch.device is None
                self.work.append(batch)
                self.entries.update((entry, self.entries.get(entry)) for entry in batch.entries)
            case Run(batch):
                self._check_run(batch)
            case Wake(device, time):
                assert device in self.alive
                self.wakes[device] = time
            case Keep(cache, rows):
                assert cache in (CACHE, LIAR)
                assert all(is_row_of(key, row) for key, row in rows)
            case Stop(None):
                self.stopped = True
                self._drop_everything()
            case Stop(device):
                self.alive = [other for other in self.alive if other is not device]
                self.wakes.pop(cast(Device, device), None)
            case Answer(jobs):
                for job in jobs:
                    assert job in self.waiting, "answered twice, or after it was cancelled"
                    self.waiting.remove(job)
                    self._check_error(job, job.error, may) if job.error is not None else self._check_rows(job)

    def _check_rows(self, job: Job) -> None:
        keys = list(dict.fromkeys(keys_of(job)))
        for key, row in zip(keys, job.rows, strict=True):
            assert row is not None
            own_fault = job.request.cache is LIAR and is_row_of(WRONG, row)
            assert own_fault or is_row_of(key, row), "the row of another text"
            assert row.has(dense=job.request.dim is not None, sparse=job.request.keys is not None)
            assert row.tokens
            assert not (job.request.fail_on_overflow and row.full_length > row.tokens)

    def _check_error(self, job: Job, error: BaseException, may: dict[Job, type[Any]]) -> None:
        if isinstance(error, InvalidTextError | TextTooLongError | NonFiniteError | OutOfMemoryError):
            assert error.position is not None
            key = keys_of(job)[error.position]
            tokens, full = lengths(key)
            assert key.text != NOT_FINITE or not isinstance(error, OutOfMemoryError) or job in may
            if isinstance(error, InvalidTextError):
                assert tokens == 0
                return
            if isinstance(error, TextTooLongError):
                assert full > tokens
                assert job.request.fail_on_overflow
                return
            assert not isinstance(error, NonFiniteError) or key.text == NOT_FINITE
        assert isinstance(error, may.get(job, ())), f"{error!r} is none of this caller's"

    def _check_run(self, batch: Batch) -> None:
        """A batch is given to a device: it fits, somebody waits for each of it, and nobody is passed over."""
        device = batch.device
        assert device in self.alive
        assert device is not None
        self.wakes.pop(device, None)
        assert all(entry.live for entry in batch.entries)
        size = sum(lengths(entry.key)[0] for entry in batch.entries)
        assert len(batch.entries) == 1 or size <= self.budgets[device], "larger than today's budget"
        self.work.append(batch)
        self.given[batch] = self.budgets[device]
        mine = set(batch.entries)
        urgent = all(entry.urgent and entry in self.fresh for entry in batch.entries)
        waiting = [entry for entry in self.fresh if entry not in mine and entry.live and entry.urgent]
        rest = [entry for entry in self.fresh if not entry.urgent] + self.again
        passed_over = [entry for entry in rest if entry not in mine and entry.live]
        dead = sum(not entry.live for entry in self.fresh + self.again)
        self.deaths = max(self.deaths, dead)  # they make batches that nobody runs, which count
        if urgent:
            self.streak += 1
            self.passed = self.passed + 1 if passed_over else 0
            assert self.passed <= LIMITS["_STREAK"] * (1 + self.deaths), "bulk work starves"
        else:
            assert not waiting or self.streak + self.deaths >= LIMITS["_STREAK"], "bulk work goes before queries"
            self.streak = self.passed = 0
            self.bulk += 1
            small = self.bulk + self.deaths <= LIMITS["_QUIET"]
            assert not small or size <= SMALL or len(batch.entries) == 1, "queries come, and bulk work has long passes"
        self.fresh = [entry for entry in self.fresh if entry not in mine]
        self.again = [entry for entry in self.again if entry not in mine]

    def _check_nothing_left(self) -> None:
        d = self.dispatcher
        assert not d.jobs
        assert not len(d.lanes)
        assert not d._entries
        assert not d._tokenising
        assert (d._pending, d.lanes._tokens) == (0, 0)
        assert not any(device.running for device in d.devices)
        assert all(job.live is False for job in self.jobs)

    # --- what threads have

    def _done(self, batch: Batch) -> None:
        assert self.dispatcher.expects(batch), "the dispatcher has forgotten what it asked for"
        self.work.remove(batch)
        self.late.append(batch)

    def _drop_everything(self) -> None:
        self.late += self.work
        self._bury(self.entries)
        self.work, self.fresh, self.again, self.wakes = [], [], [], {}
        self.streak = self.passed = 0
        self.bulk = LIMITS["_QUIET"]  # the next generation has heard of no query

    def _bury(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if self.entries.get(entry) is None:
                self.entries[entry] = len(entry.waiters)

    def _callers(self, entries: Iterable[Entry]) -> set[Job]:
        return {job for entry in entries for job, _ in entry.waiters if job in self.waiting}


def _cost(job: Job) -> int:
    return min(len(set(job.given)), 2 * LIMITS["WINDOW"])
