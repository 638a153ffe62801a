"""Whether a Python string is text: one with half of a surrogate pair cannot be written down."""

from __future__ import annotations


def lone_surrogate(text: str) -> str | None:
    """Return "a lone surrogate (U+D800 at character 3)" where a string has one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start})"
    return None
