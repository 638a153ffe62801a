"""What several test files need: texts for ragged batches, and the halves of a batch that must be there."""

from __future__ import annotations

from twinvec import EmbeddingBatch, SparseBatch
from twinvec.vectors import Float32

# scripts, lengths from no token to many, equal lengths side by side
TEXTS = [
    "hello",
    "the capital of Russia is Moscow",
    "Столица России — Москва",
    "中国的首都在哪儿",
    "line one\nline two\n\tindented",
    "",
    "   ",
    "a",
    "b",
    "the the The THE",
    "what is the capital of China?",
    " ".join(["how to sort a list in python"] * 9),
    "emoji 🙂 and a NUL \x00 in the middle",
]


def dense_of(batch: EmbeddingBatch) -> Float32:
    """Return the dense half."""
    assert batch.dense is not None
    return batch.dense


def sparse_of(batch: EmbeddingBatch) -> SparseBatch:
    """Return the sparse half."""
    assert batch.sparse is not None
    return batch.sparse
