"""The dispatcher's vocabulary: entries, batches, devices, and commands for the threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from twinvec.cache.rows import Cache, Key, Row
from twinvec.compute.out_of_memory import Budget

if TYPE_CHECKING:
    from twinvec.engine.job import Job
    from twinvec.text.tokenizer import TokenizedText


@dataclass(eq=False, slots=True)
class Entry:
    """One distinct text in flight, and who waits for it: (job, index of the text in the job)."""

    key: Key
    urgent: bool
    waiters: list[tuple[Job, int]]
    tokens: TokenizedText | None = None
    n_tokens: int = 0
    queued: float = 0.0

    @property
    def live(self) -> bool:
        """Return whether anyone is still waiting for it."""
        return any(job.live for job, _ in self.waiters)


@dataclass(eq=False, slots=True)
class Batch:
    """One or more entries that are tokenised or run together.

    Attributes:
        cache: where to look up entries before they are tokenised.
        device, budget: the device it was given to, and that device's budget at the time; None until it is run.
    """

    entries: list[Entry]
    cache: Cache | None = None
    device: Device | None = None
    budget: int = 0

    @property
    def n_tokens(self) -> int:
        """Return its size once tokenised."""
        return sum(entry.n_tokens for entry in self.entries)

    @property
    def characters(self) -> int:
        """Return its size before tokenisation."""
        return sum(len(entry.key.text) for entry in self.entries)


@dataclass(eq=False, slots=True)
class Device:
    """An encoder's device, as long as it works.

    Attributes:
        name: name used in messages.
        budget: tokens per batch, fewer after memory has run out.
        small: tokens per bulk batch while queries are arriving.
        ahead: whether it takes a batch while it is working on another.
        running: the batches its thread has; reports about any other batch come too late.
        wake: when its thread checks again whether a partial batch has waited long enough.
    """

    name: str
    budget: Budget
    small: int
    ahead: bool = False
    running: list[Batch] = field(default_factory=list)
    wake: float | None = None


class Tokenise(NamedTuple):
    """Look a batch up and tokenise it, then report ``tokenised`` or ``failed``."""

    batch: Batch


class Run(NamedTuple):
    """Run a batch on its device, then report ``ran``, ``failed``, ``ran_out`` or ``lost``."""

    batch: Batch


class Wake(NamedTuple):
    """Report ``woken`` at this time, unless the device is given a batch before."""

    device: Device
    time: float


class Keep(NamedTuple):
    """Write rows to a persistent cache."""

    cache: Cache
    rows: list[tuple[Key, Row]]


class Answer(NamedTuple):
    """Tell the callers of these jobs that they are over."""

    jobs: list[Job]


class Stop(NamedTuple):
    """End the thread of a device; None: the host threads."""

    device: Device | None


Command = Tokenise | Run | Wake | Keep | Answer | Stop
Event = Callable[[], None]
