"""One worker: a Ray actor with a model, which splits, embeds and, where many may write, compares and writes pages."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import ray

from twinvec import BaseEmbedder, Embedder, EmbeddingBatch
from twinvec.errors import CheckpointError
from twinvec_ray.models import Model
from twinvec_stores import HybridStore, ShardFolder, StoreConfig, open_store
from twinvec_stores.ingestion.items import Embedded, Item, Processed
from twinvec_stores.ingestion.options import Options
from twinvec_stores.ingestion.processing import LocalProcessor
from twinvec_stores.ingestion.writing import records, write
from twinvec_stores.shards import Shard

_FOUND = ("outcome", "reason", "spans", "contexts", "truncated")
PAGES = 3  # in a worker at a time: one is written, while another is embedded and a third one is split


@dataclass(frozen=True)
class Target:
    """Where workers write: a store that many may open, or a folder of shards; or nowhere, and the driver does.

    Attributes:
        address: of a server, see ``open_store``.
        options: further arguments of ``open_store``.
        shards: the folder's path or URL.
    """

    address: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    shards: str | None = None


@dataclass(frozen=True)
class WorkerReport:
    """What a worker did.

    Attributes:
        node: address of its machine.
        documents: documents that it embedded.
        seconds: since its model was loaded.
        busy: share of them that its device was in forward passes; None: unknown, the model runs elsewhere.
    """

    node: str
    documents: int
    seconds: float
    busy: float | None


@dataclass(frozen=True)
class Loaded:
    """What a worker says of its model: where it is, and what its vectors are."""

    node: str
    config: StoreConfig


@dataclass(frozen=True)
class Page:
    """What became of a page: no more than its driver, which has the rows, does not know.

    Attributes:
        columns: what was found out of each row: fields of Item.
        vectors: what the driver is to write: the positions of documents, and the rows of their records.
        shard: the file that was written.
        report: of the worker until now.
    """

    columns: Mapping[str, Sequence[Any]]
    vectors: Sequence[tuple[Sequence[int], EmbeddingBatch]]
    shard: Shard | None
    report: WorkerReport

    @classmethod
    def of(cls, items: Sequence[Item], embedded: Sequence[Embedded], shard: Shard | None, report: WorkerReport) -> Page:
        """Take from the rows what is new."""
        position = {item: i for i, item in enumerate(items)}
        columns = {name: [getattr(item, name) for item in items] for name in _FOUND}
        vectors = [([position[item] for item in part.items], part.batch) for part in embedded]
        return cls(columns, vectors, shard, report)

    def processed(self, items: Sequence[Item]) -> Processed:
        """Put it into the rows.

        The vectors are copied into memory of this process, for stores that keep them: Ray's is needed for what is next.
        """
        for name, column in self.columns.items():
            for item, value in zip(items, column, strict=True):
                setattr(item, name, value)
        owned = [
            Embedded([items[i] for i in positions], batch[np.arange(len(batch))]) for positions, batch in self.vectors
        ]
        return Processed(items, owned)


class Worker:
    """See the module; its methods are called by Ray, ``process`` from ``PAGES`` threads at once."""

    _embedder: BaseEmbedder
    _processor: LocalProcessor
    _store: HybridStore | None = None
    _folder: ShardFolder | None = None
    _documents = 0

    def load(self, model: Model) -> Loaded:
        """Load the model.

        Raises:
            CheckpointError: it cannot be loaded here.
        """
        try:
            self._embedder = model.load()
        except CheckpointError as error:
            error.args = (f"on the worker {ray.util.get_node_ip_address()}: {error}",)
            raise
        self._counting = threading.Lock()
        self._start, self._forward = time.monotonic(), self._forward_seconds()
        return Loaded(ray.util.get_node_ip_address(), StoreConfig.for_embedder(self._embedder))

    def open(self, target: Target, options: Options) -> None:
        """Prepare to process pages."""
        self._options = options
        if target.address is not None:
            self._store = open_store(target.address, **target.options)
        if target.shards is not None:
            self._folder = ShardFolder(target.shards)
        self._processor = LocalProcessor(self._embedder, self._store, options)
        self._processor.__enter__()

    def process(self, items: Sequence[Item]) -> Page:
        """Process consecutive rows."""
        name = _shard_name(items, self._processor.config)
        if self._folder is not None and (shard := _known(self._folder, name, items)) is not None:
            return Page.of(items, [], shard, self.report())
        done = [pending.result() for pending in self._processor.submit(items)]
        processed = Processed(items, [embedded for window in done for embedded in window.embedded])
        with self._counting:
            self._documents += sum(item.pending for item in items)
        wanted = processed.wanted(stop=self._options.on_error == "stop")
        if self._store is None and self._folder is None:
            return Page.of(items, processed.embedded, None, self.report())
        shard = None
        if self._folder is not None and wanted:
            shard = self._folder.write(name, [records(embedded) for embedded in wanted], self._processor.config)
        elif self._store is not None:
            for embedded in wanted:
                write(embedded, self._store)
        return Page.of(items, [], shard, self.report())

    def report(self) -> WorkerReport:
        """Return what it has done until now."""
        seconds = time.monotonic() - self._start
        busy = (self._forward_seconds() - self._forward) / seconds if isinstance(self._embedder, Embedder) else None
        return WorkerReport(ray.util.get_node_ip_address(), self._documents, seconds, busy)

    def close(self) -> WorkerReport:
        """Release everything."""
        report = self.report()
        self._processor.__exit__(None, None, None)
        if self._store is not None:
            self._store.close()
        self._embedder.close()
        return report

    def _forward_seconds(self) -> float:
        return float(self._embedder.stats()["forward_seconds"]) if isinstance(self._embedder, Embedder) else 0.0


def _shard_name(items: Sequence[Item], config: StoreConfig) -> str:
    """Return the name of a page's file: the same for the same documents and the same model."""
    content = [config.fingerprint, *(f"{item.id} {item.hash}" for item in items if item.outcome != "failed")]
    return f"part-{blake2b(chr(10).join(content).encode(), digest_size=16).hexdigest()}.parquet"


def _known(folder: ShardFolder, name: str, items: Sequence[Item]) -> Shard | None:
    """Return the file that an earlier run wrote of a page, if it has all of its documents."""
    found = folder.find(name)
    if found is None:
        return None
    shard, provenances = found
    stored = {provenance["document"]: provenance["hash"] for provenance in provenances}
    wanted = {item.id: item.hash for item in items if item.outcome != "failed"}
    if stored != wanted:
        return None
    for item in items:
        if item.outcome != "failed":
            item.outcome = "unchanged"
    return shard
