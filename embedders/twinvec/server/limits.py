"""Limits on the size, number and slowness of what clients send."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from twinvec.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server: requests beyond them are refused, clients that are too slow are disconnected.

    Memory is bounded by ``max_connections * max_body_bytes`` for bodies that are being received, plus ``max_requests``
    requests with their responses.

    Attributes:
        max_requests: concurrent requests, each counted from its complete body to its sent response; further ones get
            status 429.
        max_texts: texts per request.
        max_body_bytes: size of a request's body (default as in TEI).
        max_header_bytes: size of a request's line and headers.
        max_connections: open connections, capped by the system's limit on open files. When one more arrives, the
            connection that has been idle longest is closed.
        header_seconds: time to receive a request's headers, from the connection or their first byte.
        body_seconds: time to receive a request's body, from the end of its headers.
        idle_seconds: how long an idle connection stays open. Longer than clients keep theirs, so that they close it
            rather than the server.
        answer_seconds: time for a client to receive its response, plus one second for every 128 kB of it.
        drain_seconds: time from the request to stop until the process ends, whatever is still unanswered then.
        unready_seconds: the part of it during which ``/ready`` fails while new requests are still accepted, so that
            load balancers move on first. Ctrl-C skips it.
    """

    max_requests: int = 512
    max_texts: int = 2048
    max_body_bytes: int = 2_000_000
    max_header_bytes: int = 32_768
    max_connections: int = 1024
    header_seconds: float = 10
    body_seconds: float = 30
    idle_seconds: float = 75
    answer_seconds: float = 60
    drain_seconds: float = 25
    unready_seconds: float = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("max_"):
                right, must = isinstance(value, int) and value >= 1, "a positive integer"
            else:
                least = 0 if field.name == "unready_seconds" else 0.001
                right = isinstance(value, (int, float)) and math.isfinite(value) and value >= least
                must = "a number of seconds greater than 0"
            if isinstance(value, bool) or not right:
                raise ConfigurationError(f"{field.name}={value!r} must be {must}")
        if self.unready_seconds >= self.drain_seconds:
            raise ConfigurationError(
                f"unready_seconds={self.unready_seconds} must be less than drain_seconds={self.drain_seconds}"
            )
