"""Stores on a Milvus server or cluster."""

from twinvec.errors import ConfigurationError

try:
    import pymilvus  # noqa: F401
except ImportError:
    raise ConfigurationError("Milvus servers need its client: pip install 'twinvec[milvus]'") from None
