"""Time to the first vector in a fresh process: ``python speed_first.py twinvec|sentence-transformers FOLDER DEVICE``.

Prints the seconds of the import, of the load and of the first vector as json.
"""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed_models import PEER


def main() -> None:
    """Import, load, embed one text."""
    system, folder, device = sys.argv[1:]
    times = [time.perf_counter()]
    if system == "twinvec":
        from twinvec import Embedder

        times.append(time.perf_counter())
        embedder = Embedder(folder, device=device, sparse=None)
        times.append(time.perf_counter())
        embedder.embed_documents(["hello"])
    else:
        from sentence_transformers import SentenceTransformer

        times.append(time.perf_counter())
        model = SentenceTransformer(str(Path(folder) / PEER), device=device)
        times.append(time.perf_counter())
        model.encode(["hello"])
    times.append(time.perf_counter())
    steps = dict(zip(("import", "load", "first"), (b - a for a, b in pairwise(times)), strict=True))
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
