"""Stores in memory kept, copied and sent elsewhere, as SimpleVectorStore is."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage

from llama_index_.samples import QUERY, by, nodes
from llama_index_twinvec import HybridRetriever, TwinVecEmbedding, TwinVecVectorStore
from twinvec.errors import ConfigurationError, StoreError
from twinvec_stores import Fusion


@pytest.fixture
def filled(store: TwinVecVectorStore) -> TwinVecVectorStore:
    store.add(nodes(8))
    return store


def answers(store: TwinVecVectorStore) -> list[tuple[str, float]]:
    return [(found.node_id, round(found.score or 0.0, 5)) for found in HybridRetriever(store).retrieve(QUERY)]


def test_a_file_of_a_store_is_read_again(filled: TwinVecVectorStore, tmp_path: Path) -> None:
    file = tmp_path / "vectors.jsonl"
    filled.persist(str(file))
    for options in ({}, {"path": tmp_path / "index"}):
        again = TwinVecVectorStore.from_persist_path(str(file), filled.embedding, **options)
        assert answers(again) == answers(filled)
        assert again.get_nodes(["n03"]) == filled.get_nodes(["n03"])
        again.close()


def test_a_context_names_the_file_and_an_index_is_loaded(filled: TwinVecVectorStore, tmp_path: Path) -> None:
    context = StorageContext.from_defaults(vector_store=filled)
    VectorStoreIndex([], storage_context=context, embed_model=filled.embedding)
    with pytest.raises(ConfigurationError, match="this store is in memory"):
        context.persist(str(tmp_path))
    context.persist(str(tmp_path), vector_store_fname="twinvec.jsonl")
    store = TwinVecVectorStore.from_persist_path(str(tmp_path / "default__twinvec.jsonl"), filled.embedding)
    again: Any = load_index_from_storage(
        StorageContext.from_defaults(persist_dir=str(tmp_path), vector_store=store), embed_model=filled.embedding
    )
    assert len(again.as_retriever(similarity_top_k=8).retrieve(QUERY)) == 8


def test_a_damaged_file_is_refused(filled: TwinVecVectorStore, tmp_path: Path) -> None:
    file = tmp_path / "vectors.jsonl"
    filled.persist(str(file))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(StoreError):
        TwinVecVectorStore.from_persist_path(str(file), filled.embedding)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))])
def test_copies_are_stores_of_their_own_with_the_same_model(embedding: TwinVecEmbedding, copied: Any) -> None:
    with TwinVecVectorStore(embedding, fusion="rrf") as store:
        store.add(nodes(8))
        made = copied(store)
        assert (answers(made), made.fusion, made.embedding) == (answers(store), Fusion("rrf"), embedding)
        made.delete_nodes(filters=by("n", 4, ">="))
        assert (len(made.get_nodes()), len(store.get_nodes())) == (4, 8)


def test_a_copy_of_a_folders_store_is_the_same_folder(embedding: TwinVecEmbedding, tmp_path: Path) -> None:
    with TwinVecVectorStore(embedding, path=tmp_path / "index") as store:
        store.add(nodes(4))
        copy.deepcopy(store).delete_nodes(["n00"])
        assert len(store.get_nodes()) == 3
        store.persist()
