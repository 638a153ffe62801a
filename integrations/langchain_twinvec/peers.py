"""Argument names of LangChain's other stores, and their equivalents here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from twinvec.errors import ConfigurationError

CONSTRUCTOR: Mapping[str, str] = {
    **dict.fromkeys(("persist_directory", "persist_path", "folder_path", "index_path", "db_path"), "path="),
    **dict.fromkeys(("collection_name", "index_name", "table_name", "namespace"), "collection="),
    "location": "path= or url= (neither: in memory)",
    **dict.fromkeys(("host", "port", "uri", "connection", "connection_args", "connection_string"), "url="),
    **dict.fromkeys(("client", "async_client"), "store=QdrantStore(client=...)"),
    **dict.fromkeys(("embedding_function", "embeddings"), "embedding="),
    "sparse_embedding": "sparse=",
    "retrieval_mode": 'mode= ("hybrid", "dense" or "sparse")',
    "batch_size": "batch_size= of add_texts and add_documents",
    **dict.fromkeys(
        ("distance", "distance_strategy", "metric_type"), "not configurable: dense vectors are compared by cosine"
    ),
    "relevance_score_fn": "a subclass with _select_relevance_score_fn",
    **dict.fromkeys(("drop_old", "force_recreate", "pre_delete_collection"), "store.delete(), which empties it"),
    **dict.fromkeys(("collection_metadata", "vector_params"), "fields= and quantization="),
}
SEARCH: Mapping[str, str] = {
    **dict.fromkeys(("where", "expr", "pre_filter", "filters", "search_filter"), "filter="),
    "where_document": 'filter= for metadata; mode="sparse" for words in texts',
    **dict.fromkeys(("hybrid_fusion", "ranker_type", "ranker_params", "alpha", "weights"), "fusion="),
    **dict.fromkeys(("search_params", "param", "ef_search"), "exact= and fetch_k="),
    **dict.fromkeys(("top_k", "limit", "n_results"), "k="),
    "offset": "store.list_documents(), which pages through everything",
    "with_vectors": "store.index.store.get(ids, with_vectors=True)",
    "retrieval_mode": "mode=",
}


def refuse_names_of_peers(given: Iterable[str], table: Mapping[str, str]) -> None:
    """Reject arguments of other stores, naming their equivalents here.

    Raises:
        ConfigurationError: there is such an argument.
    """
    for name in given:
        if name in table:
            raise ConfigurationError(f"{name}= is an argument of another store; here it is {table[name]}")
