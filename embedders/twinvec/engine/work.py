"""What a dispatcher deals in: entries, batches, devices, and what it tells the threads to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from twinvec.cache.rows import Cache, Key, Row

if TYPE_CHECKING:
    from twinvec.engine.job import Job
    from twinvec.text.tokenizer import TokenizedText


@dataclass(eq=False, slots=True)
class Entry:
    """One distinct text on its way, and who waits for it: (job, number of the text in it)."""

    key: Key
    urgent: bool
    waiters: list[tuple[Job, int]]
    tokens: TokenizedText | None = None
    queued: float = 0.0

    @property
    def n_tokens(self) -> int:
        """Return its size, 0 until it is tokenised."""
        return 0 if self.tokens is None else len(self.tokens.ids)

    @property
    def live(self) -> bool:
        """Return whether anyone still waits for it."""
        return any(job.live for job, _ in self.waiters)


@dataclass(eq=False, slots=True)
class Batch:
    """Entries, at least one, that are tokenised together, or run together.

    Attributes:
        alone: all entries have the same callers, so that a failure is theirs.
        cache: where to look entries up before they are tokenised.
        device, budget: that it was given to, and the device's budget then; None until it is run.
    """

    entries: list[Entry]
    alone: bool = False
    cache: Cache | None = None
    device: Device | None = None
    budget: int = 0

    @property
    def n_tokens(self) -> int:
        """Return its size, once tokenised."""
        return sum(entry.n_tokens for entry in self.entries)

    @property
    def characters(self) -> int:
        """Return its size before."""
        return sum(len(entry.key.text) for entry in self.entries)


@dataclass(eq=False, slots=True)
class Device:
    """An encoder's device, as long as it works.

    Attributes:
        name: for messages.
        full_budget, budget: tokens per batch at first, and today.
        small: tokens per batch of bulk work while queries come.
        ahead: whether it gets a batch while it works on another.
        running: what its thread has; what it says of any other batch comes too late.
        calm: passes since it last ran out of memory.
        wake: when its thread looks again whether a batch that is not full has waited for long enough.
    """

    name: str
    full_budget: int
    small: int
    ahead: bool = False
    running: list[Batch] = field(default_factory=list)
    calm: int = 0
    wake: float | None = None
    budget: int = field(init=False)

    def __post_init__(self) -> None:
        self.budget = self.full_budget


class Tokenise(NamedTuple):
    """Look a batch up and tokenise it, then tell ``tokenised`` or ``failed``."""

    batch: Batch


class Run(NamedTuple):
    """Run a batch on its device, then tell ``ran``, ``failed``, ``ran_out`` or ``lost``."""

    batch: Batch


class Wake(NamedTuple):
    """Tell ``woken`` at this time, unless the device is given a batch to run before."""

    device: Device
    time: float


class Keep(NamedTuple):
    """Write rows to a persistent cache."""

    cache: Cache
    rows: list[tuple[Key, Row]]


class Answer(NamedTuple):
    """Tell a caller that all rows of its job are there, or why they are not."""

    job: Job
    error: BaseException | None


class Stop(NamedTuple):
    """End the thread of a device; None: the host threads."""

    device: Device | None


Command = Tokenise | Run | Wake | Keep | Answer | Stop
Event = Callable[[], None]
