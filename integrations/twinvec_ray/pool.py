"""The workers of a run as the processor of its pages: who gets which, and what happens when one of them is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from twinvec.errors import CheckpointError, ConfigurationError, DeviceLostError, IngestError
from twinvec_ray.models import Model
from twinvec_ray.worker import PAGES, Loaded, Page, Target, Worker, WorkerReport
from twinvec_ray.workers import Workers, check_room, nodes
from twinvec_stores import HybridStore, StoreConfig
from twinvec_stores.ingestion.items import Item, Processed
from twinvec_stores.ingestion.options import Options
from twinvec_stores.ingestion.windows import compare
from twinvec_stores.shards import Shard

_ATTEMPTS = 3  # workers that a page may lose before the run ends
_SHARD = 32  # pages of a store in one file: fewer files, and a lost worker loses more
_WORD = 10.0  # seconds between two words about what is waited for
_DEAD = (RayActorError, OutOfMemoryError)  # the second where Ray itself has killed it, as its node ran out of memory
_log = logging.getLogger("twinvec_ray")


class _Member:
    """A worker, and the pages that it has."""

    def __init__(self, workers: Workers, model: Model) -> None:
        remote: Any = ray.remote(Worker)
        self.actor: Any = remote.options(
            max_concurrency=PAGES, max_restarts=0, scheduling_strategy="SPREAD", **workers.remote_options()
        ).remote()
        self.loaded = self.actor.load.remote(model)
        self.jobs: set[Job] = set()
        self.report: WorkerReport | None = None

    def load_now(self) -> int:
        """Return how many pages it has yet to process."""
        pages = [job.page for job in self.jobs]
        return len(ray.wait(pages, num_returns=len(pages), timeout=0, fetch_local=False)[1]) if pages else 0


class Job:
    """A page on its way."""

    def __init__(self, pool: WorkerPool, items: Sequence[Item]) -> None:
        self.pool, self.rows = pool, items
        self.items = ray.put(list(items))
        self.attempts = 0
        self.member: _Member | None = None
        self.page: Any = None

    def result(self) -> Processed:
        """Wait for it, whoever does it in the end."""
        return self.pool.finish(self)

    def done(self) -> bool:
        """Return whether it has been processed, or has failed by itself."""
        if not ray.wait([self.page], timeout=0, fetch_local=False)[0]:
            return False
        try:
            ray.get(self.page)
        except (*_DEAD, ObjectLostError):
            return False
        except RayTaskError as error:
            return not isinstance(error.cause, DeviceLostError)
        return True


class WorkerPool:
    """Processes pages on workers; see ``Processor``."""

    def __init__(self, model: Model, workers: Workers, *, reading: bool) -> None:
        """Start the workers, and wait until each has the model.

        Raises:
            ConfigurationError: the cluster has no room for them.
            CheckpointError: one cannot load the model, or has another one.
        """
        self._model, self._workers, self._reading = model, workers, reading
        check_room(workers, nodes(), reading=reading)
        self._members: list[_Member] = []
        self._starting: list[_Member] = []
        self._gone: list[WorkerReport] = []
        self.lost = 0
        self.shards: list[Shard] = []
        self.ahead, self.page = PAGES * workers.count - 1, 1
        self._config: StoreConfig | None = None
        self._compare: Callable[[Sequence[Item]], None] | None = None
        self._open: tuple[Target, Options] | None = None
        try:
            for _ in range(workers.count):
                self._starting.append(_Member(workers, model))
            while self._starting:
                self._admit(_WORD)
        except BaseException:
            self.close()
            raise

    @property
    def config(self) -> StoreConfig:
        """Return what the vectors of all workers are."""
        assert self._config is not None
        return self._config

    def open(self, target: Target, options: Options, store: HybridStore | None) -> None:
        """Say what is to be done.

        Args:
            target: where the workers write.
            options: of the ingest.
            store: what the driver compares pages with before they travel; None: the workers do, or nobody does.
        """
        self._open = target, options
        if target.shards is not None:
            self.page = _SHARD
        if store is not None:
            self._compare = lambda items: compare(items, store)
        opening = [(member, member.actor.open.remote(target, options)) for member in self._members]
        for member, opened in opening:
            try:
                ray.get(opened)
            except RayTaskError as error:
                raise _cause(error) from None
            except _DEAD as error:
                self._lose(member, error)

    def submit(self, items: Sequence[Item]) -> Sequence[Job]:
        """Give a page to the worker that has the least to do."""
        if self._compare is not None:
            self._compare(items)
        job = Job(self, items)
        if self._compare is None:  # nor does anybody write here
            for item in items:
                item.text, item.metadata = "", {}
        self._assign(job)
        return [job]

    def finish(self, job: Job) -> Processed:
        """Wait for a page; where its worker is lost, others do all that it had."""
        while True:
            assert job.member is not None
            try:
                page: Page = ray.get(job.page, timeout=_WORD)
            except ray.exceptions.GetTimeoutError:
                self._admit(0)
            except _DEAD as error:
                self._lose(job.member, error)
            except ObjectLostError as error:  # it was done, on a node that is gone
                self._again(job, error)
            except RayTaskError as error:
                if not isinstance(error.cause, DeviceLostError):
                    raise _cause(error) from None
                self._lose(job.member, error.cause)
            else:
                job.member.jobs.discard(job)
                job.member.report = page.report
                if page.shard is not None:
                    self.shards.append(page.shard)
                return page.processed(job.rows)

    def status(self) -> str:
        """Return how many workers there are, and how busy their devices are."""
        known = [report.busy for report in self.reports() if report.busy is not None]
        busy = f", devices {sum(known) / len(known):.0%} busy" if known else ""
        n = len(self._members)
        return f", {n} worker{'' if n == 1 else 's'}{busy}"

    def reports(self) -> list[WorkerReport]:
        """Return what each worker has done, also those that are lost."""
        return [*self._gone, *(member.report for member in self._members if member.report is not None)]

    def cancel(self) -> None:
        """Stop the workers, from any thread."""
        for member in [*self._members, *self._starting]:
            ray.kill(member.actor)

    def close(self) -> None:
        """End the workers; those that work say what they did."""
        closing = [member.actor.close.remote() for member in self._members]
        closed = ray.wait(closing, num_returns=len(closing), timeout=_WORD)[0] if closing else []
        for report in closed:
            try:
                self._gone.append(ray.get(report))
            except Exception as error:
                _log.debug("a worker did not close: %s", error)
        self.cancel()
        self._members, self._starting = [], []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _assign(self, job: Job) -> None:
        """Give a page to the worker that has the least to do."""
        self._admit(0)
        while not self._members:
            self._check_hope()
            self._admit(_WORD)
        job.member = min(self._members, key=_Member.load_now)
        job.member.jobs.add(job)
        job.page = job.member.actor.process.remote(job.items)

    def _lose(self, member: _Member, error: Exception) -> None:
        """Go on without a worker: another is started if there is room, and what it had not done is done again."""
        if member in self._members:
            self._members.remove(member)
            self.lost += 1
            if member.report is not None:
                self._gone.append(member.report)
            ray.kill(member.actor)  # where it only cannot be reached
            self._replace(error)
        for job in [job for job in member.jobs if not job.done()]:
            self._again(job, error)

    def _again(self, job: Job, error: Exception) -> None:
        assert job.member is not None
        job.member.jobs.discard(job)
        job.attempts += 1
        if job.attempts >= _ATTEMPTS:
            where = f"{job.rows[0].where} to {job.rows[-1].where}"
            raise IngestError(f"{job.attempts} workers were lost over {where}: {error}") from None
        self._assign(job)

    def _replace(self, error: Exception) -> None:
        left = len(self._members) + len(self._starting)
        try:
            check_room(replace(self._workers, count=left + 1), nodes(), reading=self._reading)
        except ConfigurationError:
            _log.warning("a worker was lost (%s); there is no room for another, %d are left", _first_line(error), left)
            return
        _log.warning("a worker was lost (%s); another one is started", _first_line(error))
        self._starting.append(_Member(self._workers, self._model))

    def _check_hope(self) -> None:
        """Check that there will be workers again."""
        if not self._starting:
            raise IngestError("all workers were lost, and there is no room for others: the same call resumes the run")
        check_room(replace(self._workers, count=len(self._starting)), nodes(), reading=self._reading)

    def _admit(self, seconds: float) -> None:
        """Let those work that have loaded the model; wait so long for the first of them."""
        if not self._starting:
            return
        ready, _ = ray.wait([member.loaded for member in self._starting], timeout=seconds)
        if not ready and seconds:
            free = {name: n for name, n in ray.available_resources().items() if name in ("CPU", "GPU")}
            _log.warning("waiting for %d workers; the cluster has %s free", len(self._starting), free)
        for member in [member for member in self._starting if member.loaded in ready]:
            try:
                self._check(ray.get(member.loaded))
                if self._open is not None:
                    ray.get(member.actor.open.remote(*self._open))
            except RayTaskError as error:  # it stays with those that close() kills: the error may live on, and hold it
                raise _cause(error) from None
            except _DEAD as error:
                if not self._members:
                    raise IngestError(f"a worker was lost while it loaded the model: {error}") from None
                _log.warning("a new worker was lost at once: %s", _first_line(error))
            else:
                self._members.append(member)
            self._starting.remove(member)

    def _check(self, loaded: Loaded) -> None:
        """Check that a worker has the model that the others have."""
        if self._config is None:
            self._config = loaded.config
        if loaded.config.fingerprint != self._config.fingerprint:
            raise CheckpointError(
                f"the worker on {loaded.node} has another model than the others: {loaded.config.fingerprint} instead "
                f"of {self._config.fingerprint}. Give a hub id its revision and a dtype, or share one folder"
            )


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    return cause if isinstance(cause, Exception) else error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
