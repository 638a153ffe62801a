"""Vectors of tokens that a store keeps for MaxSim: neighbours pooled, 8 bits per dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twinvec.vectors import EmbeddingBatch, Float32, MultiBatch

_HEADER = np.dtype("<u4")


def asking(pool: int | None) -> dict[str, Any]:
    """Return the keywords for an embedder that is to give vectors of tokens; someone's own may know none of them."""
    return {} if pool is None else {"multi": True}


def kept_tokens(batch: EmbeddingBatch, pool: int | None) -> list[bytes] | None:
    """Return what a store with this ``StoreConfig.token_pool`` keeps of each text's tokens."""
    return None if pool is None or batch.multi is None else [pack_tokens(rows, pool) for rows in batch.multi]


def pack_tokens(rows: Float32, pool: int) -> bytes:
    """Return the vectors of a text's tokens in compact form.

    Runs of ``pool`` neighbours become their mean ("sequential pooling" in Clavié, Chaffin and Adams: Reducing the
    Footprint of Multi-Vector Retrieval with Minimal Performance Impact via Token Pooling, 2024). Only directions
    matter, so each vector is scaled until its largest component is 127, and rounded.

    Args:
        rows: float32 [tokens, dim], L2-normalised.
        pool: neighbours per vector.

    Returns:
        The dimension as 4 bytes, then an int8 per component.
    """
    means = np.add.reduceat(rows, np.arange(0, len(rows), pool), axis=0) if len(rows) else rows
    largest = np.maximum(np.abs(means).max(axis=1, keepdims=True, initial=0), np.finfo(np.float32).tiny)
    values = np.rint(means * (127 / largest)).astype(np.int8)
    return bytes(np.array(rows.shape[1], _HEADER).tobytes() + values.tobytes())


def is_packed(data: object) -> bool:
    """Return whether something is a result of ``pack_tokens``."""
    if not isinstance(data, bytes) or len(data) < _HEADER.itemsize:
        return False
    dim = int(np.frombuffer(data, _HEADER, 1)[0])
    return dim > 0 and (len(data) - _HEADER.itemsize) % dim == 0


def unpack_tokens(texts: Sequence[bytes]) -> MultiBatch:
    """Return the vectors of texts, L2-normalised; the texts are results of ``pack_tokens``."""
    rows = []
    for data in texts:
        dim = int(np.frombuffer(data, _HEADER, 1)[0])
        values = np.frombuffer(data, np.int8, offset=_HEADER.itemsize).reshape(-1, dim).astype(np.float32)
        rows.append(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1))
    return MultiBatch.stack(rows)
