"""A program that knows only llama-index-core's interfaces: any embedding model, any vector store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llama_index.core import Settings, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import Document
from llama_index.core.vector_stores.types import BasePydanticVectorStore, MetadataFilter, MetadataFilters

DOCUMENTS = [
    Document(id_="python", text="Lists are sorted with sort. Sorted returns a copy.", metadata={"lang": "en"}),
    Document(id_="moscow", text="Москва — столица России.", metadata={"lang": "ru"}),
    Document(id_="china", text="The capital of China is Beijing.", metadata={"lang": "en"}),
]


def run(embed_model: BaseEmbedding, make_store: Callable[[], BasePydanticVectorStore]) -> dict[str, object]:
    """Index, ask, insert, delete, ingest; returns what can be compared between models and stores."""
    splitter = SentenceSplitter(chunk_size=64, chunk_overlap=0)
    storage = StorageContext.from_defaults(vector_store=make_store())
    index = VectorStoreIndex.from_documents(
        DOCUMENTS, storage_context=storage, embed_model=embed_model, transformations=[splitter]
    )
    seen: dict[str, object] = {"found": len(index.as_retriever(similarity_top_k=2).retrieve("How do I sort a list?"))}
    russian = MetadataFilters(filters=[MetadataFilter(key="lang", value="ru")])
    retriever = index.as_retriever(filters=russian, similarity_top_k=5)
    seen["filtered"] = [node.text for node in asyncio.run(retriever.aretrieve("столица"))]

    index.insert(Document(id_="jazz", text="Jazz is music.", metadata={"lang": "en"}))
    seen["after insert"] = len(index.as_retriever(similarity_top_k=10).retrieve("music"))
    index.update_ref_doc(Document(id_="jazz", text="Blues is music too.", metadata={"lang": "en"}))
    index.delete_ref_doc("moscow", delete_from_docstore=True)
    texts = sorted(node.text for node in index.as_retriever(similarity_top_k=10).retrieve("music"))
    seen["after delete"] = texts

    engine = index.as_query_engine(
        llm=Settings.llm, similarity_top_k=3, node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=-1.0)]
    )
    seen["answered"] = [type(engine.query("What?")).__name__, type(asyncio.run(engine.aquery("What?"))).__name__]

    store = make_store()
    pipeline = IngestionPipeline(transformations=[splitter, embed_model], vector_store=store)
    nodes = pipeline.run(documents=DOCUMENTS)
    seen["ingested"] = [
        (node.get_content(), len(node.embedding or []) == len(nodes[0].embedding or [])) for node in nodes
    ]
    store.delete("python")
    return seen
