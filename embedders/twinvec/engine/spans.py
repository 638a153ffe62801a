"""One call's part in one model, where parts of texts have the rows: late chunking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twinvec.cache.rows import Key
from twinvec.engine.job import Job
from twinvec.errors import InvalidTextError, TextError, TextTooLongError
from twinvec.vectors import EmbeddingBatch, Spans


@dataclass(eq=False)
class SpanJob(Job):
    """Texts of one call, none of which may be cut, and the spans of each, whose rows come from one pass over it."""

    spans: Sequence[Spans] = ()

    def __post_init__(self) -> None:
        self.texts = list(self.given)
        self.rows = [None] * len(self.texts)

    def key(self, number: int) -> Key:
        """Return what decides the rows of a text."""
        return super().key(number)._replace(spans=tuple(self.spans[number]))

    def position(self, number: int) -> int:
        """Return a text's position in the caller's list."""
        return number

    def refusal(self, number: int, tokens: int, full_length: int) -> TextError | None:
        """Return the error of a text that is too long, or with a span that has no vector."""
        if tokens == 0:
            reason = "has a span without a token, so no vector is defined for it: leave the span out"
            return InvalidTextError(reason, position=number)
        if full_length > tokens:
            reason = f"has {full_length} tokens with its prompt, the limit is {self.request.max_length}: give its "
            return TextTooLongError(f"{reason}spans with shorter parts of it", position=number)
        return None

    def batch(self) -> EmbeddingBatch:
        """Return a row for each span, text by text."""
        return self._stack([part for row in self.rows if row is not None for part in row.parts])
