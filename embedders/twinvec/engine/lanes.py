"""What waits for a device, and in which order: queries first but not forever, bulk work planned by length."""

from __future__ import annotations

from collections import deque

from twinvec.compute.packing import plan
from twinvec.engine.work import Batch, Entry

_PLAN_BATCHES = 16  # batches planned at once: enough to sort by length, few enough to stay fair
_STREAK = 8  # consecutive query batches while bulk work waits
_QUIET = 32  # bulk batches after a query until no other query is expected soon


class Lanes:
    """Single waiting entries, and batches that are already planned or being retried.

    Attributes:
        urgent: queries.
        bulk: all other entries.
        planned: planned batches of bulk entries, and retried batches.
    """

    def __init__(self) -> None:
        self.urgent: deque[Entry] = deque()
        self.bulk: deque[Entry] = deque()
        self.planned: deque[Batch] = deque()
        self._tokens = self._streak = 0
        self._since_query = _QUIET  # batches

    def __len__(self) -> int:
        return len(self.urgent) + len(self.bulk) + sum(len(batch.entries) for batch in self.planned)

    @property
    def idle(self) -> bool:
        """Return whether nothing is waiting."""
        return not (self.urgent or self.bulk or self.planned)

    def fill(self, budget: int) -> bool:
        """Return whether there is enough work for a full batch."""
        return bool(self.planned) or self._tokens >= budget

    def put(self, entry: Entry) -> None:
        """Queue a tokenised entry."""
        if entry.urgent:
            self._since_query = 0
        (self.urgent if entry.urgent else self.bulk).append(entry)
        self._tokens += entry.n_tokens

    def again(self, entries: list[Entry], budget: int | None = None) -> None:
        """Queue entries ahead of all other bulk work, in batches that fit."""
        lengths = [entry.n_tokens for entry in entries]
        room = budget or sum(lengths)
        parts = plan(lengths, room) if sum(lengths) > room else [list(range(len(entries)))]
        self.planned.extendleft(Batch([entries[i] for i in part]) for part in reversed(parts))

    def pop(self, budget: int, small: int) -> Batch | None:
        """Return the next batch: at most ``budget`` tokens of live entries, or one longer entry.

        While queries are arriving, bulk batches are limited to ``small`` tokens, since queries wait for them to finish.
        Entries that nobody waits for any more come along without being counted.
        """
        if self.urgent and (self._streak < _STREAK or not (self.bulk or self.planned)):
            self._streak += 1
            return Batch(self._take(self.urgent, budget))
        self._streak = 0
        if self.bulk and not self.planned:
            self.again(self._take(self.bulk, _PLAN_BATCHES * budget), budget)
        if not self.planned:
            return None
        self._since_query += 1
        batch = self.planned.popleft()  # it may have been planned for a larger budget
        self.again(batch.entries, small if self._since_query <= _QUIET else budget)
        return self.planned.popleft()

    def _take(self, lane: deque[Entry], room: int) -> list[Entry]:
        entries: list[Entry] = []
        while lane and (not entries or lane[0].n_tokens <= room or not lane[0].live):
            entry = lane.popleft()
            entries.append(entry)
            self._tokens -= entry.n_tokens
            room -= entry.n_tokens if entry.live else 0
        return sorted(entries, key=lambda entry: -entry.n_tokens)  # equal lengths side by side, see plan
