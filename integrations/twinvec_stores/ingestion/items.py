"""What travels through an ingestion: a row of the source, and rows with their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinvec.vectors import EmbeddingBatch
from twinvec_stores.ingestion.reports import Outcome, readable
from twinvec_stores.ingestion.spans import Span, Window

_REASON = 500  # maximum characters of a reason in the report


@dataclass(eq=False)
class Item:
    """One row on its way into the store.

    Attributes:
        number: number of rows before it.
        where: its name for people.
        end: how much of the source has been read with it.
        outcome: what became of it.
        reason: why it failed.
        id: the document's id; None if unknown.
        text: the document's text.
        metadata: the document's metadata.
        hash: hash of everything that determines its records.
        spans: the parts of the text, one record each.
        contexts: the text put before each part when it is embedded; empty if there is none.
        windows: what passes through the model at once, if that is more than a part; empty if it is not.
        beginning: the part whose vector is mixed into those of its records; None if there is none.
        chunked: whether its records have ids with numbers.
        known_chunks: upper bound on the number of records that the store has under ids of the same kind.
        stale: records under ids of the other kind.
        truncated: whether a part was cut at the model's limit.
    """

    number: int
    where: str
    end: int
    outcome: Outcome = "new"
    reason: str = ""
    id: str | None = None
    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""
    spans: Sequence[Span] = ()
    contexts: Sequence[str] = ()
    windows: Sequence[Window] = ()
    beginning: Span | None = None
    chunked: bool = False
    known_chunks: int = 0
    stale: list[str] = field(default_factory=list)
    truncated: bool = False

    @property
    def pending(self) -> bool:
        """Return whether its records need to be written."""
        return self.outcome in ("new", "changed")

    @property
    def parts(self) -> list[str]:
        """Return the texts to embed for its records: one row each, or one for each chunk of a window."""
        if self.windows:
            return [self.text[w.span.start : w.span.end] for w in self.windows]
        contexts = self.contexts or [""] * len(self.spans)
        return [before + self.text[s.start : s.end] for before, s in zip(contexts, self.spans, strict=True)]

    @property
    def skipped(self) -> list[list[Any]]:
        """Return where its records leave the text out, which is white space: each place, and what is there."""
        starts, ends = [*(s.start for s in self.spans), len(self.text)], [0, *(s.end for s in self.spans)]
        return [[end, self.text[end:start]] for end, start in zip(ends, starts, strict=True) if end < start]

    def fail(self, reason: str) -> None:
        """Mark it as failed."""
        self.outcome, self.reason = "failed", readable(reason)[:_REASON]

    def record_id(self, chunk: int) -> str:
        """Return the id of one of its records."""
        return f"{self.id}#{chunk}" if self.chunked else str(self.id)


@dataclass(frozen=True)
class Embedded:
    """Documents and their vectors, a row for each record, in order."""

    items: Sequence[Item]
    batch: EmbeddingBatch

    def before(self, number: int) -> Embedded:
        """Return the position in the source before a row."""
        items = [item for item in self.items if item.number < number]
        return Embedded(items, self.batch[: sum(len(item.spans) for item in items)])


@dataclass(frozen=True)
class Processed:
    """Consecutive rows whose outcome is known, and the vectors that are still to be written."""

    items: Sequence[Item]
    embedded: Sequence[Embedded]

    def wanted(self, *, stop: bool) -> list[Embedded]:
        """Return what is to be written: everything, or with ``stop`` what is before the first bad row."""
        bad = next((item for item in self.items if item.outcome == "failed"), None)
        if not stop or bad is None:
            return list(self.embedded)
        return [part for group in self.embedded if (part := group.before(bad.number)).items]
