"""What benchmarks/stores.py stores and asks: documents with vectors, queries, and the exact answers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twinvec.vectors import Bool, Float32, Int64, SparseBatch, SparseVector
from twinvec_stores.records import RecordBatch

Float64 = NDArray[np.float64]
CHUNK = 10_000  # rows made, or scored, at once
QUERIES = 200
# one indexed keyword field; which document has which value is independent of its vectors
SOURCES = {"rare": 0.01, "some": 0.10, "half": 0.50, "rest": 0.39}
FETCH_K, K, RRF_K = 100, 10, 60


class Part(NamedTuple):
    """Some documents, or queries (their texts are not asked for)."""

    texts: list[str]
    dense: Float32
    sparse: SparseBatch


class Query(NamedTuple):
    """One query, both halves."""

    dense: Float32
    sparse: SparseVector


@dataclass(frozen=True)
class Data:
    """Documents and queries in a folder: processes read what they need, so that their memory is their own."""

    folder: Path

    @classmethod
    def write(cls, folder: Path, documents: Iterable[Part], queries: Part) -> Data:
        """Write everything."""
        folder.mkdir(parents=True)
        lengths, bounds = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
        names = ("dense", "indices", "values", "texts")
        files = {name: (folder / name).open("wb") for name in names}
        for texts, dense, sparse in documents:
            encoded = [text.encode() for text in texts]
            arrays = (dense.tobytes(), sparse.indices.tobytes(), sparse.values.tobytes(), b"".join(encoded))
            for name, content in zip(names, arrays, strict=True):
                files[name].write(content)
            lengths.append(np.diff(sparse.indptr))
            bounds.append(np.array([len(text) for text in encoded], dtype=np.int64))
        for file in files.values():
            file.close()
        np.save(folder / "indptr.npy", np.cumsum(np.concatenate(lengths)))
        np.save(folder / "bounds.npy", np.cumsum(np.concatenate(bounds)))
        n = sum(map(len, lengths)) - 1
        sources = np.random.default_rng(1).choice(len(SOURCES), size=n, p=list(SOURCES.values()))
        np.save(folder / "sources.npy", sources.astype(np.int64))
        sparse = queries.sparse
        parts: dict[str, Any] = {"indptr": sparse.indptr, "indices": sparse.indices, "values": sparse.values}
        np.savez(folder / "queries.npz", dense=queries.dense, **parts)
        (folder / "data.json").write_text(json.dumps({"n": n, "dim": queries.dense.shape[1]}))
        return cls(folder)

    @cached_property
    def _about(self) -> dict[str, int]:
        about: dict[str, int] = json.loads((self.folder / "data.json").read_text())
        return about

    @property
    def n(self) -> int:
        return self._about["n"]

    @property
    def dim(self) -> int:
        return self._about["dim"]

    @cached_property
    def indptr(self) -> Int64:
        return self._load("indptr")

    @cached_property
    def bounds(self) -> Int64:
        return self._load("bounds")

    @cached_property
    def sources(self) -> Int64:
        return self._load("sources")

    @cached_property
    def queries(self) -> list[Query]:
        with np.load(self.folder / "queries.npz") as file:
            sparse = SparseBatch(file["indptr"], file["indices"], file["values"])
            return [Query(dense, row) for dense, row in zip(file["dense"], sparse, strict=True)]

    def dense(self, start: int, stop: int) -> Float32:
        """Return rows of the dense matrix."""
        rows: Float32 = self._read("dense", np.float32, start * self.dim, stop * self.dim).reshape(-1, self.dim)
        return rows

    def sparse(self, start: int, stop: int) -> SparseBatch:
        """Return rows of the sparse matrix."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        indices, values = (
            self._read(name, dtype, first, last) for name, dtype in (("indices", np.int32), ("values", np.float32))
        )
        return SparseBatch(self.indptr[start : stop + 1] - first, indices, values)

    def batches(self, size: int, most: int) -> Iterator[RecordBatch]:
        """Yield documents, as an application has them once they are embedded."""
        names, bounds = list(SOURCES), self.bounds
        for start in range(0, min(self.n, most), size):
            stop = min(start + size, self.n, most)
            text = self._read("texts", np.uint8, int(bounds[start]), int(bounds[stop])).tobytes()
            at = (bounds[start : stop + 1] - bounds[start]).tolist()
            yield RecordBatch(
                [document_id(row) for row in range(start, stop)],
                [text[a:b].decode() for a, b in itertools.pairwise(at)],
                self.dense(start, stop),
                self.sparse(start, stop),
                [{"source": names[source]} for source in self.sources[start:stop].tolist()],
            )

    def describe(self) -> dict[str, Any]:
        """Return what the data are like."""
        return {
            "documents": self.n,
            "dim": self.dim,
            "nonzeros_per_document": round(float(self.indptr[-1]) / self.n, 1),
            "nonzeros_per_query": round(float(np.mean([len(query.sparse) for query in self.queries])), 1),
            "characters_per_document": round(float(self.bounds[-1]) / self.n),
        }

    def _load(self, name: str) -> Int64:
        array: Int64 = np.load(self.folder / f"{name}.npy")
        return array

    def _read(self, name: str, dtype: Any, start: int, stop: int) -> Any:
        item = np.dtype(dtype).itemsize
        return np.fromfile(self.folder / name, dtype, stop - start, offset=start * item)


def document_id(row: int) -> str:
    """Return the id of a document; ids sort as rows do."""
    return f"doc-{row:07d}"


class Truth:
    """The exact answers, in float64. An id counts as right if its exact score reaches the k-th best one's."""

    def __init__(self, data: Data) -> None:
        """Score every document for every query."""
        dense = np.stack([query.dense for query in data.queries]).astype(np.float64)
        dense /= np.linalg.norm(dense, axis=1, keepdims=True)
        sparse = _stack([query.sparse for query in data.queries])
        self.sources = data.sources
        # computed in float64; float32 is closer than the tolerance, and a million documents take half the memory
        self.dense = np.empty((len(dense), data.n), np.float32)
        self.sparse = np.empty((len(dense), data.n), np.float32)
        for start in range(0, data.n, CHUNK):
            stop = min(start + CHUNK, data.n)
            rows = data.dense(start, stop).astype(np.float64)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            self.dense[:, start:stop] = dense @ rows.T
            self.sparse[:, start:stop] = _products(sparse, data.sparse(start, stop))
        self.sparse[self.sparse == 0] = -np.inf  # documents without a common key are not found
        self._known: dict[tuple[str, int], tuple[dict[int, float] | Float32, float, int]] = {}

    def recall(self, measure: str, query: int, ids: list[str]) -> float:
        """Return which share of the best k were found; for a measure of hybrid search, of its exact counterpart."""
        if (measure, query) not in self._known:
            self._known[measure, query] = self._answer(measure, query)
        scores, least, wanted = self._known[measure, query]
        rows = {int(id.removeprefix("doc-")) for id in ids[:K]}
        found = sum((scores.get(row, -1.0) if isinstance(scores, dict) else scores[row]) >= least for row in rows)
        return found / wanted if wanted else 1.0

    def neighbours(self) -> dict[str, float]:
        """Return the median cosine of a query with its 1st, 10th and 100th document, and with any."""
        ranks = [k for k in (1, 10, 100) if k <= self.dense.shape[1]]
        best = np.array([[np.partition(row, -k)[-k] for k in ranks] for row in self.dense])
        places = {f"rank {k}": float(place) for k, place in zip(ranks, np.median(best, axis=0), strict=True)}
        any_ = float(np.median([np.median(row) for row in self.dense]))
        return {name: round(value, 3) for name, value in {**places, "any": any_}.items()}

    def _answer(self, measure: str, query: int) -> tuple[dict[int, float] | Float32, float, int]:
        """Return the scores, the least one that counts as found, and how many do at most."""
        if measure in ("dense", "sparse"):
            scores: Float32 = getattr(self, measure)[query]
            best = self._best(scores, K, np.ones(len(scores), np.bool_))
            return scores, (float(scores[best[-1]]) - 1e-6 * max(1.0, float(scores[best[0]]))) if best else 0, len(best)
        source = source_of(measure)
        chosen = np.ones(len(self.sources), np.bool_) if source is None else self.sources == list(SOURCES).index(source)
        fused: dict[int, float] = {}
        for half in (self.dense, self.sparse):
            for rank, row in enumerate(self._best(half[query], FETCH_K, chosen), 1):
                fused[row] = fused.get(row, 0.0) + 1 / (RRF_K + rank)
        ranked = sorted(fused.values(), reverse=True)[:K]
        return fused, ranked[-1] - 1e-12 if ranked else 0.0, len(ranked)

    def _best(self, scores: Float32, k: int, chosen: Bool) -> list[int]:
        """Return the chosen rows with the k highest scores, best first, ties by row."""
        rows = np.flatnonzero(chosen & (scores > -np.inf))
        if len(rows) > k:
            rows = rows[scores[rows] >= np.partition(scores[rows], -k)[-k]]
        best: list[int] = rows[np.argsort(-scores[rows], kind="stable")][:k].tolist()
        return best


def source_of(measure: str) -> str | None:
    """Return the value that a measure filters by: "hybrid 1%" and so on; None: no filter."""
    shares = {f"hybrid {share:.0%}": source for source, share in SOURCES.items()}
    return shares.get(measure)


def _stack(rows: list[SparseVector]) -> SparseBatch:
    lengths = np.array([0, *map(len, rows)], dtype=np.int64)
    indices, values = (np.concatenate([getattr(row, name) for row in rows]) for name in ("indices", "values"))
    return SparseBatch(np.cumsum(lengths), indices, values)


def _products(queries: SparseBatch, rows: SparseBatch) -> Float64:
    """Return float64 [queries, rows] sums over common keys of weight * weight."""
    weights = np.zeros((int(max(queries.indices.max(initial=0), rows.indices.max(initial=0))) + 1,))
    owners = np.repeat(np.arange(len(rows)), np.diff(rows.indptr))
    products = np.empty((len(queries), len(rows)))
    for i, query in enumerate(queries):
        weights[query.indices] = query.values
        products[i] = np.bincount(owners, weights[rows.indices] * rows.values, minlength=len(rows))
        weights[query.indices] = 0
    return products
