"""What happens when memory runs out: what can be freed is freed, the budget is halved, the texts are planned again.

The device's thread recognises the error and frees memory; the dispatcher lowers its budget, puts the batch's texts
first in line, and rejects a text that does not fit by itself. None of them is lost.
"""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

CALM = 256  # passes without running out of memory after which a lowered budget is doubled
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory")  # torch's own, on every kind of device


@dataclass(eq=False, slots=True)
class Budget:
    """How many tokens a device takes in one batch.

    Attributes:
        full, tokens: initially and now.
        calm: passes since memory last ran out.
    """

    full: int
    tokens: int = field(init=False)
    calm: int = 0

    def __post_init__(self) -> None:
        self.tokens = self.full

    def passed(self) -> None:
        """A batch had room; after many of them, whatever used the memory may be gone."""
        self.calm += 1
        if self.calm % CALM == 0:
            self.tokens = min(2 * self.tokens, self.full)

    def halve(self, tokens: int, planned_for: int, device: str) -> None:
        """Make room after a batch of this many tokens, unless another batch planned for the same budget already did."""
        if planned_for <= self.tokens:
            self.tokens = max(min(self.tokens, tokens) // 2, 1)
            logger.warning("out of memory at %d tokens on %s; budget now %d", tokens, device, self.tokens)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a smaller batch might fit."""
    import torch  # the dispatcher, which needs the budget only, has no use for it

    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(sign in str(error) for sign in _SIGNS)


def free_memory(device: torch.device) -> None:
    """Free what nobody uses any more."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
