"""Request failures, and how they become a status and a body."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from twinvec.errors import TextError, TwinVecError
from twinvec.server.wire import STATUS

logger = logging.getLogger("twinvec.server")

_RETRY_AFTER = {"Retry-After": "1"}


@dataclass(eq=False)
class RefusedError(Exception):
    """A request that is refused, and why.

    Attributes:
        status: HTTP status.
        message: what went wrong, where, and what to do.
        field: the offending field of the request's JSON, if any.
        kind: class name of the error, from which RemoteEmbedder rebuilds it.
        headers: headers of the response.
        position: position of the offending text in the request's list.
        reason: the message without that position.
    """

    status: int
    message: str
    field: str | None = None
    kind: str = "ConfigurationError"
    headers: Mapping[str, str] | None = None
    position: int | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        self.reason = self.reason or self.message

    @classmethod
    def of(cls, error: Exception, field: str = "texts") -> RefusedError:
        """Translate an error for a client that sent its texts in the given field."""
        if isinstance(error, RefusedError):
            return error
        if isinstance(error, TwinVecError):
            status = STATUS.get(type(error), 500)
            refusal = cls(status, str(error), None, type(error).__name__, _RETRY_AFTER if status == 429 else None)
            if isinstance(error, TextError) and error.position is not None:
                refusal.field, refusal.position, refusal.reason = field, error.position, error.reason
                refusal.message = f"{field}[{error.position}] {error.reason}"
            return refusal
        logger.error("a request failed", exc_info=error)
        return cls(500, "internal error; see the server's log", None, "TwinVecError")


class ClientGoneError(Exception):
    """The client has disconnected."""
