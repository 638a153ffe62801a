"""Parts of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """A part of a text: ``text[start:end]``."""

    start: int
    end: int


class Window(NamedTuple):
    """A part of a document that goes through the model at once, for late chunking.

    Attributes:
        span: what it is of the document.
        chunks: those that have their vectors from it, as spans of the window.
    """

    span: Span
    chunks: Sequence[Span]


class Division(NamedTuple):
    """The parts of a document.

    Attributes:
        chunks: those that become records.
        windows: for late chunking, the parts that go through the model at once.
        beginning: as much of it as the model takes, if the chunks' vectors are mixed with the document's.
    """

    chunks: list[Span]
    windows: Sequence[Window] = ()
    beginning: Span | None = None
