"""Kill -9 an ingest again and again, resume it, and compare the store with that of an uninterrupted one.

    python tests/kill_ingest.py --documents 20000 --kills 10 [--engine postgres]

Two rounds: documents into an empty store, then their next version (changed, gone and new documents, chunked) with
``prune``. Each child process is killed after a number of store operations drawn at random; a third of them are given
a random time after that, so that the blow may fall anywhere. Of PostgreSQL the server is killed, too, every other time.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from killing import Operations, compare, main, run_and_kill, write_corpus
from reference.gte import build_gte
from stores.postgres import KilledServer
from twinvec import Embedder
from twinvec_stores import StoreConfig, open_store
from twinvec_stores.ingestion import ingest

WRITES = ("upsert", "delete", "flush")


@dataclass(frozen=True)
class Job:
    """What a child process does."""

    model: Path
    corpus: Path
    store: dict[str, Any]
    options: dict[str, Any]


def run_job(job: Job, operations: Operations) -> None:
    """Ingest."""
    with (
        Embedder(job.model, dtype="float32") as embedder,
        open_store(config=StoreConfig.for_embedder(embedder), **job.store) as store,
    ):
        operations.watch(store, WRITES)
        report = ingest(job.corpus, embedder, store, **job.options)
    operations.end(report)


def rounds(
    folder: Path, documents: int, kills: int, rng: random.Random, *, batch_size: int = 256, engine: str = "embedded"
) -> Iterator[str]:
    """Ingest two versions of a corpus, killed and whole, compare, and tell how it goes."""
    model = build_gte(folder / "model", dtype="float32", layers=1, hidden=32, heads=2)
    server = KilledServer() if engine == "postgres" else None
    stores: list[dict[str, Any]] = [
        {"location": str(folder / name)} if server is None else {"location": server.url, "collection": name}
        for name in ("whole", "killed")
    ]
    for version in (1, 2):
        corpus = folder / f"version {version}.jsonl"
        write_corpus(corpus, documents, version=version)
        options = {"chunk_tokens": 40, "overlap_tokens": 8, "prune": True, "prune_share": 1, "batch_size": batch_size}
        whole, killed = (partial(run_job, Job(model, corpus, store, options)) for store in stores)
        [whole_run] = run_and_kill(whole, 0, 0, rng, writes=WRITES)
        yield f"version {version}, {whole_run.operations} operations of the store\n{whole_run.report}"
        deaths = -1
        for run in run_and_kill(killed, kills, whole_run.operations, rng, writes=WRITES, server=server):
            deaths += 1
            yield f"killed in operation {run.operations}" if run.report is None else str(run.report)
        with open_store(**stores[1]) as left, open_store(**stores[0]) as right:
            records = compare(left, right)
        reports = run.report, whole_run.report
        totals = [r.new + r.changed + r.unchanged for r in reports]
        assert totals[0] == totals[1]
        assert reports[0].failures == reports[1].failures
        yield f"{deaths} kills: all {records} records are equal, and the last report tells of all documents"
    if server is not None:
        server.stop()


if __name__ == "__main__":
    sys.exit(main(__doc__, ["embedded", "postgres"], rounds))
