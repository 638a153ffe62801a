"""Rows that were computed before: recent ones in memory, others on disk."""

from twinvec.cache.disk import VectorCache

__all__ = ["VectorCache"]
