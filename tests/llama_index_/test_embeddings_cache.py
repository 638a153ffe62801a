"""embeddings_cache: LlamaIndex's interface, with an entry of its own for each role, prompt and model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index_.counting import Counter
from llama_index_twinvec import TwinVecEmbedding
from twinvec import Embedder

TASK = "Given a question, find a paragraph with the answer"
TEXT = "a text that is a query and a document"
Ask = Callable[[BaseEmbedding, str], list[float]]

QUERIES: list[Ask] = [
    lambda model, text: model.get_query_embedding(text),
    lambda model, text: asyncio.run(model.aget_query_embedding(text)),
    lambda model, text: model.get_agg_embedding_from_queries([text]),
]
DOCUMENTS: list[Ask] = [
    lambda model, text: model.get_text_embedding(text),
    lambda model, text: asyncio.run(model.aget_text_embedding(text)),
    lambda model, text: model.get_text_embedding_batch(["other", text])[1],
    lambda model, text: asyncio.run(model.aget_text_embedding_batch([text, "other"]))[0],
]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("first", ["query", "document"])
def test_a_query_never_gets_the_vector_of_a_document(giga: Embedder, query: Ask, document: Ask, first: str) -> None:
    plain = TwinVecEmbedding(embedder=giga, task=TASK)
    cached = TwinVecEmbedding(embedder=giga, task=TASK, embeddings_cache=SimpleKVStore())
    expected = {"query": plain.get_query_embedding(TEXT), "document": plain.get_text_embedding(TEXT)}
    assert expected["query"] != expected["document"]
    asks = {"query": query, "document": document}
    for role in (first, *asks, *asks):
        assert asks[role](cached, TEXT) == pytest.approx(expected[role], abs=1e-6)


def test_the_peers_cache_does_mix_them_up(e5_folder: str) -> None:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    peer = HuggingFaceEmbedding(e5_folder, query_instruction="query: ", text_instruction="passage: ", device="cpu")
    query, document = peer.get_query_embedding(TEXT), peer.get_text_embedding(TEXT)
    assert query != document
    peer.embeddings_cache = SimpleKVStore()
    assert peer.get_text_embedding(TEXT) == peer.get_query_embedding(TEXT)


def test_what_is_there_is_not_computed_again(own: TwinVecEmbedding) -> None:
    store = SimpleKVStore()
    cached = TwinVecEmbedding(embedder=own.embedder, embeddings_cache=store)
    assert isinstance(cached.embeddings_cache, BaseKVStore)
    rows = [cached.get_query_embedding(TEXT), *cached.get_text_embedding_batch([TEXT, "other"])]
    assert len(store.get_all(collection="embeddings")) == 3
    another = TwinVecEmbedding(embedder=own.embedder, embeddings_cache=store)
    hits, counter = own.embedder.stats()["memo_hits"], Counter(own.embedder)
    assert [another.get_query_embedding(TEXT), *another.get_text_embedding_batch([TEXT, "other"])] == rows
    assert (counter.texts, own.embedder.stats()["memo_hits"]) == (0, hits)


def test_models_and_tasks_share_a_store_without_mixing(giga: Embedder, gte: Embedder) -> None:
    store = SimpleKVStore()
    kinds = [
        TwinVecEmbedding(embedder=giga, task=TASK),
        TwinVecEmbedding(embedder=giga, task="Another instruction"),
        TwinVecEmbedding(embedder=gte),
    ]
    expected = [(kind.get_query_embedding(TEXT), kind.get_text_embedding(TEXT)) for kind in kinds]
    for kind in kinds:
        kind.embeddings_cache = store
    for _ in range(2):
        assert [(kind.get_query_embedding(TEXT), kind.get_text_embedding(TEXT)) for kind in kinds] == expected
    # both tasks are asymmetric: their documents are the same
    assert len(store.get_all(collection="embeddings")) == 5


def test_the_interface_of_a_store_is_whole(embedding: TwinVecEmbedding) -> None:
    async def run() -> None:
        await cache.aput("b", {"id": [2.0]}, collection="embeddings")
        assert await cache.aget("b", collection="embeddings") == {"id": [2.0]}
        assert await cache.aget_all(collection="embeddings") == cache.get_all(collection="embeddings")
        assert await cache.adelete("b", collection="embeddings")

    embedding.embeddings_cache = SimpleKVStore()
    cache = embedding.embeddings_cache
    cache.put("a", {"id": [1.0]}, collection="embeddings")
    asyncio.run(run())
    assert embedding.get_text_embedding("a") == [1.0]
    assert len(embedding.get_query_embedding("a")) == 64
    assert cache.delete("a", collection="embeddings")
    assert not cache.delete("a", collection="embeddings")
    assert len(embedding.get_text_embedding("a")) == 64


def test_only_key_value_stores_are_caches(gte: Embedder) -> None:
    with pytest.raises(TypeError, match="BaseKVStore"):
        TwinVecEmbedding(embedder=gte, embeddings_cache={})
