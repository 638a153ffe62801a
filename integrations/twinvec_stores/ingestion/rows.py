"""What a row of a source becomes: a document, or an error that says why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Document:
    """One document to ingest.

    Attributes:
        id: its id, 1 to 1000 bytes; None: derived from text and metadata, so that equal documents have equal ids.
        text: the text to embed, as a whole or in chunks.
        metadata: JSON object, used by filters. Every chunk has it.
    """

    id: str | None
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


class BadRowError(Exception):
    """A row that does not yield a document.

    Attributes:
        id: the document's id, if it could be read.
    """

    def __init__(self, reason: str, id: str | None = None) -> None:
        super().__init__(reason)
        self.id = id
