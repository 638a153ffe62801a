"""Stores in PostgreSQL with pgvector."""

from twinvec.errors import ConfigurationError

try:
    import pgvector  # noqa: F401
    import psycopg  # noqa: F401
    import psycopg_pool  # noqa: F401
except ImportError:
    raise ConfigurationError("PostgreSQL needs its client: pip install 'twinvec[postgres]'") from None
