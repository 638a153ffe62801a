"""Opening or creating the store of a TwinVecVectorStore from the arguments of its constructor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llama_index_twinvec.nodes import REF_DOC_ID
from twinvec import BaseEmbedder, Task
from twinvec.errors import ConfigurationError, StoreMismatchError, StoreNotFoundError
from twinvec_stores import HybridStore, QdrantStore, StoreConfig, open_store
from twinvec_stores.config import FieldType, Quantization
from twinvec_stores.opening import check_server

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, QdrantClient

_WORDS = {  # terms of LlamaIndex's other stores, and their equivalents here
    "collection_name": "collection=",
    "index_name": "collection=",
    "table_name": "collection=",
    "persist_dir": "path=",
    "persist_path": "path=, or from_persist_path for the file of a store in memory",
    "location": "path= for a folder, url= for a server, neither for memory",
    "uri": "path= for a folder, url= for a server",
    "host": "url=, such as http://host:6333",
    "port": "url=, such as http://host:6333",
    "async_client": "aclient=",
    "embed_model": "embedding=, its first argument",
    "dim": "not needed: the embedding knows its dimension",
    "embed_dim": "not needed: the embedding knows its dimension",
    "enable_hybrid": "not needed: it is hybrid if the embedding has a sparse half, see sparse=",
    "enable_sparse": "not needed: it is hybrid if the embedding has a sparse half, see sparse=",
    "hybrid_search": "not needed: it is hybrid if the embedding has a sparse half, see sparse=",
    "sparse_doc_fn": "sparse=",
    "sparse_query_fn": "sparse=",
    "fastembed_sparse_model": "sparse=",
    "sparse_embedding_function": "sparse=",
    "hybrid_fusion_fn": "fusion=",
    "hybrid_ranker": "fusion=",
    "overwrite": "clear(), after opening it",
    "batch_size": "not needed: batches are formed by tokens",
    "similarity_top_k": "an option of the retriever: index.as_retriever(similarity_top_k=...)",
    "client_kwargs": "client_options=",
    "quantization_config": 'quantization="int8"',
    "payload_indexes": 'fields=, such as {"year": "integer"}',
}


def place_of(
    path: str | os.PathLike[str] | None,
    url: str | None,
    store: HybridStore | None,
    clients: tuple[QdrantClient | None, AsyncQdrantClient | None],
    options: Mapping[str, Any],
) -> Callable[[StoreConfig | None], HybridStore]:
    """Return how to open the given location, creating it if a configuration is passed and nothing exists.

    Raises:
        ConfigurationError: the arguments contradict each other.
    """
    if foreign := [f"{name}= is {_WORDS[name]}" for name in options if name in _WORDS]:
        raise ConfigurationError(f"TwinVecVectorStore: {'; '.join(foreign)}")
    client, aclient = clients
    if sum(place is not None for place in (path, url, store, client)) > 1:
        raise ConfigurationError("pass only one of path=, url=, client= and store=")
    if aclient is not None and client is None:
        raise ConfigurationError("aclient= goes with client=, a QdrantClient of the same server")
    if url is not None:
        check_server(url)
    if client is not None:
        named = {"collection": "twinvec", **options}
        return lambda config: QdrantStore(config=config, client=client, async_client=aclient, **named)
    where = url or (":memory:" if path is None else os.fspath(path))
    return lambda config: open_store(where, config, **options)


def opened(
    place: Callable[[StoreConfig | None], HybridStore],
    embedder: BaseEmbedder,
    task: Task | str | None,
    *,
    in_memory: bool,
    fields: Mapping[str, FieldType] | None = None,
    quantization: Quantization | None = None,
) -> HybridStore:
    """Open what exists, whoever created it; otherwise create it, with an index for deletion by document."""
    if fields is None and quantization is None and not in_memory:
        with contextlib.suppress(StoreNotFoundError):
            store = place(None)
            try:
                store.config.check(StoreConfig.for_embedder(embedder, task=task), repr(store))
            except StoreMismatchError:
                store.close()
                raise
            return store
    fields = {REF_DOC_ID: "keyword", **(fields or {})}
    return place(StoreConfig.for_embedder(embedder, fields=fields, quantization=quantization, task=task))
