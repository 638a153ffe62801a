"""The processes of benchmarks/stores.py: each system ingests, is optimized and is asked in processes of its own."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.stores_data import Data, source_of
from benchmarks.stores_systems import BATCH, CONTENDERS, MATVEC

MEASURES = ("dense", "sparse", "hybrid", "hybrid 1%", "hybrid 10%", "hybrid 50%")
_WARM_UP, _LEAST = 3, 5  # queries
_SPAWN = multiprocessing.get_context("spawn")


def ingest(name: str, data: Data, folder: Path, most: int) -> dict[str, Any]:
    """Store documents in batches; the seconds hold validation, conversion and the flush, not the reading of files."""
    before, seconds, documents, tenths = memory(), 0.0, 0, [0.0]
    system = CONTENDERS[name].open(folder, data)
    for batch in data.batches(BATCH, most):
        start = time.perf_counter()
        system.write(batch)
        seconds += time.perf_counter() - start
        documents += len(batch)
        if documents >= len(tenths) * min(most, data.n) / 10:
            tenths.append(seconds)
    start = time.perf_counter()
    system.flush()
    seconds += time.perf_counter() - start
    result: dict[str, Any] = {"documents": documents, "seconds": seconds, "memory_before": before}
    result |= {"memory": memory(system), "tenths": [round(b - a, 3) for a, b in itertools.pairwise(tenths)]}
    system.close()
    return {**result, "fsync_s": fsync(folder.parent)}


def optimize(name: str, data: Data, folder: Path) -> dict[str, Any]:
    """Build the index; the memory is this process's and that of a child that does the work."""
    system = CONTENDERS[name].open(folder, data)
    start = time.perf_counter()
    system.optimize()
    seconds = time.perf_counter() - start
    result: dict[str, Any] = {"seconds": seconds, "memory": memory(system)}
    if hasattr(system, "graph_bytes"):
        result["graph"] = system.graph_bytes()
    result["child_peak"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    system.close()
    return result


class Server:
    """A process that has a store open and is asked now and then."""

    def __init__(self, name: str, data: Data, folder: Path) -> None:
        """Start it; ``opened`` is what opening took."""
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(name, data, folder, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that the child's death is an EOFError here
        self.opened: dict[str, Any] = _received(self._pipe)

    def ask(self, measure: str, first: int, most: int, seconds: float) -> list[tuple[int, float, list[str]]]:
        """Send queries one after the other; return (query, seconds, ids) of each."""
        self._pipe.send((measure, first, most, seconds))
        answers: list[tuple[int, float, list[str]]] = _received(self._pipe)
        return answers

    def stop(self) -> dict[str, int]:
        """Close the store; return the memory that the process had at the end."""
        self._pipe.send(None)
        used: dict[str, int] = _received(self._pipe)
        self._process.join()
        return used


def alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run a function in a process of its own; return its result."""
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_run, args=(work, arguments, theirs))
    process.start()
    theirs.close()
    result: dict[str, Any] = _received(ours)
    process.join()
    return result


def disk(folder: Path) -> int:
    """Return the bytes that a folder takes on the disk, as du counts."""
    return sum(os.lstat(os.path.join(at, name)).st_blocks * 512 for at, _, names in os.walk(folder) for name in names)


def fsync(folder: Path) -> float:
    """Return the median seconds of a durable write of 4 KiB: what every commit costs on this disk at this moment."""
    seconds = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(15):
            start = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def copy(source: str, target: str) -> None:
    """Copy a file of a closed store; its holes stay holes."""
    with open(source, "rb") as old, open(target, "wb") as new:
        while block := old.read(2**16):
            if block.count(0) == len(block):
                new.seek(len(block), os.SEEK_CUR)
            else:
                new.write(block)
        new.truncate()


def memory(system: Any = None) -> dict[str, int]:
    """Return this process's resident bytes: all, those that are not mapped files, and the most there ever were; and its
    server's, if it has one."""
    server = {"server": system.server_memory()} if hasattr(system, "server_memory") else {}
    if sys.platform != "linux":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"rss": peak, "anonymous": peak, "peak": peak, **server}
    # not ru_maxrss: a new process starts with its parent's
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    names = {"rss": "VmRSS", "anonymous": "RssAnon", "peak": "VmHWM"}
    return {**{name: int(values[field].split()[0]) * 1024 for name, field in names.items()}, **server}


def _run(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], pipe: Any) -> None:
    try:
        pipe.send(work(*arguments))
    except Exception:
        pipe.send(traceback.format_exc())


def _serve(name: str, data: Data, folder: Path, pipe: Any) -> None:
    try:
        _answer(name, data, folder, pipe)
    except Exception:
        pipe.send(traceback.format_exc())


def _answer(name: str, data: Data, folder: Path, pipe: Any) -> None:
    contender, queries, before = CONTENDERS[name], data.queries, memory()
    start = time.perf_counter()
    system = contender.open(folder, data)
    seconds, opened = time.perf_counter() - start, memory(system)
    if contender.in_memory and name != MATVEC:
        for batch in data.batches(BATCH, data.n):
            system.write(batch)

    def ask(measure: str, query: int) -> list[str]:
        if measure in ("dense", "sparse"):
            found: list[str] = getattr(system, measure)(queries[query])
        else:
            found = system.hybrid(queries[query], source_of(measure))
        return found

    start = time.perf_counter()
    for measure, query in itertools.product(measures(name), range(_WARM_UP)):
        ask(measure, -1 - query)
    warm_up = time.perf_counter() - start
    pipe.send({"open_s": seconds, "warm_up_s": warm_up, "memory_before": before, "memory_opened": opened})
    while (message := pipe.recv()) is not None:
        measure, first, most, allowed = message
        answers: list[tuple[int, float, list[str]]] = []
        begin = time.perf_counter()
        for i in range(first, first + most):
            if len(answers) >= _LEAST and time.perf_counter() - begin > allowed:
                break
            start = time.perf_counter()
            ids = ask(measure, i % len(queries))
            answers.append((i % len(queries), time.perf_counter() - start, ids))
        pipe.send(answers)
    pipe.send(memory(system))
    if name != MATVEC:
        system.close()


def measures(name: str) -> tuple[str, ...]:
    """Return what a contender is asked."""
    return MEASURES[:1] if name == MATVEC else MEASURES


def _received(pipe: Any) -> Any:
    result = pipe.recv()
    if isinstance(result, str):
        raise RuntimeError(f"a process of the benchmark failed:\n{result}")
    return result
