"""LangChain classes over one shared model: embeddings, sparse embeddings, hybrid vector store, hybrid retriever.

Importing this package imports neither torch nor another integration; ``TwinVecSparseEmbeddings``,
``TwinVecMilvusSparseEmbeddings`` and ``TwinVecTextSplitter`` import langchain-qdrant, langchain-milvus (both optional)
and langchain-text-splitters on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

try:
    import langchain_core as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "langchain_twinvec needs LangChain: pip install 'twinvec[langchain]'", name=error.name
    ) from None

from langchain_twinvec.embeddings import TwinVecEmbeddings
from langchain_twinvec.reranking import TwinVecReranker
from langchain_twinvec.retrievers import HybridRetriever
from langchain_twinvec.self_query import TwinVecTranslator
from langchain_twinvec.takeover import DifferenceWarning
from langchain_twinvec.vectorstores import TwinVecVectorStore

if TYPE_CHECKING:
    from langchain_twinvec.milvus import TwinVecMilvusSparseEmbeddings
    from langchain_twinvec.sparse import TwinVecSparseEmbeddings
    from langchain_twinvec.splitting import TwinVecTextSplitter

__all__ = [
    "DifferenceWarning",
    "HybridRetriever",
    "TwinVecEmbeddings",
    "TwinVecMilvusSparseEmbeddings",
    "TwinVecReranker",
    "TwinVecSparseEmbeddings",
    "TwinVecTextSplitter",
    "TwinVecTranslator",
    "TwinVecVectorStore",
]


_ON_DEMAND = {
    "TwinVecMilvusSparseEmbeddings": "milvus",
    "TwinVecSparseEmbeddings": "sparse",
    "TwinVecTextSplitter": "splitting",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ON_DEMAND[name]}"), name)
