"""The script of the child process that optimizes a shard, or only opens it; needs the standard library and the engine.

Usage: optimizer.py PACKAGES SHARD [RESULT]. Without RESULT, the shard is opened and closed. Otherwise its segments are
rebuilt into as few as possible; RESULT, made in one step, then has ``segments/`` with the new ones, and ``replaced``
with the names of those whose records they contain.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SEGMENTS, SEALED, REPLACED = "segments", "id_tracker.mappings", "replaced"
_NO_LIMIT = 2**40  # KiB


def main(packages: str, shard: str, result: str | None = None) -> None:
    """Run the script."""
    sys.path.append(packages)
    from qdrant_edge import EdgeShard

    if result is None:
        EdgeShard.load(shard).close()
        return
    before = {segment.name for segment in (Path(shard) / SEGMENTS).iterdir()}
    _into_one(Path(shard) / "edge_config.json")
    _optimize(EdgeShard.load(shard))
    _hand_over(Path(shard) / SEGMENTS, before, Path(result))


def _into_one(config: Path) -> None:
    """Have one segment made of all, whatever its size: the caller has chosen what goes together."""
    optimizers = {"default_segment_number": 1, "max_segment_size": _NO_LIMIT}
    config.write_text(json.dumps({**json.loads(config.read_text()), "optimizers": optimizers}))


def _optimize(shard: Any) -> None:
    from qdrant_edge import CountRequest

    records = shard.count(CountRequest(exact=True))
    shard.optimize()
    if (left := shard.count(CountRequest(exact=True))) != records:
        raise SystemExit(f"{left} of {records} records are left")
    shard.close()


def _hand_over(segments: Path, before: set[str], result: Path) -> None:
    after = {segment.name for segment in segments.iterdir()}
    made = [name for name in after - before if (segments / name / SEALED).exists()]
    unfinished = segments.parent.parent / result.name
    (unfinished / SEGMENTS).mkdir(parents=True)
    for name in made:
        (segments / name).rename(unfinished / SEGMENTS / name)
    (unfinished / REPLACED).write_text("\n".join(before - after))
    _sync(unfinished)
    unfinished.rename(result)


def _sync(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


if __name__ == "__main__":
    main(*sys.argv[1:])
