"""Chunking by the model's own tokens: exact parts of a text that together cover all of it."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from twinvec.errors import ConfigurationError
from twinvec.vectors import Int64
from twinvec_stores.ingestion.headings import Outline, before, headings
from twinvec_stores.ingestion.late import windows
from twinvec_stores.ingestion.spans import Division, Span

if TYPE_CHECKING:
    from twinvec import BaseEmbedder

_SECTION = 100_000  # characters tokenised together: a token takes a hundred bytes, and sections run in parallel
_CHECKED = 64  # chunks checked together
_LOOK = 16  # characters examined around a position
_GAP = re.compile(r"\s+|[。！？]+[」』”’）]*")
_CLOSERS = "\"'”’»)]"
_JOINER = "\u200d"
_EXTENDING = _JOINER + "".join(map(chr, range(0x1F3FB, 0x1F400)))  # and skin tones
_FLAGS = "".join(map(chr, range(0x1F1E6, 0x1F200)))


_CONTEXT_TOKENS = 64  # for the headings before a chunk

ChunkContext = Literal["headings", "document", "late"]


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
        room = embedder.token_room("document")
        for name, value, least in (("chunk_tokens", chunk_tokens, 1), ("overlap_tokens", overlap_tokens, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name}={value!r} must be an integer of at least {least}")
        if context not in (None, *get_args(ChunkContext)):
            known = ", ".join(f'"{name}"' for name in get_args(ChunkContext))
            raise ConfigurationError(f"chunk_context={context!r} is not one of {known}, or None")
        if context == "document" and embedder.dim is None:
            raise ConfigurationError('chunk_context="document" is for dense vectors, which this model does not have')
        if context == "late":
            embedder.check_spans(dense=embedder.dim is not None)
        self._room = room
        under = context in ("headings", "document")
        room -= _CONTEXT_TOKENS if under else 0
        if chunk_tokens > room:
            raise ConfigurationError(
                f"chunk_tokens={chunk_tokens}: the model accepts {embedder.max_length} tokens, and {max(room, 0)} of "
                f"them are left besides the prompt, the special tokens{' and the headings' if under else ''}"
            )
        if overlap_tokens >= chunk_tokens:
            raise ConfigurationError(f"overlap_tokens={overlap_tokens} must be less than chunk_tokens={chunk_tokens}")
        self._embedder = embedder
        self._limit, self._overlap, self._context = chunk_tokens, overlap_tokens, context
        self._prompt = embedder.prompt_for("document")
        self._prompt_tokens = len(embedder.token_offsets([self._prompt])[0])

    def split(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return the chunks of each text, with ascending starts and ends.

        They cover the text, except for parts that are only white space.
        """
        return [self._chunks(cuts) for cuts in self._cuts(texts)]

    def divide(self, texts: Sequence[str]) -> list[Division]:
        """Return the parts of each text."""
        return [self._division(cuts, self._chunks(cuts)) for cuts in self._cuts(texts)]

    def _division(self, cuts: Cuts, chunks: list[Span]) -> Division:
        mixed = self._context == "document" and len(chunks) > 1  # a single chunk has seen its document
        if self._context != "late" and not mixed:
            return Division(chunks)
        parts = windows(cuts, chunks, self._room, self._excess)
        return Division(chunks, beginning=parts[0].span) if mixed else Division(chunks, parts)

    def contexts(self, text: str, metadata: Mapping[str, Any], spans: Sequence[Span]) -> list[str]:
        """Return the text put before each chunk of a document when it is embedded; empty strings if there is none.

        This is the longest of ``headings.before`` with at most 64 tokens.
        """
        if self._context not in ("headings", "document"):
            return []
        outline = Outline(text, metadata)
        known: dict[str, str] = {}
        for span in spans:
            names = outline.context(span.start)
            if (key := repr(names)) not in known:
                tried = list(before(names))
                counts = [len(tokens) for tokens in self._embedder.token_offsets(tried)]
                known[key] = next(t for t, n in zip(tried, counts, strict=True) if n <= _CONTEXT_TOKENS)
        return [known[repr(outline.context(span.start))] for span in spans]

    def _cuts(self, texts: Sequence[str]) -> list[Cuts]:
        sections = [_sections(text) for text in texts]
        parts = [text[s.start : s.end] for text, spans in zip(texts, sections, strict=True) for s in spans]
        offsets = iter(self._embedder.token_offsets(parts))
        return [
            Cuts(text, np.concatenate([next(offsets) + span.start for span in spans]))
            for text, spans in zip(texts, sections, strict=True)
        ]

    def _chunks(self, cuts: Cuts) -> list[Span]:
        whole = cuts.tokens[-1] <= self._limit and len(cuts.text) <= _SECTION and not self._prompt
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
            excess = [n - self._limit for n in self._count(cuts.text_of(chunk) for chunk in proposed)]
            fitting = next((i for i, n in enumerate(excess) if n > 0), len(excess))
            if fitting == 0 and limit > 1:
                limit, ahead = max(limit - excess[0], 1), 1
                continue
            chunks += proposed[: max(fitting, 1)]  # the smallest possible chunk is kept even if it does not fit
            limit, ahead = self._limit, _CHECKED if fitting == len(proposed) else 1
        spans = [Span(int(cuts.chars[a]), int(cuts.chars[b])) for a, b in chunks]
        # white space alone means nothing
        return [span for span in spans if not cuts.text[span.start : span.end].isspace()] or spans[:1]

    def _excess(self, text: str) -> int:
        return self._count([text])[0] - self._room

    def _count(self, texts: Iterable[str]) -> list[int]:
        offsets = self._embedder.token_offsets(self._prompt + text for text in texts)
        return [len(tokens) - self._prompt_tokens for tokens in offsets]


class Cuts:
    """The positions at which a text may be cut: between two tokens that share no character.

    Attributes:
        text: the whole text.
        chars: int64, ascending from 0 to the text's length.
        tokens: int64, the number of tokens before each position.
        last: the index of the last position.
    """

    def __init__(self, text: str, offsets: Int64) -> None:
        self.text = text
        starts, ends = offsets[1:, 0], np.maximum.accumulate(offsets[:, 1])
        between = np.flatnonzero((starts >= ends[:-1]) & (starts > 0) & (starts < len(text)))
        chars = starts[between]
        # tokens without a character of their own stay with whatever precedes them
        distinct = np.append(chars[1:] > chars[:-1], True)[: len(chars)]
        self.chars: Int64 = np.concatenate([[0], chars[distinct], [len(text)]])
        self.tokens: Int64 = np.concatenate([[0], between[distinct] + 1, [len(offsets)]])
        self.last = len(self.chars) - 1
        places = [(bisect_right(self.chars, heading.start) - 1, heading.start) for heading in headings(text)]
        self._headings = [cut for cut, place in places if cut > 0 and not text[self.chars[cut] : place].strip()]

    def text_of(self, chunk: tuple[int, int]) -> str:
        """Return the text between two cuts."""
        return self.text[self.chars[chunk[0]] : self.chars[chunk[1]]]

    def following(self, previous: tuple[int, int] | None, limit: int, overlap: int) -> tuple[int, int]:
        """Return the cuts of the next chunk: at most ``limit`` tokens, or one step beyond the previous end."""
        start = 0 if previous is None else self._start(previous, limit, overlap)
        least = 1 if previous is None else previous[1] + 1
        most = max(self.before(self.tokens[start] + limit), least)
        if most == self.last:
            return start, most
        half = max(self.after(self.tokens[start] + limit // 2), least)
        if (i := bisect_right(self._headings, most)) and self._headings[i - 1] >= half:
            return start, self._headings[i - 1]
        return start, self._end(least, max(self.after(self.tokens[start] + limit - limit // 4), least), most)

    def _start(self, previous: tuple[int, int], limit: int, overlap: int) -> int:
        """Return the first cut in reach, or one at the start of a word soon after it."""
        end = previous[1]
        # whatever follows the previous end has to fit, too
        reach = max(self.tokens[end] - overlap, self.tokens[end + 1] - limit)
        first = min(max(self.after(reach), previous[0] + 1), end)
        for cut in range(first, min(self.before(reach + overlap // 2), end) + 1):
            if self.text[self.chars[cut] - 1].isspace() or self.text[self.chars[cut]].isspace():
                return cut
        return next((cut for cut in range(first, end) if not _joined(self.text, int(self.chars[cut]))), end)

    def _end(self, least: int, low: int, most: int) -> int:
        """Return the best cut from ``low`` to ``most``; failing that, the last position between two characters."""
        best = (0, most)
        first, last = max(int(self.chars[low]) - _LOOK, 0), int(self.chars[most])
        for gap in _GAP.finditer(self.text, first, last + _LOOK):
            cut = bisect_right(self.chars, min(gap.end(), last), low, most + 1) - 1
            inside = cut >= low and self.chars[cut] >= (gap.start() if gap[0][0].isspace() else gap.end())
            if inside and not _joined(self.text, int(self.chars[cut])):
                best = max(best, (self._rank(gap), cut))
        if best[0] == 0:
            return next(
                (cut for cut in range(most, least - 1, -1) if not _joined(self.text, int(self.chars[cut]))), most
            )
        return best[1]

    def _rank(self, gap: re.Match[str]) -> int:
        """Return 4 for the end of a paragraph, 3 for a sentence, 2 for a line, 1 for a word."""
        lines = gap[0].count("\n")
        before = self.text[max(gap.start() - _LOOK, 0) : gap.start()].rstrip(_CLOSERS)
        if lines > 1:
            return 4
        if not gap[0][0].isspace() or before.endswith((".", "!", "?", "…", "。", "！", "？")):
            return 3
        return 1 + lines

    def before(self, tokens: int) -> int:
        """Return the last cut with at most this many tokens before it."""
        return bisect_right(self.tokens, tokens) - 1

    def after(self, tokens: int) -> int:
        """Return the first cut with at least this many tokens before it."""
        return bisect_left(self.tokens, tokens)


def _sections(text: str) -> list[Span]:
    """Return parts that are tokenised separately, cut before a space if possible."""
    spans, start = [], 0
    while len(text) - start > _SECTION:
        low, end = start + _SECTION // 2, start + _SECTION
        end = max(text.rfind(" ", low, end), text.rfind("\n", low, end), -1)
        if end < 0:
            candidates = range(start + _SECTION, low, -1)
            end = next((at for at in candidates if not _joined(text, at)), start + _SECTION)
        spans.append(Span(start, end))
        start = end
    return [*spans, Span(start, len(text))]


def _joined(text: str, at: int) -> bool:
    """Return whether readers see a single character across this position: accents, emoji sequences, flags, jamo."""
    before, after = text[at - 1], text[at]
    if after < "\u0300":
        return before == "\r" and after == "\n"
    if unicodedata.category(after)[0] == "M" or after in _EXTENDING or before == _JOINER:
        return True
    if before in _FLAGS and after in _FLAGS:
        run = text[max(at - _LOOK, 0) : at]
        return (len(run) - len(run.rstrip(_FLAGS))) % 2 == 1
    return "\u1160" <= after <= "\u11ff"
