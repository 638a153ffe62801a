"""Headings: what the parts of a text are about, and the context that lets a chunk keep its subject."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_LINE = re.compile(r"[^\n]*\n|[^\n]+\Z")
_WORD = re.compile(r"\S")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*\r?\n?\Z")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*\r?\n?\Z")
_MARKUP = re.compile(r"[*_`]+|\[([^\]]*)\]\([^)]*\)|<[^>]*>")
_LONGEST = 120  # maximum characters of a heading in a context


class Heading(NamedTuple):
    """A Markdown heading.

    Attributes:
        start: where its line starts.
        end: where the text below it starts.
        level: 1 to 6.
        title: its text, without markup.
    """

    start: int
    end: int
    level: int
    title: str


def headings(text: str) -> list[Heading]:
    """Return the headings of a text: lines of ``#`` to ``######``, and lines underlined with ``=`` or ``-``.

    Lines within a fenced code block do not count.
    """
    found: list[Heading] = []
    fence = ""
    previous = (0, "")  # a line that may turn out to be underlined
    for match in _LINE.finditer(text):
        line = match[0]
        if opened := _FENCE.match(line):
            if not fence:
                fence = opened[1]
            elif opened[1].startswith(fence) and not line.strip(" \t\r\n`~"):
                fence = ""
            previous = (0, "")
        elif fence:
            continue
        elif (atx := _ATX.match(line)) and (title := _plain(atx[2])):
            found.append(Heading(match.start(), match.end(), len(atx[1]), title))
            previous = (0, "")
        elif previous[1] and (under := _UNDERLINE.match(line)):
            found.append(Heading(previous[0], match.end(), 1 if under[1][0] == "=" else 2, previous[1]))
            previous = (0, "")
        else:
            # a paragraph of several lines is not underlined, nor is a list or a table
            alone = match.start() == 0 or text.endswith(("\n\n", "\n\r\n"), 0, match.start())
            previous = (match.start(), _plain(line)) if alone and line.strip()[:1] not in tuple("|>-*+") else (0, "")
    return found


class Outline:
    """The headings of one document, and the contexts of its parts."""

    def __init__(self, text: str, metadata: Mapping[str, Any]) -> None:
        self._text, self._headings = text, headings(text)
        self._starts = [heading.start for heading in self._headings]
        title = metadata.get("title")
        self._title = _plain(title) if isinstance(title, str) else ""

    def context(self, start: int) -> list[str]:
        """Return the document's title and the headings above a part, outermost first.

        Args:
            start: the part's start; headings at the very start of the part are its own.
        """
        start = word.start() if (word := _WORD.search(self._text, start)) else start
        above: list[Heading] = []
        for heading in self._headings[: bisect_right(self._starts, start)]:
            above = [other for other in above if other.level < heading.level]
            above.append(heading)
        names = [heading.title for heading in above if heading.start < start]
        return [self._title, *names] if self._title and self._title not in names[:1] else names


def _plain(title: str) -> str:
    return " ".join(_MARKUP.sub(lambda match: match[1] or "", title).split())[:_LONGEST].rstrip()


def before(names: list[str]) -> Iterator[str]:
    """Yield possible contexts of a chunk, from long to short: headings in the middle are dropped first."""
    while names:
        yield " > ".join(names) + "\n\n"
        names = names[:1] + names[2:] if len(names) > 2 else names[1:]
    yield ""
