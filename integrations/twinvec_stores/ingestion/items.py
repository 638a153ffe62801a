"""What travels through an ingestion: a row of the source, and rows with their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinvec.vectors import EmbeddingBatch
from twinvec_stores.ingestion.chunking import Span
from twinvec_stores.ingestion.reports import Outcome, readable

_REASON = 500  # characters of one in the report


@dataclass(eq=False)
class Item:
    """One row on its way into the store.

    Attributes:
        number: rows before it.
        where: what a person calls it.
        end: how much of the source is read with it.
        outcome: what becomes of it.
        reason: why it failed.
        id: the document's id; None where it is not known.
        text: the document's text.
        metadata: the document's metadata.
        hash: of everything that decides its records.
        spans: the text's parts, a record each.
        contexts: what stands before each part when it is embedded; none where nothing does.
        chunked: records have ids with numbers.
        known_chunks: how many records the store has under ids of the same kind; more than that are never there.
        stale: records under ids of the other kind.
        truncated: a part was cut at the model's limit.
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
    chunked: bool = False
    known_chunks: int = 0
    stale: list[str] = field(default_factory=list)
    truncated: bool = False

    @property
    def pending(self) -> bool:
        """Return whether its records are to be written."""
        return self.outcome in ("new", "changed")

    @property
    def parts(self) -> list[str]:
        """Return what is embedded for its records."""
        contexts = self.contexts or [""] * len(self.spans)
        return [before + self.text[s.start : s.end] for before, s in zip(contexts, self.spans, strict=True)]

    def fail(self, reason: str) -> None:
        """Give it up."""
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
        """Return what comes before a row of the source."""
        items = [item for item in self.items if item.number < number]
        return Embedded(items, self.batch[: sum(len(item.spans) for item in items)])
