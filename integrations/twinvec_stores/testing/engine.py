"""An engine under test: how the contract opens its stores."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from twinvec_stores.config import StoreConfig
from twinvec_stores.protocol import HybridStore


class EngineUnderTest:
    """What ``StoreTests`` and ``StoreStateMachine`` need to know about an engine.

    Attributes:
        persistent: whether records survive closing and reopening the store.
    """

    persistent: ClassVar[bool] = True

    def open_store(self, config: StoreConfig, folder: Path) -> HybridStore:
        """Open the store of a folder, or create it; an engine without files keeps one store for each folder.

        Args:
            config: what the store contains.
            folder: does not exist yet when the store is to be created.
        """
        raise NotImplementedError(f"{type(self).__name__} needs open_store")
