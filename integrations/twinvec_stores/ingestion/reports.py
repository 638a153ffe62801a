"""IngestReport: what an ingest did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["new", "changed", "unchanged", "failed"]
_SHOWN = 10


@dataclass(frozen=True)
class Failure:
    """A row that yielded no records.

    Attributes:
        where: "corpus.jsonl, line 17", or "item 17" of an iterable (from 1).
        id: the document's id; None if it could not be read.
        reason: what was wrong.
    """

    where: str
    id: str | None
    reason: str


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did. Documents stored by an earlier, interrupted run count as unchanged.

    Attributes:
        new: documents that the store did not have.
        changed: documents that it had with a different text, metadata or chunking.
        unchanged: documents that were skipped.
        failed: rows that yielded no records; what the store had of their documents is still there.
        deleted: documents that are no longer in the source, with ``prune``.
        records: records written, one per document or per chunk.
        truncated: documents of which the model saw only the beginning.
        seconds: duration.
        failures: the first 1000 failed rows.
        pruned: whether ``prune`` was carried out: not if rows could not be read, since their documents are unknown, not
            for a source without rows, and not if more than ``prune_share`` would be deleted.
        not_pruned: why it was not, if it was requested.
        passed_over: files in folders that were not read, by kind: {".png": 12}.
        files: number of files in folders, whether read or skipped.
    """

    new: int
    changed: int
    unchanged: int
    failed: int
    deleted: int
    records: int
    truncated: int
    seconds: float
    failures: tuple[Failure, ...]
    pruned: bool
    not_pruned: str = ""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    files: int = 0

    def __str__(self) -> str:
        documents = self.new + self.changed + self.unchanged + self.failed
        rate = documents / self.seconds if self.seconds else 0.0
        lines = [
            f"documents  {self.new:,} new, {self.changed:,} changed, {self.unchanged:,} unchanged, "
            f"{self.failed:,} failed, {self.deleted:,} deleted",
            f"records    {self.records:,} written",
            f"time       {self.seconds:,.1f} s, {rate:,.0f} documents/s",
        ]
        if self.truncated:
            lines.append(f"truncated  {self.truncated:,} documents were cut at the model's limit: see chunk_tokens")
        if self.not_pruned:
            lines.append(f"not pruned {self.not_pruned}")
        if self.passed_over:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(self.passed_over.items(), key=lambda k: -k[1]))
            lines.append(f"skipped    {sum(self.passed_over.values()):,} of {self.files:,} files: {kinds}")
        lines += [f"failed     {f.where}: {f.reason}" for f in self.failures[:_SHOWN]]
        if self.failed > _SHOWN:
            lines.append(f"           and {self.failed - _SHOWN:,} more")
        return "\n".join(lines)


@dataclass
class Tally:
    """The counts of a run.

    Attributes:
        rows: rows of the source that are done.
        end: how much of the source has been read, in its unit.
        outcomes: number of documents by outcome.
        nameless: failed rows whose document is unknown.
        records: records written.
        truncated: documents cut at the model's limit.
        failures: the first failures.
    """

    rows: int = 0
    end: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    nameless: int = 0
    records: int = 0
    truncated: int = 0
    failures: list[Failure] = field(default_factory=list)


def readable(name: object) -> str:
    """Return a name that can be printed and stored: file names may be invalid Unicode."""
    return str(name).encode("utf-8", "backslashreplace").decode()
