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
