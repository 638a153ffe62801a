"""What tests of the RemoteEmbedder share."""

from __future__ import annotations

from twinvec import EmbeddingBatch

KEY = "a-secret-key"


def assert_same(found: EmbeddingBatch, expected: EmbeddingBatch) -> None:
    """Bit for bit."""
    for name in ("dense", "token_counts", "truncated"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if other is not None:
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    assert (found.sparse is None) == (expected.sparse is None)
    if expected.sparse is not None:
        for name in ("indptr", "indices", "values"):
            assert getattr(found.sparse, name).tobytes() == getattr(expected.sparse, name).tobytes()
