"""Limits: how large, how many and how slow what clients send may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from twinvec.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes on; more is refused, and what is slower is let go.

    Memory is bounded by ``max_connections * max_body_bytes`` of bodies that arrive, and by ``max_requests`` requests
    with their answers.

    Attributes:
        max_requests: requests at work, each from its whole body to its sent answer; further ones get status 429.
        max_texts: texts of one request.
        max_body_bytes: of one request's body (TEI's default).
        max_header_bytes: of one request's line and headers.
        max_connections: open at the same time, lowered to what the system's limit of open files allows. For one more,
            the one that has waited longest without a request is closed.
        header_seconds: for a request's headers, from the connection or from their first byte.
        body_seconds: for a request's body, from the end of its headers.
        idle_seconds: how long a connection without a request stays open. More than clients keep it, so that they close
            it and not the server.
        answer_seconds: for a client to take its answer, and one second more for each 128 kB of it.
        drain_seconds: from being told to stop to the end, whatever is not answered by then.
        unready_seconds: of these, how long ``/ready`` says no while new requests are still taken, so that load
            balancers look elsewhere first. Ctrl-C does not wait for it.
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
                right, must = isinstance(value, int) and value >= 1, "a positive whole number"
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
