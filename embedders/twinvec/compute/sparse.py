"""Sparse rows from token or vocabulary weights, on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twinvec.vectors import Float32, Int32, Int64, SparseBatch, SparseVector


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
    keep = ((weights > 0) & (token_keys >= 0)).nonzero()[0]
    return _largest(weights[keep], (_starts(lengths, len(keys)) + token_keys)[keep], len(lengths), len(keys))


def merge_keys(rows: Sequence[SparseVector], keys: Int64) -> SparseBatch:
    """Stack sparse rows by token id and name their columns by ``keys``, none of them -1: the maximum of equal ones."""
    weights = np.concatenate([row.values for row in rows] or [np.zeros(0, np.float32)])
    ids = np.concatenate([row.indices for row in rows] or [np.zeros(0, np.int32)])
    starts = _starts([len(row.values) for row in rows], len(keys))
    return _largest(weights, starts + keys[ids], len(rows), len(keys))


def reduce_vocabulary_weights(weights: Float32, keys: Int64) -> SparseBatch:
    """Turn dense rows [texts, vocabulary] (SPLADE) into sparse rows by the same key rules."""
    rows, ids = np.nonzero((weights > 0) & (keys >= 0))
    merged = np.zeros_like(weights)
    np.maximum.at(merged, (rows, keys[ids]), weights[rows, ids])
    rows, found = np.nonzero(merged)
    return _to_batch(rows * len(keys) + found, merged[rows, found], len(weights), len(keys))


def _starts(lengths: Sequence[int], n_keys: int) -> Int64:
    return np.arange(0, len(lengths) * n_keys, n_keys).repeat(lengths)


def _largest(weights: Float32, cells: Int64, n: int, n_keys: int) -> SparseBatch:
    order = cells.argsort(kind="stable")
    cells = cells[order]
    new = np.ones(len(cells), np.bool_)
    np.not_equal(cells[1:], cells[:-1], out=new[1:])
    first = new.nonzero()[0]
    values = np.maximum.reduceat(weights[order], first) if len(first) else weights
    return _to_batch(cells[first], values, n, n_keys)


def _to_batch(cells: Int64, values: Float32, n: int, n_keys: int) -> SparseBatch:
    indptr = cells.searchsorted(np.arange(0, (n + 1) * n_keys, n_keys))
    return SparseBatch.trusted(indptr, (cells % n_keys).astype(np.int32), values)
