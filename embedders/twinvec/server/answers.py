"""Answers: JSON by a fast writer, rows of numbers without holding others up, and sent to their last byte."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Send

_ROWS_AT_ONCE = 64  # a millisecond or two of JSON
_IN_ONE_PIECE = 65_536  # bytes that the system's own buffer takes


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def __init__(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(msgspec.json.encode(content), status, headers)


async def rows_of_json(rows: Iterable[Any], before: bytes = b"[", after: bytes = b"]") -> Response:
    """Return a JSON answer with many rows; other requests take turns with its writing."""
    parts = []
    for i, row in enumerate(rows):
        parts.append(msgspec.json.encode(row))
        if i % _ROWS_AT_ONCE == _ROWS_AT_ONCE - 1:
            await asyncio.sleep(0)
    return Response(before + b",".join(parts) + after, media_type="application/json")


async def send_whole(response: Response, send: Send) -> None:
    """Send an answer, and return when its client has taken it."""
    body = bytes(response.body)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    if len(body) > _IN_ONE_PIECE:  # the server waits, before the second piece, until the first is gone
        await send({"type": "http.response.body", "body": body, "more_body": True})
        body = b""
    await send({"type": "http.response.body", "body": body, "more_body": False})
