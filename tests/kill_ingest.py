"""Kill -9 an ingest again and again, resume it, and compare the store with that of an uninterrupted one.

    python tests/kill_ingest.py --documents 20000 --kills 10 [--engine postgres]

Two rounds: documents into an empty store, then their next version (changed, gone and new documents, chunked) with
``prune``. Each child process is killed after a number of store operations drawn at random; a third of them are given
a random time after that, so that the blow may fall anywhere. Of PostgreSQL the server is killed, too, every other time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console

from reference.gte import build_gte
from stores.postgres import KilledServer
from stores_ingest.holding import assert_equal
from twinvec import Embedder
from twinvec_stores import StoreConfig, open_store, verify_store
from twinvec_stores.ingestion import IngestReport, ingest

WORDS = ["the", "of", "what", "capital", "china", "russia", "implement", "quick", "sort", "gravity", "столица", "как"]
METHODS = ("upsert", "delete", "flush")
LONGEST_DELAY = 0.5


@dataclass(frozen=True)
class Job:
    """What a child process does."""

    model: Path
    corpus: Path
    store: dict[str, Any]
    options: dict[str, Any]


class Counter:
    """Listens in place of another process."""

    def __init__(self) -> None:
        self.operations = 0

    def send(self, report: IngestReport | None) -> None:
        self.operations += report is None


@dataclass(frozen=True)
class Death:
    """A run that was killed, after so many operations of the store."""

    operations: int


def write_corpus(path: Path, n: int, *, version: int) -> None:
    """Version 2: a tenth of the documents changed, a tenth gone, a tenth new; some of all are long."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            if version == 2 and i % 10 == 3:
                continue
            own = random.Random(i if version == 1 or i % 10 else -i - 1)
            words = own.choices(WORDS, k=own.choice([5, 8, 12] if i % 17 else [60, 150]))
            number = i + n if version == 2 and i % 10 == 7 else i
            row = {"_id": f"document {number}", "title": f"title {i % 100}", "text": " ".join([*words, str(number)])}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def run_job(job: Job, operations: Connection | Counter | None = None) -> IngestReport:
    """Ingest; tell about each operation of the store before it begins, and the report at the end."""
    with (
        Embedder(job.model, dtype="float32") as embedder,
        open_store(config=StoreConfig.for_embedder(embedder), **job.store) as store,
    ):
        if operations is not None:
            for name in METHODS:
                setattr(store, name, _told(getattr(store, name), operations))
        report = ingest(job.corpus, embedder, store, **job.options)
    if operations is not None:
        operations.send(report)
    return report


def _told(method: Any, operations: Connection | Counter) -> Any:
    def tell(*args: Any, **options: Any) -> Any:
        operations.send(None)
        return method(*args, **options)

    return tell


def kill_and_resume(
    job: Job, kills: int, expected: int, rng: random.Random, server: KilledServer | None
) -> Iterator[Death | IngestReport]:
    """Kill so many runs; yield what they had done, and the report of the one that came to its end.

    Args:
        job: the ingest.
        kills: how many runs to kill.
        expected: operations of the store in an uninterrupted run.
        rng: decides when.
        server: is killed, too, every other time.
    """
    # the server imports everything once, and each child starts at once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "qdrant_edge", "twinvec.engine.loading", "twinvec.engine.core", "twinvec_stores.ingestion"]
    )
    left = expected
    for kill in range(kills + 1):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run_job, args=(job, sender))
        process.start()
        sender.close()
        # the last kills must find something left to kill
        limit = rng.randint(1, max(2 * left // (kills - kill + 1), 1)) if kill < kills else None
        operations = 0
        report = None
        while report is None and operations != limit:
            report = receiver.recv()
            operations += report is None
        if report is None and rng.random() < 0.33:
            time.sleep(LONGEST_DELAY * rng.random())
        if report is None and server is not None and kill % 2 == 0:
            server.kill()
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):  # what it had said before the blow
            while report is None:
                report = receiver.recv()
                operations += report is None
        receiver.close()
        if server is not None:
            server.run()
        if report is not None:
            yield report
            return
        left -= operations
        yield Death(operations)


def count_operations(job: Job) -> tuple[int, IngestReport]:
    """Run to the end in this process."""
    counter = Counter()
    report = run_job(job, counter)
    return counter.operations, report


def compare(left: dict[str, Any], right: dict[str, Any]) -> int:
    """Compare two stores record by record, vectors and indexes included; return how many there are."""
    with open_store(**left) as killed, open_store(**right) as whole:
        assert_equal(killed, whole)
        assert verify_store(killed).damages == ()
        return whole.count()


def main() -> int:
    """Parse arguments, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10, help="in each round")
    parser.add_argument("--engine", choices=["embedded", "postgres"], default="embedded")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console, rng = Console(soft_wrap=True), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        for line in rounds(Path(name), options.documents, options.kills, rng, engine=options.engine):
            console.print(line)
    return 0


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
        whole, killed = (Job(model, corpus, store, options) for store in stores)
        operations, report = count_operations(whole)
        yield f"version {version}, {operations} operations of the store\n{report}"
        deaths = 0
        for end in kill_and_resume(killed, kills, operations, rng, server):
            deaths += isinstance(end, Death)
            yield f"killed in operation {end.operations}" if isinstance(end, Death) else str(end)
        records = compare(killed.store, whole.store)
        assert isinstance(end, IngestReport)
        totals = [r.new + r.changed + r.unchanged for r in (end, report)]
        assert totals[0] == totals[1]
        assert end.failures == report.failures
        yield f"{deaths} kills: all {records} records are equal, and the last report tells of all documents"
    if server is not None:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
