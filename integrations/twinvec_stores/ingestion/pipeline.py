"""One ingest run: read and compare, embed, write.

source -> Reader -> pages -> Processor -> windows -> write. The caller's thread reads and writes while the processor
works in parallel, a few windows ahead; rows are written in order. There is no state besides the store's: the head of
each document has the hash of everything that determines its records (see ``writing``), and a run compares it. The
alternatives that were rejected, and why, are in docs/decisions/ingestion.md.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from twinvec.errors import IngestError
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.ingestion.documents import Parser
from twinvec_stores.ingestion.items import Item
from twinvec_stores.ingestion.options import Options
from twinvec_stores.ingestion.processing import Pending, Processor
from twinvec_stores.ingestion.readers import Reading
from twinvec_stores.ingestion.reports import Failure, IngestReport, Tally
from twinvec_stores.ingestion.seen import Seen
from twinvec_stores.ingestion.sources import open_source
from twinvec_stores.ingestion.windows import Reader
from twinvec_stores.ingestion.writing import prune, too_many, write
from twinvec_stores.protocol import HybridStore

if TYPE_CHECKING:
    from tqdm import tqdm

_DETAILED = 1000  # failures listed in the report
_busy: set[Any] = set()
_busy_lock = threading.Lock()


class Run:
    """One call of ``ingest``."""

    def __init__(self, source: Any, store: HybridStore, options: Options, processor: Processor) -> None:
        """Check everything that can be checked immediately.

        Raises:
            ConfigurationError: arguments that contradict each other.
            FingerprintMismatchError: the store contains another model's vectors.
            IngestError: the source cannot be read.
        """
        store.config.check(processor.config, repr(store))
        self._store, self._options, self._processor = store, options, processor
        columns = (options.text_field, options.id_field, options.metadata_fields, options.document_field)
        self._parser = Parser(*columns, store.config)
        self._source = open_source(source, Reading(store.config.fields, options.delimiter, options.text_field))
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
        self._processor.cancel()

    def _ingest(self, seen: Seen, bar: tqdm[NoReturn]) -> None:
        ahead: deque[Pending] = deque()
        failure: Exception | None = None
        with self._processor, contextlib.closing(self._reader(seen).pages()) as pages:
            while failure is None:
                self._check_cancelled()
                try:
                    page = next(pages, None)
                    if page is None:
                        break
                    ahead += self._processor.submit(page)
                except Exception as error:  # everything read before is still written
                    failure = error
                while len(ahead) > self._processor.ahead:
                    self._take(ahead.popleft(), bar)
            while ahead:
                self._take(ahead.popleft(), bar)
        if failure is not None:
            raise failure

    def _reader(self, seen: Seen) -> Reader:
        return Reader(
            self._source,
            self._parser,
            seen,
            chunked=self._options.chunk_tokens is not None,
            recipe=self._options.recipe,
            batch_size=self._options.batch_size,
            page=self._processor.page,
            stop=self._options.on_error == "stop",
        )

    def _take(self, pending: Pending, bar: tqdm[NoReturn]) -> None:
        """Write a window; on request, a bad row ends the run after all rows before it have been written."""
        self._check_cancelled()
        processed, stop = pending.result(), self._options.on_error == "stop"
        for embedded in processed.wanted(stop=stop):
            write(embedded, self._store)
        for item in processed.items:
            if stop and item.outcome == "failed":
                raise IngestError(f"{item.where}: {item.reason}")
            self._count(item)
        counts = f"{self._tally.rows:,} documents, {self._tally.outcomes['failed']:,} failed"
        bar.set_postfix_str(counts + self._processor.status(), refresh=False)
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
