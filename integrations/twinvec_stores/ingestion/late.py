"""Late chunking: which parts of a document go through the model at once, so that each chunk sees what is around it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from twinvec_stores.ingestion.spans import Span, Window

if TYPE_CHECKING:
    from twinvec_stores.ingestion.cuts import Cuts

_MARGIN = 8  # the part of a window that a chunk sees at least on both sides


def windows(cuts: Cuts, chunks: Sequence[Span], room: int, excess: Callable[[str], int]) -> list[Window]:
    """Divide a document into windows that the model takes, and that overlap where it is longer than the model's limit.

    Args:
        cuts: of the document.
        chunks: of it; both their starts and their ends rise.
        room: tokens of a window.
        excess: by how many tokens a text is too long; a cut may change how what is beside it is tokenised.

    Returns:
        Each chunk is in one window, in order, with an eighth of ``room`` before and behind it, as far as chunks leave
        so much and the document has it.
    """
    starts, ends = (
        [int(cuts.tokens[bisect_left(cuts.chars, at)]) for at in sides] for sides in zip(*chunks, strict=True)
    )
    longest = max(end - start for start, end in zip(starts, ends, strict=True))
    margin = max(min(room // _MARGIN, (room - longest) // 2), 0)
    found: list[Window] = []
    first = 0
    while first < len(chunks):
        low, reach = max(starts[first] - margin, 0), room
        while True:
            limit = low + reach
            visible = limit if limit >= cuts.tokens[-1] else limit - margin
            last = max(bisect_right(ends, visible), first + 1)
            start = min(int(cuts.chars[cuts.after(low)]), chunks[first].start)
            window = Span(start, max(int(cuts.chars[cuts.before(limit)]), chunks[last - 1].end))
            over = excess(cuts.text[window.start : window.end])
            if over <= 0 or limit <= ends[first]:
                break
            reach -= over
        own = [Span(chunk.start - start, chunk.end - start) for chunk in chunks[first:last]]
        found.append(Window(window, own))
        first = last
    return found
