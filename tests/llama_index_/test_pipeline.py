"""IngestionPipeline: into the store, with caches and docstores, and with worker processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, MetadataMode
from llama_index.core.storage.docstore import SimpleDocumentStore

from llama_index_.counting import Counter
from llama_index_twinvec import TwinVecEmbedding, TwinVecVectorStore

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


def test_a_worker_process_loads_the_same_model(own: TwinVecEmbedding) -> None:
    """Without a splitter: in a worker, that of LlamaIndex fetches its vocabulary from the network."""
    run = IngestionPipeline(transformations=[own], disable_cache=True)
    nodes = run.run(documents=documents(), num_workers=2)
    vectors = own.get_text_embedding_batch([node.get_content(MetadataMode.EMBED) for node in nodes])
    np.testing.assert_allclose(np.array([node.embedding for node in nodes]), np.array(vectors), atol=1e-5)
