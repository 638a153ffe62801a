"""Any LlamaIndex embedding as the dense half of a store."""

from __future__ import annotations

from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_twinvec.embeddings import TwinVecEmbedding
from llama_index_twinvec.sparse import TwinVecSparseEmbedding
from twinvec import BaseEmbedder, Task
from twinvec.errors import ConfigurationError
from twinvec.joined import DenseSource, JoinedEmbedder, half_of
from twinvec.overriding import overridden

_METHODS = [
    name for name in dir(TwinVecEmbedding) if "embedding" in name and name.startswith(("_get", "_aget", "get", "aget"))
]


class LlamaIndexSource(DenseSource):
    """The dense vectors of an embedding model, through the methods that it, or a subclass, has."""

    def __init__(self, embedding: BaseEmbedding) -> None:
        self._embedding = embedding
        cls, model = type(embedding), embedding.model_name
        if isinstance(embedding, TwinVecEmbedding):
            model, self.prompts = embedding.embedder.spec.fingerprint, embedding.embedder._prompts
        self.name = f"{cls.__module__}.{cls.__qualname__}:{model}"

    def documents(self, texts: list[str], task: Task | str | None) -> list[list[float]]:
        """Return one row per document."""
        return self._for(task).get_text_embedding_batch(texts)

    async def adocuments(self, texts: list[str], task: Task | str | None) -> list[list[float]]:
        """See ``documents``."""
        return await self._for(task).aget_text_embedding_batch(texts)

    def query(self, text: str, task: Task | str | None) -> list[float]:
        """Return the row of a query."""
        return self._for(task).get_query_embedding(text)

    async def aquery(self, text: str, task: Task | str | None) -> list[float]:
        """See ``query``."""
        return await self._for(task).aget_query_embedding(text)

    def _for(self, task: Task | str | None) -> BaseEmbedding:
        known = self._embedding
        if isinstance(known, TwinVecEmbedding) and task is not None and task != known.task:
            return known.with_task(task)
        return known


def embedder_of(embedding: BaseEmbedding, sparse: TwinVecSparseEmbedding | str | None) -> BaseEmbedder:
    """Return the embedder of a store: the Embedder itself, or a wrapper if its methods are overridden or third-party.

    Raises:
        ConfigurationError: this is not an embedding, or the sparse half is invalid.
    """
    if not isinstance(embedding, BaseEmbedding):
        kind = type(embedding).__name__
        remedy = "TwinVecEmbedding(embedder=...)" if isinstance(embedding, BaseEmbedder) else "TwinVecEmbedding(...)"
        raise ConfigurationError(f"embedding must be a LlamaIndex embedding, not {kind}: see {remedy}")
    if isinstance(embedding, TwinVecEmbedding):
        if sparse is not None:
            raise ConfigurationError("sparse= is determined by the TwinVecEmbedding: pass it to that")
        if not overridden(embedding, TwinVecEmbedding, *_METHODS):
            return embedding.embedder
        half = embedding.embedder if embedding.embedder.has_sparse else None
        return JoinedEmbedder(LlamaIndexSource(embedding), half, task=embedding.task)
    if sparse is not None and not isinstance(sparse, str | TwinVecSparseEmbedding):
        raise ConfigurationError(f'sparse must be "bm25" or a TwinVecSparseEmbedding, not {type(sparse).__name__}')
    if isinstance(sparse, TwinVecSparseEmbedding):
        return JoinedEmbedder(LlamaIndexSource(embedding), half_of(sparse, TwinVecSparseEmbedding, _METHODS))
    return JoinedEmbedder(LlamaIndexSource(embedding), sparse)
