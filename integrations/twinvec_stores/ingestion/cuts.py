"""Where a text may be cut: between the model's tokens, which are counted here, and where readers see a gap."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from twinvec.vectors import Int64
from twinvec_stores.ingestion.headings import headings
from twinvec_stores.ingestion.spans import Span

if TYPE_CHECKING:
    from twinvec import BaseEmbedder

SECTION = 100_000  # characters tokenised together: a token takes a hundred bytes, and sections run in parallel
_LOOK = 16  # characters examined around a position
_GAP = re.compile(r"\s+|[。！？]+[」』”’）]*")
_CLOSERS = "\"'”’»)]"
_JOINER = "\u200d"
_EXTENDING = _JOINER + "".join(map(chr, range(0x1F3FB, 0x1F400)))  # and skin tones
_FLAGS = "".join(map(chr, range(0x1F1E6, 0x1F200)))


class DocumentTokens:
    """The tokens of documents as a model sees them, after its prompt.

    Attributes:
        prompt: what the model has before every document.
        room: tokens of a text that fit beside the prompt and the special tokens.
    """

    def __init__(self, embedder: BaseEmbedder) -> None:
        self._embedder = embedder
        self.room = embedder.token_room("document")
        self.prompt = embedder.prompt_for("document")
        self._prompt_tokens = len(embedder.token_offsets([self.prompt])[0])

    def count(self, texts: Iterable[str]) -> list[int]:
        """Return each text's tokens, on its own behind the prompt."""
        offsets = self._embedder.token_offsets(self.prompt + text for text in texts)
        return [len(tokens) - self._prompt_tokens for tokens in offsets]

    def excess(self, text: str) -> int:
        """Return how many tokens a text has beyond the room."""
        return self.count([text])[0] - self.room

    def cuts(self, texts: Sequence[str]) -> list[Cuts]:
        """Return where each text may be cut."""
        sections = [_sections(text) for text in texts]
        parts = [text[s.start : s.end] for text, spans in zip(texts, sections, strict=True) for s in spans]
        offsets = iter(self._embedder.token_offsets(parts))
        return [
            Cuts(text, np.concatenate([next(offsets) + span.start for span in spans]))
            for text, spans in zip(texts, sections, strict=True)
        ]


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
    while len(text) - start > SECTION:
        low, end = start + SECTION // 2, start + SECTION
        end = max(text.rfind(" ", low, end), text.rfind("\n", low, end), -1)
        if end < 0:
            candidates = range(start + SECTION, low, -1)
            end = next((at for at in candidates if not _joined(text, at)), start + SECTION)
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
