"""Moments in time: dates and times as integer microseconds since 1970, in UTC."""

from __future__ import annotations

import datetime
import re

_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?\s?(Z|z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d){0,2})?)?",
    re.ASCII,
)
_EPOCH = datetime.datetime(1970, 1, 1)
_MICROSECOND = datetime.timedelta(microseconds=1)


def moment(value: object) -> int | None:
    """Return the microseconds since 1970 of an ISO 8601 string, a datetime or a date; None for anything else.

    Offsets are honoured; without one, UTC is assumed; a date means midnight. Nanoseconds do not fit and give None.
    """
    if isinstance(value, datetime.date):
        value = value.isoformat()
    match = _ISO.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    digits = (fraction or "").ljust(9, "0")
    if digits[6:] != "000":
        return None
    try:
        local = datetime.datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), int(digits[:6])
        )
    except ValueError:
        return None
    return (local - _EPOCH) // _MICROSECOND - _offset(offset) * 1_000_000


def _offset(text: str | None) -> int:
    """Return the seconds of "+03:00", "-0530", "+03", or of a local time before there were zones: "+00:19:32"."""
    if text is None or text in "Zz":
        return 0
    digits = text[1:].replace(":", "").ljust(6, "0")
    seconds = 3600 * int(digits[:2]) + 60 * int(digits[2:4]) + int(digits[4:])
    return -seconds if text[0] == "-" else seconds
