"""to_dict and from_dict, pickles and copies, and what LlamaIndex's hash of a transformation sees of them."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.node_parser import SemanticSplitterNodeParser
from llama_index.core.schema import Document, TextNode

from llama_index_.counting import Counter
from llama_index_twinvec import TwinVecEmbedding, TwinVecSparseEmbedding
from reference.gte import build_gte
from twinvec import Embedder, Task
from twinvec.cache import VectorCache
from twinvec.errors import CheckpointError

TASK = "Given a question, find a paragraph with the answer"
OTHER = "Given a title, find the article"
SYMMETRIC = Task("Retrieve semantically similar text", symmetric=True)
NODES = [TextNode(text="one text"), TextNode(text="another text")]

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "options": {"dim": 32, "max_length": 64, "sparse": None, "embed_batch_size": 12, "num_workers": 3},
    "bm25": {"sparse": "bm25:english,k1=0.9", "memo_bytes": 0, "on_overflow": "error", "token_budget": 99},
    "prompts": {"prompts": {"query": "q: ", "document": "d: "}, "sparse_keys": "ids", "device": "cpu"},
    "exact": {"reproducible": True, "on_overload": "error", "offline": True},
}
TASKS: dict[str, Task | str] = {"asymmetric": TASK, "symmetric": SYMMETRIC, "named": "similarity"}


def assert_same(one: TwinVecEmbedding, other: TwinVecEmbedding) -> None:
    assert one is not other
    assert one == other
    assert one.to_dict() == other.to_dict()
    assert one.get_query_embedding("a query") == pytest.approx(other.get_query_embedding("a query"), abs=1e-6)
    assert one.get_text_embedding("a text") == pytest.approx(other.get_text_embedding("a text"), abs=1e-6)
    assert (one.embed_batch_size, one.num_workers, one.task) == (other.embed_batch_size, other.num_workers, other.task)
    assert isinstance(one.embedder, Embedder)
    assert isinstance(other.embedder, Embedder)
    assert one.embedder._core is other.embedder._core, "the weights are in memory twice"


# --- the round trip


@pytest.mark.parametrize("case", CASES)
def test_from_dict_of_to_dict_is_equal(gte_folder: str, case: str) -> None:
    embedding = TwinVecEmbedding(model_name=gte_folder, dtype="float32", **CASES[case])
    assert_same(embedding, TwinVecEmbedding.from_dict(embedding.to_dict()))
    assert_same(embedding, TwinVecEmbedding.from_json(embedding.to_json()))
    assert_same(embedding, TwinVecEmbedding.from_dict(json.loads(json.dumps(embedding.to_dict()))))


@pytest.mark.parametrize("task", TASKS)
def test_the_task_comes_back(giga: Embedder, task: str) -> None:
    embedding = TwinVecEmbedding(embedder=giga, task=TASKS[task])
    assert_same(embedding, TwinVecEmbedding.from_dict(embedding.to_dict()))
    assert_same(embedding, pickle.loads(pickle.dumps(embedding)))


def test_the_embedders_own_task_counts(giga_folder: str) -> None:
    with Embedder(giga_folder, dtype="float32", task=TASK) as embedder:
        embedding = TwinVecEmbedding(embedder=embedder)
        assert embedding.task == TASK
        assert_same(embedding, TwinVecEmbedding(embedder=embedder, task=None))
        assert_same(embedding, TwinVecEmbedding.from_dict(embedding.to_dict()))


def test_from_dict_takes_other_fields_and_live_objects(embedding: TwinVecEmbedding, gte: Embedder) -> None:
    written = embedding.to_dict()
    assert TwinVecEmbedding.from_dict(written, dim=32, embed_batch_size=7).dim == 32
    assert TwinVecEmbedding.from_dict(written, embedder=gte).embedder is gte
    assert TwinVecEmbedding.from_dict({"model_name": embedding.model_name, "dtype": "float32"}) == embedding


def test_another_content_in_the_place_of_the_model_is_an_error(tmp_path: Path) -> None:
    folder = build_gte(tmp_path / "model", seed=61)
    written = TwinVecEmbedding(model_name=str(folder)).to_dict()
    shutil.rmtree(folder)
    build_gte(folder, seed=62)
    with pytest.raises(CheckpointError, match="content has changed"):
        TwinVecEmbedding.from_dict(written)


def test_copies_and_pickles_share_the_model(embedding: TwinVecEmbedding) -> None:
    for made in (pickle.loads(pickle.dumps(embedding)), copy.copy(embedding), copy.deepcopy(embedding)):
        assert_same(embedding, made)
    assert len(pickle.dumps(embedding)) < 4000


def test_the_cache_on_disk_is_live(gte_folder: str, tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "vectors")
    embedding = TwinVecEmbedding(model_name=gte_folder, dtype="float32", cache=cache)
    assert "vectors" not in embedding.to_json()
    assert pickle.loads(pickle.dumps(embedding)).cache.path == cache.path
    assert TwinVecEmbedding.from_dict(embedding.to_dict()).cache is None


def test_the_sparse_side_too(embedding: TwinVecEmbedding) -> None:
    sparse = embedding.as_sparse()
    for made in (TwinVecSparseEmbedding.from_dict(sparse.to_dict()), pickle.loads(pickle.dumps(sparse))):
        assert made == sparse
        assert made.get_text_embedding("a text") == sparse.get_text_embedding("a text")
    assert sparse.model_dump() == sparse.to_dict()
    assert sparse != embedding


# --- the hash of a transformation


def hash_of(embedding: TwinVecEmbedding) -> str:
    return get_transformation_hash(NODES, embedding)


def test_the_hash_does_not_see_the_query_side(giga: Embedder) -> None:
    first = hash_of(TwinVecEmbedding(embedder=giga, task=TASK))
    assert hash_of(TwinVecEmbedding(embedder=giga, task=OTHER)) == first
    assert hash_of(TwinVecEmbedding(embedder=giga)) == first
    assert hash_of(TwinVecEmbedding(embedder=giga, embed_batch_size=7, num_workers=2)) == first


@pytest.mark.parametrize(
    "options",
    [
        {"device": "cpu"},
        {"memo_bytes": 0},
        {"token_budget": 100},
        {"on_overload": "error"},
        {"sparse": None},
        {"sparse": "bm25"},
        {"sparse_keys": "ids"},
        {"prompts": {"query": "another query prompt: "}},
        {"dim": 64},
    ],
)
def test_the_hash_does_not_see_what_leaves_documents_as_they_are(gte_folder: str, options: dict[str, Any]) -> None:
    first = TwinVecEmbedding(model_name=gte_folder, dtype="float32")
    other = TwinVecEmbedding(model_name=gte_folder, dtype="float32", **options)
    assert hash_of(other) == hash_of(first)
    assert (other == first) == (options == {"dim": 64})


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 32},
        {"max_length": 100},
        {"dtype": "bfloat16"},
        {"reproducible": True},
        {"quantization": "int8"},
        {"prompts": {"document": "passage: "}},
    ],
)
def test_the_hash_sees_what_changes_the_vector_of_a_document(gte_folder: str, options: dict[str, Any]) -> None:
    first = TwinVecEmbedding(model_name=gte_folder, dtype="float32")
    other = TwinVecEmbedding(model_name=gte_folder, **{"dtype": "float32", **options})
    assert hash_of(other) != hash_of(first)


def test_the_hash_sees_a_symmetric_task(giga: Embedder) -> None:
    hashes = {hash_of(TwinVecEmbedding(embedder=giga, task=task)) for task in (TASK, SYMMETRIC, "clustering")}
    assert len(hashes) == 3


def test_the_hash_sees_other_weights_in_the_same_place(tmp_path: Path) -> None:
    hashes = set()
    for seed in (63, 64):
        folder = build_gte(tmp_path / "model", seed=seed)
        hashes.add(hash_of(TwinVecEmbedding(model_name=str(folder), dtype="float32")))
        shutil.rmtree(folder)
    assert len(hashes) == 2


def test_the_hash_is_the_same_after_a_round_trip_and_inside_of_other_components(giga: Embedder) -> None:
    embeddings = [TwinVecEmbedding(embedder=giga, task=task) for task in (TASK, OTHER)]
    assert len({hash_of(made) for made in (*embeddings, TwinVecEmbedding.from_dict(embeddings[0].to_dict()))}) == 1
    splitters = [SemanticSplitterNodeParser(embed_model=made, id_func=str) for made in embeddings]
    assert len({get_transformation_hash(NODES, splitter) for splitter in splitters}) == 1


def test_another_query_task_embeds_nothing_again_in_a_pipeline(giga: Embedder, tmp_path: Path) -> None:
    documents = [Document(text=f"a document about number {i}", id_=str(i)) for i in range(6)]
    first = IngestionPipeline(transformations=[TwinVecEmbedding(embedder=giga, task=TASK)])
    counter = Counter(giga)
    nodes = first.run(documents=copy.deepcopy(documents))
    assert counter.texts == 6
    first.persist(str(tmp_path))
    second = IngestionPipeline(transformations=[TwinVecEmbedding(embedder=giga, task=OTHER, embed_batch_size=2)])
    second.load(str(tmp_path))
    hits = giga.stats()["memo_hits"]
    again = second.run(documents=copy.deepcopy(documents))
    assert (counter.texts, giga.stats()["memo_hits"]) == (6, hits)
    assert [node.embedding for node in again] == [node.embedding for node in nodes]
    third = IngestionPipeline(transformations=[TwinVecEmbedding(embedder=giga, task=SYMMETRIC)])
    third.load(str(tmp_path))
    third.run(documents=copy.deepcopy(documents))
    assert counter.texts == 12
