"""TwinVecEmbedding: the dense half of a model as LlamaIndex's embedding model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import (
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from llama_index.core.storage.kvstore.types import BaseKVStore
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR
from typing_extensions import Self

from llama_index_twinvec.cache import RoleAwareCache, as_query
from llama_index_twinvec.huggingface import take_over
from llama_index_twinvec.model import TwinVecModel, meet
from llama_index_twinvec.sparse import TwinVecSparseEmbedding
from llama_index_twinvec.waiting import WaitingRows
from twinvec import EmbeddingBatch, Role, Task
from twinvec.flows import awaiting, blocking, call, together
from twinvec.overriding import heard

if TYPE_CHECKING:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

_F = TypeVar("_F", bound=Callable[..., Any])


def _in_the_span_of_the_base_class(method: _F) -> _F:
    """Prevent LlamaIndex from opening a second span of the same name around an override."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


class TwinVecEmbedding(TwinVecModel, BaseEmbedding):
    """Dense vectors with the prompts the model was trained on, for queries and for documents.

    Texts reach the model byte for byte. Async methods do not block the event loop; concurrent calls share forward
    passes. ``embeddings_cache`` may be any of LlamaIndex's key-value stores: entries are kept apart by role, prompt and
    model. Pickles contain the specification: each worker process (``IngestionPipeline.run(num_workers=4)``) loads the
    model again, so a single process with this class is faster than several.

    Examples:
        >>> embed_model = TwinVecEmbedding(model_name="Alibaba-NLP/gte-multilingual-base", dim=256)
        >>> len(embed_model.get_query_embedding("capital of France"))
        256
    """

    needs: ClassVar[Literal["dense", "sparse"]] = "dense"
    _waiting: WaitingRows | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Make the cache distinguish roles."""
        super().model_post_init(context)
        self.embeddings_cache = self.embeddings_cache

    @classmethod
    def from_huggingface(cls, model_name: str | HuggingFaceEmbedding | None = None, **keywords: Any) -> Self:
        """Convert a configuration of LlamaIndex's ``HuggingFaceEmbedding``: its keywords, or such an object.

        Documents keep their vectors if that class left the model's own document prompt in place. A
        ``DifferenceWarning`` reports each difference.

        Args:
            model_name: as in that class; or an object of it.
            keywords: keywords of that class (query_instruction, text_instruction, max_length, cache_folder,
                model_kwargs ...), and of this one, such as ``sparse="bm25"``.

        Raises:
            ConfigurationError: a keyword is unknown or has no counterpart.
        """
        return take_over(cls, model_name, keywords)

    def with_task(self, task: Task | str) -> Self:
        """Return a copy for another task, sharing the Embedder; see ``TwinVecModel.with_task``."""
        made = super().with_task(task)
        made._waiting = None
        made.embeddings_cache = made.embeddings_cache
        return made

    def waiting_rows(self) -> WaitingRows:
        """Return the sparse rows that will accompany the dense ones from now on, for a store that wants them."""
        if self._waiting is None:
            self._waiting = WaitingRows(self.embedder, self.task)
        return self._waiting

    def as_sparse(self) -> TwinVecSparseEmbedding:
        """Return the sparse half of the same model, with the same task: dense and sparse share a forward pass."""
        sparse = TwinVecSparseEmbedding(embedder=self.embedder, task=self.task, embed_batch_size=self.embed_batch_size)
        return sparse.taking(self.waiting_rows())

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Return the result of ``to_dict``, also within other components."""
        return self.to_dict()

    def to_payload(self) -> dict[str, Any]:
        """Return what traces and callbacks may show of the model."""
        return {
            "class_name": self.class_name(),
            "model_name": self.model_name,
            "embed_batch_size": self.embed_batch_size,
            "dim": self.dim,
            "dtype": self.dtype,
        }

    @_in_the_span_of_the_base_class
    def get_query_embedding(self, query: str) -> Embedding:
        """Embed a query, with the query's prompt."""
        with as_query():
            return super().get_query_embedding(query)

    @_in_the_span_of_the_base_class
    async def aget_query_embedding(self, query: str) -> Embedding:
        """Embed a query without blocking the event loop."""
        with as_query():
            return await super().aget_query_embedding(query)

    @blocking
    async def _get_query_embedding(self, query: str) -> Embedding:
        await meet()
        methods = self.embedder.embed_queries, self.embedder.aembed_queries
        return _rows(await call(*methods, [query], task=self.task, sparse=False))[0]

    _aget_query_embedding = heard(awaiting(_get_query_embedding))

    @blocking
    async def _get_text_embedding(self, text: str) -> Embedding:
        return (await self._embed([text]))[0]

    _aget_text_embedding = heard(awaiting(_get_text_embedding))

    @blocking
    async def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        if self._only_singles():
            return await together([call(self._get_text_embedding, self._aget_text_embedding, text) for text in texts])
        await meet()
        return await self._embed(texts)

    _aget_text_embeddings = heard(awaiting(_get_text_embeddings))

    async def _embed(self, texts: list[str]) -> list[Embedding]:
        """Embed documents, with their sparse rows if a store waits for them."""
        sparse = self._waiting is not None and self.embedder.has_sparse
        methods = self.embedder.embed_documents, self.embedder.aembed_documents
        batch = await call(*methods, texts, task=self.task, sparse=sparse)
        if self._waiting is not None and batch.sparse is not None:
            self._waiting.put(texts, batch.sparse)
        return _rows(batch)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "embeddings_cache" and isinstance(value, BaseKVStore):
            store = value.store if isinstance(value, RoleAwareCache) else value
            value = RoleAwareCache(store, {role: self._namespace(role) for role in Role})
        super().__setattr__(name, value)

    def _namespace(self, role: Role) -> str:
        """Return whatever decides the dense vectors of a role."""
        spec = self.embedder.spec
        dense = replace(spec, sparse=None, sparse_keys="surface", digest=str(spec.digest).partition("+")[0])
        decides = [dense.fingerprint, self.embedder.prompt_for(role, self.task)]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]


def _rows(batch: EmbeddingBatch) -> list[Embedding]:
    assert batch.dense is not None
    rows: list[Embedding] = batch.dense.tolist()
    return rows
