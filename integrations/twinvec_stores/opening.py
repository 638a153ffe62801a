"""Open a store by its address: a folder or a URL."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from twinvec import Embedder, ModelSpec, Task
from twinvec.errors import ConfigurationError, StoreMismatchError, StoreNotFoundError
from twinvec.settings import Settings
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded.store import EmbeddedStore
from twinvec_stores.engines.memory import MemoryStore
from twinvec_stores.engines.qdrant import QdrantStore
from twinvec_stores.protocol import HybridStore

_QDRANT = ("http://", "https://")
_POSTGRES = ("postgresql://", "postgres://")
_MILVUS = "milvus://"
_SERVERS = (*_QDRANT, *_POSTGRES, _MILVUS)
_FORMS = f"a server's must begin with {', '.join(_SERVERS)}"


def is_server(location: str) -> bool:
    """Return whether a location is the address of a server.

    Raises:
        ConfigurationError: it is an address that no store has; the message does not repeat it.
    """
    if "://" in location and not location.startswith(_SERVERS):
        raise ConfigurationError(f"no store has an address such as {location.partition('://')[0]}://...: {_FORMS}")
    return location.startswith(_SERVERS)


def check_server(url: str) -> str:
    """Return the address of a server.

    Raises:
        ConfigurationError: it is not one.
    """
    if not is_server(url):
        raise ConfigurationError(f"url: {_FORMS}; for a folder use path=")
    return url


def open_store(
    location: str | os.PathLike[str],
    config: StoreConfig | None = None,
    *,
    collection: str | None = None,
    read_only: bool = False,
    **options: Any,
) -> HybridStore:
    """Open a store, or create it.

    Args:
        location: a folder; the URL of a Qdrant server (http:// or https://), of a PostgreSQL database
            (postgresql://) or of a Milvus server (milvus://); or ":memory:".
        config: what the store contains; see ``EmbeddedStore``. Required for ":memory:".
        collection: collection on the server, in PostgreSQL a schema; default "twinvec".
        read_only: for a folder: read a snapshot, even while others have it open; see ``EmbeddedStore``.
        options: further arguments of ``QdrantStore``: api_key (default: TWINVEC_QDRANT_API_KEY), prefer_grpc,
            collection_options ...; of ``PostgresStore``: pool_size, timeout; or of ``MilvusStore``: token (default:
            TWINVEC_MILVUS_TOKEN), consistency, timeout ...

    Raises:
        ConfigurationError: the options do not suit the location.
        StoreError: see ``EmbeddedStore``, ``QdrantStore``, ``PostgresStore`` and ``MilvusStore``.
    """
    where = os.fspath(location)
    if read_only and (is_server(where) or where == ":memory:"):
        raise ConfigurationError("read_only is for a folder: a server accepts several clients, memory has only one")
    if where.startswith(_QDRANT):
        options.setdefault("api_key", Settings.from_env().qdrant_api_key)
        return QdrantStore(where, collection or "twinvec", config, **options)
    if where.startswith(_MILVUS):
        from twinvec_stores.engines.milvus.store import MilvusStore

        options.setdefault("token", Settings.from_env().milvus_token)
        return MilvusStore(where, collection or "twinvec", config, **options)
    if is_server(where):
        from twinvec_stores.engines.postgres.store import PostgresStore

        return PostgresStore(where, collection or "twinvec", config, **options)
    given = [*(["collection"] if collection is not None else []), *options]
    if given:
        raise ConfigurationError(f"{', '.join(given)}: only for a server")
    if where == ":memory:":
        if config is None:
            raise ConfigurationError('":memory:" is always a new store: it needs a StoreConfig')
        return MemoryStore(config)
    return EmbeddedStore(where, config, read_only=read_only)


def open_target(location: str, config: StoreConfig, *, collection: str | None = None) -> HybridStore:
    """Open a store that another one is copied to, with its own settings if it exists.

    Args:
        location: see ``open_store``.
        config: what a new store contains; a quantization that its engine lacks is left out.
        collection: see ``open_store``.
    """
    try:
        return open_store(location, collection=collection)
    except StoreNotFoundError:
        if location.startswith(_MILVUS) or (location.startswith(_POSTGRES) and config.quantization == "int8"):
            config = replace(config, quantization=None)
        return open_store(location, config, collection=collection)


def load_embedder(store: HybridStore, *, trust_remote_code: bool = False, **options: Any) -> Embedder:
    """Load the model whose vectors a store contains, as it was when the store was created.

    Args:
        store: a store created with ``StoreConfig.for_embedder``.
        trust_remote_code: see ``ModelSpec``; this is never up to the store.
        options: arguments of ``Embedder`` that do not change vectors: device, cache_dir, token, offline ...

    Raises:
        StoreMismatchError: the store does not record its model.
        CheckpointError: the model no longer exists, or its content has changed.
    """
    recipe = dict(store.config.recipe)
    try:
        spec = ModelSpec(**recipe["spec"], trust_remote_code=trust_remote_code)
        prompts, task = recipe["prompts"] or None, recipe["task"]
    except (KeyError, TypeError):
        raise StoreMismatchError(
            f"{store!r} does not record how to load its model: pass the Embedder it was created with"
        ) from None
    task = Task(**task) if isinstance(task, dict) else task
    return Embedder(spec, prompts=prompts, task=task, **options)
