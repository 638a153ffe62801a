"""The segments of a shard: bounded while records are written, then rebuilt one by one, each with a graph of its own.

Building a graph takes several times the memory of its segment, and time that grows faster than the segment: so a shard
gets another segment for new records when the last one is full, and a child process rebuilds copies of a few segments
at a time. The copies are in ``optimizing/``; what they have become is in ``optimized/`` until it takes their place.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock

from twinvec.errors import StoreEngineError
from twinvec_stores.engines.embedded import optimizer
from twinvec_stores.engines.embedded.disk import copy_folder, folder_size, need_room
from twinvec_stores.engines.embedded.durable import sync_folder
from twinvec_stores.engines.embedded.optimizer import REPLACED, SEALED, SEGMENTS

OPTIMIZING, OPTIMIZED = "optimizing", "optimized"
SEGMENT_BYTES = 2**30  # about 240,000 records of 768 dims and 100 terms; rebuilding takes four times as much memory
_MOST_DELETED = 0.2  # share of a segment's records, above which it is rebuilt
_POLL_SECONDS = 0.2


def is_full(shard: Path) -> bool:
    """Return whether the segments for new records have reached their size."""
    return all(folder_size(segment) >= SEGMENT_BYTES for segment in _segments(shard) if not _is_sealed(segment))


def groups(shard: Path) -> Iterator[list[Path]]:
    """Yield the segments to rebuild, those together that become one."""
    group: list[Path] = []
    size = 0
    filled = [segment for segment in _segments(shard) if _is_sealed(segment) or _is_written(segment)]
    sizes = {segment: folder_size(segment) for segment in filled}
    for segment in sorted(sizes, key=lambda segment: sizes[segment]):
        if group and size + sizes[segment] > SEGMENT_BYTES:
            yield from _needed(group)
            group, size = [], 0
        group.append(segment)
        size += sizes[segment]
    yield from _needed(group)


def rebuild(path: Path, group: list[Path], lock: FileLock, progress: Callable[[float, int], None] | None) -> bool:
    """Rebuild copies of segments of a folder in a child process; return whether ``replace`` has something to do.

    Raises:
        StoreEngineError: there is no room, or the child failed; nothing has changed.
    """
    discard(path)
    need_room(path, sum(map(folder_size, group)))
    shard = path / OPTIMIZING / "shard"
    try:
        (shard / SEGMENTS).mkdir(parents=True)
        for file in group[0].parents[1].glob("*.json"):
            shutil.copyfile(file, shard / file.name)
        for segment in group:
            copy_folder(segment, shard / SEGMENTS / segment.name)
        run_child("optimizing", shard, lock, progress, path / OPTIMIZED)
    except BaseException:
        discard(path)
        raise
    changed = (path / OPTIMIZED / REPLACED).stat().st_size > 0
    if not changed:
        discard(path)
    return changed


def replace(path: Path, shard: Path) -> None:
    """Put rebuilt segments in the place of those before, and remove what a killed process has left; may be repeated."""
    if (result := path / OPTIMIZED).exists():
        sync_folder(path)
        for name in (result / REPLACED).read_text(encoding="ascii").split():
            shutil.rmtree(shard / SEGMENTS / name, ignore_errors=True)
        for segment in (result / SEGMENTS).iterdir():
            segment.rename(shard / SEGMENTS / segment.name)
        sync_folder(shard / SEGMENTS)
    discard(path)


def discard(path: Path) -> None:
    """Remove copies and what they have become: in one step, since half a result would pass for a whole one."""
    shutil.rmtree(path / OPTIMIZING, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        (path / OPTIMIZED).rename(path / OPTIMIZING)
        shutil.rmtree(path / OPTIMIZING, ignore_errors=True)


def run_child(
    task: str,
    shard: Path,
    lock: FileLock,
    progress: Callable[[float, int], None] | None = None,
    result: Path | None = None,
) -> None:
    """Run the script ``optimizer`` on a shard; ``lock`` is held until it has ended, whatever becomes of this process.

    Raises:
        StoreEngineError: it failed.
    """
    import qdrant_edge

    packages = Path(qdrant_edge.__file__).parents[1]
    arguments = [str(packages), str(shard), *([str(result)] if result else [])]
    start = time.monotonic()
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", str(Path(optimizer.__file__)), *arguments],
        stdin=lock._context.lock_file_fd,  # keeps the folder locked if this process is killed and the child is not
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, errors = child.communicate(timeout=_POLL_SECONDS)
                break
            if progress is not None:
                progress(time.monotonic() - start, folder_size(shard / "temp_segments"))
    except BaseException:
        child.kill()
        child.communicate()
        raise
    if child.returncode:
        lines = errors.strip().splitlines() or ["no message"]
        where = (result or shard).parent
        raise StoreEngineError(f"{where}: {task} failed with status {child.returncode}: {lines[-1]}; nothing was lost")


def _segments(shard: Path) -> list[Path]:
    return [segment for segment in (shard / SEGMENTS).iterdir() if segment.is_dir()]


def _is_sealed(segment: Path) -> bool:
    """Return whether the engine writes new records elsewhere."""
    return (segment / SEALED).exists()


def _is_written(segment: Path) -> bool:
    """Return whether a segment that is not sealed has records."""
    return (segment / "mutable_id_tracker.mappings").exists()


def _needed(group: list[Path]) -> Iterator[list[Path]]:
    if any(_is_written(segment) or _deleted(segment) > _MOST_DELETED for segment in group):
        yield group


def _deleted(segment: Path) -> float:
    """Return which share of a sealed segment's records was deleted."""
    records = (segment / "id_tracker.versions").stat().st_size // 8
    bits = np.fromfile(segment / "id_tracker.deleted", np.uint8)
    return int(np.unpackbits(bits).sum()) / records if records else 1.0
