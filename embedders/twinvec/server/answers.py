"""Responses: fast JSON serialisation that never blocks the event loop for long, sent to the last byte."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Send

_ROWS_AT_ONCE = 64  # a millisecond or two of JSON
_IN_ONE_PIECE = 65_536  # bytes that fit into the kernel's send buffer


class Encoded(Response):
    """A response of bytes; Starlette's own constructor takes longer than encoding a vector."""

    def __init__(
        self, body: bytes, media_type: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.body, self.status_code, self.background = body, status, None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", media_type.encode())]
        for name, value in (headers or {}).items():
            self.raw_headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))


class Json(Encoded):
    """A JSON response."""

    def __init__(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(msgspec.json.encode(content), "application/json", status, headers)


async def rows_of_json(rows: Iterable[Any], before: bytes = b"[", after: bytes = b"]") -> Response:
    """Return a JSON response with many rows, yielding to other requests while it is serialised."""
    return Encoded(await serialised(rows, before, after), "application/json")


async def serialised(rows: Iterable[Any], before: bytes = b"[", after: bytes = b"]") -> bytes:
    """Return many rows as JSON; see ``rows_of_json``."""
    parts = []
    for i, row in enumerate(rows):
        parts.append(msgspec.json.encode(row))
        if i % _ROWS_AT_ONCE == _ROWS_AT_ONCE - 1:
            await asyncio.sleep(0)
    return before + b",".join(parts) + after


async def send_whole(response: Response, send: Send) -> None:
    """Send a response; return once the client has received it."""
    body = bytes(response.body)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    if len(body) > _IN_ONE_PIECE:  # the server drains the first piece before it takes the second
        await send({"type": "http.response.body", "body": body, "more_body": True})
        body = b""
    await send({"type": "http.response.body", "body": body, "more_body": False})
