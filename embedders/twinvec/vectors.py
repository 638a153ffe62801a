"""The value types that the encoder returns: dense rows, sparse rows, and what happened to each text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import scipy.sparse

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Spans = Sequence[tuple[int, int]]
Rows = slice | Sequence[int] | Sequence[bool] | Int64 | Bool
_MAX_KEY = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class SparseVector:
    """One sparse row: ``indices`` int32 [k], sorted and unique; ``values`` float32 [k] > 0."""

    indices: Int32
    values: Float32

    def to_dict(self) -> dict[int, float]:
        """Return ``{key: weight}`` as Python numbers."""
        return dict(zip(self.indices.tolist(), self.values.tolist(), strict=True))

    def copy(self) -> SparseVector:
        """Return a copy with its own memory, rather than a view into a batch."""
        return SparseVector(self.indices.copy(), self.values.copy())

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, eq=False)
class SparseBatch:
    """Sparse rows in CSR form, validated on construction.

    Attributes:
        indptr: int64 [n + 1]; row i is ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int32 [nnz], sorted and unique within a row, nonnegative.
        values: float32 [nnz], finite and > 0.

    Raises:
        ValueError: the arrays break one of these rules.
    """

    indptr: Int64
    indices: Int32
    values: Float32

    def __post_init__(self) -> None:
        for name, dtype in (("indptr", np.int64), ("indices", np.int32), ("values", np.float32)):
            given = np.asarray(getattr(self, name))
            if dtype is np.int32 and given.size and given.max() > _MAX_KEY:
                raise ValueError(f"SparseBatch.indices must fit into int32, not {given.max()}")
            array = np.ascontiguousarray(given, dtype=dtype)
            if array.ndim != 1:
                raise ValueError(f"SparseBatch.{name} must have one dimension, not {array.ndim}")
            object.__setattr__(self, name, array)
        indptr, indices, values = self.indptr, self.indices, self.values
        if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
            raise ValueError("SparseBatch.indptr must increase from 0 to len(indices)")
        if len(indices) != len(values):
            raise ValueError(f"SparseBatch has {len(indices)} indices but {len(values)} values")
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError("SparseBatch.values must be finite and greater than 0")
        if (indices < 0).any():
            raise ValueError("SparseBatch.indices must not be negative")
        rises = np.diff(indices) > 0
        starts = indptr[1:-1]
        starts = starts[(starts > 0) & (starts < len(indices))]
        rises[starts - 1] = True
        if not rises.all():
            raise ValueError("SparseBatch.indices must be sorted and unique within each row")

    @classmethod
    def from_dicts(cls, rows: Iterable[Mapping[int, float]]) -> SparseBatch:
        """Build a batch from ``{key: weight}`` rows; zero weights are left out."""
        kept = [sorted((k, v) for k, v in row.items() if np.float32(v) != 0) for row in rows]
        return cls(
            np.cumsum([0, *map(len, kept)], dtype=np.int64),
            np.array([k for row in kept for k, _ in row], dtype=np.int32),
            np.array([v for row in kept for _, v in row], dtype=np.float32),
        )

    @classmethod
    def from_scipy(cls, matrix: Any) -> SparseBatch:
        """Build a batch from any scipy sparse matrix or array of shape [n, vocabulary]."""
        csr = matrix.tocsr(copy=True)
        csr.sum_duplicates()
        csr.data = csr.data.astype(np.float32)
        csr.eliminate_zeros()
        return cls(csr.indptr, csr.indices, csr.data)

    @classmethod
    def stack(cls, parts: Iterable[SparseVector | SparseBatch]) -> SparseBatch:
        """Concatenate rows and batches."""
        parts = list(parts)
        counts = [[len(part)] if isinstance(part, SparseVector) else np.diff(part.indptr).tolist() for part in parts]
        return cls.trusted(
            np.cumsum([0, *chain.from_iterable(counts)], dtype=np.int64),
            np.concatenate([np.zeros(0, np.int32), *(part.indices for part in parts)]),
            np.concatenate([np.zeros(0, np.float32), *(part.values for part in parts)]),
        )

    @classmethod
    def trusted(cls, indptr: Int64, indices: Int32, values: Float32) -> SparseBatch:
        """Build a batch without validation, from arrays that follow the rules by construction."""
        batch = object.__new__(cls)
        batch.__dict__.update(indptr=indptr, indices=indices, values=values)
        return batch

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __iter__(self) -> Iterator[SparseVector]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, rows: int) -> SparseVector: ...
    @overload
    def __getitem__(self, rows: Rows) -> SparseBatch: ...
    def __getitem__(self, rows: int | Rows) -> SparseVector | SparseBatch:
        """Return one row, or a batch of the rows selected by a slice, positions or a mask."""
        if isinstance(rows, (int, np.integer)):
            row = range(len(self))[rows]
            start, stop = self.indptr[row], self.indptr[row + 1]
            return SparseVector(self.indices[start:stop], self.values[start:stop])
        chosen = _positions(rows, len(self))
        counts = np.diff(self.indptr)[chosen]
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        within = np.arange(indptr[-1]) - np.repeat(indptr[:-1], counts)
        source = np.repeat(self.indptr[chosen], counts) + within
        return SparseBatch.trusted(indptr, self.indices[source], self.values[source])

    def to_dicts(self) -> list[dict[int, float]]:
        """Return one ``{key: weight}`` per row."""
        return [row.to_dict() for row in self]

    def to_scipy(self, n_keys: int | None = None) -> scipy.sparse.csr_array:
        """Return a scipy CSR array [n, n_keys]; ``n_keys`` defaults to the highest key + 1."""
        from scipy.sparse import csr_array

        return csr_array((self.values, self.indices, self.indptr), shape=(len(self), self._n_keys(n_keys)))

    def to_numpy(self, n_keys: int | None = None) -> Float32:
        """Return a dense float32 array [n, n_keys]; meant for small vocabularies and tests."""
        dense = np.zeros((len(self), self._n_keys(n_keys)), dtype=np.float32)
        dense[np.repeat(np.arange(len(self)), np.diff(self.indptr)), self.indices] = self.values
        return dense

    def similarity(self, other: SparseBatch) -> Float32:
        """Return float32 [len(self), len(other)]: dot products over common keys."""
        by_key = np.argsort(other.indices, kind="stable")
        keys, weights = other.indices[by_key], other.values[by_key]
        owners = np.repeat(np.arange(len(other)), np.diff(other.indptr))[by_key]
        scores = np.zeros((len(self), len(other)), dtype=np.float64)
        for scores_row, row in zip(scores, self, strict=True):
            first, last = np.searchsorted(keys, row.indices), np.searchsorted(keys, row.indices, side="right")
            for start, stop, weight in zip(first.tolist(), last.tolist(), row.values.tolist(), strict=True):
                scores_row[owners[start:stop]] += weight * weights[start:stop]
        return scores.astype(np.float32)

    def pairwise_similarity(self, other: SparseBatch) -> Float32:
        """Return float32 [n]: the similarity of row i with row i of ``other``."""
        if len(self) != len(other):
            raise ValueError(f"pairwise_similarity needs equal lengths, not {len(self)} and {len(other)}")
        scores = np.zeros(len(self), dtype=np.float32)
        for i, (a, b) in enumerate(zip(self, other, strict=True)):
            _, in_a, in_b = np.intersect1d(a.indices, b.indices, assume_unique=True, return_indices=True)
            scores[i] = np.dot(a.values[in_a].astype(np.float64), b.values[in_b])
        return scores

    def _n_keys(self, n_keys: int | None) -> int:
        needed = int(self.indices.max()) + 1 if len(self.indices) else 0
        if n_keys is not None and n_keys < needed:
            raise ValueError(f"n_keys={n_keys} is too small: the highest key is {needed - 1}")
        return needed if n_keys is None else n_keys


@dataclass(frozen=True)
class MultiVectors:
    """How a checkpoint gives vectors of single tokens, for late interaction (MaxSim).

    Attributes:
        left_out: tokens at the beginning of every text that have none.
        mean: whether a score is divided by the number of the query's vectors.
        skipped: role -> ids of tokens that have none.
        lengths: role -> tokens per text, if they are fewer than the model's.
    """

    left_out: int = 0
    mean: bool = False
    skipped: Mapping[str, frozenset[int]] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MultiBatch:
    """Vectors of single tokens, for late interaction: ``batch[i]`` are those of text i, float32 [vectors, dim].

    Attributes:
        indptr: int64 [n + 1]; text i has ``values[indptr[i]:indptr[i + 1]]``.
        values: float32 [all vectors, dim], L2-normalised.
    """

    indptr: Int64
    values: Float32

    @property
    def counts(self) -> Int64:
        """Return the number of vectors of each text."""
        return np.diff(self.indptr)

    @classmethod
    def stack(cls, rows: Sequence[Float32]) -> MultiBatch:
        """Put the vectors of texts one below the other."""
        lengths = [len(row) for row in rows]
        return cls(np.cumsum([0, *lengths], dtype=np.int64), np.concatenate(rows or [np.zeros((0, 0), np.float32)]))

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __iter__(self) -> Iterator[Float32]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, rows: int) -> Float32: ...
    @overload
    def __getitem__(self, rows: Rows) -> MultiBatch: ...
    def __getitem__(self, rows: int | Rows) -> Float32 | MultiBatch:
        """Return one text's vectors, or a batch of the texts chosen by a slice, positions or a mask."""
        if isinstance(rows, (int, np.integer)):
            row = range(len(self))[rows]
            return self.values[self.indptr[row] : self.indptr[row + 1]]
        return MultiBatch.stack([self[i] for i in _positions(rows, len(self)).tolist()])


@dataclass(frozen=True, eq=False)
class EmbeddingBatch:
    """The result of one call: row i belongs to text i.

    Attributes:
        dense: float32 [n, dim], L2-normalised; None if it was not requested or the model has none.
        sparse: n sparse rows, without the prompt's tokens; None if not requested or the model has none.
        token_counts: int32 [n], tokens seen by the model, prompt and special tokens included.
        truncated: bool [n], whether the text's tail was cut at the maximum length.
        multi: the vectors of each text's tokens, with ``multi=True``.
    """

    dense: Float32 | None
    sparse: SparseBatch | None
    token_counts: Int32
    truncated: Bool
    multi: MultiBatch | None = None

    def __post_init__(self) -> None:
        n = len(self.token_counts)
        if len(self.truncated) != n:
            raise ValueError(f"truncated has {len(self.truncated)} rows, token_counts {n}")
        if self.dense is not None and (self.dense.ndim != 2 or len(self.dense) != n):
            raise ValueError(f"dense has shape {list(self.dense.shape)}, expected [{n}, dim]")
        if self.sparse is not None and len(self.sparse) != n:
            raise ValueError(f"sparse has {len(self.sparse)} rows, expected {n}")
        if self.multi is not None and len(self.multi) != n:
            raise ValueError(f"multi has {len(self.multi)} texts, expected {n}")

    def __len__(self) -> int:
        return len(self.token_counts)

    def __getitem__(self, rows: Rows) -> EmbeddingBatch:
        """Return a batch of the rows selected by a slice, positions or a mask."""
        chosen = _positions(rows, len(self))
        return EmbeddingBatch(
            dense=None if self.dense is None else self.dense[chosen],
            sparse=None if self.sparse is None else self.sparse[chosen],
            token_counts=self.token_counts[chosen],
            truncated=self.truncated[chosen],
            multi=None if self.multi is None else self.multi[chosen],
        )


def _positions(rows: Rows, n: int) -> Int64:
    if not isinstance(rows, slice):
        rows = np.asarray(rows)
        rows = rows if rows.dtype == np.bool_ else rows.astype(np.int64)
    return np.arange(n)[rows]
