"""The BM25 that tests of it share."""

from __future__ import annotations

from twinvec import SparseBatch
from twinvec.text.bm25 import Bm25

CANONICAL = "bm25:auto,k1=1.2,b=0.75,average_length=128,analysis=2"
AUTO = Bm25()


def documents(*texts: str, bm25: Bm25 = AUTO) -> SparseBatch:
    return bm25.weigh_documents(texts)[0]


def queries(*texts: str, bm25: Bm25 = AUTO) -> SparseBatch:
    return bm25.weigh_queries(texts)[0]
