"""Server logs: lines for people or JSON for machines, never texts; repeated messages are limited to one per second."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Literal

_LOGGERS = ("twinvec.server", "uvicorn.error", "asyncio")


class OnceASecond(logging.Filter):
    """Passes the first record of each message per second, and reports how many were suppressed before it."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record."""
        key, now = f"{record.name} {record.msg}"[:200], time.monotonic()
        last, kept_back = self._seen.get(key, (-1.0, 0))
        if 0 <= now - last < 1:
            self._seen[key] = (last, kept_back + 1)
            return False
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[key] = (now, 0)
        if kept_back:
            record.msg = f"{record.getMessage()} ({kept_back} more before it)"
            record.args = ()
        return True


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, and the details of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        facts = getattr(record, "facts", None)
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **(facts if facts is not None else {"message": record.getMessage()}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(form: Literal["text", "json"], *, access_log: bool) -> None:
    """Log to stderr, for a process that does nothing but serve."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("twinvec.server.access").setLevel(logging.INFO if access_log else logging.CRITICAL)


@contextlib.contextmanager
def quiet_floods() -> Iterator[None]:
    """Limit each message of the server's loggers to one per second."""
    filters = [(logging.getLogger(name), OnceASecond()) for name in _LOGGERS]
    for log, once in filters:
        log.addFilter(once)
    try:
        yield
    finally:
        for log, once in filters:
            log.removeFilter(once)
