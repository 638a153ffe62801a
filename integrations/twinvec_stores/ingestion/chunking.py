"""Chunking by the model's own tokens: exact parts of a text that together cover all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twinvec.errors import ConfigurationError
from twinvec_stores.ingestion.context import ChunkContext, Contexts
from twinvec_stores.ingestion.cuts import SECTION, Cuts
from twinvec_stores.ingestion.spans import Division, Span

if TYPE_CHECKING:
    from twinvec import BaseEmbedder

_CHECKED = 64  # chunks checked together


class Chunker:
    """Splits texts into chunks of at most ``chunk_tokens`` tokens.

    A chunk ends before a Markdown heading in its second half, otherwise at the end of a paragraph, sentence, line or
    word within its last quarter. Characters are never split: a single one with more tokens than allowed becomes its own
    chunk.
    """

    def __init__(
        self,
        embedder: BaseEmbedder,
        chunk_tokens: int,
        overlap_tokens: int = 0,
        context: ChunkContext | None = None,
    ) -> None:
        """Check the parameters.

        Args:
            embedder: the model whose tokens count.
            chunk_tokens: maximum tokens of a chunk's own text, without prompt and special tokens.
            overlap_tokens: maximum number of tokens that a chunk repeats from the previous one.
            context: what a chunk's vector knows of the rest of its document; see ``ingest``.

        Raises:
            ConfigurationError: the numbers are invalid, or the model would cut the chunks.
        """
        for name, value, least in (("chunk_tokens", chunk_tokens, 1), ("overlap_tokens", overlap_tokens, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name}={value!r} must be an integer of at least {least}")
        self._contexts = Contexts(embedder, context)
        self._tokens = self._contexts.tokens
        if chunk_tokens > (room := self._contexts.room):
            headings = " and the headings" if self._contexts.with_headings else ""
            raise ConfigurationError(
                f"chunk_tokens={chunk_tokens}: the model accepts {embedder.max_length} tokens, and {max(room, 0)} of "
                f"them are left besides the prompt, the special tokens{headings}"
            )
        if overlap_tokens >= chunk_tokens:
            raise ConfigurationError(f"overlap_tokens={overlap_tokens} must be less than chunk_tokens={chunk_tokens}")
        self._limit, self._overlap = chunk_tokens, overlap_tokens

    def split(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return the chunks of each text, with ascending starts and ends.

        They cover the text, except for parts that are only white space.
        """
        return [self._chunks(cuts) for cuts in self._tokens.cuts(texts)]

    def divide(self, texts: Sequence[str]) -> list[Division]:
        """Return the parts of each text."""
        return [self._contexts.divide(cuts, self._chunks(cuts)) for cuts in self._tokens.cuts(texts)]

    def headings(self, text: str, metadata: Mapping[str, Any], spans: Sequence[Span]) -> list[str]:
        """Return what is put before each chunk of a document; see ``Contexts.headings``."""
        return self._contexts.headings(text, metadata, spans)

    def _chunks(self, cuts: Cuts) -> list[Span]:
        whole = cuts.tokens[-1] <= self._limit and len(cuts.text) <= SECTION and not self._tokens.prompt
        return [Span(0, len(cuts.text))] if whole else self._split(cuts)

    def _split(self, cuts: Cuts) -> list[Span]:
        """Propose chunks, and keep those that have no more tokens on their own than within the text.

        In scripts without spaces a cut may change how its surroundings are tokenised: the chunk is then made shorter.
        """
        chunks: list[tuple[int, int]] = []
        limit, ahead = self._limit, _CHECKED
        while not chunks or chunks[-1][1] < cuts.last:
            proposed = chunks[-1:]
            while len(proposed) < ahead + len(chunks[-1:]) and (not proposed or proposed[-1][1] < cuts.last):
                proposed.append(cuts.following(proposed[-1] if proposed else None, limit, self._overlap))
            proposed = proposed[len(chunks[-1:]) :]
            excess = [n - self._limit for n in self._tokens.count(cuts.text_of(chunk) for chunk in proposed)]
            fitting = next((i for i, n in enumerate(excess) if n > 0), len(excess))
            if fitting == 0 and limit > 1:
                limit, ahead = max(limit - excess[0], 1), 1
                continue
            chunks += proposed[: max(fitting, 1)]  # the smallest possible chunk is kept even if it does not fit
            limit, ahead = self._limit, _CHECKED if fitting == len(proposed) else 1
        spans = [Span(int(cuts.chars[a]), int(cuts.chars[b])) for a, b in chunks]
        # white space alone means nothing
        return [span for span in spans if not cuts.text[span.start : span.end].isspace()] or spans[:1]
