"""One ingest run: read and compare, embed, write.

source -> Reader -> windows -> EmbeddingThread -> write. The caller's thread reads and writes while the embedder works
in parallel, at most three windows ahead; rows are written in order. There is no state besides the store's: the head of
each document has the hash of everything that determines its records (see ``writing``), and a run compares it. The
alternatives that were rejected, and why, are in docs/decisions/ingestion.md.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from twinvec.errors import ConfigurationError, IngestError
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.ingestion.chunking import ChunkContext, Chunker
from twinvec_stores.ingestion.documents import Parser
from twinvec_stores.ingestion.embedding import EmbeddingThread
from twinvec_stores.ingestion.items import Embedded, Item
from twinvec_stores.ingestion.readers import Reading
from twinvec_stores.ingestion.reports import Failure, IngestReport, Tally
from twinvec_stores.ingestion.seen import Seen
from twinvec_stores.ingestion.sources import open_source
from twinvec_stores.ingestion.windows import Reader
from twinvec_stores.ingestion.writing import prune, too_many, write
from twinvec_stores.protocol import HybridStore

if TYPE_CHECKING:
    from tqdm import tqdm

    from twinvec import BaseEmbedder

OnError = Literal["skip", "stop"]
_AHEAD = 2  # windows embedded while another is being written
_DETAILED = 1000  # failures listed in the report
_busy: set[Any] = set()
_busy_lock = threading.Lock()


@dataclass(frozen=True)
class Options:
    """See ``ingest``."""

    text_field: str
    id_field: str
    metadata_fields: Sequence[str] | None
    document_field: str | None
    delimiter: str | None
    chunk_tokens: int | None
    overlap_tokens: int
    chunk_context: ChunkContext | None
    prune: bool
    prune_share: float
    on_error: OnError
    batch_size: int
    show_progress: bool

    def __post_init__(self) -> None:
        if self.on_error not in ("skip", "stop"):
            raise ConfigurationError(f'on_error={self.on_error!r} is neither "skip" nor "stop"')
        if self.delimiter is not None and (not isinstance(self.delimiter, str) or len(self.delimiter) != 1):
            raise ConfigurationError(f"delimiter={self.delimiter!r} must be one character, or None")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ConfigurationError(f"batch_size={self.batch_size!r} must be an integer of at least 1")
        share = self.prune_share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ConfigurationError(f"prune_share={share!r} must be a number from 0 to 1")
        if self.chunk_tokens is None and self.overlap_tokens:
            raise ConfigurationError("overlap_tokens needs chunk_tokens")
        if self.chunk_tokens is None and self.chunk_context is not None:
            raise ConfigurationError("chunk_context needs chunk_tokens")

    @property
    def recipe(self) -> list[Any]:
        """Return everything that determines records besides their text and metadata."""
        context = [] if self.chunk_context is None else [self.chunk_context]
        return [self.chunk_tokens, self.overlap_tokens, *context]


class Window(NamedTuple):
    """Consecutive rows, and the vectors of those to be written."""

    items: list[Item]
    embedded: Future[list[Embedded]] | None


class Run:
    """One call of ``ingest``."""

    def __init__(self, source: Any, embedder: BaseEmbedder, store: HybridStore, options: Options) -> None:
        """Check everything that can be checked immediately.

        Raises:
            ConfigurationError: arguments that contradict each other.
            FingerprintMismatchError: the store contains another model's vectors.
            IngestError: the source cannot be read.
        """
        store.config.check(StoreConfig.for_embedder(embedder), repr(store))
        self._store, self._options = store, options
        chunks = options.chunk_tokens
        self._chunker = (
            None if chunks is None else Chunker(embedder, chunks, options.overlap_tokens, options.chunk_context)
        )
        columns = (options.text_field, options.id_field, options.metadata_fields, options.document_field)
        self._parser = Parser(*columns, store.config)
        self._source = open_source(source, Reading(store.config.fields, options.delimiter, options.text_field))
        self._embedding = EmbeddingThread(embedder)
        self._cancelled = False
        self._tally = Tally()

    def run(self) -> IngestReport:
        """Ingest."""
        start = time.monotonic()
        with _alone(self._store), contextlib.closing(Seen()) as seen:
            with self._bar() as bar:
                try:
                    self._ingest(seen, bar)
                finally:
                    self._store.flush()
            not_pruned, deleted = self._why_not_prune(seen), 0
            if self._options.prune and not not_pruned:
                deleted = prune(self._store, seen)
                self._store.flush()
        counts = self._tally
        return IngestReport(
            new=counts.outcomes["new"],
            changed=counts.outcomes["changed"],
            unchanged=counts.outcomes["unchanged"],
            failed=counts.outcomes["failed"],
            deleted=deleted,
            records=counts.records,
            truncated=counts.truncated,
            seconds=time.monotonic() - start,
            failures=tuple(counts.failures),
            pruned=self._options.prune and not not_pruned,
            not_pruned=not_pruned,
            passed_over=dict(self._source.walked.passed_over),
            files=self._source.walked.files,
        )

    def cancel(self) -> None:
        """Stop, from another thread."""
        self._cancelled = True
        self._embedding.cancel()

    def _ingest(self, seen: Seen, bar: tqdm[NoReturn]) -> None:
        ahead: deque[Window] = deque()
        failure: Exception | None = None
        with self._embedding, contextlib.closing(self._reader(seen).windows()) as windows:
            while failure is None:
                self._check_cancelled()
                try:
                    items = next(windows, None)
                except Exception as error:  # everything read before is still written
                    failure, items = error, None
                if items is None:
                    break
                pending = [item for item in items if item.pending]
                ahead.append(Window(items, self._embedding.submit(pending) if pending else None))
                if len(ahead) > _AHEAD:
                    self._take(ahead.popleft(), bar)
            while ahead:
                self._take(ahead.popleft(), bar)
        if failure is not None:
            raise failure

    def _reader(self, seen: Seen) -> Reader:
        return Reader(
            self._source,
            self._parser,
            self._store,
            seen,
            chunker=self._chunker,
            recipe=self._options.recipe,
            batch_size=self._options.batch_size,
            stop=self._options.on_error == "stop",
        )

    def _take(self, window: Window, bar: tqdm[NoReturn]) -> None:
        """Write a window; on request, a bad row ends the run after all rows before it have been written."""
        self._check_cancelled()
        groups = window.embedded.result() if window.embedded is not None else []
        bad = None
        if self._options.on_error == "stop":
            bad = next((item for item in window.items if item.outcome == "failed"), None)
        for group in groups:
            wanted = group if bad is None else group.before(bad.number)
            if wanted.items:
                write(wanted, self._store)
        for item in window.items:
            if item is bad:
                raise IngestError(f"{bad.where}: {bad.reason}")
            self._count(item)
        counts = f"{self._tally.rows:,} documents, {self._tally.outcomes['failed']:,} failed"
        bar.set_postfix_str(counts, refresh=False)
        bar.update(self._tally.end - bar.n)

    def _count(self, item: Item) -> None:
        tally = self._tally
        tally.rows, tally.end = item.number + 1, item.end
        tally.outcomes[item.outcome] += 1
        if item.outcome == "failed":
            tally.nameless += item.id is None
            if len(tally.failures) < _DETAILED:
                tally.failures.append(Failure(item.where, item.id, item.reason))
        elif item.pending:
            tally.records += len(item.spans)
            tally.truncated += item.truncated

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise IngestError("the ingest was cancelled; the same call resumes it")

    def _why_not_prune(self, seen: Seen) -> str:
        tally = self._tally
        if not self._options.prune:
            return ""
        if not tally.rows:
            return "the source has no rows: if it is really empty, delete the records"
        if tally.nameless:
            return f"{tally.nameless:,} rows could not be read, so their documents are unknown"
        return too_many(self._store, seen, self._options.prune_share)

    def _bar(self) -> tqdm[NoReturn]:
        from tqdm.auto import tqdm

        return tqdm(
            total=self._source.total,
            unit=self._source.unit,
            unit_scale=self._source.unit == "B",
            desc="Ingesting",
            disable=not self._options.show_progress,
        )


@contextlib.contextmanager
def _alone(store: HybridStore) -> Iterator[None]:
    """Keep other ingests into the same store out: each would consider the other's documents missing."""
    key = store.path.expanduser().resolve() if isinstance(store, EmbeddedStore) else id(store)
    with _busy_lock:
        if key in _busy:
            raise IngestError(f"another ingest into {store!r} is running: wait for it")
        _busy.add(key)
    try:
        yield
    finally:
        with _busy_lock:
            _busy.remove(key)
