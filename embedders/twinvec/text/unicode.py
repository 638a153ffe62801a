"""Checks that Python strings are encodable text, without lone surrogates."""

from __future__ import annotations

from collections.abc import Iterable

from twinvec.errors import InvalidTextError


def lone_surrogate(text: str) -> str | None:
    """Return "a lone surrogate (U+D800 at character 3)" if a string has one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start})"
    return None


def check_texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Return the texts as a list.

    Raises:
        TypeError: ``texts`` is a single string, or an item is not a string.
        InvalidTextError: a text has a lone surrogate.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{name} must be a list of strings, not a {type(texts).__name__}: pass [{name}]")
    checked = list(texts)
    for position, text in enumerate(checked):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{position}] must be a string, not {type(text).__name__}")
        if reason := lone_surrogate(text):
            raise InvalidTextError(
                f"has {reason}, which is not text: decode the source as UTF-8, or clean it with "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')",
                position=position,
                name=name,
            )
    return checked
