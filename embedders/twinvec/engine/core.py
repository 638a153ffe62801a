"""The inference core: one model in memory, its devices, and everyone who uses it.

A call becomes a Job. Host threads look its texts up in the memo and the cache, tokenise the rest a window ahead and
queue them as entries; equal (prompt, text) of any callers share one entry. A thread per device takes batches from the
scheduler and delivers rows. A failed batch rejects exactly the jobs it belongs to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from traceback import format_exception

from twinvec.cache.memo import Memo
from twinvec.cache.rows import Cache, Key, Namespaces, Row, find_rows, keep_rows
from twinvec.compute.encoder import Encoded, Encoder, Flight, is_device_lost
from twinvec.engine.jobs import WINDOW, Job, Request
from twinvec.engine.loading import Model
from twinvec.engine.scheduler import Scheduler
from twinvec.errors import ConfigurationError, DeviceLostError, OverloadedError, TwinVecError
from twinvec.text.tokenizer import TokenizedText
from twinvec.vectors import EmbeddingBatch

logger = logging.getLogger(__name__)

MAX_PENDING = 65536  # texts of admitted jobs; more callers wait or are refused


@dataclass(eq=False)
class Entry:
    """One distinct text on its way through a device, and who waits for it."""

    key: Key
    urgent: bool
    tokens: TokenizedText
    waiters: list[tuple[Job, int]]
    queued: float = field(default_factory=time.monotonic)

    @property
    def n_tokens(self) -> int:
        """Return its size."""
        return len(self.tokens.ids)

    @property
    def live(self) -> bool:
        """Return whether anyone still waits for it."""
        return any(job.live for job, _ in self.waiters)

    @property
    def position(self) -> int:
        """Return where an error finds it in its caller's list."""
        job, number = next(((j, n) for j, n in self.waiters if j.live), self.waiters[0])
        return job.position(number)


@dataclass(frozen=True, eq=False)
class Started:
    """A batch that is on a device."""

    entries: list[Entry]
    flight: Flight


class InferenceCore:
    """One loaded model and the threads that serve it.

    Attributes:
        model: what was loaded.
        memo: recent rows.
        truncated, failures: counters of texts and of failed batches.
        queue_seconds: sum over entries.
    """

    def __init__(self, model: Model, namespaces: Namespaces) -> None:
        self.model = model
        self.memo = Memo()
        self.truncated = self.failures = 0
        self.queue_seconds = 0.0
        self.cache_hits = self.cache_misses = 0
        self._filled = self._offered = 0
        self._namespaces = namespaces
        # queries are tokenised beside bulk windows, not after them
        self._hosts = {
            urgent: ThreadPoolExecutor(1, thread_name_prefix=f"twinvec-{'query' if urgent else 'bulk'}")
            for urgent in (True, False)
        }
        self._restarting = threading.Lock()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._inflight: dict[tuple[Key, bool], Entry] = {}
        self._jobs: set[Job] = set()
        self._waiting: deque[Job] = deque()
        self._pending = 0
        self._error: TwinVecError | None = None
        self._threads: list[threading.Thread] = []
        self._start_devices()

    @property
    def healthy(self) -> bool:
        """Return whether new work is taken and some device works."""
        return self._error is None

    @property
    def owned(self) -> bool:
        """Return whether this process made the core: after a fork its threads are not here."""
        return os.getpid() == self._pid

    @property
    def queued(self) -> int:
        """Return the texts that wait for a device."""
        return self._scheduler.queued

    @property
    def batch_fill(self) -> float:
        """Return the mean share of the token budget that forward passes used."""
        return self._filled / self._offered if self._offered else 0.0

    def submit(self, job: Job) -> Future[EmbeddingBatch]:
        """Queue a job; never blocks.

        Raises:
            ConfigurationError: after ``close``, or in a process forked after the model was loaded.
            DeviceLostError: no device works any more.
            OverloadedError: the queue is full and the job does not want to wait.
        """
        if not self.owned:
            raise ConfigurationError(
                "this Embedder was made before the process forked, and its threads did not come along: make it in the "
                'child, or start workers with the "spawn" method'
            )
        with self._lock:
            if self._error is not None:
                raise _copy(self._error)
            full = self._pending > 0 and self._pending + job.cost > MAX_PENDING
            if full and job.request.fail_on_overload:
                raise OverloadedError(
                    f"{self._pending} texts are pending, the limit is {MAX_PENDING}: try again later, or pass "
                    'on_overload="wait"'
                )
            self._jobs.add(job)
            if full:
                self._waiting.append(job)
            else:
                self._admit(job)
        job.future.add_done_callback(lambda _: self._release(job))
        return job.future

    def close(self, *, drain: bool = False) -> None:
        """Stop: finish what is pending (``drain``) or reject it; release the model."""
        if not self.owned:
            return
        if drain and self.healthy:
            for job in list(self._jobs):
                with contextlib.suppress(BaseException):  # its caller sees it
                    job.future.exception()
        self._stop(ConfigurationError("this Embedder is closed; make a new one"))
        for host in self._hosts.values():
            host.shutdown(wait=False, cancel_futures=True)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def restart(self) -> None:
        """Build the model again after ``DeviceLostError``."""
        with self._restarting:
            if isinstance(self._error, DeviceLostError):
                self.model = self.model.rebuild()
                self._start_devices()
                self._error = None

    def _start_devices(self) -> None:
        self._scheduler: Scheduler[Entry] = Scheduler()
        self._working = len(self.model.encoders)
        self._threads = [
            threading.Thread(target=self._serve, args=(encoder, self._scheduler), name="twinvec-device", daemon=True)
            for encoder in self.model.encoders
        ]
        for thread in self._threads:
            thread.start()

    # --- callers

    def _admit(self, job: Job) -> None:
        self._pending += job.cost
        self._scheduler.announce()
        self._hosts[job.request.urgent].submit(self._start, job, self._scheduler)

    def _release(self, job: Job) -> None:
        with self._lock:
            if job not in self._jobs:
                return
            self._jobs.discard(job)
            if job in self._waiting:
                self._waiting.remove(job)
            else:
                self._pending -= job.cost
            while self._error is None and self._waiting:
                if self._pending > 0 and self._pending + self._waiting[0].cost > MAX_PENDING:
                    break
                self._admit(self._waiting.popleft())

    def _stop(self, error: TwinVecError) -> None:
        with self._lock:
            self._error = error
            jobs = list(self._jobs)
            self._inflight.clear()
        self._scheduler.close()
        for job in jobs:
            job.fail(_copy(error))

    # --- host threads

    def _start(self, job: Job, scheduler: Scheduler[Entry]) -> None:
        try:
            job.prepare()
            if not job.texts:
                job.finish()
            self._feed(job)
        except BaseException as error:
            job.fail(error)
        finally:
            scheduler.arrived()

    def _feed(self, job: Job) -> None:
        """Tokenise and queue windows until enough of the job is on its way."""
        try:
            while True:
                with job.lock:
                    if not job.windows or job.outstanding > WINDOW or not job.live:
                        job.feeding = False
                        return
                    window = job.windows.popleft()
                    job.outstanding += len(window)
                self._feed_window(job, window)
        except BaseException as error:
            job.fail(error)

    def _feed_window(self, job: Job, window: range) -> None:
        request = job.request
        keys = {n: Key(request.prompt, job.texts[n], request.max_length) for n in window}
        known = self._look_up(request, keys)
        for number, row in known:
            job.check(number, row.tokens, row.full_length)
        self._deliver_to(job, known)
        missing = sorted(keys.keys() - {number for number, _ in known})
        tokenized = request.tokenizer.encode([job.texts[n] for n in missing], request.prompt, request.max_length)
        for number, tokens in zip(missing, tokenized, strict=True):
            job.check(number, len(tokens.ids), tokens.full_length)
        new = []
        with self._lock:
            if self._error is not None:
                return  # stopped meanwhile: the job has been told, and nothing would take its entries
            for number, tokens in zip(missing, tokenized, strict=True):
                entry = self._inflight.get((keys[number], request.urgent))
                if entry is not None:
                    entry.waiters.append((job, number))
                    continue
                entry = Entry(keys[number], request.urgent, tokens, [(job, number)])
                self._inflight[entry.key, entry.urgent] = entry
                new.append(entry)
        self._scheduler.put(new, urgent=request.urgent)

    def _look_up(self, request: Request, keys: dict[int, Key]) -> list[tuple[int, Row]]:
        found: dict[int, Row] = {}
        if request.memo:
            found = {n: row for n, key in keys.items() if (row := self.memo.get(key)) is not None}
        if request.cache is not None:
            missing = [n for n in keys if n not in found]
            rows = find_rows(
                request.cache,
                self._namespaces,
                [keys[n] for n in missing],
                dense=request.dim is not None,
                sparse=request.keys is not None,
            )
            cached = {n: row for n, row in zip(missing, rows, strict=True) if row is not None}
            with self._lock:
                self.cache_hits += len(cached)
                self.cache_misses += len(missing) - len(cached)
            found |= cached
        return list(found.items())

    def _deliver_to(self, job: Job, rows: list[tuple[int, Row]]) -> None:
        if not rows or not job.live:
            return
        last = job.put(rows)
        with job.lock:
            job.outstanding -= len(rows)
            feed = bool(job.windows) and job.outstanding <= WINDOW and not job.feeding
            job.feeding = job.feeding or feed
        with contextlib.suppress(RuntimeError):  # closed in this moment; the job has been told
            if last:
                self._hosts[job.request.urgent].submit(self._finish, job)
            elif feed:
                self._hosts[job.request.urgent].submit(self._feed, job)

    def _finish(self, job: Job) -> None:
        try:
            truncated = int(job.finish().truncated.sum())
            with self._lock:
                self.truncated += truncated
        except BaseException as error:
            job.fail(error)

    # --- device threads

    def _serve(self, encoder: Encoder, scheduler: Scheduler[Entry]) -> None:
        try:
            self._run(encoder, scheduler)
        except BaseException as error:  # a defect of ours: without this thread its callers would wait for ever
            logger.exception("the thread of %s ended", encoder.device)
            self._lose(encoder, scheduler, [], error)

    def _run(self, encoder: Encoder, scheduler: Scheduler[Entry]) -> None:
        """Keep one batch on the device and, where the device works by itself, the next one right behind it."""
        ahead: Started | None = None
        while (taken := scheduler.take(encoder.token_budget, wait=ahead is None)) is not None:
            wanted = self._still_wanted(taken)
            started = self._start_batch(encoder, wanted) if wanted else None
            due, ahead = (ahead, started) if encoder.asynchronous else (started, None)
            if due is not None and not self._land(encoder, scheduler, due, ahead.entries if ahead else []):
                return

    def _still_wanted(self, taken: list[Entry]) -> list[Entry]:
        wanted = []
        with self._lock:
            for entry in taken:
                if entry.live:
                    wanted.append(entry)
                else:
                    self._inflight.pop((entry.key, entry.urgent), None)
        return wanted

    def _start_batch(self, encoder: Encoder, batch: list[Entry]) -> Started:
        budget, tokens = encoder.token_budget, sum(entry.n_tokens for entry in batch)
        flight = encoder.start([entry.tokens for entry in batch], [entry.position for entry in batch])
        with self._lock:
            self._filled += tokens
            self._offered += max(budget, tokens)
            self.queue_seconds += sum(flight.started - entry.queued for entry in batch)
        return Started(batch, flight)

    def _land(self, encoder: Encoder, scheduler: Scheduler[Entry], due: Started, behind: list[Entry]) -> bool:
        """Deliver a batch; return False where the device was lost, and ``behind`` with it."""
        try:
            self._deliver(due.entries, encoder.finish(due.flight))
        except BaseException as error:
            if is_device_lost(error):
                self._lose(encoder, scheduler, due.entries + behind, error)
                return False
            return not self._isolate(encoder, scheduler, due.entries, behind, error)
        return True

    def _deliver(self, batch: list[Entry], encoded: Encoded) -> None:
        rows = [
            Row(
                None if encoded.dense is None else encoded.dense[i].copy(),
                None if encoded.sparse is None else encoded.sparse[i].copy(),
                entry.n_tokens,
                entry.tokens.full_length,
            )
            for i, entry in enumerate(batch)
        ]
        by_job: dict[Job, list[tuple[int, Row]]] = {}
        with self._lock:
            for entry, row in zip(batch, rows, strict=True):
                self._inflight.pop((entry.key, entry.urgent), None)
                for job, number in entry.waiters:
                    by_job.setdefault(job, []).append((number, row))
        keep: dict[int, tuple[Cache, list[tuple[Key, Row]]]] = {}
        for entry, row in zip(batch, rows, strict=True):
            if any(job.request.memo for job, _ in entry.waiters):
                self.memo.put(entry.key, row)
            for cache in {id(j.request.cache): j.request.cache for j, _ in entry.waiters}.values():
                if cache is not None:
                    keep.setdefault(id(cache), (cache, []))[1].append((entry.key, row))
        for job, finished in by_job.items():
            try:
                self._deliver_to(job, finished)
            except BaseException as error:  # a caller's progress function
                job.fail(error)
        for cache, kept in keep.values():
            with contextlib.suppress(RuntimeError):
                self._hosts[False].submit(self._keep, cache, kept)

    def _keep(self, cache: Cache, rows: list[tuple[Key, Row]]) -> None:
        try:
            keep_rows(cache, self._namespaces, rows)
        except Exception:
            logger.exception("the persistent cache failed; its callers have their vectors")

    def _isolate(
        self,
        encoder: Encoder,
        scheduler: Scheduler[Entry],
        batch: list[Entry],
        behind: list[Entry],
        error: BaseException,
    ) -> bool:
        """Find out whose texts made a batch fail: entries with the same callers are tried alone, once.

        Returns:
            Whether the device was lost on the way.
        """
        groups: dict[frozenset[Job], list[Entry]] = {}
        with self._lock:
            self.failures += 1
            for entry in batch:  # nobody joins an entry that is tried again
                self._inflight.pop((entry.key, entry.urgent), None)
                groups.setdefault(frozenset(job for job, _ in entry.waiters), []).append(entry)
        left = list(groups.items())
        while left:
            jobs, entries = left.pop(0)
            failure = error
            if len(groups) > 1 and any(job.live for job in jobs):
                try:
                    started = self._start_batch(encoder, entries)
                    self._deliver(entries, encoder.finish(started.flight))
                    continue
                except BaseException as alone:
                    if is_device_lost(alone):
                        rest = [entry for _, group in left for entry in group]
                        self._lose(encoder, scheduler, entries + rest + behind, alone)
                        return True
                    failure = alone
            for job in jobs:
                job.fail(failure)
        return False

    def _lose(self, encoder: Encoder, scheduler: Scheduler[Entry], batch: list[Entry], error: BaseException) -> None:
        self.failures += 1
        with self._lock:
            self._working -= 1
            working = self._working
        if working:
            logger.warning("%s failed and is taken out, %d devices go on: %s", encoder.device, working, error)
            scheduler.put_back(batch)
            return
        logger.error("%s failed, no device is left:\n%s", encoder.device, "".join(format_exception(error)))
        lost = DeviceLostError(f"{encoder.device} failed ({error}); restart() builds the model again")
        lost.__cause__ = error.with_traceback(None)  # its frames hold the batch, and so every caller
        self._stop(lost)


def _copy(error: TwinVecError) -> TwinVecError:
    """Return an equal error: one that is raised to several callers would keep the frames of all of them alive."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
