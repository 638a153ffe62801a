"""What the engine itself costs a lone query: the fastest of many calls minus its tokenizer and its pass alone.

    python benchmarks/engine.py

The forward pass returns at once, so that nothing but Python is left. Also counted: how often a query's way leads from
one thread to another.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from benchmarks.speed_work import processor

from reference.gte import build_gte
from twinvec import Embedder
from twinvec.engine.dispatcher import Dispatcher

RESULTS = Path(__file__).with_name("results") / "engine-cpu.json"
CALLS, REPEATS = 300, 7
QUERY = "how to sort a list in python"


def fastest(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest call: all others were disturbed."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def thread_changes(embedder: Embedder) -> int:
    """Return how often one query's way leads from one thread to another."""
    threads = [threading.get_ident()]
    step = Dispatcher.step

    def watched(self: Dispatcher, *event: Any) -> Any:
        threads.append(threading.get_ident())
        return step(self, *event)

    Dispatcher.step = watched  # type: ignore[assignment, method-assign]
    try:
        embedder.embed_queries([QUERY])
    finally:
        Dispatcher.step = step  # type: ignore[method-assign]
    threads.append(threading.get_ident())
    return sum(one != other for one, other in itertools.pairwise(threads))


def main() -> None:
    """Measure, print, write json."""
    with tempfile.TemporaryDirectory() as folder:
        embedder = Embedder(build_gte(Path(folder) / "model"), dtype="float32", memo_bytes=0)
        model = embedder._core.model
        hidden = model.encoder.backbone(embedder_batch(embedder)).clone()
        model.encoder.backbone.forward = lambda batch: hidden  # type: ignore[method-assign]

        def bare() -> object:
            return model.encoder.start(model.tokenizer.encode([QUERY]))()

        calls = {"call": lambda: embedder.embed_queries([QUERY]), "bare": bare}
        repeats = [{name: 1000 * fastest(call) for name, call in calls.items()} for _ in range(REPEATS)]
        report = {
            "machine": processor(),
            "engine_ms": round(statistics.median(r["call"] - r["bare"] for r in repeats), 4),
            "thread_changes": thread_changes(embedder),
            "repeats": [{name: round(value, 4) for name, value in r.items()} for r in repeats],
        }
        embedder.close()
    print(json.dumps(report, indent=1))
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def embedder_batch(embedder: Embedder) -> Any:
    """Return the query as the model sees it."""
    from twinvec.compute.packing import TokenBatch

    with torch.inference_mode():
        return TokenBatch.pack(embedder._core.model.tokenizer.encode([QUERY]))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
