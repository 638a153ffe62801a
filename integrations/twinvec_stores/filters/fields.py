"""Fields: the syntax of a path into metadata, and what it leads to.

``a.b`` is a key in an object under another key, or in each object of a list, or a key that itself contains a dot,
whichever the metadata has: both pandas' json_normalize and nested rows are found. ``"a.b"`` in double quotes is a
single literal key; ``tags[].id`` only looks into the objects of a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from twinvec.errors import FilterError
from twinvec.text.unicode import lone_surrogate

_PART = re.compile(r'(?:"([^"\\]*)"|([^."\[\]\\]+))(\[\])?')


class Part(NamedTuple):
    """A step of a path.

    Attributes:
        key: a key of an object.
        quoted: whether it was written in quotes, so that its dots are literal.
        in_list: whether the next part is a key of the objects in a list.
    """

    key: str
    quoted: bool = False
    in_list: bool = False


def parse_field(field: str) -> tuple[Part, ...]:
    """Return the parts of a path.

    Raises:
        FilterError: it is not a field.
    """
    if isinstance(field, str) and not lone_surrogate(field):
        parts, at = [], 0
        while match := _PART.match(field, at):
            quoted = match[1] is not None
            parts.append(Part(match[1] if quoted else match[2], quoted, match[3] is not None))
            at = match.end()
            if at == len(field):
                return tuple(parts)
            if field[at] != ".":
                break
            at += 1
    raise FilterError(
        f'{field!r} is not a field: write key, outer.inner, list[].inner, or "a key" in double quotes',
        field=field if isinstance(field, str) else None,
    )


def readings(field: str) -> list[tuple[Part, ...]]:
    """Return every way to read a path, with no ambiguity left in the parts."""
    return list(_readings(parse_field(field)))


def field_values(metadata: Mapping[str, Any], field: str) -> list[Any]:
    """Return the values of a field: the elements of a list; nothing if it is missing or null."""
    return [inner for value in reached(metadata, field) for inner in _elements(value) if inner is not None]


def reached(metadata: Mapping[str, Any], field: str) -> list[Any]:
    """Return everything a path leads to, by all of its readings, with lists as they are."""
    return list(_reached(metadata, parse_field(field)))


def _readings(parts: Sequence[Part]) -> Iterator[tuple[Part, ...]]:
    for length in range(1, len(parts) + 1):
        joined = _joined(parts[:length])
        if joined is None:
            return
        if length == len(parts):
            yield (joined._replace(in_list=False),)
            continue
        for rest in _readings(parts[length:]):
            if not joined.in_list:
                yield (joined, *rest)
            yield (joined._replace(in_list=True), *rest)


def _joined(parts: Sequence[Part]) -> Part | None:
    """Return parts as one dotted key, if they can be one."""
    if len(parts) > 1 and any(part.quoted for part in parts):
        return None
    if any(part.in_list for part in parts[:-1]):
        return None
    return Part(".".join(part.key for part in parts), True, parts[-1].in_list)


def _reached(value: Any, parts: Sequence[Part]) -> Iterator[Any]:
    for length in range(1, len(parts) + 1):
        joined = _joined(parts[:length])
        if joined is None:
            return
        if joined.key not in value:
            continue
        inner, rest = value[joined.key], parts[length:]
        if not rest:
            yield inner
        elif isinstance(inner, Mapping):
            if not joined.in_list:
                yield from _reached(inner, rest)
        elif isinstance(inner, (list, tuple)):
            for element in inner:
                if isinstance(element, Mapping):
                    yield from _reached(element, rest)


def _elements(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)
