"""LlamaIndex classes over one shared model: embedding, sparse embedding, hybrid vector store, hybrid retriever.

Importing this package imports neither torch nor another integration.
"""

try:
    import llama_index.core  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "llama_index_twinvec needs LlamaIndex: pip install 'twinvec[llama-index]'", name=error.name
    ) from None

from llama_index_twinvec.embeddings import TwinVecEmbedding
from llama_index_twinvec.huggingface import DifferenceWarning
from llama_index_twinvec.reranking import TwinVecRerank
from llama_index_twinvec.retrievers import ExplainedNode, HybridRetriever
from llama_index_twinvec.sparse import TwinVecSparseEmbedding
from llama_index_twinvec.vector_stores import TwinVecVectorStore

__all__ = [
    "DifferenceWarning",
    "ExplainedNode",
    "HybridRetriever",
    "TwinVecEmbedding",
    "TwinVecRerank",
    "TwinVecSparseEmbedding",
    "TwinVecVectorStore",
]
