"""ingest: ``twinvec_stores.ingest`` on a cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from twinvec.errors import ConfigurationError, IngestError
from twinvec.options import EmbedderOptions
from twinvec_ray.models import Model
from twinvec_ray.pool import WorkerPool
from twinvec_ray.worker import Target, WorkerReport
from twinvec_ray.workers import Workers
from twinvec_stores import HybridStore, IngestReport, MemoryStore, ShardFolder, open_store
from twinvec_stores.ingestion.api import warned
from twinvec_stores.ingestion.options import Options
from twinvec_stores.ingestion.pipeline import Run
from twinvec_stores.ingestion.readers import Reading, Row
from twinvec_stores.ingestion.sources import Source
from twinvec_stores.ingestion.tables import loaders

if TYPE_CHECKING:
    import ray.data
    from typing_extensions import Unpack

    from twinvec import BaseEmbedder, ModelSpec
    from twinvec_stores.ingestion.options import IngestKeywords

_ROWS = 1024  # read together from a Dataset


@dataclass(frozen=True)
class ClusterReport(IngestReport):
    """What an ingest on a cluster did.

    Attributes:
        workers: what each worker did, also those that were lost, as far as it is known.
        lost: workers that died or became unreachable.
    """

    workers: tuple[WorkerReport, ...] = ()
    lost: int = 0

    def __str__(self) -> str:
        lines = [
            f"worker     {w.node}: {w.documents:,} documents in {w.seconds:,.1f} s"
            + ("" if w.busy is None else f", its device was busy for {w.busy:.0%} of them")
            for w in self.workers
        ]
        return "\n".join([super().__str__(), *lines, *([f"lost       {self.lost} workers"] if self.lost else [])])


def ingest(
    source: str | os.PathLike[str] | Iterable[Any] | ray.data.Dataset,
    model: str | ModelSpec | BaseEmbedder,
    store: str | os.PathLike[str] | HybridStore | ShardFolder,
    *,
    workers: Workers | None = None,
    embedder_options: EmbedderOptions | None = None,
    store_options: Mapping[str, Any] | None = None,
    **options: Unpack[IngestKeywords],
) -> ClusterReport:
    """Put documents into a store, skipping those it already has unchanged, with the model on many workers.

    Ids, hashes, chunks, bad rows, ``prune`` and the report are those of ``twinvec_stores.ingest``, so that either goes
    on with what the other has begun. The driver reads the source, in order; workers split, embed and, where several
    may write, compare and write. A worker that is lost is replaced if there is room, and what it had not finished is
    done again; if the driver dies, repeat the call.

    Args:
        source: see ``twinvec_stores.ingest``; or a Ray Dataset, whose rows are read by the cluster.
        model: hub id or folder, a ModelSpec, or an Embedder (whose specification travels, not its weights), or a
            RemoteEmbedder. The driver loads no model.
        store: the address of a server (see ``open_store``), into which all workers write; a folder or an open store,
            into which the driver alone writes; or a ShardFolder of parquet files for ``twinvec store import``. A store
            that does not exist is created; for indexed fields, create it before.
        workers: how many, and what each of them takes.
        embedder_options: for a model by name: device, task, prompts ...
        store_options: for a server: see ``open_store``.
        options: see ``twinvec_stores.ingest``. With ``on_error="stop"``, other workers may have written documents that
            come after the bad one. ``batch_size`` is what a lost worker loses at most, three times.

    Returns:
        Counts and failures. Documents that a lost worker had written count as unchanged.

    Raises:
        ConfigurationError: arguments that contradict each other; the cluster has no room for the workers.
        CheckpointError: a worker cannot load the model, or has another one than the others.
        IngestError: see ``twinvec_stores.ingest``; or all workers were lost.
        FingerprintMismatchError: the store contains another model's vectors.
        StoreError: the store failed.
    """
    from ray.data import Dataset

    asked, workers = Options(**options), workers or Workers()
    rows = _rows(source, asked.text_field) if isinstance(source, Dataset) else source
    if isinstance(store, ShardFolder) and asked.prune:
        raise ConfigurationError("prune=True is for stores: shards are written anew, and those of before do not count")
    with contextlib.ExitStack() as stack:
        pool = WorkerPool(Model.of(model, embedder_options, workers), workers, reading=isinstance(source, Dataset))
        stack.callback(pool.close)
        held, target = _open(store, pool, store_options or {}, stack)
        if held.config.token_pool is not None:
            raise ConfigurationError(f"{held!r} keeps vectors of tokens: fill it with twinvec_stores.ingest")
        writes_here = target == Target()
        pool.open(target, asked, held if writes_here else None)
        report = Run(rows, held, asked, pool).run()
        if isinstance(store, ShardFolder):
            store.finish(pool.shards, pool.config)
    found = ClusterReport(**vars(report), workers=tuple(pool.reports()), lost=pool.lost)
    warned(found)
    return found


def _open(
    store: Any, pool: WorkerPool, options: Mapping[str, Any], stack: contextlib.ExitStack
) -> tuple[HybridStore, Target]:
    """Return the store for the driver, and where the workers write."""
    if isinstance(store, ShardFolder):
        if store.complete:
            store.config().check(pool.config, store.where)
        return MemoryStore(pool.config), Target(shards=store.where)  # here nothing is compared or written
    if isinstance(store, HybridStore):
        return store, Target()
    opened = stack.enter_context(open_store(store, pool.config, **options))
    address = os.fspath(store)
    return opened, Target(address, options) if "://" in address else Target()


def _rows(dataset: ray.data.Dataset, text_field: str) -> Source:
    """Return the rows of a Dataset, in order, without nulls."""
    from ray.data.dataset import MaterializedDataset

    dataset.context.execution_options.preserve_order = True  # the first of equal ids is the one that counts
    reading = Reading({}, text_field=text_field)

    def batches() -> Iterator[Any]:
        read: Iterable[Any] = dataset.iter_batches(batch_size=_ROWS, batch_format="pyarrow")
        for batch in read:
            reading.check_columns("the dataset", batch.column_names)
            yield batch

    def rows() -> Generator[Row, None, None]:
        try:
            for number, load in enumerate(loaders(batches()), 1):
                yield Row(f"row {number}", load, number)
        except ray.exceptions.RayError as error:
            raise IngestError(f"the dataset cannot be read further: {error}") from error

    # counting others would mean reading them
    return Source(rows, dataset.count() if isinstance(dataset, MaterializedDataset) else None, "doc")
