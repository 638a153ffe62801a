"""Made vectors for benchmarks/stores.py: topics within topics, in a space whose directions matter unequally."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from benchmarks.stores_data import CHUNK, QUERIES, Float64, Part

from twinvec.vectors import Float32, Int64, SparseBatch

DIM, VOCABULARY = 768, 30_000
_DRAWN = 120  # terms of a document, of which about 100 differ
_TOPIC, _SUBTOPIC = 1000, 30  # documents in each on average: some are much larger than others
_SHARES = {"common": 0.06, "topic": 0.22, "subtopic": 0.37, "own": 0.35}  # of a document's squared length
_TOPIC_WORDS = 300
_QUERY_OWN = 0.4  # share of a query that its document does not have
_MADE = 100_000  # documents made one by one; further ones are mixtures of two of them, which is ten times as fast
_FILLER = ("store", "keeps", "documents", "vectors", "finds", "again", "by", "meaning", "or", "words")


def synthetic(n: int, *, elastic: bool = False) -> tuple[Iterator[Part], Part]:
    """Return n documents and the queries, each near a document; ``elastic``: the first dims matter most."""
    made = _Made(n, elastic)
    sizes = [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
    first = made.documents(sizes[0])
    return itertools.chain([first], _rest(made, first, sizes[1:])), made.queries(first)


def _rest(made: _Made, first: Part, sizes: list[int]) -> Iterator[Part]:
    parts = [first]
    for size in sizes:
        if len(parts) * CHUNK < _MADE:
            parts.append(made.documents(size))
            yield parts[-1]
        else:
            yield made.mixed(parts, size)


class _Made:
    """The topics, and documents about them."""

    def __init__(self, n: int, elastic: bool) -> None:
        self.rng = np.random.default_rng(0)
        spectrum = np.sqrt(1 / (np.arange(DIM) + 10))
        directions = np.eye(DIM) if elastic else np.linalg.qr(self.rng.normal(size=(DIM, DIM)))[0]
        rotation = directions * (spectrum / np.linalg.norm(spectrum))
        self.rotation = rotation.T.astype(np.float32)
        topics, subtopics = max(2, n // _TOPIC), max(2, n // _SUBTOPIC)
        self.shares = _zipf(subtopics, 0.5)
        self.topic_of = self.rng.choice(topics, size=subtopics, p=_zipf(topics, 0.5))
        self.centres = {"common": self.directions(1), "topic": self.directions(topics)}
        self.centres["subtopic"] = self.directions(subtopics)
        self.words = _zipf(VOCABULARY + 7, 1.0)[7:].cumsum()
        self.words /= self.words[-1]
        self.topic_words = np.stack([self.rng.permutation(VOCABULARY)[:_TOPIC_WORDS] for _ in range(topics)])
        self.topic_ranks = _zipf(_TOPIC_WORDS, 0.8).cumsum()

    def directions(self, n: int) -> Float32:
        """Return random vectors of about length 1."""
        vectors: Float32 = self.rng.normal(size=(n, DIM)).astype(np.float32) @ self.rotation.T
        return vectors

    def documents(self, n: int) -> Part:
        """Return documents, about 400 characters each: stores keep texts, whatever they say."""
        subtopics = self.rng.choice(len(self.shares), size=n, p=self.shares)
        places = {"common": np.zeros(n, np.int64), "topic": self.topic_of[subtopics], "subtopic": subtopics}
        dense = np.float32(np.sqrt(_SHARES["own"])) * self.directions(n)
        for name, centres in self.centres.items():
            dense += np.float32(np.sqrt(_SHARES[name])) * centres[places[name]]
        words = self.rng.choice(_FILLER, size=(n, 65))
        return Part([" ".join(row) for row in words], _unit(dense), self.sparse(places["topic"]))

    def mixed(self, parts: list[Part], n: int) -> Part:
        """Return documents whose dense half is between those of two others, and whose terms are the second's."""
        one, two = (parts[i] for i in self.rng.choice(len(parts), size=2))
        a, b = self.rng.integers(0, CHUNK, n), self.rng.permutation(CHUNK)[:n]
        dense = np.float32(0.6) * one.dense[a] + np.float32(0.8) * two.dense[b]
        rows = [two.sparse[row] for row in b.tolist()]
        lengths = np.array([len(row) for row in rows], np.int64)
        values = np.concatenate([row.values for row in rows])
        values *= np.repeat(self.rng.uniform(0.8, 1.2, n).astype(np.float32), lengths)  # so that few scores are equal
        keys = np.concatenate([row.indices for row in rows])
        sparse = SparseBatch(np.concatenate([[0], lengths.cumsum()]), keys, values)
        return Part([two.texts[row] for row in b.tolist()], _unit(dense), sparse)

    def sparse(self, topics: Int64) -> SparseBatch:
        """Return a row for each topic: some of the topic's words, some that are common everywhere."""
        shape = (len(topics), _DRAWN)
        common = np.searchsorted(self.words, self.rng.random(shape))
        own = self.topic_words[topics[:, None], np.searchsorted(self.topic_ranks, self.rng.random(shape))]
        terms = np.where(self.rng.random(shape) < 0.5, own, common)
        keys = np.unique(terms + VOCABULARY * np.arange(len(topics))[:, None])
        weights = self.rng.lognormal(-1.0, 0.6, size=len(keys)).astype(np.float32)
        lengths = np.bincount(keys // VOCABULARY, minlength=len(topics))
        return SparseBatch(np.concatenate([[0], lengths.cumsum()]), (keys % VOCABULARY).astype(np.int32), weights)

    def queries(self, documents: Part) -> Part:
        """Return queries near some of the documents: 8 to 20 terms, most of them the document's."""
        rows = self.rng.choice(len(documents.texts), size=QUERIES, replace=len(documents.texts) < QUERIES)
        dense = np.sqrt(1 - _QUERY_OWN) * documents.dense[rows] + np.sqrt(_QUERY_OWN) * self.directions(QUERIES)
        sparse = []
        for row in rows.tolist():
            terms = documents.sparse[row].indices
            chosen = self.rng.choice(terms, size=int(self.rng.integers(4, 16)), replace=False).tolist()
            chosen += np.searchsorted(self.words, self.rng.random(5)).tolist()
            sparse.append(dict(zip(chosen, self.rng.lognormal(-0.5, 0.5, size=len(chosen)).tolist(), strict=True)))
        return Part([], _unit(dense.astype(np.float32)), SparseBatch.from_dicts(sparse))


def _zipf(n: int, exponent: float) -> Float64:
    weights: Float64 = 1 / np.arange(1, n + 1) ** exponent
    weights /= weights.sum()
    return weights


def _unit(rows: Float32) -> Float32:
    unit: Float32 = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
