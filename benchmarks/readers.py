"""How long a reader of a folder takes to open and to refresh while another process has it open: benchmarks/results."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from twinvec.vectors import SparseBatch
from twinvec_stores import EmbeddedStore, RecordBatch, StoreConfig

_CONFIG = StoreConfig(fingerprint="benchmark", dim=384)


def fill(store: EmbeddedStore, first: int, n: int) -> None:
    """Write records with a dense vector and some 60 terms each."""
    draw = np.random.default_rng(first)
    for start in range(first, first + n, 2000):
        ids = [str(i) for i in range(start, min(start + 2000, first + n))]
        keys = np.sort(draw.choice(30_000, (len(ids), 60)), axis=1)
        sparse = SparseBatch.from_dicts([dict.fromkeys(row.tolist(), 1.0) for row in keys])
        dense = draw.standard_normal((len(ids), 384)).astype(np.float32)
        store.upsert(RecordBatch(ids, [f"text {id}" * 20 for id in ids], dense, sparse))


def measure(n: int) -> dict[str, float]:
    """Return medians in seconds, and the size in MB."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedStore(Path(folder) / "s", _CONFIG) as store:
        fill(store, 0, n)
        opened, refreshed = [], []
        for turn in range(3):
            start = time.perf_counter()
            with EmbeddedStore(Path(folder) / "s", read_only=True) as reader:
                opened.append(time.perf_counter() - start)
                fill(store, n + 100 * turn, 100)
                start = time.perf_counter()
                reader.refresh()
                refreshed.append(time.perf_counter() - start)
        size = (store.info().bytes or 0) / 1e6
    return {"open": statistics.median(opened), "refresh": statistics.median(refreshed), "megabytes": size}


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "readers.json")
    arguments = parser.parse_args()
    found = {str(n): {name: round(value, 3) for name, value in measure(n).items()} for n in arguments.records}
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
