"""Snapshots: copies of a store's folder for processes that read while another one writes.

Qdrant Edge locks its folder and writes to mapped files in place, so links to them would change under a reader. A copy
made between two writes looks like what a killed process leaves behind, and opens the same way: with every acknowledged
write. A snapshot is a folder like any other, inside the store's, and its own lock shows whether its process is alive.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from twinvec.errors import StoreEngineError, StoreLockedError, StoreNotFoundError
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.disk import copy_folder, folder_size, need_room
from twinvec_stores.engines.embedded.folder import (
    CONFIG,
    COUNT,
    LOCK,
    READERS,
    SHARD,
    WRITING,
    Folder,
)
from twinvec_stores.engines.embedded.models import serving

_PATIENCE = 60.0  # seconds to wait for a write to end, or a new segment
_POLL_SECONDS = 0.005


def open_snapshot(path: Path, config: StoreConfig | None) -> Folder:
    """Copy a store's folder, and open the copy.

    Raises:
        StoreNotFoundError: there is no store.
        StoreLockedError: it is written to without a pause.
        StoreMismatchError: it was created for other vectors.
        StoreEngineError: it cannot be read, or there is no room for the copy.
    """
    path = serving(path.expanduser().resolve())
    if not (path / CONFIG).exists():
        raise StoreNotFoundError(f"there is no store in {path}")
    try:
        (path / READERS).mkdir(exist_ok=True)
        with FileLock(path / READERS / LOCK, timeout=_PATIENCE, thread_local=False):
            _remove_dead(path / READERS)
            need_room(path, folder_size(path / SHARD) // 3)
            copy = path / READERS / uuid.uuid4().hex
            try:
                with FileLock(path / WRITING, timeout=_PATIENCE, poll_interval=_POLL_SECONDS, thread_local=False):
                    _copy(path, copy)
                return Folder.acquire(copy, config)
            except BaseException:
                shutil.rmtree(copy, ignore_errors=True)
                raise
    except Timeout:
        raise StoreLockedError(f"{path} is written to without a pause: try again later") from None
    except OSError as error:
        raise StoreEngineError(f"{path}: cannot create a snapshot of it ({error})") from error


def close_snapshot(folder: Folder) -> None:
    """Close a copy and remove it."""
    if folder.release():
        shutil.rmtree(folder.path, ignore_errors=True)


def _remove_dead(readers: Path) -> None:
    """Remove the copies left behind by processes that have ended."""
    for copy in readers.iterdir():
        if copy.is_dir():
            lock = FileLock(copy / LOCK, thread_local=False)
            # not there any more: its process removes it just now
            with contextlib.suppress(Timeout, FileNotFoundError), lock.acquire(timeout=0):
                shutil.rmtree(copy, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for name in (CONFIG, COUNT):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    copy_folder(source / SHARD, target / SHARD, without="temp_segments")
