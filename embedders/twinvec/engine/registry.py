"""Which cores there are in this process, and who uses them."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from twinvec.engine.core import InferenceCore


@dataclass(eq=False)
class _Slot:
    """One core and the memo bytes that each of its users asked for; gone with the last of them."""

    loading: threading.Lock = field(default_factory=threading.Lock)
    core: InferenceCore | None = None
    users: list[int] = field(default_factory=list)


class Registry:
    """Cores by what decides their forward pass: one per key in a process, freed with its last user."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: dict[Hashable, _Slot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def acquire(self, key: Hashable, memo_bytes: int, make: Callable[[], InferenceCore]) -> InferenceCore:
        """Return the core of a key, made once, and restarted when it is lost; each call needs a ``release``."""
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            slot.users.append(memo_bytes)
        try:
            with slot.loading:
                if slot.core is None:
                    slot.core = make()
                else:
                    slot.core.restart()  # does nothing unless its devices were lost
            slot.core.limit_memo(max(slot.users))
        except BaseException:
            self._leave(slot, memo_bytes, drain=False)
            raise
        return slot.core

    def release(self, core: InferenceCore, memo_bytes: int, *, drain: bool = False) -> None:
        """Give a core back; the last user closes it."""
        with self._lock:
            slot = next((slot for slot in self._slots.values() if slot.core is core), None)
        if slot is not None:
            self._leave(slot, memo_bytes, drain=drain)

    def _leave(self, slot: _Slot, memo_bytes: int, *, drain: bool) -> None:
        with self._lock:
            slot.users.remove(memo_bytes)
            last = not slot.users
            if last:
                self._slots = {key: other for key, other in self._slots.items() if other is not slot}
        if slot.core is None:
            return
        if last:
            slot.core.close(drain=drain)
        else:
            slot.core.limit_memo(max(slot.users))

    def close_all(self) -> None:
        """Close every core, whoever uses it: the interpreter ends."""
        with self._lock:
            slots, self._slots = self._slots, {}
        for slot in slots.values():
            if slot.core is not None:
                slot.core.abandon()


REGISTRY = Registry()
atexit.register(REGISTRY.close_all)
if hasattr(os, "register_at_fork"):  # the parent's cores have no threads in a child, and its locks may be held
    os.register_at_fork(after_in_child=REGISTRY.__init__)  # type: ignore[misc]
