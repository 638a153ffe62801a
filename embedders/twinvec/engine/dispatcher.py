"""All state of one model's engine, and every decision about it: events in, commands out.

No thread, lock, clock or torch: the core's threads carry messages, and time comes with them. Equal texts of any callers
share one entry. A failed batch rejects exactly the callers to whom it belongs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
WINDOW = 1024  # texts of a job that are tokenised at once; two of them are ahead of the device
CALM = 256  # passes without running out of memory after which a lowered budget is doubled
_LIGHT = 8192  # characters: tokenised within about a millisecond
_PATIENCE = 0.002  # seconds that a batch which is not full waits for more


class Dispatcher:
    """See above. ``step`` is all that happens; the events are the methods below it.

    Attributes:
        memo: recent rows.
        error: why no new job is taken; None while all is well.
        devices: those that work.
        jobs: those that have not ended, in the order of their submission.
        lanes: entries that wait for a device.
        truncated, failures, out_of_memory, cache_hits, cache_misses, queue_seconds, filled, offered: counters; the
            last two are tokens that passes had, and could have had.
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
        self._asking: Device | None = None  # whose thread has its hands free
        self._closed = self._stopped = False
        self._clear()

    def _clear(self) -> None:
        self.lanes = Lanes()
        self._pending = self._arriving = 0
        self._crowded = float("-inf")  # when a job last came that found no device idle
        self._waiting: dict[Job, None] = {}  # until others have ended
        self._hungry: dict[Job, None] = {}  # more of their texts can be tokenised
        self._entries: dict[tuple[Key, bool], Entry] = {}  # that others may join
        self._under_way: set[Batch] = set()  # what threads have; what they say of any other comes too late

    def step(self, now: float, event: Event) -> list[Command]:
        """Take an event; return what is to be done about it, in this order.

        A command that is carried out twice does no harm.
        """
        self._now, self._commands, self._asking = now, [], None
        try:
            event()
            self._feed_jobs()
            self._dispatch()
        except BaseException as error:  # a defect of ours, or Ctrl-C: callers would wait for ever
            logger.exception("the dispatcher failed")
            self._stop_devices()
            self._lose_all("the dispatcher", error)
        if self._closed and not self.jobs and not self._stopped:
            self._stopped = True
            self._clear()  # what nobody waits for any more may still be under way
            self._stop_devices()
            self._commands.append(Stop(None))
        commands, self._commands = self._commands, []  # kept, they would keep calls and their rows
        return commands

    # --- events

    def submitted(self, job: Job) -> None:
        """A caller wants a job done."""
        full = self._pending > 0 and self._pending + _cost(job) > MAX_PENDING
        if self.error is not None:
            self._reject(job, _copy(self.error))
        elif full and job.request.fail_on_overload:
            message = f"{self._pending} texts are pending, the limit is {MAX_PENDING}: try again later, or pass "
            self._reject(job, OverloadedError(message + 'on_overload="wait"'))
        else:
            self.jobs[job] = self._waiting[job] = None
            if all(device.running or device.wake is not None for device in self.devices):
                self._crowded = self._now

    def cancelled(self, job: Job) -> None:
        """A caller waits no longer."""
        self._end(job)

    def tokenised(self, batch: Batch, found: Sequence[TokenizedText | Row]) -> None:
        """A thread has the tokens of each entry, or the row that a persistent cache had."""
        if not self._returned(batch):
            return
        again = []
        for entry, got in zip(batch.entries, found, strict=True):
            if not isinstance(got, Row):
                self.cache_misses += batch.cache is not None
                entry.tokens, entry.n_tokens = got, len(got.ids)
                for job, number in entry.waiters:
                    self._accept(job, number, entry.n_tokens, got.full_length)
                entry.queued = self._now
                self.lanes.put(entry)
                continue
            self.cache_hits += 1
            waiters, entry.waiters = entry.waiters, [(j, n) for j, n in entry.waiters if not j.takes(got)]
            for job, number in waiters:
                if job.takes(got):
                    self._deliver(job, number, got)
            if entry.live:  # who joined wants a half that the row does not have
                again.append(entry)
            else:
                self._forget(entry)
        if again:
            self._tokenise(Batch(again, alone=batch.alone))

    def started(self, device: Device) -> None:
        """A device works on what it was given, and its thread could start the next batch behind it."""
        self._asking = device

    def ran(self, batch: Batch, rows: Sequence[Row | None]) -> None:
        """A device has the row of each entry; None where it is not finite."""
        device = batch.device
        if not self._returned(batch) or device is None:
            return
        device.calm += 1
        if device.calm % CALM == 0:  # what took the memory may be gone
            device.budget = min(2 * device.budget, device.full_budget)
        self.failures += None in rows
        keep: dict[int, Keep] = {}
        for entry, row in zip(batch.entries, rows, strict=True):
            self._forget(entry)
            if row is not None and any(job.request.memo for job, _ in entry.waiters):
                self.memo.put(entry.key, row)
            for job, number in entry.waiters:
                if row is None:
                    reason = (
                        "got NaN or infinity from the model: use dtype='float32' or 'bfloat16', or check the weights"
                    )
                    self._reject(job, NonFiniteError(reason, position=job.position(number)))
                    continue
                self._deliver(job, number, row)
                if (cache := job.request.cache) is not None:
                    keep.setdefault(id(cache), Keep(cache, [])).rows.append((entry.key, row))
        self._commands[:0] = keep.values()  # a caller may close as soon as it is answered

    def ran_out(self, batch: Batch, reason: str) -> None:
        """A batch did not fit into memory: half the budget, unless a batch of the same budget has halved it before."""
        device = batch.device
        if not self._returned(batch) or device is None:
            return
        self.out_of_memory += 1
        device.calm = 0
        if len(batch.entries) == 1:
            self.failures += 1
            (entry,) = batch.entries
            self._forget(entry)
            for job, number in entry.waiters:
                message = f"alone ({entry.n_tokens} tokens) does not fit into the memory of {device.name}: lower "
                message += f"max_length, split the text, or use a device with more memory. ({reason})"
                self._reject(job, OutOfMemoryError(message, position=job.position(number)))
            return
        if batch.budget <= device.budget:
            tokens = batch.n_tokens
            device.budget = max(min(device.budget, tokens) // 2, 1)
            logger.warning("out of memory at %d tokens on %s; budget now %d", tokens, device.name, device.budget)
        self.lanes.again(batch, device.budget)

    def failed(self, batch: Batch, error: BaseException) -> None:
        """A batch could not be tokenised or run; to find out whose text did it, each caller's are tried alone, once."""
        if not self._returned(batch):
            return
        groups: dict[frozenset[Job], list[Entry]] = {}
        for entry in batch.entries:
            self._forget(entry)  # nobody joins an entry that is tried again
            groups.setdefault(frozenset(job for job, _ in entry.waiters if job.live), []).append(entry)
        self.failures += batch.entries[0].tokens is not None and not batch.alone
        if batch.alone or len(groups) == 1:
            for job in chain.from_iterable(groups):
                self._reject(job, error)
            return
        for jobs, entries in reversed(groups.items()):
            if jobs:
                self._again(Batch(entries, alone=True))

    def lost(self, device: Device, error: BaseException) -> None:
        """A device answers no more, or its thread had a defect and has ended."""
        if device not in self.devices:
            return
        self.devices.remove(device)
        self.failures += 1
        taken = device.running[::-1]
        for batch in taken:
            self._returned(batch)
        if not self.devices:
            self._lose_all(device.name, error)
            return
        logger.warning("%s failed and is taken out, %d devices go on: %s", device.name, len(self.devices), error)
        for batch in taken:
            self._again(Batch(batch.entries, alone=batch.alone))

    def restarted(self, devices: Sequence[Device]) -> None:
        """A new generation of devices is ready; where none is wanted, it is stopped."""
        if self._closed or self.error is None:
            self._commands += [Stop(device) for device in devices]
        else:
            self.devices, self.error = list(devices), None

    def closed(self, *, drain: bool) -> None:
        """No more jobs; those that are pending are finished (``drain``) or rejected."""
        self._closed, self.error = True, ConfigurationError("this Embedder is closed; make a new one")
        if not drain:
            self._reject_all(self.error)

    def abandoned(self) -> None:
        """The interpreter ends, and with it whoever still waits: nobody is told."""
        self.closed(drain=False)
        self._commands.clear()

    def woken(self, device: Device) -> None:
        """The time of a ``Wake`` has come."""
        device.wake = self._now

    # --- jobs

    def _feed_jobs(self) -> None:
        """Admit who waits, and let each job have so many texts on their way."""
        while self._waiting or self._hungry:
            while self._waiting:
                job = next(iter(self._waiting))
                if self._pending > 0 and self._pending + _cost(job) > MAX_PENDING:
                    break
                del self._waiting[job]
                job.admitted = True
                self._pending += _cost(job)
                self._hungry[job] = None
            if not self._hungry:
                return
            job = next(iter(self._hungry))
            del self._hungry[job]
            while job.live and job.fed < len(job.texts) and job.outstanding <= WINDOW:
                self._feed(job, range(job.fed, min(job.fed + WINDOW, len(job.texts))))
            if job.live and not job.texts:
                self._resolve(job)

    def _feed(self, job: Job, numbers: range) -> None:
        request, new = job.request, []
        job.fed = numbers.stop
        job.outstanding += len(numbers)
        for number in numbers:
            key = Key(request.prompt, job.texts[number], request.max_length)
            if request.memo and (row := self.memo.get(key)) is not None:
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
            self._reject(job, refusal)
        return job.live

    def _deliver(self, job: Job, number: int, row: Row) -> None:
        if not self._accept(job, number, row.tokens, row.full_length):
            return
        job.rows[number] = row
        job.finished += 1
        job.outstanding -= 1
        self.truncated += row.full_length > row.tokens
        if job.finished == len(job.texts):
            self._resolve(job)
        elif job.fed < len(job.texts):
            self._hungry[job] = None

    def _resolve(self, job: Job) -> None:
        self._end(job)
        self._commands.append(Answer(job, None))

    def _reject(self, job: Job, error: BaseException) -> None:
        if job.live:
            self._end(job)
            self._commands.append(Answer(job, error))

    def _end(self, job: Job) -> None:
        if job.live and job in self.jobs:
            del self.jobs[job]
            self._waiting.pop(job, None)
            self._pending -= _cost(job) if job.admitted else 0
        job.live = False

    def _reject_all(self, error: TwinVecError) -> None:
        for job in list(self.jobs):
            self._reject(job, _copy(error))
        for device in self.devices:
            device.running.clear()
        self._clear()

    # --- texts

    def _tokenise(self, batch: Batch) -> None:
        """Have entries tokenised: a few by a device that is idle, which saves a change of threads, else by a host."""
        batch.light = sum(len(entry.key.text) for entry in batch.entries) <= _LIGHT
        if batch.light and batch.cache is None and not self._arriving:
            batch.device = next((device for device in self.devices if not device.running), None)
        self._arriving += batch.light
        self._hand_over(batch)
        self._commands.append(Tokenise(batch))

    def _hand_over(self, batch: Batch) -> None:
        self._under_way.add(batch)
        if batch.device is not None:
            batch.device.running.append(batch)

    def _returned(self, batch: Batch) -> bool:
        """Take back what a thread had; return False for what it was not to have any more."""
        if not self.expects(batch):
            return False
        self._under_way.discard(batch)
        if batch.device is not None:
            batch.device.running.remove(batch)
            self._asking = batch.device
        self._arriving -= batch.light
        return True

    def expects(self, batch: Batch) -> bool:
        """Return whether an answer is still of use; once it is not, it never is again."""
        return batch in self._under_way

    def _forget(self, entry: Entry) -> None:
        """Let nobody join any more."""
        if self._entries.get((entry.key, entry.urgent)) is entry:
            del self._entries[entry.key, entry.urgent]

    # --- batches

    def _dispatch(self) -> None:
        """Give each idle device a batch, then one more to the device whose thread could start it behind the first."""
        ahead = [device for device in self.devices if device.ahead and device is self._asking]
        for room, device in [*((1, device) for device in self.devices), *((2, device) for device in ahead)]:
            if len(device.running) < room and self._ready(device) and (batch := self._next(device.budget)):
                batch.device, batch.budget, device.wake = device, device.budget, None
                self.queue_seconds += sum(self._now - entry.queued for entry in batch.entries)
                self.filled += batch.n_tokens
                self.offered += max(device.budget, batch.n_tokens)
                self._hand_over(batch)
                self._commands.append(Run(batch))

    def _ready(self, device: Device) -> bool:
        """Return whether a batch is to start now; one that is not full waits a moment for more, if more are coming."""
        lanes = self.lanes
        full = bool(lanes.planned) or lanes.tokens >= device.budget
        if device.running:
            return full or (bool(lanes.urgent) and not self._arriving)
        if full or not lanes or not (self._arriving or self._now < self._crowded + _PATIENCE):
            device.wake = None
            return True
        if device.wake is None:
            device.wake = self._now + _PATIENCE
            self._commands.append(Wake(device, device.wake))
        return self._now >= device.wake

    def _next(self, budget: int) -> Batch | None:
        """Return the next batch of entries that somebody waits for."""
        while (batch := self.lanes.pop(budget)) is not None:
            for entry in batch.entries:
                if not entry.live:
                    self._forget(entry)
            batch.entries = [entry for entry in batch.entries if entry.live]
            if batch.entries:
                return batch
        return None

    def _again(self, batch: Batch) -> None:
        if batch.entries[0].tokens is None:
            self._tokenise(batch)
        else:
            self.lanes.again(batch)

    def _lose_all(self, name: str, error: BaseException) -> None:
        logger.error("%s failed, no device is left: %s", name, error)
        lost = DeviceLostError(f"{name} failed ({error}); restart() builds the model again")
        lost.__cause__ = error.with_traceback(None)  # its frames hold the batch, and so every caller
        self.error = self.error if self._closed else lost
        self._reject_all(lost)

    def _stop_devices(self) -> None:
        for device in self.devices:
            device.running.clear()
            self._commands.append(Stop(device))
        self.devices.clear()


def _cost(job: Job) -> int:
    """Return how many of a job's texts can be on their way at once."""
    return min(len(job.texts), 2 * WINDOW)


def _copy(error: TwinVecError) -> TwinVecError:
    """Return an equal error: one that is raised to several callers would keep the frames of all of them alive."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
