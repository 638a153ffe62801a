"""What a chunk's vector knows of the rest of its document: the headings above it, its beginning, what is around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from twinvec.errors import ConfigurationError
from twinvec_stores.ingestion.cuts import Cuts, DocumentTokens
from twinvec_stores.ingestion.headings import Outline, before
from twinvec_stores.ingestion.late import windows
from twinvec_stores.ingestion.spans import Division, Span

if TYPE_CHECKING:
    from twinvec import BaseEmbedder

_HEADINGS_TOKENS = 64  # for the headings before a chunk

ChunkContext = Literal["headings", "document", "late"]


class Contexts:
    """The contexts of chunks, of one kind."""

    def __init__(self, embedder: BaseEmbedder, kind: ChunkContext | None) -> None:
        """Check that the model supports it.

        Args:
            embedder: the model.
            kind: see ``ingest``.

        Raises:
            ConfigurationError: it does not, or there is no such kind.
        """
        if kind not in (None, *get_args(ChunkContext)):
            known = ", ".join(f'"{name}"' for name in get_args(ChunkContext))
            raise ConfigurationError(f"chunk_context={kind!r} is not one of {known}, or None")
        if kind == "document" and embedder.dim is None:
            raise ConfigurationError('chunk_context="document" is for dense vectors, which this model does not have')
        if kind == "late":
            embedder.check_spans(dense=embedder.dim is not None)
        self._embedder, self._kind = embedder, kind
        self.tokens = DocumentTokens(embedder)
        self.with_headings = kind in ("headings", "document")

    @property
    def room(self) -> int:
        """Return how many tokens of its own a chunk may have."""
        return self.tokens.room - (_HEADINGS_TOKENS if self.with_headings else 0)

    def divide(self, cuts: Cuts, chunks: list[Span]) -> Division:
        """Return the chunks of a document, with what passes through the model beside each of them."""
        mixed = self._kind == "document" and len(chunks) > 1  # a single chunk has seen its document
        if self._kind != "late" and not mixed:
            return Division(chunks)
        parts = windows(cuts, chunks, self.tokens.room, self.tokens.excess)
        return Division(chunks, beginning=parts[0].span) if mixed else Division(chunks, parts)

    def headings(self, text: str, metadata: Mapping[str, Any], spans: Sequence[Span]) -> list[str]:
        """Return the text put before each chunk of a document when it is embedded; empty strings if there is none.

        This is the longest of ``headings.before`` with at most 64 tokens.
        """
        if not self.with_headings:
            return []
        outline = Outline(text, metadata)
        known: dict[str, str] = {}
        for span in spans:
            names = outline.context(span.start)
            if (key := repr(names)) not in known:
                tried = list(before(names))
                counts = [len(tokens) for tokens in self._embedder.token_offsets(tried)]
                known[key] = next(t for t, n in zip(tried, counts, strict=True) if n <= _HEADINGS_TOKENS)
        return [known[repr(outline.context(span.start))] for span in spans]
