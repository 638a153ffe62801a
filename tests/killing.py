"""Processes that are killed with signal 9 while they write into a store, again and again."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console

from stores.postgres import KilledServer
from stores_ingest.holding import assert_equal
from twinvec_stores import HybridStore, verify_store

WORDS = ["the", "of", "what", "capital", "china", "russia", "implement", "quick", "sort", "gravity", "столица", "как"]
LONGEST_DELAY = 0.5
# the fork server imports everything once, and each process starts at once
CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = ["torch", "qdrant_edge", "twinvec.engine.loading", "twinvec.engine.core", "twinvec_stores.ingestion"]


@dataclass(frozen=True)
class Run:
    """A process that has ended.

    Attributes:
        operations: how many operations of stores it had begun.
        report: what it told at its end; None if it was killed.
    """

    operations: int
    report: Any


class Operations:
    """Where a process tells about each operation of a store before it begins, and at the end its report."""

    def __init__(self, listener: Connection) -> None:
        self._listener = listener

    def watch(self, store: Any, names: Sequence[str]) -> None:
        """Tell about these methods of a store, or of all stores of this process."""
        for name in names:
            setattr(store, name, self._told(name, getattr(store, name)))

    def end(self, report: Any) -> None:
        """Tell the report."""
        self._listener.send((None, report))

    def _told(self, name: str, method: Any) -> Any:
        def tell(*args: Any, **options: Any) -> Any:
            self._listener.send((name, None))
            return method(*args, **options)

        return tell


def main(description: str | None, engines: Sequence[str], rounds: Callable[..., Iterator[str]]) -> int:
    """Parse a script's arguments, and print how its rounds go: kill, compare."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10, help="in each round")
    parser.add_argument("--engine", choices=engines, default="embedded")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console, rng = Console(soft_wrap=True), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        for line in rounds(Path(name), options.documents, options.kills, rng, engine=options.engine):
            console.print(line)
    return 0


def run_and_kill(
    work: Callable[[Operations], None],
    kills: int,
    expected: int,
    rng: random.Random,
    *,
    writes: Sequence[str],
    server: KilledServer | None = None,
) -> Iterator[Run]:
    """Kill so many runs of some work, and let the next one come to its end.

    Args:
        work: what each process does.
        kills: how many to kill.
        expected: operations of an uninterrupted run.
        rng: decides when; a third of them are given a random time after that, so that the blow may fall anywhere.
        writes: the operations that the next run does not repeat.
        server: is killed, too, every other time.
    """
    CONTEXT.set_forkserver_preload(_IMPORTED)
    left = expected
    for kill in range(kills + 1):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_work, args=(work, sender))
        process.start()
        sender.close()
        # the last kills must find something left to kill
        limit = rng.randint(1, max(2 * left // (kills - kill + 1), 1)) if kill < kills else None
        names: list[str | None] = []
        report = None
        while report is None and len(names) != limit:
            name, report = receiver.recv()
            names += [name] if report is None else []
        if report is None and rng.random() < 0.33:
            time.sleep(LONGEST_DELAY * rng.random())
        if report is None and server is not None and kill % 2 == 0:
            server.kill()
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):  # what it had said before the blow
            while report is None:
                name, report = receiver.recv()
                names += [name] if report is None else []
        receiver.close()
        if server is not None:
            server.run()
        yield Run(len(names), report)
        if report is not None:
            return
        left -= sum(name in writes for name in names)


def _work(work: Callable[[Operations], None], listener: Connection) -> None:
    work(Operations(listener))


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


def compare(left: HybridStore, right: HybridStore) -> int:
    """Compare two stores record by record, vectors and indexes included; return how many there are."""
    assert_equal(left, right)
    assert verify_store(left).damages == ()
    return right.count()
