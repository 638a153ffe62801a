"""Every call that was made, until it has ended; what was wrong."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator

from soaking.clients import Call, WrongError

_MAX_SHOWN = 5  # of a check


class Ledger:
    """See above.

    Attributes:
        open: calls that have not ended.
        outcomes: how the others have.
        rows: that were verified.
        wrong: check -> how often it has failed.
        shown: some of that in words.
    """

    def __init__(self) -> None:
        self.open: set[Call] = set()
        self.outcomes: Counter[str] = Counter()
        self.rows = 0
        self.wrong: Counter[str] = Counter()
        self.shown: list[str] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def watch(self, call: Call) -> Iterator[None]:
        """Register a call while it runs, and judge how it ends; its errors end here."""
        call.started = time.monotonic()
        with self._lock:
            self.open.add(call)
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
        with self._lock:
            self.open.discard(call)
            self.outcomes["vectors" if error is None else type(error).__name__] += 1
            self.rows += len(call.rows) if error is None else 0
        if isinstance(error, WrongError):
            self.complain(error.check, f"{call}: {error}")
        elif error is not None and not call.expects(error):
            self.complain("errors", f"{call}: {type(error).__name__}: {error}"[:600])

    def complain(self, check: str, what: str) -> None:
        """Note that a check has failed."""
        with self._lock:
            self.wrong[check] += 1
            if self.wrong[check] <= _MAX_SHOWN:
                self.shown.append(f"{check}: {what}")

    def overdue(self, limit: float) -> list[Call]:
        """Return the calls that run for longer than ``limit`` seconds."""
        with self._lock:
            return [call for call in self.open if time.monotonic() - call.started > limit]
