"""LocalModel: an object's share in the models of this process, their counters and their release."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from twinvec.options import EmbedderOptions

if TYPE_CHECKING:
    from twinvec.engine.core import InferenceCore
    from twinvec.engine.registry import Lease
    from twinvec.spec import ModelSpec


class LocalModel:
    """What Embedder and Reranker have in common."""

    spec: ModelSpec
    options: EmbedderOptions
    _closed: bool

    def _hold(self, leases: list[Lease], options: EmbedderOptions) -> None:
        self.options = replace(options, token=None)
        self._leases = leases
        self._closed = False
        # garbage collection returns the share just as close() does
        self._finalizer = weakref.finalize(self, _close_later, leases)
        self._finalizer.atexit = False

    @property
    def _core(self) -> InferenceCore:
        return self._leases[0].core

    def stats(self) -> dict[str, Any]:
        """Return the model's counters and settings, shared by all its users in the process.

        Counters: ``forwards`` (passes), ``texts`` (rows that went through one), ``tokens``, ``truncated``,
        ``out_of_memory`` (recoveries), ``failures`` (batches that raised), ``memo_hits``, ``memo_misses``,
        ``cache_hits``, ``cache_misses``, ``queue_wait_seconds`` (sum over texts), ``forward_seconds``. Gauges:
        ``queued`` (texts waiting), ``batch_fill`` (mean share of the token budget), ``token_budget``, ``healthy``,
        ``device_memory`` (bytes held on CUDA devices), ``predicted_memory`` (the expected maximum, from a probe at
        loading). Settings: ``device``, ``dtype``, ``attention`` ("varlen", "flash", "sdpa" or "padded"), ``kernels``
        ("triton" or "torch"), ``linear`` ("packed", "packed int8", "int8" or "torch": how products with
        weights run), ``graphs`` (number of small batch sizes captured as CUDA graphs). ``load_seconds`` is the loading
        time. A second, sparse model adds to the counters.
        """
        cores = [lease.core for lease in self._leases]
        states = [core.state for core in cores]
        encoders = [encoder for core in cores for encoder in core.model.encoders]
        first = cores[0].model.encoder
        return {
            "forwards": sum(e.forwards for e in encoders),
            "texts": sum(e.texts for e in encoders),
            "tokens": sum(e.tokens for e in encoders),
            "truncated": states[0].truncated,
            "out_of_memory": sum(s.out_of_memory for s in states),
            "failures": sum(s.failures for s in states),
            "memo_hits": sum(s.memo.hits for s in states),
            "memo_misses": sum(s.memo.misses for s in states),
            "cache_hits": sum(s.cache_hits for s in states),
            "cache_misses": sum(s.cache_misses for s in states),
            "queue_wait_seconds": sum(s.queue_seconds for s in states),
            "forward_seconds": sum(e.seconds for e in encoders),
            "queued": sum(len(s.lanes) for s in states),
            "batch_fill": states[0].filled / max(states[0].offered, 1),
            "token_budget": cores[0].token_budget,
            "healthy": self.healthy,
            "device": ",".join(str(e.device) for e in cores[0].model.encoders),
            "dtype": str(first.dtype).removeprefix("torch."),
            "attention": first.attention,
            "kernels": first.kernels,
            "linear": first.linear,
            "graphs": first.graphs,
            "device_memory": sum(e.memory() for e in encoders),
            "predicted_memory": sum(e.predicted_memory for e in encoders),
            "load_seconds": sum(c.model.seconds for c in cores),
        }

    @property
    def healthy(self) -> bool:
        """Return whether calls can be answered: not closed, and a device works."""
        return not self._closed and all(lease.core.healthy for lease in self._leases)

    def restart(self) -> None:
        """Rebuild the model after ``DeviceLostError``, for all its users."""
        for lease in self._leases:
            lease.core.restart()

    @property
    def family(self) -> str:
        """Return the name of the checkpoint family."""
        return self._core.model.description.family

    def close(self, *, drain: bool = False) -> None:
        """Release the model; the last user frees it. Later calls raise ConfigurationError.

        Args:
            drain: let pending calls of other threads finish first; otherwise they raise ConfigurationError.
        """
        self._closed = True
        if self._finalizer.detach() is not None:
            for lease in self._leases:
                lease.close(drain=drain)


def _close_later(leases: list[Lease]) -> None:
    for lease in leases:
        lease.close_later()
