"""Connections with bounded number, headers, pauses and unread responses; uvicorn bounds none of these.

A connection either waits for a request or works on one. Every wait has a deadline, and when there are too many
connections, the one that has waited longest makes room for the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from twinvec.server.limits import Limits

_BYTES_PER_SECOND = 128_000  # the least rate at which clients must read responses
_CONTINUE = b"HTTP/1.1 100 "
_FLOOD = 32  # a discarded request may send this multiple of max_body_bytes


class Connections:
    """State shared by all connections of a server.

    Attributes:
        limits: of each connection, and of their number.
        waiting: connections without a request, the longest waiting first.
        closed: how many connections the server closed before their request was complete, by reason.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting: dict[BoundedProtocol, None] = {}
        self.closed = dict.fromkeys(("evicted", "refused", "slow_headers", "unread_answer", "malformed"), 0)


class HeadWithBody:
    """The way out of one response: its head waits for the first piece of the body, so that both share one packet."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self.is_closing, self.write_now = transport.is_closing, transport.write

    def write(self, data: bytes) -> None:
        if self._head is None:
            if data.startswith(_CONTINUE):
                self.write_now(data)
            else:
                self._head = data
        else:
            self.write_now(self._head + data if self._head else data)
            self._head = b""

    def close(self) -> None:
        if self._head:
            self.write_now(self._head)
        self._transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, shared: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared, self._limits = shared, shared.limits
        self._in_head, self._head_bytes, self._body_bytes = True, 0, 0
        self._head_deadline: asyncio.TimerHandle | None = None
        self._answer_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # to be notified of every response that is not read at once
        if len(self.connections) > self._limits.max_connections and not self._make_room():
            self._close("refused", 503, "too many connections: try again later")
            return
        self._shared.waiting[self] = None
        self._head_deadline = self.loop.call_later(self._limits.header_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.waiting.pop(self, None)
        self._cancel_head_deadline()
        _cancel(self._answer_deadline)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        else:
            self._body_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._head_bytes > self._limits.max_header_bytes:
            self._close("malformed", 431, f"the headers exceed {self._limits.max_header_bytes} bytes")
        elif self._body_bytes > _FLOOD * self._limits.max_body_bytes:
            self._shared.closed["malformed"] += 1
            self.transport.abort()
        elif self in self._shared.waiting and self._head_deadline is None:
            self._head_deadline = self.loop.call_later(self._limits.header_seconds, self._too_slow)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._shared.waiting.pop(self, None)
        self._cancel_head_deadline()
        super().on_headers_complete()
        self.cycle.transport = HeadWithBody(self.transport)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._body_bytes = True, 0

    def on_response_complete(self) -> None:
        last = not self.pipeline
        super().on_response_complete()
        if last and not self.transport.is_closing():
            self._shared.waiting[self] = None

    def pause_writing(self) -> None:
        super().pause_writing()
        size = self.transport.get_write_buffer_size()
        seconds = self._limits.answer_seconds + size / _BYTES_PER_SECOND
        self._answer_deadline = self.loop.call_later(seconds, self._unread)

    def resume_writing(self) -> None:
        _cancel(self._answer_deadline)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._close("malformed", 400, "this is not HTTP/1.1")

    def _cancel_head_deadline(self) -> None:
        _cancel(self._head_deadline)
        self._head_deadline = None

    def _make_room(self) -> bool:
        longest = next(iter(self._shared.waiting), None)
        if longest is None:
            return False
        del self._shared.waiting[longest]
        self._shared.closed["evicted"] += 1
        longest.transport.abort()
        return True

    def _too_slow(self) -> None:
        self._head_deadline = None
        if self._head_bytes:
            self._close("slow_headers", 408, "the headers did not arrive in time")
        elif not self.transport.is_closing():
            self.transport.close()

    def _unread(self) -> None:
        self._shared.closed["unread_answer"] += 1
        self.transport.abort()

    def _close(self, reason: str, status: int, message: str) -> None:
        """Answer something that is not a request yet (so there is no route and no dialect), and hang up."""
        self._shared.closed[reason] += 1
        if self.transport.is_closing():
            return
        body = msgspec.json.encode({"error": {"message": message, "type": "invalid_request_error"}})
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def protocol_factory(shared: Connections) -> Callable[..., BoundedProtocol]:
    """Return the factory of connection protocols for uvicorn."""

    def make(*args: Any, **kwargs: Any) -> BoundedProtocol:
        return BoundedProtocol(*args, shared=shared, **kwargs)

    return make
