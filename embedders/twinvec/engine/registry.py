"""The models loaded in this process, and who uses them."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from twinvec.engine.core import InferenceCore
from twinvec.engine.loading import build_model
from twinvec.engine.opening import Source, names_other_checkpoint, open_model
from twinvec.options import EmbedderOptions
from twinvec.settings import Settings
from twinvec.spec import ModelSpec
from twinvec.text.bm25 import Bm25


@dataclass(eq=False)
class _Slot:
    """One core and its leases; removed along with the last of them."""

    loading: threading.Lock = field(default_factory=threading.Lock)
    core: InferenceCore | None = None
    leases: list[Lease] = field(default_factory=list)


@dataclass(eq=False)
class Lease:
    """A user's share in a core, until it is closed.

    Attributes:
        spec: the user's spec, fully resolved.
        memo_bytes: the memo size this user wants; the largest one applies.
    """

    spec: ModelSpec
    memo_bytes: int
    slot: _Slot

    @property
    def core(self) -> InferenceCore:
        """Return the core, which exists by now."""
        assert self.slot.core is not None
        return self.slot.core

    def close(self, *, drain: bool = False) -> None:
        """Return the share; the last one closes the core."""
        REGISTRY.release(self, drain=drain)

    def close_later(self) -> None:
        """Close on a separate thread: the garbage collector may run anywhere, under any lock.

        The interpreter waits for the thread: one that is still inside torch at exit aborts the process.
        """
        with contextlib.suppress(RuntimeError):  # the interpreter is already exiting
            threading.Thread(target=self.close, name="twinvec-close", daemon=False).start()


class Registry:
    """Cores by what determines their forward pass: one per key in a process, freed with the last lease."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: dict[Hashable, _Slot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def lease(self, spec: ModelSpec, options: EmbedderOptions, *, scores: bool = False) -> Lease:
        """Share a loaded model (restarting it if its device was lost), or load it.

        Args:
            spec: the model.
            options: how to run it.
            scores: whether a reranker is wanted; the other kind of model is refused.
        """
        settings = Settings.from_env()
        source = Source(
            cache_dir=options.cache_dir or settings.cache_dir,
            token=options.token,
            offline=settings.offline if options.offline is None else options.offline,
        )
        opened = open_model(
            spec, options.device if options.device != "auto" else settings.device, source, scores=scores
        )
        with self._lock:
            slot = self._slots.setdefault(opened.key, _Slot())
            lease = Lease(opened.spec, options.memo_bytes, slot)
            slot.leases.append(lease)
        try:
            with slot.loading:
                if slot.core is None:
                    model = build_model(opened, options.token_budget or settings.token_budget)
                    slot.core = InferenceCore(model, opened.namespaces)
                else:
                    slot.core.restart()  # does nothing unless its devices were lost
        except BaseException:
            self.release(lease)
            raise
        self._limit_memo(slot)
        return lease

    def release(self, lease: Lease, *, drain: bool = False) -> None:
        """Take back a lease; the last one closes the core."""
        slot = lease.slot
        with self._lock:
            slot.leases.remove(lease)
            if not slot.leases:
                self._slots = {key: other for key, other in self._slots.items() if other is not slot}
        if slot.leases:
            self._limit_memo(slot)
        elif slot.core is not None:
            slot.core.close(drain=drain)

    def _limit_memo(self, slot: _Slot) -> None:
        with self._lock:
            if slot.core is not None and slot.leases:
                slot.core.limit_memo(max(lease.memo_bytes for lease in slot.leases))

    def abandon(self) -> None:
        """Stop every core regardless of users: the interpreter is exiting."""
        with self._lock:
            slots, self._slots = self._slots, {}
        for slot in slots.values():
            if slot.core is not None:
                slot.core.abandon()


def lease_models(spec: ModelSpec, options: EmbedderOptions) -> list[Lease]:
    """Lease the model, and a second one if ``spec.sparse`` names it."""
    if (bm25 := Bm25.parse(spec.sparse)) is not None:
        bm25.prepare()
        return [REGISTRY.lease(replace(spec, sparse=None), options)]
    if not names_other_checkpoint(spec.sparse):
        return [REGISTRY.lease(spec, options)]
    dense_digest, _, sparse_digest = (spec.digest or "").partition("+")
    other = ModelSpec(
        model=str(spec.sparse),
        dtype=spec.dtype,
        sparse="head",
        sparse_keys=spec.sparse_keys,
        reproducible=spec.reproducible,
        quantization=spec.quantization,
        digest=sparse_digest or None,
    )
    main = REGISTRY.lease(replace(spec, sparse=None, digest=dense_digest or None), options)
    try:
        return [main, REGISTRY.lease(other, options)]
    except BaseException:
        main.close()
        raise


REGISTRY = Registry()
atexit.register(REGISTRY.abandon)
if hasattr(os, "register_at_fork"):  # in a child, the parent's cores have no threads, and its locks may be held
    os.register_at_fork(after_in_child=REGISTRY.__init__)  # type: ignore[misc]
