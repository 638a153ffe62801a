"""Caches of computed rows: recent ones in memory, others on disk."""

from twinvec.cache.disk import VectorCache
from twinvec.cache.rows import Cache, Key, Row

__all__ = ["Cache", "Key", "Row", "VectorCache"]
