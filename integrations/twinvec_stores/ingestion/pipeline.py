"""One run of an ingest: a thread reads and compares, the embedder works beside it, the caller's thread writes.

source -> Reader -> windows -> EmbeddingThread -> write -> flush -> checkpoint. Never more than three windows are on
their way. Rows are written and checkpointed in their order.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from twinvec.errors import ConfigurationError, IngestError
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.ingestion.checkpoints import Checkpoint, is_checkpoint
from twinvec_stores.ingestion.chunking import Chunker
from twinvec_stores.ingestion.documents import Parser
from twinvec_stores.ingestion.embedding import EmbeddingThread
from twinvec_stores.ingestion.ledger import Ledger
from twinvec_stores.ingestion.reports import IngestReport
from twinvec_stores.ingestion.sources import Source, open_source
from twinvec_stores.ingestion.windows import Item, Reader
from twinvec_stores.ingestion.writing import Embedded, prune, write
from twinvec_stores.protocol import HybridStore

if TYPE_CHECKING:
    from tqdm import tqdm

    from twinvec import BaseEmbedder

OnError = Literal["skip", "stop"]
_busy: set[Any] = set()
_busy_lock = threading.Lock()


@dataclass(frozen=True)
class Options:
    """See ``ingest``."""

    text_field: str
    id_field: str
    metadata_fields: Sequence[str] | None
    chunk_tokens: int | None
    overlap_tokens: int
    prune: bool
    on_error: OnError
    resume: bool
    checkpoint: str | PathLike[str] | None
    batch_size: int
    show_progress: bool

    def __post_init__(self) -> None:
        if self.on_error not in ("skip", "stop"):
            raise ConfigurationError(f'on_error={self.on_error!r} is neither "skip" nor "stop"')
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ConfigurationError(f"batch_size={self.batch_size!r} must be a whole number of at least 1")
        if self.chunk_tokens is None and self.overlap_tokens:
            raise ConfigurationError("overlap_tokens needs chunk_tokens")


class Window(NamedTuple):
    """Consecutive rows, and the vectors of those that are to be written."""

    items: list[Item]
    embedded: Future[list[Embedded]] | None


class Channel:
    """Hands windows from the reader to the writer; the reader waits while one is not taken yet."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._window: Window | None = None
        self._ended = self._closed = False
        self.error: BaseException | None = None

    def put(self, window: Window) -> bool:
        """Hand over a window; return whether another is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._window is None or self._closed)
            self._window = window
            self._changed.notify_all()
            return not self._closed

    def end(self, error: BaseException | None) -> None:
        """Say that no more windows come, and why."""
        with self._changed:
            self._ended, self.error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more windows."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Window]:
        """Yield windows up to the end.

        Raises:
            IngestError: closed by somebody else.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._window is not None or self._ended or self._closed)
                if self._closed:
                    raise IngestError("the ingest was cancelled; the same call resumes it")
                window, self._window = self._window, None
                self._changed.notify_all()
            if window is None:
                return
            yield window


class Run:
    """One call of ``ingest``."""

    def __init__(self, source: Any, embedder: BaseEmbedder, store: HybridStore, options: Options) -> None:
        """Check what can be checked at once.

        Raises:
            ConfigurationError: arguments that contradict each other.
            FingerprintMismatchError: the store holds another model's vectors.
            IngestError: a source that cannot be read.
        """
        store.config.check(StoreConfig.for_embedder(embedder), repr(store))
        self._store, self._options = store, options
        chunks = options.chunk_tokens
        self._chunker = None if chunks is None else Chunker(embedder, chunks, options.overlap_tokens)
        self._parser = Parser(options.text_field, options.id_field, options.metadata_fields, store.config)
        self._source = open_source(source, store.config.fields)
        self._path = _checkpoint_path(self._source, store, options.checkpoint)
        self._embedding = EmbeddingThread(embedder)
        self._channel = Channel()

    def run(self) -> IngestReport:
        """Ingest."""
        with _alone(self._store):
            self._checkpoint = Checkpoint(self._path, self._identity(), resume=self._options.resume)
            try:
                self._ledger = Ledger(self._store, self._checkpoint)
                with self._bar() as bar:
                    self._ingest(bar)
                report = self._ledger.report(pruned=self._prune())
            except BaseException:
                self._checkpoint.close()
                raise
            self._checkpoint.finish()
            return report

    def cancel(self) -> None:
        """Stop, from another thread."""
        self._channel.close()
        self._embedding.cancel()

    def _ingest(self, bar: tqdm[NoReturn]) -> None:
        reader = threading.Thread(target=self._read, name="twinvec-ingest-read", daemon=True)
        with self._embedding:
            reader.start()
            try:
                for window in self._channel:
                    self._take(window)
                    self._show(bar)
                self._ledger.commit()
            finally:
                self._channel.close()
                reader.join()
        if self._channel.error is not None:
            raise self._channel.error

    def _read(self) -> None:
        """Read on a thread; the channel takes what goes wrong."""
        error = None
        try:
            reader = Reader(
                self._source,
                self._parser,
                self._store,
                self._checkpoint,
                chunker=self._chunker,
                recipe=self._recipe(),
                batch_size=self._options.batch_size,
                stop=self._options.on_error == "stop",
            )
            with contextlib.closing(reader.windows()) as windows:
                for items in windows:
                    pending = [item for item in items if item.pending]
                    embedded = self._embedding.submit(pending) if pending else None
                    if not self._channel.put(Window(items, embedded)):
                        break
        except BaseException as caught:
            error = caught
        self._channel.end(error)

    def _take(self, window: Window) -> None:
        """Write a window; a bad row ends the run where it was asked for, with all rows before it written."""
        groups = window.embedded.result() if window.embedded is not None else []
        bad = None
        if self._options.on_error == "stop":
            bad = next((item for item in window.items if item.outcome == "failed"), None)
        for group in groups:
            wanted = group if bad is None else group.before(bad.number)
            if wanted.items:
                write(wanted, self._store, self._checkpoint)
        for item in window.items:
            if item is bad:
                self._ledger.commit()
                raise IngestError(f"{bad.where}: {bad.reason}")
            self._ledger.count(item)
        self._ledger.commit_if_due()

    def _prune(self) -> bool:
        progress = self._ledger.progress
        if not self._options.prune or progress.nameless or progress.rows == 0:
            return False
        prune(self._store, self._checkpoint)
        self._store.flush()
        return True

    def _recipe(self) -> list[Any]:
        return [self._options.chunk_tokens, self._options.overlap_tokens]

    def _identity(self) -> list[Any]:
        options, config = self._options, self._store.config
        wanted = None if options.metadata_fields is None else sorted(options.metadata_fields)
        fields = [options.text_field, options.id_field, wanted]
        return [self._source.identity, fields, self._recipe(), config.fingerprint, dict(config.fields)]

    def _bar(self) -> tqdm[NoReturn]:
        from tqdm.auto import tqdm

        return tqdm(
            total=self._source.total,
            initial=self._ledger.progress.end,
            unit=self._source.unit,
            unit_scale=self._source.unit == "B",
            desc="Ingesting",
            disable=not self._options.show_progress,
        )

    def _show(self, bar: tqdm[NoReturn]) -> None:
        progress = self._ledger.progress
        counts = f"{progress.rows:,} documents, {self._ledger.rate:,.0f}/s, {progress.failed:,} failed"
        bar.set_postfix_str(counts, refresh=False)
        bar.update(progress.end - bar.n)


def _checkpoint_path(source: Source, store: HybridStore, given: str | PathLike[str] | None) -> Path | None:
    if given is not None:
        path = Path(given).expanduser()
        if source.identity is None:
            raise ConfigurationError(
                "checkpoint= is for files: an iterable is read again, and what the store has of it is skipped"
            )
        if path.is_dir() or (path.exists() and not is_checkpoint(path)):
            raise ConfigurationError(f"{path} is no checkpoint of an ingest: name a new file")
        return path
    if source.identity is None or not isinstance(store, EmbeddedStore):
        return None
    # by the names alone: a changed file is another identity, and takes the place of the old one
    names = "\0".join(state[0] for state in source.identity)
    name = blake2b(names.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return _folder_of(store) / "ingest" / f"{name}.sqlite"


def _folder_of(store: EmbeddedStore) -> Path:
    return store.path.expanduser().resolve()


@contextlib.contextmanager
def _alone(store: HybridStore) -> Iterator[None]:
    """Keep other ingests into the same store out: two would take each other's documents for lost."""
    key = _folder_of(store) if isinstance(store, EmbeddedStore) else id(store)
    with _busy_lock:
        if key in _busy:
            raise IngestError(f"another ingest into {store!r} is going on: wait for it")
        _busy.add(key)
    try:
        yield
    finally:
        with _busy_lock:
            _busy.remove(key)
