"""CUDA graphs of small batches.

A query's forward pass consists of hundreds of launches, which take the host longer than the device. Recorded once for a
few sizes, it becomes a single launch. A batch runs in the smallest size that holds it; the remaining tokens form a text
of their own, so that no real text sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from twinvec.compute.packing import TokenBatch

SIZES = (16, 32, 64, 128, 256, 512)  # tokens
TEXTS = 16

Outputs = tuple[torch.Tensor | None, ...]  # dense rows, weights; of a batch with ``multi`` vectors and states of tokens


@dataclass(frozen=True, eq=False)
class Recording:
    """One size: buffers at fixed addresses, and the graph that runs a pass on them."""

    batch: TokenBatch
    outputs: Outputs
    replay: Callable[[], None]


class Graphs:
    """The recordings of one model."""

    def __init__(self, forward: Callable[[TokenBatch], Outputs], device: torch.device, position_limit: int) -> None:
        """Prepare; ``record`` does the work.

        Args:
            forward: queues one batch on the device and never waits for it.
            device: a CUDA device.
            position_limit: maximum tokens of a text.
        """
        self._forward, self._device = forward, device
        self._sizes = [size for size in SIZES if size <= position_limit]
        self._recordings: dict[int, Recording] = {}
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._recordings)

    def record(self) -> None:
        """Record every size."""
        for size in self._sizes:
            batch = _fill(size, None).to(self._device)
            self._forward(batch)  # one-time work, such as building kernels, cannot be recorded
            self._recordings[size] = Recording(batch, *self._capture(batch))

    def _capture(self, batch: TokenBatch) -> tuple[Outputs, Callable[[], None]]:
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # one pool: two graphs are never active at once. thread_local: another model's thread may be active meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self._forward(batch)
        self._pool = graph.pool()
        return outputs, graph.replay

    def replay(self, batch: TokenBatch) -> Outputs | None:
        """Run a batch; return None if it is too large.

        Returns:
            Views of the buffers, which the next ``replay`` of any size overwrites in stream order.
        """
        size = next((size for size in self._sizes if batch.n_tokens <= size), None)
        if size is None or len(batch.lengths) > TEXTS or size not in self._recordings:
            return None
        recording = self._recordings[size]
        filled = _fill(size, batch).pinned() if self._device.type == "cuda" else _fill(size, batch)
        for to, source in (
            (recording.batch.input_ids, filled.input_ids),
            (recording.batch.position_ids, filled.position_ids),
            (recording.batch.cu_seqlens, filled.cu_seqlens),
        ):
            to.copy_(source, non_blocking=True)
        recording.replay()
        dense, weights = recording.outputs
        return (
            None if dense is None else dense[: len(batch.lengths)],
            None if weights is None else weights[: batch.n_tokens],
        )


def _fill(size: int, batch: TokenBatch | None) -> TokenBatch:
    """Return a batch of exactly ``size`` tokens and TEXTS + 1 texts: the given ones, one filler, and empty ones."""
    tokens = batch.n_tokens if batch is not None else 0
    ids = torch.zeros(size, dtype=torch.int64)
    positions = torch.cat([torch.zeros(tokens, dtype=torch.int64), torch.arange(size - tokens)])
    ends = torch.full((TEXTS + 2,), size, dtype=torch.int32)
    ends[0] = 0
    if batch is not None:
        ids[:tokens] = batch.input_ids
        positions[:tokens] = batch.position_ids
        ends[: len(batch.lengths) + 1] = batch.cu_seqlens
    # for the host it is a single text: the longest that any batch of this size may contain
    return TokenBatch(ids, positions, ends, (size,), (0,))
