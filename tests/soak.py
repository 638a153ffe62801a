"""A soak test, not collected by pytest: many callers, failures, cancellations and restarts for minutes.

    python tests/soak.py --minutes 10

Threads and asyncio tasks share Embedders of tiny checkpoints while forward passes and the tokenizer fail, calls time
out or are cancelled, Embedders open and close, and devices are lost. Every row that comes back is compared with the
vector that its text has alone; every error must be one that this call had to expect; no call may hang; threads and
memory must stay flat. Exit status 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import functools
import gc
import itertools
import logging
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from reference.giga import VOCAB, build_giga_0826
from reference.gte import build_gte
from reference.tokenizers_ import WORDS_EN, WORDS_RU, WORDS_ZH
from twinvec import Embedder, EmbeddingBatch, Role, TruncationWarning
from twinvec.cache import VectorCache
from twinvec.compute.backbone import PackedTransformer
from twinvec.compute.packing import TokenBatch
from twinvec.engine import dispatcher
from twinvec.errors import (
    ConfigurationError,
    DeadlineError,
    DeviceLostError,
    NonFiniteError,
    OutOfMemoryError,
    OverloadedError,
)
from twinvec.text.tokenizer import TextTokenizer, TokenizedText

WINDOW, MAX_PENDING = 64, 500  # in place of the core's, so that windows and backpressure are at work
TOLERANCE = 1e-4
OOM_TOKENS = 320  # more do not "fit"
CHANCE_OOM_TOKENS = 200
FAILURE_RATE = 0.01
NAN_MARK, ERROR_MARK = "@", "&"
N_CLEAN, N_POISON = 200, 5
MAX_GROWTH, MAX_GROWTH_MB, MAX_GROWTH_THREADS = 0.1, 20, 3
MAX_SHOWN = 20


class InjectedError(RuntimeError):
    """A failure that comes and goes: any call may get it."""


class PoisonError(RuntimeError):
    """A failure of one text: only calls that hold it may get it."""


def make_texts(generator: random.Random) -> list[str]:
    """Return clean texts of all lengths, then texts that give NaN, that raise, and that do not fit into memory."""
    words = WORDS_EN + WORDS_RU + WORDS_ZH

    def text(n: int) -> str:
        return " ".join(generator.choices(words, k=n))

    clean = ["", *(text(generator.choice((1, 2, 4, 8, 16, 40))) for _ in range(N_CLEAN - 1))]
    poison = [f"{mark} {i} {text(5)}" for mark in (NAN_MARK, ERROR_MARK) for i in range(N_POISON)]
    return clean + poison + [text(OOM_TOKENS + 10 * i) for i in range(N_POISON)]


def kind_of(number: int) -> str:
    """Return what is wrong with a text."""
    return "clean" if number < N_CLEAN else ("nan", "error", "huge")[(number - N_CLEAN) // N_POISON]


class Chaos:
    """Failures above and below the core: in the tokenizer and in the forward pass of every model."""

    def __init__(self, generator: random.Random) -> None:
        self.on = False
        self.counts: Counter[str] = Counter()
        self.losses: Counter[int] = Counter()  # id of a backbone -> forward passes that lose their device
        self._generator = generator
        self._marked: dict[tuple[int, ...], str] = {}  # token ids -> mark
        self._lock = threading.Lock()

    def install(self) -> None:
        """Wrap the forward pass and the tokenizer."""
        encode, forward = TextTokenizer.encode, PackedTransformer.forward
        chaos = self

        def failing_encode(self: TextTokenizer, texts: Any, prompt: str = "", *rest: Any) -> list[TokenizedText]:
            if chaos._chance("slow tokenizer", 0.05):
                time.sleep(0.05 * chaos._generator.random())
            if chaos._chance("tokenizer failures"):
                raise InjectedError("injected into the tokenizer")
            encoded = encode(self, texts, prompt, *rest)
            chaos._remember(texts, encoded)
            return encoded

        def failing_forward(self: PackedTransformer, batch: TokenBatch) -> torch.Tensor:
            if not chaos.on:
                return forward(self, batch)
            spoiled = chaos._strike(id(self), batch)
            output = forward(self, batch)
            for start, stop in spoiled:
                output[start:stop] = torch.nan
            return output

        patched: list[tuple[type, str, object]] = [
            (TextTokenizer, "encode", failing_encode),
            (PackedTransformer, "forward", failing_forward),
        ]
        for owner, name, failing in patched:
            setattr(owner, name, failing)

    def _chance(self, what: str, rate: float = FAILURE_RATE) -> bool:
        if not self.on or self._generator.random() >= rate:
            return False
        self._count(what)
        return True

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _remember(self, texts: list[str], encoded: list[TokenizedText]) -> None:
        for text, tokens in zip(texts, encoded, strict=True):
            if text[:1] in (NAN_MARK, ERROR_MARK):
                self._marked[tuple(tokens.ids.tolist())] = text[0]

    def _strike(self, backbone: int, batch: TokenBatch) -> list[tuple[int, int]]:
        """Raise, or return the token ranges to spoil."""
        with self._lock:
            lost = self.losses[backbone] > 0
            self.losses[backbone] -= int(lost)
        if lost:
            self._count("lost devices")
            raise RuntimeError("CUDA error: injected")
        if self._chance("slow passes", 0.05):
            time.sleep(0.02 * self._generator.random())
        if self._chance("forward failures"):
            raise InjectedError("injected into the forward pass")
        large = batch.n_tokens > OOM_TOKENS
        if large or (batch.n_tokens > CHANCE_OOM_TOKENS and self._chance("chance out of memory")):
            self._count("out of memory")
            raise torch.OutOfMemoryError("injected")
        ids, bounds = batch.input_ids.tolist(), batch.cu_seqlens.tolist()
        ranges = list(itertools.pairwise(bounds))
        marks = [self._marked.get(tuple(ids[start:stop])) for start, stop in ranges]
        if ERROR_MARK in marks:
            self._count("raising texts")
            raise PoisonError("injected for a text")
        return [part for part, mark in zip(ranges, marks, strict=True) if mark == NAN_MARK]


@dataclass
class Client:
    """An Embedder, the options it was made with, and what its texts must give."""

    name: str
    folder: Path
    options: dict[str, Any]
    truth: dict[Role, EmbeddingBatch] = field(default_factory=dict)
    losing: bool = False

    def open(self) -> Embedder:
        return Embedder(self.folder, dtype="float32", **self.options)

    def compute_truth(self, texts: list[str]) -> None:
        """Embed each text alone, without memo, cache or company."""
        options = {k: v for k, v in self.options.items() if k != "cache"} | {"memo_bytes": 0, "device": "cpu"}
        with Embedder(self.folder, dtype="float32", **options) as embedder:
            for role, embed in ((Role.QUERY, embedder.embed_queries), (Role.DOCUMENT, embedder.embed_documents)):
                rows = [embed([text]) for text in texts]
                sparse = [row.sparse for row in rows if row.sparse is not None]
                self.truth[role] = EmbeddingBatch(
                    np.concatenate([row.dense for row in rows if row.dense is not None]),
                    type(sparse[0]).stack(sparse) if sparse else None,
                    np.concatenate([row.token_counts for row in rows]),
                    np.concatenate([row.truncated for row in rows]),
                )


@dataclass(eq=False)
class Call:
    """One call and the errors that it must expect."""

    client: Client
    role: Role
    rows: list[int]
    dense: bool
    sparse: bool
    timeout: float | None
    cancelled: bool = False
    closing: bool = False
    started: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        kinds = dict(Counter(kind_of(row) for row in self.rows))
        halves = " ".join(name for name in ("dense", "sparse") if getattr(self, name))
        flags = " ".join(name for name in ("cancelled", "closing") if getattr(self, name))
        return f"{self.client.name} {self.role.value} {kinds} {halves} timeout={self.timeout} {flags}"

    def expects(self, error: BaseException) -> bool:
        """Return whether the error is this call's own."""
        kinds = {kind_of(row) for row in self.rows}
        return (
            isinstance(error, InjectedError)
            or (isinstance(error, PoisonError) and "error" in kinds)
            or (isinstance(error, NonFiniteError) and "nan" in kinds)
            or (isinstance(error, OutOfMemoryError) and "huge" in kinds)
            or (isinstance(error, DeadlineError) and self.timeout is not None)
            or (isinstance(error, OverloadedError) and self.client.options.get("on_overload") == "error")
            or (isinstance(error, DeviceLostError) and self.client.losing)
            or (isinstance(error, ConfigurationError) and self.closing and "closed" in str(error))
            or (isinstance(error, asyncio.CancelledError) and self.cancelled)
        )

    def verify(self, batch: EmbeddingBatch) -> None:
        """Compare every row with its text's own."""
        expected = self.client.truth[self.role][self.rows]
        np.testing.assert_array_equal(batch.token_counts, expected.token_counts)
        np.testing.assert_array_equal(batch.truncated, expected.truncated)
        assert (batch.dense is not None) == self.dense
        assert (batch.sparse is not None) == self.sparse
        if batch.dense is not None and expected.dense is not None:
            np.testing.assert_allclose(batch.dense, expected.dense, atol=TOLERANCE, rtol=0)
        if batch.sparse is not None and expected.sparse is not None:
            found, alone = batch.sparse.to_numpy(VOCAB), expected.sparse.to_numpy(VOCAB)
            np.testing.assert_allclose(found, alone, atol=TOLERANCE, rtol=TOLERANCE)


class Ledger:
    """Every call that was made, until it has ended."""

    def __init__(self) -> None:
        self.open: set[Call] = set()
        self.outcomes: Counter[str] = Counter()
        self.rows = 0
        self.wrong: Counter[str] = Counter()
        self.shown: list[str] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def watch(self, call: Call) -> Iterator[None]:
        """Register a call while it runs, and judge how it ends; its errors end here."""
        with self._lock:
            self.open.add(call)
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
        with self._lock:
            self.open.discard(call)
            self.outcomes["vectors" if error is None else type(error).__name__] += 1
            self.rows += len(call.rows) if error is None else 0
        if error is not None and not call.expects(error):
            self.complain(f"{type(error).__name__}", f"{call}: {error}"[:600])

    def complain(self, kind: str, what: str) -> None:
        """Note that something is wrong."""
        with self._lock:
            self.wrong[kind] += 1
            if self.wrong[kind] <= MAX_SHOWN // 4:
                self.shown.append(f"{kind}: {what}")

    def overdue(self, limit: float) -> list[Call]:
        """Return the calls that run for longer than ``limit`` seconds."""
        with self._lock:
            return [call for call in self.open if time.monotonic() - call.started > limit]


class Soak:
    """The callers, and what they share."""

    def __init__(self, folder: Path, generator: random.Random) -> None:
        self.random = generator
        self.texts = make_texts(generator)
        self.chaos, self.ledger = Chaos(generator), Ledger()
        self.stopped = threading.Event()
        gte, giga = build_gte(folder / "gte"), build_giga_0826(folder / "giga")
        lossy, private = build_gte(folder / "lossy", seed=7), build_gte(folder / "private", seed=8)
        e5 = {"query": "query: ", "document": "passage: "}
        cache = VectorCache(folder / "cache")
        self.clients = [
            Client("gte", gte, {"memo_bytes": 0}),
            Client("gte 32 dims, ids, memo", gte, {"dim": 32, "sparse_keys": "ids", "memo_bytes": 50_000}),
            Client("gte prompts, overload error", gte, {"prompts": e5, "memo_bytes": 0, "on_overload": "error"}),
            Client("gte 24 tokens", gte, {"max_length": 24, "sparse": None, "memo_bytes": 0}),
            Client("gte prompts, 48 dims, cache", gte, {"prompts": e5, "dim": 48, "memo_bytes": 0, "cache": cache}),
            Client("giga", giga, {"memo_bytes": 0}),
            Client("giga task, memo", giga, {"task": "Find the topic", "memo_bytes": 20_000}),
            Client("gte, 2 replicas", lossy, {"device": "cpu,cpu", "memo_bytes": 0}, losing=True),
        ]
        self.private = Client("gte, own", private, {"memo_bytes": 0})
        for client in [*self.clients, self.private]:
            client.compute_truth(self.texts)
        self.embedders = {client.name: client.open() for client in self.clients}

    def plan(self, client: Client | None = None) -> Call:
        """Return a call of random client, role, size, poison, halves and timeout."""
        choose = self.random
        client = client or choose.choice(self.clients)
        size = choose.choice((1, 1, 1, 1, 1, choose.randint(2, 20), choose.randint(2, 20), choose.randint(20, 400)))
        rows = choose.choices(range(N_CLEAN), k=size)
        if choose.random() < 0.05:
            rows[choose.randrange(size)] = choose.randrange(N_CLEAN, len(self.texts))
        has_sparse = client.truth[Role.QUERY].sparse is not None
        dense, sparse = choose.choice(((True, True), (True, False), (False, True))) if has_sparse else (True, False)
        timeout = choose.choice((None, None, None, 30.0, 0.03 * choose.random()))
        return Call(client, choose.choice((Role.QUERY, Role.DOCUMENT)), rows, dense, sparse, timeout)

    def ask(self, embedder: Embedder, call: Call) -> None:
        """Run a call on this thread."""
        embed = embedder.embed_queries if call.role is Role.QUERY else embedder.embed_documents
        texts = [self.texts[row] for row in call.rows]
        call.started = time.monotonic()
        with self.ledger.watch(call):
            call.verify(embed(texts, dense=call.dense, sparse=call.sparse, timeout=call.timeout))

    async def ask_async(self, embedder: Embedder, call: Call) -> None:
        """Run a call on this event loop, and cancel it now and then."""
        embed = embedder.aembed_queries if call.role is Role.QUERY else embedder.aembed_documents
        texts = [self.texts[row] for row in call.rows]
        call.started = time.monotonic()
        with self.ledger.watch(call):
            task = asyncio.ensure_future(embed(texts, dense=call.dense, sparse=call.sparse, timeout=call.timeout))
            if self.random.random() < 0.2:
                await asyncio.sleep(0.02 * self.random.random())
                call.cancelled = task.cancel()
            call.verify(await task)

    # --- callers, each until the soak is stopped

    def thread(self) -> None:
        """Call from a thread."""
        while not self.stopped.is_set():
            call = self.plan()
            self.ask(self.embedders[call.client.name], call)

    def loop(self) -> None:
        """Call from tasks of an event loop, sometimes many at once."""

        async def task() -> None:
            while not self.stopped.is_set():
                calls = [self.plan() for _ in range(64 if self.random.random() < 0.05 else 1)]
                await asyncio.gather(*(self.ask_async(self.embedders[call.client.name], call) for call in calls))

        async def tasks() -> None:
            await asyncio.gather(*(task() for _ in range(8)))

        asyncio.run(tasks())

    def sharer(self) -> None:
        """Open and close more Embedders of the models in use."""
        while not self.stopped.wait(0.2 * self.random.random()):
            client = self.random.choice(self.clients)
            with client.open() as embedder:
                for _ in range(self.random.randint(0, 3)):
                    self.ask(embedder, self.plan(client))

    def owner(self) -> None:
        """Load a model of its own, and give it up in every way: closed under its callers, or left to the collector."""
        with ThreadPoolExecutor(4) as pool:
            while not self.stopped.wait(0.2 * self.random.random()):
                embedder = self.private.open()
                calls = [self.plan(self.private) for _ in range(self.random.randint(0, 12))]
                futures = [pool.submit(self.ask, embedder, call) for call in calls]
                if self.random.random() < 0.5:
                    time.sleep(0.02 * self.random.random())
                    for call in calls:
                        call.closing = True
                    embedder.close()
                for future in futures:
                    future.result()
                cycle: list[Any] = [embedder]
                cycle.append(cycle)
                del embedder, cycle, futures

    def loser(self) -> None:
        """Lose one device, or all, and restart, from two threads at once."""
        embedder = self.embedders[self.clients[-1].name]
        while not self.stopped.wait(1 + 3 * self.random.random()):
            backbone = embedder._core.model.encoder.backbone
            self.chaos.losses[id(backbone)] = self.random.choice((1, 2))
            while embedder.healthy and self.chaos.losses[id(backbone)] > 0 and not self.stopped.wait(0.01):
                pass
            self.chaos.losses.clear()  # the next backbone may have this one's id
            if not embedder.healthy:
                threads = [threading.Thread(target=embedder.restart) for _ in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                if not embedder.healthy:
                    self.ledger.complain("restart", "the Embedder is not healthy after restart()")


@dataclass(frozen=True)
class Sample:
    """The process at one moment."""

    rss_mb: float
    threads: int


def take_sample() -> Sample:
    """Read resident memory and native threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/task")))


def growth(samples: list[Sample]) -> list[tuple[str, float, float, bool]]:
    """Return (what, first quarter's median, last quarter's median, whether it is flat)."""
    quarter = max(len(samples) // 4, 1)
    found = []
    for name, slack in (("rss_mb", MAX_GROWTH_MB), ("threads", MAX_GROWTH_THREADS)):
        values = [getattr(sample, name) for sample in samples]
        first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        found.append((name, first, last, last <= first * (1 + MAX_GROWTH) + slack))
    return found


def watch_over(soak: Soak, seconds: float, hang: float, console: Console) -> list[Sample]:
    """Sample and report until the time is over; end the process where a call hangs."""
    samples, start, reported = [], time.monotonic(), 0.0
    while (passed := time.monotonic() - start) < seconds:
        time.sleep(0.5)
        samples.append(take_sample())
        die_if_hung(soak.ledger, hang, console)
        if passed - reported >= 5:
            reported = passed
            ledger, now = soak.ledger, samples[-1]
            console.print(
                f"{passed:5.0f} s  {sum(ledger.outcomes.values())} calls, {ledger.rows} rows verified, "
                f"{len(ledger.open)} open, {now.rss_mb:.0f} MB, {now.threads} threads, "
                f"{sum(ledger.wrong.values())} wrong",
                soft_wrap=True,
            )
    return samples


def die_if_hung(ledger: Ledger, hang: float, console: Console) -> None:
    """End the process, with all stacks, where a call takes too long: its thread cannot be ended otherwise."""
    if overdue := ledger.overdue(hang):
        faulthandler.dump_traceback(all_threads=True)
        for call in overdue[:MAX_SHOWN]:
            console.print(f"hangs for more than {hang:.0f} s: {call}", markup=False)
        for line in ledger.shown:
            console.print(line, markup=False)
        console.print(f"failed: {len(overdue)} calls hang", style="red")
        os._exit(1)


def finish(soak: Soak, threads: list[threading.Thread], hang: float, console: Console) -> None:
    """Stop the callers, look for what is left behind, close everything."""
    soak.stopped.set()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)
            die_if_hung(soak.ledger, hang, console)
    for name, embedder in soak.embedders.items():
        if left := wait_until_zero(functools.partial(pending, embedder)):
            soak.ledger.complain("queue", f"{name}: {left} texts are pending, and nobody asks for them")
        embedder.close()
    gc.collect()
    if wait_until_zero(lambda: len(own_threads())):
        for thread in own_threads():
            soak.ledger.complain("threads", f"{thread.name} is left after close:\n{stack(thread)}")


def pending(embedder: Embedder) -> int:
    state = embedder._core.state
    return len(state.lanes) + len(state._entries)


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("twinvec")]


def stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else "(just ended)"


def wait_until_zero(count: Callable[[], int], limit: float = 5) -> int:
    deadline = time.monotonic() + limit
    while (left := count()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def report(soak: Soak, samples: list[Sample], console: Console) -> bool:
    """Print what happened; return whether all was well."""
    table = Table(title="soak")
    table.add_column("calls that ended with")
    table.add_column("n", justify="right")
    for name, n in soak.ledger.outcomes.most_common():
        table.add_row(name, str(n), end_section=False)
    table.add_section()
    for name, n in soak.chaos.counts.most_common():
        table.add_row(f"injected: {name}", str(n))
    table.add_section()
    table.add_row("rows verified", str(soak.ledger.rows))
    flat = growth(samples)
    for name, first, last, ok in flat:
        table.add_row(f"{name}, first and last quarter", f"{first:.0f} {last:.0f} {'flat' if ok else 'GROWS'}")
    for name, n in soak.ledger.wrong.most_common():
        table.add_row(f"WRONG: {name}", str(n))
    console.print(table)
    for line in soak.ledger.shown:
        console.print(line, markup=False)
    return not soak.ledger.wrong and all(ok for *_, ok in flat)


def main() -> int:
    """Parse arguments, soak, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=6, help="threads that call; there are two event loops besides")
    parser.add_argument("--hang", type=float, default=60, help="seconds after which a call counts as hanging")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console()
    warnings.simplefilter("ignore", TruncationWarning)
    logging.getLogger("twinvec").setLevel(logging.CRITICAL + 1)
    torch.set_num_threads(1)  # the callers are many enough
    dispatcher.WINDOW, dispatcher.MAX_PENDING = WINDOW, MAX_PENDING
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), random.Random(options.seed))
        soak.chaos.install()
        soak.chaos.on = True
        workers = [*[soak.thread] * options.threads, soak.loop, soak.loop, soak.sharer, soak.owner, soak.loser]
        threads = [threading.Thread(target=worker, name=worker.__name__, daemon=True) for worker in workers]
        console.print(f"{len(soak.texts)} texts, {len(soak.clients)} shared Embedders, {len(threads)} callers")
        for thread in threads:
            thread.start()
        seconds = 60 * options.minutes
        samples = watch_over(soak, seconds, options.hang, console)
        finish(soak, threads, options.hang, console)
        well = report(soak, samples[len(samples) // 5 :], console)  # the first fifth is warm-up
    console.print("passed" if well else "failed", style="green" if well else "red")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
