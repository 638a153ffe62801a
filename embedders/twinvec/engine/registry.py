"""Which cores there are in this process, and who uses them."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Hashable

from twinvec.engine.core import InferenceCore


class Shared:
    """Cores by what decides their forward pass: one per key in a process, freed with its last user."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cores: dict[Hashable, tuple[InferenceCore, int]] = {}
        self._loading: dict[Hashable, threading.Lock] = {}

    def acquire(self, key: Hashable, make: Callable[[], InferenceCore]) -> InferenceCore:
        """Return the core of a key, made once, and restarted when it is lost; each call needs a ``release``."""
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            with self._lock:
                core, users = self._cores.get(key, (None, 0))
                if core is not None:
                    self._cores[key] = (core, users + 1)
            if core is not None:
                try:
                    core.restart()  # does nothing unless its devices were lost
                except BaseException:
                    self.release(core)
                    raise
                return core
            core = make()
            with self._lock:
                self._cores[key] = (core, 1)
            return core

    def release(self, core: InferenceCore, *, drain: bool = False) -> None:
        """Give a core back; the last user closes it."""
        with self._lock:
            key = next((k for k, (c, _) in self._cores.items() if c is core), None)
            if key is None:
                return
            users = self._cores[key][1] - 1
            self._cores[key] = (core, users)
            if users == 0:
                del self._cores[key]
        if users == 0:
            core.close(drain=drain)

    def forget(self) -> None:
        """Start anew in a forked child: the parent's cores have no threads here, and its locks may be held."""
        self._lock = threading.Lock()
        self._cores, self._loading = {}, {}

    def close_all(self) -> None:
        """Close every core, whoever uses it: the interpreter ends."""
        with self._lock:
            cores = [core for core, _ in self._cores.values()]
            self._cores.clear()
        for core in cores:
            core.close()


SHARED = Shared()
atexit.register(SHARED.close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SHARED.forget)
