"""Ledger: counts what becomes of each row, and makes it last together with the store."""

from __future__ import annotations

import time
import warnings

from twinvec_stores.ingestion.checkpoints import MAX_FAILURES, Checkpoint, FailedRow, Progress
from twinvec_stores.ingestion.reports import Failure, IngestReport
from twinvec_stores.ingestion.windows import Item
from twinvec_stores.protocol import HybridStore

_COMMIT_SECONDS = 5.0  # what a kill may cost is that and the windows on their way
_COMMIT_ROWS = 10_000
_WITNESSES = 8


class Ledger:
    """The accounts of one run, which go on where the checkpoint ended."""

    def __init__(self, store: HybridStore, checkpoint: Checkpoint) -> None:
        """Open the accounts; begin anew where the store has lost what the checkpoint says it has."""
        self._store, self._checkpoint = store, checkpoint
        witnesses = checkpoint.progress.witnesses
        if witnesses and len(store.get(witnesses)) < len(set(witnesses)):
            warnings.warn(f"ignoring the checkpoint {checkpoint.path}: the store has lost records", stacklevel=5)
            checkpoint.restart()
        self._start = self._committed = time.monotonic()
        self._seconds_before, self._rows_before = self.progress.seconds, self.progress.rows
        self._seen: dict[bytes, str | None] = {}
        self._failures: list[FailedRow] = []
        self._heads: list[str] = []

    @property
    def progress(self) -> Progress:
        """Return the counts, with those of the runs before."""
        return self._checkpoint.progress

    @property
    def rate(self) -> float:
        """Return the rows per second of this run."""
        return (self.progress.rows - self._rows_before) / max(time.monotonic() - self._start, 1e-3)

    def count(self, item: Item) -> None:
        """Count a row that is done."""
        progress = self.progress
        progress.rows, progress.end = item.number + 1, item.end
        setattr(progress, item.outcome, getattr(progress, item.outcome) + 1)
        failed = item.outcome == "failed"
        if item.digest is not None:
            self._seen[item.digest] = None if failed and not item.hash else item.where
        if failed:
            progress.nameless += item.id is None
            if progress.failed <= MAX_FAILURES:
                self._failures.append(FailedRow(item.number, item.where, item.id, item.reason))
            return
        self._heads = [*self._heads[1 - _WITNESSES :], item.record_id(0)]
        if item.stored:
            progress.records += len(item.spans) or item.known_chunks
            progress.truncated += item.truncated

    def commit_if_due(self) -> None:
        """Commit now and then."""
        if len(self._seen) >= _COMMIT_ROWS or time.monotonic() - self._committed >= _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make everything counted so far last: first the records, then the word that they are there."""
        self._store.flush()
        progress = self.progress
        progress.seconds = self._seconds()
        progress.witnesses = self._heads or progress.witnesses
        self._checkpoint.commit(self._seen, self._failures)
        self._seen, self._failures = {}, []
        self._committed = time.monotonic()

    def report(self, pruned: bool) -> IngestReport:
        """Return the counts."""
        progress = self.progress
        return IngestReport(
            new=progress.new,
            changed=progress.changed,
            unchanged=progress.unchanged,
            failed=progress.failed,
            deleted=self._checkpoint.pruned(),
            records=progress.records,
            truncated=progress.truncated,
            seconds=self._seconds(),
            failures=tuple(Failure(row.where, row.id, row.reason) for row in self._checkpoint.failures()),
            pruned=pruned,
        )

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._start
