"""The complete state of one model's engine, and all decisions about it: events in, commands out.

There is no thread, lock, clock or torch in here: the core's threads carry messages, and time comes with them. Equal
texts of different callers share one entry. A failed batch rejects exactly the callers it belongs to.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from twinvec.cache.memo import Memo
from twinvec.cache.rows import Key, Row
from twinvec.engine.lanes import Lanes
from twinvec.engine.work import Answer, Batch, Command, Device, Entry, Event, Keep, Run, Stop, Tokenise, Wake
from twinvec.errors import (
    ConfigurationError,
    DeviceLostError,
    NonFiniteError,
    OutOfMemoryError,
    OverloadedError,
    TwinVecError,
)

if TYPE_CHECKING:
    from twinvec.engine.job import Job
    from twinvec.text.tokenizer import TokenizedText

logger = logging.getLogger(__name__)

MAX_PENDING = 65536  # texts of admitted jobs; more callers wait or are refused
WINDOW = 1024  # texts of a job that are tokenised together; up to two windows are ahead of the device
_PATIENCE = 0.005  # seconds that an idle device waits for more callers, if one has recently come while it was busy


class Dispatcher:
    """Everything happens in ``step``; its events are the methods below.

    Attributes:
        memo: recent rows.
        error: why no new job is accepted; None while all is well.
        devices: the working devices.
        jobs: unfinished jobs, in order of submission.
        lanes: entries waiting for a device.
        truncated, failures, out_of_memory, cache_hits, cache_misses, queue_seconds, filled, offered: counters; the last
            two are the tokens that passes contained, and could have contained.
    """

    def __init__(self) -> None:
        self.memo = Memo()
        self.error: TwinVecError | None = DeviceLostError("no device yet")
        self.devices: list[Device] = []
        self.jobs: dict[Job, None] = {}
        self.truncated = self.failures = self.out_of_memory = self.cache_hits = self.cache_misses = 0
        self.queue_seconds, self.filled, self.offered = 0.0, 0, 0
        self._now = 0.0
        self._commands: list[Command] = []
        self._keep: dict[int, Keep] = {}  # by cache
        self._answered: list[Job] = []
        self._free_thread: Device | None = None  # the device whose thread is reporting, and is therefore free
        self._closed = self._stopped = False
        self._clear()

    def _clear(self) -> None:
        self.lanes = Lanes()
        self._pending = 0  # texts of admitted jobs, see _cost
        self._crowded = float("-inf")  # when a job last arrived and found no device idle
        self._hungry: deque[Job] = deque()  # admitted jobs, then those waiting for admission
        self._entries: dict[tuple[Key, bool], Entry] = {}  # that others may join
        self._tokenising: set[Batch] = set()

    def step(self, now: float, event: Event) -> list[Command]:
        """Handle an event; return the resulting commands, in order.

        Executing a command twice does no harm.
        """
        self._now, self._free_thread = now, None
        try:
            event()
            self._feed_jobs()
            self._fill_devices()
        except BaseException as error:  # a bug, or Ctrl-C: callers would wait forever
            logger.exception("the dispatcher failed")
            self._stop_devices()
            self._lose_all("the dispatcher", error)
        if self._closed and not self.jobs and not self._stopped:
            self._stopped = True
            self._clear()  # work that nobody waits for may still be in flight
            self._stop_devices()
            self._commands.append(Stop(None))
        # rows are kept first, since a caller may close as soon as it has its answer
        commands = [*self._keep.values(), *([Answer(self._answered)] if self._answered else ()), *self._commands]
        self._keep, self._answered, self._commands = {}, [], []  # keeping them would keep calls and their rows alive
        return commands

    # --- events

    def submitted(self, job: Job) -> None:
        """A caller submits a job."""
        job.submitted = self._now
        if self.error is not None:
            self._answer(job, _copy(self.error))
        elif job.request.fail_on_overload and not self._has_room(job):
            message = f"{self._pending} texts are pending, the limit is {MAX_PENDING}: try again later, or pass "
            self._answer(job, OverloadedError(message + 'on_overload="wait"'))
        else:
            self.jobs[job] = None
            self._hungry.append(job)
            if all(device.running or device.wake is not None for device in self.devices):
                self._crowded = self._now

    def cancelled(self, job: Job) -> None:
        """A caller no longer waits."""
        self._end(job)

    def tokenised(self, batch: Batch, found: Sequence[TokenizedText | Row]) -> None:
        """A thread delivers the tokens of each entry, or its row from a persistent cache."""
        if not self._take_back(batch):
            return
        for entry, got in zip(batch.entries, found, strict=True):
            if isinstance(got, Row):
                self.cache_hits += 1
                self._forget(entry)
                for job, number in entry.waiters:
                    if job.request.cache is batch.cache and got.has(**job.halves):
                        job.cache_hits += 1
                        self._deliver(job, number, got)
                    else:  # this waiter uses another cache, or needs a half that the row lacks
                        self._ask(job, [number])
            else:
                self.cache_misses += batch.cache is not None
                entry.tokens, entry.n_tokens, entry.queued = got, len(got.ids), self._now
                for job, number in entry.waiters:
                    self._accept(job, number, entry.n_tokens, got.full_length)
                self.lanes.put(entry)

    def started(self, device: Device) -> None:
        """A device works on its batch; its thread could start the next batch behind it."""
        self._free_thread = device

    def ran(self, batch: Batch, rows: Sequence[Row | None]) -> None:
        """A device delivers the row of each entry; None for rows that are not finite."""
        if (device := batch.device) is None or not self._take_back(batch):
            return
        device.budget.passed()
        self.failures += None in rows
        for entry, row in zip(batch.entries, rows, strict=True):
            self._forget(entry)
            if row is None:
                reason = "got NaN or infinity from the model: use dtype='float32' or 'bfloat16', or check the weights"
                self._reject_each(entry, NonFiniteError, reason)
                continue
            if any(job.request.memo for job, _ in entry.waiters):
                self.memo.put(entry.key, row)
            for job, number in entry.waiters:
                self._deliver(job, number, row)
                if (cache := job.request.cache) is not None:
                    self._keep.setdefault(id(cache), Keep(cache, [])).rows.append((entry.key, row))

    def ran_out(self, batch: Batch, reason: str) -> None:
        """A batch ran out of memory: its texts are planned again for a lower budget (``out_of_memory``)."""
        if (device := batch.device) is None or not self._take_back(batch):
            return
        self.out_of_memory += 1
        device.budget.calm = 0
        if len(batch.entries) == 1:
            self.failures += 1
            self._forget(batch.entries[0])
            message = f"({batch.n_tokens} tokens) does not fit into the memory of {device.name} even by itself: lower "
            message += f"max_length, split the text, or use a device with more memory. ({reason})"
            self._reject_each(batch.entries[0], OutOfMemoryError, message)
            return
        device.budget.halve(batch.n_tokens, batch.budget, device.name)
        self.lanes.again(batch.entries, device.budget.tokens)

    def failed(self, batch: Batch, error: BaseException) -> None:
        """A batch could not be tokenised or run; to find the culprit, retry each caller's texts separately, once."""
        if not self._take_back(batch):
            return
        groups: dict[frozenset[Job], list[Entry]] = {}
        for entry in batch.entries:
            self._forget(entry)  # nobody may join an entry that is being retried
            groups.setdefault(frozenset(job for job, _ in entry.waiters if job.live), []).append(entry)
        self.failures += batch.device is not None
        if len(groups) == 1:
            for job in chain.from_iterable(groups):
                self._answer(job, error)
            for entry in batch.entries:
                entry.waiters.clear()  # the error's frames hold the batch; each job's future would hold itself
            return
        for jobs, entries in reversed(groups.items()):
            if jobs and batch.device is None:
                self._tokenise(Batch(entries))
            elif jobs:
                self.lanes.again(entries)

    def lost(self, device: Device, error: BaseException) -> None:
        """A device stopped responding, or its thread ended because of a bug."""
        if device not in self.devices:
            return
        self.devices.remove(device)
        self.failures += 1
        left, device.running = device.running, []
        if not self.devices:
            self._lose_all(device.name, error)
            return
        logger.warning("%s failed and was removed, %d devices continue: %s", device.name, len(self.devices), str(error))
        for batch in reversed(left):
            self.lanes.again(batch.entries)

    def restarted(self, devices: Sequence[Device]) -> None:
        """A new generation of devices is ready; if it is not needed any more, it is stopped."""
        if self._closed or self.error is None:
            self._commands += [Stop(device) for device in devices]
        else:
            self.devices, self.error = list(devices), None

    def closed(self, *, drain: bool) -> None:
        """Accept no more jobs; finish pending ones (``drain``) or reject them."""
        self._closed, self.error = True, ConfigurationError("this Embedder is closed; create a new one")
        if not drain:
            self._reject_all(self.error)

    def abandoned(self) -> None:
        """The interpreter is exiting, along with anyone still waiting: nobody is notified."""
        self.closed(drain=False)
        self._answered.clear()

    def woken(self, device: Device) -> None:
        """The time of a ``Wake`` has come."""
        device.wake = self._now

    # --- jobs

    def _has_room(self, job: Job) -> bool:
        return self._pending == 0 or self._pending + _cost(job) <= MAX_PENDING

    def _feed_jobs(self) -> None:
        """Admit waiting jobs, and start more texts of each as room allows."""
        while self._hungry:
            job = self._hungry[0]
            if job.live and not job.admitted:
                if not self._has_room(job):
                    return
                job.admitted = True
                self._pending += _cost(job)
            self._hungry.popleft()
            while job.live and job.fed < len(job.texts) and job.fed - job.finished <= WINDOW:
                window = range(job.fed, min(job.fed + WINDOW, len(job.texts)))
                job.fed = window.stop
                self._ask(job, window)
            if not job.texts:
                self._answer(job, None)

    def _ask(self, job: Job, numbers: Iterable[int]) -> None:
        """Find the rows of a job's texts: in the memo, by joining entries in flight, or by computing them."""
        request, new = job.request, []
        for number in numbers:
            key = job.key(number)
            if request.memo and (row := self.memo.get(key)) is not None:
                job.memo_hits += 1
                self._deliver(job, number, row)
            elif (entry := self._entries.get((key, request.urgent))) is not None:
                entry.waiters.append((job, number))
                if entry.tokens is not None:
                    self._accept(job, number, entry.n_tokens, entry.tokens.full_length)
            else:
                new.append(Entry(key, request.urgent, [(job, number)]))
        if new and job.live:
            self._entries.update(((entry.key, entry.urgent), entry) for entry in new)
            self._tokenise(Batch(new, cache=request.cache))

    def _accept(self, job: Job, number: int, tokens: int, full_length: int) -> bool:
        refusal = job.refusal(number, tokens, full_length) if job.live else None
        if refusal is not None:
            self._answer(job, refusal)
        return job.live

    def _deliver(self, job: Job, number: int, row: Row) -> None:
        if not self._accept(job, number, row.tokens, row.full_length):
            return
        job.rows[number] = row
        job.finished += 1
        self.truncated += row.full_length > row.tokens
        if job.finished == len(job.texts):
            self._answer(job, None)
        elif job.fed - job.finished == WINDOW and job.fed < len(job.texts):
            self._hungry.appendleft(job)

    def _answer(self, job: Job, error: BaseException | None) -> None:
        if job.live:
            job.ended, job.error = self._now, error
            self._end(job)
            self._answered.append(job)

    def _end(self, job: Job) -> None:
        job.live = False
        if job in self.jobs:
            del self.jobs[job]
            self._pending -= _cost(job) if job.admitted else 0

    def _reject_each(self, entry: Entry, kind: type[NonFiniteError | OutOfMemoryError], reason: str) -> None:
        for job, number in entry.waiters:
            self._answer(job, kind(reason, position=job.position(number)))

    def _reject_all(self, error: TwinVecError) -> None:
        for job in list(self.jobs):
            self._answer(job, _copy(error))
        for device in self.devices:
            device.running.clear()
        self._clear()

    # --- batches

    def _tokenise(self, batch: Batch) -> None:
        self._tokenising.add(batch)
        self._commands.append(Tokenise(batch))

    def expects(self, batch: Batch) -> bool:
        """Return whether an answer is still of use; once it is not, it never will be."""
        return batch in (self._tokenising if batch.device is None else batch.device.running)

    def _take_back(self, batch: Batch) -> bool:
        """Take a batch back from its thread; return False if the thread no longer owns it."""
        if not self.expects(batch):
            return False
        if batch.device is None:
            self._tokenising.discard(batch)
        else:
            batch.device.running.remove(batch)
            self._free_thread = batch.device
        return True

    def _forget(self, entry: Entry) -> None:
        """Let nobody join this entry any more."""
        if self._entries.get((entry.key, entry.urgent)) is entry:
            del self._entries[entry.key, entry.urgent]

    def _fill_devices(self) -> None:
        """Give each idle device a batch, and one more to the device whose thread could start it behind the first."""
        rooms = [device for device in self.devices if not device.running]
        if (free := self._free_thread) in self.devices and free is not None and free.ahead:
            rooms.append(free)
        for device in rooms:
            if len(device.running) < 2 and self._ready(device) and (batch := self._next(device)):
                batch.device, batch.budget, device.wake = device, device.budget.tokens, None
                for entry in batch.entries:
                    self.queue_seconds += self._now - entry.queued
                    for job, _ in entry.waiters:
                        job.began = self._now if job.began is None else job.began
                tokens = batch.n_tokens
                self.filled += tokens
                self.offered += max(batch.budget, tokens)
                device.running.append(batch)
                self._commands.append(Run(batch))

    def _ready(self, device: Device) -> bool:
        """Return whether to start a batch now; a partial batch waits briefly for callers arriving one after another."""
        full = self.lanes.fill(device.budget.tokens)
        if device.running:
            return full or bool(self.lanes.urgent)
        if full or self.lanes.idle or self._now >= self._crowded + _PATIENCE:
            device.wake = None
            return not self.lanes.idle
        if device.wake is None:
            device.wake = self._now + _PATIENCE
            self._commands.append(Wake(device, device.wake))
        return self._now >= device.wake

    def _next(self, device: Device) -> Batch | None:
        """Return the next batch with entries that someone is waiting for."""
        budget = device.budget.tokens
        while (batch := self.lanes.pop(budget, min(device.small, budget))) is not None:
            dead = {entry for entry in batch.entries if not entry.live}
            for entry in dead:
                self._forget(entry)
            if len(dead) < len(batch.entries):
                batch.entries = [entry for entry in batch.entries if entry not in dead]
                return batch
        return None

    # --- devices

    def _lose_all(self, name: str, error: BaseException) -> None:
        logger.error("%s failed, no devices are left: %s", name, str(error))
        lost = DeviceLostError(f"{name} failed ({error}); restart() builds the model again")
        lost.__cause__ = error.with_traceback(None)  # its frames hold the batch, and thereby every caller
        self.error = self.error if self._closed else lost
        self._reject_all(lost)

    def _stop_devices(self) -> None:
        for device in self.devices:
            device.running.clear()
            self._commands.append(Stop(device))
        self.devices.clear()


def _cost(job: Job) -> int:
    """Return how many of a job's texts can be in flight at once."""
    return min(len(job.texts), 2 * WINDOW)


def _copy(error: TwinVecError) -> TwinVecError:
    """Return a copy of an error: one raised to several callers would keep the frames of all of them alive."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
