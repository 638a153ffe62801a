"""What is watched besides the calls: time, memory, threads, and what is left at the end."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import os
import statistics
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from soaking.callers import Soak
from soaking.clients import WrongError
from twinvec import Embedder
from twinvec_stores import EmbeddedStore

MAX_GROWTH, MAX_GROWTH_MB, MAX_GROWTH_THREADS = 0.1, 20, 3
_MAX_SHOWN = 20


@dataclass(frozen=True)
class Sample:
    """The process at one moment."""

    memory: float  # MB
    threads: int


def take_sample() -> Sample:
    """Read resident memory and native threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/task")))


def check_growth(soak: Soak, samples: list[Sample]) -> None:
    """Compare the medians of the first and the last quarter, after a fifth to warm up."""
    samples = samples[len(samples) // 5 :]
    quarter = max(len(samples) // 4, 1)
    for name, slack in (("memory", MAX_GROWTH_MB), ("threads", MAX_GROWTH_THREADS)):
        values = [getattr(sample, name) for sample in samples]
        first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        if last > first * (1 + MAX_GROWTH) + slack:
            names = Counter(thread.name for thread in threading.enumerate())
            soak.ledger.complain(f"{name} in use", f"from {first:.0f} to {last:.0f}; threads at the end: {names}")


class Watch:
    """Watches over a soak; a call that hangs ends the process, as its thread cannot be ended."""

    def __init__(self, soak: Soak, hang: float, console: Console, hung: Callable[[], int]) -> None:
        self._soak, self._hang, self._console, self._hung = soak, hang, console, hung

    def until(self, seconds: float) -> list[Sample]:
        """Sample and report until the time is over."""
        ledger = self._soak.ledger
        samples, start, reported = [], time.monotonic(), 0.0
        while (passed := time.monotonic() - start) < seconds:
            time.sleep(0.5)
            samples.append(take_sample())
            self._end_if_hung()
            if passed - reported >= 5:
                reported, now = passed, samples[-1]
                self._console.print(
                    f"{passed:5.0f} s  {sum(ledger.outcomes.values())} calls, {ledger.rows} rows verified, "
                    f"{len(ledger.open)} open, {now.memory:.0f} MB, {now.threads} threads, "
                    f"{sum(ledger.wrong.values())} wrong",
                    soft_wrap=True,
                )
        return samples

    def finish(self, threads: list[threading.Thread]) -> None:
        """Stop the callers, look for what is left behind, close everything."""
        soak = self._soak
        soak.stopped.set()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)
                self._end_if_hung()
        self._check_stores()
        for name, embedder in soak.embedders.items():
            if left := _wait_until_zero(functools.partial(_pending, embedder)):
                soak.ledger.complain("queue", f"{name}: {left} texts are pending, and nobody asks for them")
            try:
                embedder.close()
            except Exception:
                soak.ledger.complain("callers", f"{name} cannot be closed:\n{traceback.format_exc()}")
        gc.collect()
        if _wait_until_zero(lambda: len(_own_threads())):
            for thread in _own_threads():
                soak.ledger.complain("threads", f"{thread.name} is left after close:\n{_stack(thread)}")

    def _check_stores(self) -> None:
        """Compare with what the writers know, before and after the stores are closed."""
        folder = self._soak.store_folder
        for writer in self._soak.writers:
            with self._complaining():
                writer.check(writer.index.store)
        for writer in self._soak.writers:
            writer.index.close()
        with EmbeddedStore(folder) as store:
            for writer in self._soak.writers:
                if isinstance(writer.index.store, EmbeddedStore):
                    with self._complaining("reopened store"):
                        writer.check(store)

    @contextlib.contextmanager
    def _complaining(self, check: str | None = None) -> Iterator[None]:
        try:
            yield
        except WrongError as error:
            self._soak.ledger.complain(check or error.check, str(error))

    def _end_if_hung(self) -> None:
        ledger = self._soak.ledger
        if overdue := ledger.overdue(self._hang):
            faulthandler.dump_traceback(all_threads=True)
            for call in overdue[:_MAX_SHOWN]:
                ledger.complain("hang", f"for more than {self._hang:.0f} s: {call}")
            os._exit(self._hung())


def _pending(embedder: Embedder) -> int:
    state = embedder._core.state
    return len(state.lanes) + len(state._entries)


def _own_threads() -> list[threading.Thread]:
    """Return threads of models; the process keeps those of BM25 and of stores that block."""
    kept = ("twinvec-bm25", "twinvec-blocking")
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("twinvec") and not thread.name.startswith(kept)
    ]


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else "(just ended)"


def _wait_until_zero(count: Callable[[], int], limit: float = 5) -> int:
    deadline = time.monotonic() + limit
    while (left := count()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
