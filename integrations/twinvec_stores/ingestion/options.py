"""Options: what an ingest was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from twinvec.errors import ConfigurationError
from twinvec_stores.ingestion.context import ChunkContext

OnError = Literal["skip", "stop"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """See ``ingest``."""

    text_field: str = "text"
    id_field: str = "id"
    metadata_fields: Sequence[str] | None = None
    document_field: str | None = None
    delimiter: str | None = None
    chunk_tokens: int | None = None
    overlap_tokens: int = 0
    chunk_context: ChunkContext | None = None
    prune: bool = False
    prune_share: float = 0.5
    on_error: OnError = "skip"
    batch_size: int = 256
    show_progress: bool = False

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


class IngestKeywords(TypedDict, total=False):
    """The keyword arguments of ``ingest``: the fields of ``Options``, for type checkers and editors."""

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
