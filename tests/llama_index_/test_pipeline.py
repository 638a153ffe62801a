"""IngestionPipeline: into the store, with caches and docstores, and with worker processes."""

from __future__ import annotations

import asyncio
import copy
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, Document, MetadataMode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from llama_index_.counting import Counter
from llama_index_twinvec import TwinVecEmbedding, TwinVecVectorStore
from llama_index_twinvec.workers import WorkerEmbedding
from twinvec import Embedder
from twinvec.errors import InvalidTextError, TextTooLongError, TwinVecError

TASK = "Given a question, find a paragraph with the answer"


def documents(count: int = 12) -> list[Document]:
    return [
        Document(id_=f"d{i}", text=f"Document {i} is about number {i}. It has two sentences.", metadata={"n": i})
        for i in range(count)
    ]


def pipeline(store: TwinVecVectorStore, **options: Any) -> IngestionPipeline:
    splitter = SentenceSplitter(chunk_size=40, chunk_overlap=0)
    return IngestionPipeline(transformations=[splitter, store.embedding], vector_store=store, **options)


@pytest.mark.parametrize("through_async", [False, True])
def test_ingestion_is_one_forward_pass_per_text(own: TwinVecEmbedding, tmp_path: Path, through_async: bool) -> None:
    with TwinVecVectorStore(own, path=tmp_path / "index") as store:
        counter, run = Counter(own.embedder), pipeline(store)
        nodes = asyncio.run(run.arun(documents=documents())) if through_async else run.run(documents=documents())
        assert len(nodes) == store.client.count() == counter.texts
        again = run.run(documents=documents())  # from the cache
        assert [node.embedding for node in again] == [node.embedding for node in nodes]
        assert counter.texts == len(nodes)


def test_upserts_replace_what_has_changed_and_delete_what_is_gone(own: TwinVecEmbedding, tmp_path: Path) -> None:
    with TwinVecVectorStore(own, path=tmp_path / "index") as store:
        strategy = DocstoreStrategy.UPSERTS_AND_DELETE
        run = pipeline(store, docstore=SimpleDocumentStore(), docstore_strategy=strategy, disable_cache=True)
        run.run(documents=documents(4))
        counter = Counter(own.embedder)
        changed = documents(4)[:3]
        changed[1] = Document(id_="d1", text="Something else.", metadata={"n": 1})
        run.run(documents=changed)
        assert counter.texts == 1
        by_document: dict[str | None, list[str]] = {}
        for node in store.get_nodes():
            by_document.setdefault(node.ref_doc_id, []).append(node.get_content())
        assert set(by_document) == {"d0", "d1", "d2"}
        assert by_document["d1"] == ["Something else."]


# --- worker processes


def test_worker_processes_do_not_load_the_model_again(own: TwinVecEmbedding) -> None:
    """Without a splitter: in a worker, that of LlamaIndex fetches its vocabulary from the network."""
    with TwinVecVectorStore(own) as store:
        counter = Counter(own.embedder)
        run = IngestionPipeline(transformations=[own], vector_store=store)
        nodes = run.run(documents=documents(), num_workers=2)
        assert counter.texts == len(nodes) == store.client.count() == 12
        vectors = own.get_text_embedding_batch([node.get_content(MetadataMode.EMBED) for node in nodes])
        assert [node.embedding for node in nodes] == vectors
        hits = own.embedder.stats()["memo_hits"]
        run.run(documents=documents()[:6])  # what a worker has put into the cache is found here
        assert (counter.texts, own.embedder.stats()["memo_hits"]) == (12, hits)


def test_async_worker_processes_neither(own: TwinVecEmbedding) -> None:
    counter = Counter(own.embedder)
    run = IngestionPipeline(transformations=[own], disable_cache=True)
    nodes: list[BaseNode] = list(asyncio.run(run.arun(documents=documents(), num_workers=2)))
    assert counter.texts == len(nodes) == 12
    assert all(node.embedding for node in nodes)


def in_worker(embedding: TwinVecEmbedding) -> WorkerEmbedding:
    """Return what a worker process gets, in this process."""
    seen = pickle.loads(ForkingPickler.dumps(embedding))
    assert type(seen) is WorkerEmbedding
    return seen


def test_a_worker_sees_the_same_embedding(giga: Embedder) -> None:
    embedding = TwinVecEmbedding(embedder=giga, task=TASK, embed_batch_size=17)
    worker = in_worker(embedding)
    assert isinstance(worker, BaseEmbedding)
    assert worker.to_dict() == embedding.to_dict()
    nodes = [TextNode(text="a text")]
    assert get_transformation_hash(nodes, worker) == get_transformation_hash(nodes, embedding)
    assert worker.embed_batch_size == 17
    assert worker.get_query_embedding("q") == asyncio.run(worker.aget_query_embedding("q"))
    assert worker.get_query_embedding("q") == embedding.get_query_embedding("q") != worker.get_text_embedding("q")
    assert asyncio.run(worker.aget_text_embedding("q")) == embedding.get_text_embedding("q")
    assert asyncio.run(worker.aget_text_embedding_batch(["q", "r"])) == embedding.get_text_embedding_batch(["q", "r"])
    assert in_worker(copy.copy(embedding)).get_text_embedding("q") == embedding.get_text_embedding("q")


def test_errors_reach_the_worker_as_what_they_are(own: TwinVecEmbedding) -> None:
    strict = TwinVecEmbedding(model_name=own.model_name, dtype="float32", max_length=4, on_overflow="error")
    with pytest.raises(TextTooLongError):
        in_worker(strict).get_text_embedding("more than four tokens, for sure")
    with pytest.raises(InvalidTextError):
        in_worker(strict).get_text_embedding("\ud800")


def test_a_worker_whose_model_is_gone_is_told_so(own: TwinVecEmbedding) -> None:
    worker = in_worker(TwinVecEmbedding(embedder=own.embedder))
    with pytest.raises(TwinVecError, match="is gone"):
        worker.get_text_embedding("a")
    nowhere = WorkerEmbedding(address="/nowhere/to/be/found", number=0, described={})
    with pytest.raises(TwinVecError, match="cannot be reached"):
        nowhere.get_text_embedding("a")
