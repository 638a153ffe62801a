"""A folder with a Qdrant Edge shard: used by one process at a time, one shard for all its stores, never left half made.

folder/store.json   the StoreConfig
folder/shard/       Qdrant Edge's own files
folder/lock         held while a process has the folder open
folder/writing      held while the shard's files change; see ``snapshots``
folder/readers/     snapshots for processes that only read
folder/optimizing/  copies of segments that are being rebuilt; see ``segments``
folder/optimized/   what they have become
folder/models/      stores of the same records with other models' vectors, folders like this one; see ``models``
folder/serving      which of them is opened instead of this one
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from twinvec.errors import (
    ConfigurationError,
    StoreClosedError,
    StoreEngineError,
    StoreLockedError,
    StoreMismatchError,
    StoreNotFoundError,
    StoreReadOnlyError,
    TwinVecError,
)
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded import segments
from twinvec_stores.engines.embedded.disk import folder_size, need_room
from twinvec_stores.engines.embedded.durable import sync_folder, write_durably
from twinvec_stores.engines.embedded.models import MODELS_FILES, serving
from twinvec_stores.engines.embedded.optimizer import SEGMENTS
from twinvec_stores.engines.embedded.segments import OPTIMIZED, OPTIMIZING
from twinvec_stores.engines.points import DENSE, FIRST, SPARSE, indexes

if TYPE_CHECKING:
    from qdrant_edge import CountRequest, EdgeConfig, EdgeShard, EdgeVectorParams, UpdateOperation

_T = TypeVar("_T")
CONFIG, SHARD, LOCK, COUNT, WRITING, READERS = "store.json", "shard", "lock", "count", "writing", "readers"
_OWN_FILES = {CONFIG, f"{CONFIG}.new", SHARD, f"{SHARD}.new", LOCK, COUNT, WRITING, READERS, "ingest"}
_OWN_FILES |= MODELS_FILES | {OPTIMIZING, OPTIMIZED}
_STRANGERS = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"}  # left by file managers and file systems
_SUM = "crc32"  # checksum of the rest of store.json
_MAX_LOG, _MAX_LOG_OF_READERS = 2**26, 2**23  # log size at which the log is emptied, since opening a folder replays it
_MAX_COUNTS = 100_000
_TURN_SECONDS = 0.01
_open: dict[Path, Folder] = {}
_opening = threading.RLock()
if hasattr(os, "register_at_fork"):  # otherwise a child could find it held by a thread that does not exist there
    os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_opening.release)


class Folder:
    """The open folder. Operations run in parallel; ``_alone`` waits for them and blocks new ones."""

    def __init__(self, path: Path, config: StoreConfig | None) -> None:
        """Open the folder, or create it for ``config``; see ``acquire``."""
        self.path = path
        self.users = 0
        self.retired = False
        self._gate = threading.RLock()  # held by whoever writes
        self._pid = os.getpid()
        self._running = 0
        self._condition = threading.Condition()
        self._failure: str | None = None
        self._writes = 0
        self._unflushed = 0
        self._counts: dict[
            int | None, int
        ] = {}  # number of records with a sparse key (None: all), as of the last write
        with self._typed_errors():
            self._lock = _lock(path, create=config is not None)
        self._one_writer, self._writing_lock = threading.Lock(), FileLock(path / WRITING, thread_local=False)
        try:
            with self._typed_errors(), self._writing():
                self.config = _read_or_make(path, config)
            self._shard: EdgeShard | None = self._load()
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def acquire(cls, path: Path, config: StoreConfig | None) -> Folder:
        """Return the folder, shared with all stores of this process that use it.

        Raises:
            StoreNotFoundError: there is no store and ``config`` is None.
            StoreLockedError: another process has it open.
            StoreMismatchError: it was created for other vectors.
            StoreEngineError: it cannot be read.
        """
        root = path.expanduser().resolve()
        while True:
            folder = cls.acquire_itself(path := serving(root), config)
            if serving(root) == path:
                return folder
            folder.release()  # another model was switched to in between

    @classmethod
    def acquire_itself(cls, path: Path, config: StoreConfig | None) -> Folder:
        """Return a folder whatever model is switched to; see ``acquire``."""
        with _opening:
            folder = _open.get(path)
            if folder is None or folder._pid != os.getpid():
                folder = _open[path] = cls(path, config)
            elif config is not None:
                folder.config.check(config, str(path))
            folder.users += 1
            return folder

    def release(self) -> bool:
        """Give back one use; the last one flushes, closes and returns True."""
        if self._pid != os.getpid():
            return False
        if self.users == 1:  # operations still running may take long, and must not keep other folders from being opened
            with self._gate, self._alone():
                pass
        with _opening:
            self.users -= 1
            if self.users:
                return False
            _open.pop(self.path, None)
            try:
                with self._alone():
                    self._close()
            finally:
                self._lock.release()
            return True

    def run(self, operation: Callable[[EdgeShard], _T]) -> _T:
        """Run one operation of the engine.

        Raises:
            StoreEngineError: it failed.
            StoreClosedError: the folder was closed.
        """
        with self._idle:
            shard = self._usable()
            self._running += 1
        try:
            with self._typed_errors():
                return operation(shard)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def write(self, operation: UpdateOperation, size: int) -> None:
        """Apply an update of ``size`` bytes; see ``run``.

        Raises:
            StoreEngineError: there is not enough room on the disk; nothing was written.
            StoreReadOnlyError: another model's vectors have taken the place of these.
        """
        with self._idle:  # refuses a forked process
            pass
        with self._gate:
            if self.retired:
                raise StoreReadOnlyError(f"{self.path} was re-embedded with another model: open the store again")
            self._write(operation, size)

    @contextlib.contextmanager
    def retiring(self) -> Iterator[None]:
        """Keep writes waiting, and then refuse them if what is done meanwhile succeeds; reads go on."""
        with self._gate:
            yield
            self.retired = True

    def _write(self, operation: UpdateOperation, size: int) -> None:
        need_room(self.path, size)

        def apply(shard: EdgeShard) -> None:
            if (self.path / COUNT).exists():
                (self.path / COUNT).unlink(missing_ok=True)
                sync_folder(self.path)
            segments.discard(self.path)  # it would not have what is written now
            with self._writing():
                shard.update(operation)

        try:
            self.run(apply)
        finally:
            with self._idle:
                self._writes += 1
                self._counts.clear()
                self._unflushed += size
                full = self._unflushed > (_MAX_LOG_OF_READERS if self._has_readers() else _MAX_LOG)
        if full:
            self.flush()
            if segments.is_full(self.path / SHARD):
                self._extend()

    def flush(self) -> None:
        """Write everything to the disk; see ``run``."""
        with self._idle:
            self._unflushed = 0

        def apply(shard: EdgeShard) -> None:
            with self._writing():
                shard.flush()

        self.run(apply)

    def count(self, term: int | None, request: Callable[[], CountRequest]) -> int:
        """Return the number of records that have a sparse key, or of all; counted once between two writes; see
        ``run``."""
        with self._idle:
            writes, known = self._writes, self._counts.get(term)
        if known is not None:
            return known
        number = self.run(lambda shard: shard.count(request()))
        with self._idle:
            if self._writes == writes and len(self._counts) < _MAX_COUNTS:
                self._counts[term] = number
        return number

    def optimize(self, progress: Callable[[float, int], None] | None) -> None:
        """Rebuild what needs it, a few segments at a time, in child processes: the engine would hold the GIL.

        Searches go on; writes wait for the segments at work. After an interruption, those finished stay finished.

        Raises:
            StoreEngineError: a child failed; the data is unchanged.
        """
        start, written = time.monotonic(), 0

        def report(_: float, size: int) -> None:
            if progress is not None:
                progress(time.monotonic() - start, written + size)

        self.flush()
        for group in list(segments.groups(self.path / SHARD)):
            with self._gate:
                self.flush()
                present = [segment for segment in group if segment.exists()]  # others may optimize too
                if present and segments.rebuild(self.path, present, self._lock, report):
                    written += folder_size(self.path / OPTIMIZED)
                    self._reopen()
            time.sleep(_TURN_SECONDS)  # or this thread would be the first again

    def _extend(self) -> None:
        """Let new records go to a new segment."""
        new = _make_shard(self.path, self.config)
        [segment] = (new / SEGMENTS).iterdir()
        self._reopen(lambda: segment.rename(self.path / SHARD / SEGMENTS / segment.name))

    def _reopen(self, change: Callable[[], object] = lambda: None) -> None:
        with self._alone():
            self._usable()
            try:
                self._close()
                with self._writing():
                    change()
            finally:
                self._shard = self._load()

    def configure(self, config: StoreConfig) -> None:
        """Write a new configuration."""
        with self._idle, self._writing():
            _write(self.path, config)
            self.config = config

    def has_graph(self) -> bool:
        """Return whether a segment has an HNSW graph."""
        return any((self.path / SHARD).glob("segments/*/vector_index-*/graph.bin"))

    def size(self) -> int:
        """Return the size on disk in bytes."""
        return folder_size(self.path)

    @property
    def _idle(self) -> threading.Condition:
        if self._pid != os.getpid():  # a thread of the parent may have held the lock
            raise StoreEngineError(f"{self.path} was opened before this process was forked: open it again in the child")
        return self._condition

    def _has_readers(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(name != LOCK for name in os.listdir(self.path / READERS))
        return False

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0)
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Make those who copy the files wait; file locks belong to the process, so its threads take turns."""
        with self._one_writer, self._writing_lock:
            yield

    def _usable(self) -> EdgeShard:
        if self._failure is not None:
            raise StoreEngineError(
                f"{self.path}: the engine failed earlier ({self._failure}); close the store and open it again"
            )
        if self._shard is None:
            raise StoreClosedError(f"the store {self.path} is closed")
        return self._shard

    def _close(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None and not (self.path / SHARD).exists():
            with contextlib.suppress(StoreEngineError), self._typed_errors():  # deleted while open: nothing is left
                shard.close()
        elif shard is not None:
            with self._typed_errors(), self._writing():
                n = None if self._failure else shard.count(_everything())
                shard.close()
                if n is not None:
                    with contextlib.suppress(OSError):  # without it, nothing is compared at the next opening
                        (self.path / COUNT).write_text(str(n), encoding="ascii")

    def _load(self) -> EdgeShard:
        from qdrant_edge import EdgeShard

        with self._typed_errors(), self._writing():
            segments.replace(self.path, self.path / SHARD)
            self._try_to_load_without_room()
            shard = EdgeShard.load(str(self.path / SHARD))
            _check_count(self.path, shard)
        # of a killed optimizer; only once the engine's own lock shows that none is running any more
        shutil.rmtree(self.path / SHARD / "temp_segments", ignore_errors=True)
        return shard

    def _try_to_load_without_room(self) -> None:
        """On a nearly full disk, first load the shard in a child process, which it kills in place of this one."""
        try:
            need_room(self.path, 0)
        except StoreEngineError as no_room:
            try:
                segments.run_child("opening", self.path / SHARD, self._lock)
            except StoreEngineError:
                raise no_room from None

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit, GeneratorExit, TwinVecError):
            raise
        except Exception as error:
            if "WouldBlock" in str(error):
                raise StoreLockedError(
                    f"{self.path} is held by a process that is optimizing it, or was forked while it was open: wait "
                    "for that process to end"
                ) from None
            raise StoreEngineError(f"{self.path}: {error}") from error
        except BaseException as panic:  # pyo3's PanicException is not an Exception
            self._failure = str(panic)
            raise StoreEngineError(f"{self.path}: the engine failed: {panic}") from panic


def _lock(path: Path, *, create: bool) -> FileLock:
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"{path} is a file, not a store's folder")
    if not create and not (path / CONFIG).exists():
        raise StoreNotFoundError(f"there is no store in {path}")
    if path.is_dir() and (strange := {entry.name for entry in path.iterdir()} - _OWN_FILES - _STRANGERS):
        raise ConfigurationError(f"{path} contains other files ({min(strange)}): choose an empty or a new folder")
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreLockedError(
            f"{path} is open in another process, or still being optimized on behalf of a killed one: close it there, "
            "or wait. To read at the same time: read_only=True; for several writers: a Qdrant server (url=)"
        ) from None
    return lock


def _check_count(path: Path, shard: EdgeShard) -> None:
    """Compare with the number of records at the last close: the engine does not notice missing parts."""
    try:
        expected = int((path / COUNT).read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):  # the last process was killed
        return
    found = shard.count(_everything())
    if found != expected:
        shard.close()
        raise StoreEngineError(
            f"{path} contains {found} of the {expected} records it had when it was closed: files are missing or "
            f"damaged. Restore them; or delete {path / COUNT} to continue with what is left, and ingest again"
        )


def _everything() -> CountRequest:
    from qdrant_edge import CountRequest

    return CountRequest(exact=True)


def _read_or_make(path: Path, config: StoreConfig | None) -> StoreConfig:
    if (path / CONFIG).exists():
        try:
            data = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise StoreMismatchError(f"{path / CONFIG} is damaged: {error}") from None
        written = data.pop(_SUM, None) if isinstance(data, dict) else None  # older stores have none
        stored = StoreConfig.from_dict(data, str(path))
        if written is not None and written != _sum(data):
            raise StoreMismatchError(f"{path / CONFIG} was changed after the store was made: restore it")
        if config is not None:
            stored.check(config, str(path))
        if not (path / SHARD).is_dir():
            raise StoreMismatchError(
                f"{path} is missing its folder {SHARD}: restore it, or delete the folder and ingest again"
            )
        return stored
    if config is None:
        raise StoreNotFoundError(f"there is no store in {path}")
    if (path / SHARD).exists():  # created, but its configuration was never written: nothing had been acknowledged yet
        _refuse_data(path)
    _make(path, config)
    return config


def _make(path: Path, config: StoreConfig) -> None:
    need_room(path, 0)
    _make_shard(path, config).rename(path / SHARD)
    _write(path, config)
    sync_folder(path.parent)


def _make_shard(path: Path, config: StoreConfig) -> Path:
    new = path / f"{SHARD}.new"
    shutil.rmtree(new, ignore_errors=True)
    from qdrant_edge import EdgeShard, PayloadSchemaType, UpdateOperation

    shard = EdgeShard.create(str(new), _engine_config(config))
    for path_in_payload, kind in indexes(config).items():
        schema = getattr(PayloadSchemaType, kind.capitalize())
        shard.update(UpdateOperation.create_field_index(path_in_payload, schema))
    shard.close()
    return new


def _write(path: Path, config: StoreConfig) -> None:
    """Write the configuration, completely or not at all."""
    data = config.to_dict()
    write_durably(path / CONFIG, json.dumps({**data, _SUM: _sum(data)}, indent=2))


def _sum(data: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())


def _engine_config(config: StoreConfig) -> EdgeConfig:
    from qdrant_edge import EdgeConfig, EdgeSparseVectorParams

    return EdgeConfig(
        vectors=_dense_vectors(config), sparse_vectors={SPARSE: EdgeSparseVectorParams()} if config.sparse else None
    )


def _dense_vectors(config: StoreConfig) -> dict[str, EdgeVectorParams] | None:
    from qdrant_edge import Distance, EdgeVectorParams, HnswIndexConfig, Memory

    if config.dim is None:
        return None
    dense = EdgeVectorParams(
        size=config.dim,
        distance=Distance.Dot,  # rows have length 1, and Cosine would change their last bits
        quantization_config=_quantization(config),
        memory=None if config.quantization is None else Memory.Cold,  # what is searched first is in memory instead
        hnsw_config=HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000) if config.first_dim else None,
    )
    if config.first_dim is None:
        return {DENSE: dense}
    return {DENSE: dense, FIRST: EdgeVectorParams(size=config.first_dim, distance=Distance.Dot)}


def _quantization(config: StoreConfig) -> Any:
    from qdrant_edge import (
        BinaryQuantizationConfig,
        BinaryQuantizationQueryEncoding,
        Memory,
        ScalarQuantizationConfig,
        ScalarType,
    )

    if config.quantization == "int8":
        return ScalarQuantizationConfig(type=ScalarType.Int8, quantile=0.99, memory=Memory.Pinned)
    if config.quantization == "binary":  # queries of 8 bits find more than those of one, and are not stored
        encoding = BinaryQuantizationQueryEncoding.Scalar8Bits
        return BinaryQuantizationConfig(memory=Memory.Pinned, query_encoding=encoding)
    return None


def _refuse_data(path: Path) -> None:
    from qdrant_edge import CountRequest, EdgeShard

    shard = EdgeShard.load(str(path / SHARD))
    try:
        if shard.count(CountRequest(exact=True)):
            raise StoreMismatchError(f"{path} contains records but its {CONFIG} is missing: restore that file")
    finally:
        shard.close()
    shutil.rmtree(path / SHARD)
