"""Sparse rows from token or vocabulary weights, on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twinvec.vectors import Float32, Int32, Int64, SparseBatch


def reduce_token_weights(weights: Float32, ids: Int32 | Int64, lengths: Sequence[int], keys: Int64) -> SparseBatch:
    """Turn one weight per token into sparse rows: the maximum over equal keys, positive weights only.

    Formula: row[k] = max over the text's tokens t with keys[ids[t]] == k of weights[t], as in the GTE and bge-m3
    references.

    Args:
        weights: float32 [tokens].
        ids: int32 or int64 [tokens].
        lengths: tokens per text.
        keys: int64 [vocabulary]; the key of each token id, -1 for ids to leave out (special tokens).
    """
    token_keys = keys[ids]
    keep = np.flatnonzero((weights > 0) & (token_keys >= 0))
    cells = np.repeat(np.arange(0, len(lengths) * len(keys), len(keys)), lengths)[keep] + token_keys[keep]
    order = np.argsort(cells, kind="stable")
    cells = cells[order]
    first = np.flatnonzero(np.diff(cells, prepend=-1))
    values = np.maximum.reduceat(weights[keep[order]], first) if len(first) else np.zeros(0, np.float32)
    return _to_batch(cells[first], values, len(lengths), len(keys))


def reduce_vocabulary_weights(weights: Float32, keys: Int64) -> SparseBatch:
    """Turn dense rows [texts, vocabulary] (SPLADE) into sparse rows by the same key rules."""
    rows, ids = np.nonzero((weights > 0) & (keys >= 0))
    merged = np.zeros_like(weights)
    np.maximum.at(merged, (rows, keys[ids]), weights[rows, ids])
    rows, found = np.nonzero(merged)
    return _to_batch(rows * len(keys) + found, merged[rows, found], len(weights), len(keys))


def _to_batch(cells: Int64, values: Float32, n: int, n_keys: int) -> SparseBatch:
    indptr = np.searchsorted(cells, np.arange(n + 1) * n_keys)
    return SparseBatch.trusted(indptr.astype(np.int64), (cells % n_keys).astype(np.int32), values.astype(np.float32))
