"""What waits for a device, in which order: queries first but not for ever, bulk work planned by length."""

from __future__ import annotations

from collections import deque

from twinvec.compute.packing import plan
from twinvec.engine.work import Batch, Entry

_PLAN_BATCHES = 16  # batches planned at once: enough to sort by length, few enough to stay fair
_STREAK = 8  # batches of queries in a row while bulk work waits


class Lanes:
    """Entries that wait singly, and batches that are planned already or come back.

    Attributes:
        urgent: queries.
        bulk: all other entries.
        planned: batches of the latter, and whatever is tried again.
        tokens: of the single entries.
    """

    def __init__(self) -> None:
        self.urgent: deque[Entry] = deque()
        self.bulk: deque[Entry] = deque()
        self.planned: deque[Batch] = deque()
        self.tokens = self._streak = 0

    def __len__(self) -> int:
        return len(self.urgent) + len(self.bulk) + sum(len(batch.entries) for batch in self.planned)

    def put(self, entry: Entry) -> None:
        """Queue a tokenised entry."""
        (self.urgent if entry.urgent else self.bulk).append(entry)
        self.tokens += entry.n_tokens

    def again(self, batch: Batch, budget: int | None = None) -> None:
        """Queue a batch before all other bulk work, in parts that fit."""
        self.planned.extendleft(reversed(_split(batch, budget or batch.n_tokens)))

    def pop(self, budget: int) -> Batch | None:
        """Return the next batch: at most ``budget`` tokens of live entries, or one longer entry.

        Entries that nobody waits for any more come along and are not counted.
        """
        if self.urgent and (self._streak < _STREAK or not (self.bulk or self.planned)):
            self._streak += 1
            return Batch(self._fill(self.urgent, budget))
        self._streak = 0
        if self.bulk and not self.planned:
            self.again(Batch(self._fill(self.bulk, _PLAN_BATCHES * budget)), budget)
        if not self.planned:
            return None
        self.again(self.planned.popleft(), budget)  # it may be of a larger budget
        return self.planned.popleft()

    def _fill(self, lane: deque[Entry], room: int) -> list[Entry]:
        entries: list[Entry] = []
        while lane and (not entries or lane[0].n_tokens <= room or not lane[0].live):
            entry = lane.popleft()
            entries.append(entry)
            self.tokens -= entry.n_tokens
            room -= entry.n_tokens if entry.live else 0
        return sorted(entries, key=lambda entry: -entry.n_tokens)  # equal lengths side by side, see plan


def _split(batch: Batch, budget: int) -> list[Batch]:
    if len(batch.entries) == 1 or batch.n_tokens <= budget:
        return [batch]
    parts = plan([entry.n_tokens for entry in batch.entries], budget)
    return [Batch([batch.entries[i] for i in part], alone=batch.alone) for part in parts]
