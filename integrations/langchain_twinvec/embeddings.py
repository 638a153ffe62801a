"""TwinVecEmbeddings: LangChain's embeddings interface over an Embedder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from langchain_core.embeddings import Embeddings
from typing_extensions import Self

from langchain_twinvec.base import TwinVecModel, in_turns
from langchain_twinvec.takeover import said_by, take_over
from twinvec import BaseEmbedder
from twinvec.errors import ConfigurationError
from twinvec.flows import awaiting, blocking, call
from twinvec.overriding import heard
from twinvec.vectors import Float32

if TYPE_CHECKING:
    from langchain_huggingface import HuggingFaceEmbeddings

    from langchain_twinvec.milvus import TwinVecMilvusSparseEmbeddings
    from langchain_twinvec.sparse import TwinVecSparseEmbeddings


class TwinVecEmbeddings(TwinVecModel, Embeddings):
    """Dense vectors of length 1 as lists of Python floats; for arrays use ``embedder`` itself.

    Queries get the query prompt the model was trained with, and documents the document prompt; texts reach the model
    unchanged. The async methods wait for the shared queue without occupying a thread, so concurrent calls share forward
    passes; cancelling them cancels the work.

    Examples:
        >>> embeddings = TwinVecEmbeddings(model="Alibaba-NLP/gte-multilingual-base", dim=256)
        >>> len(embeddings.embed_query("capital of France"))
        256
    """

    @blocking
    async def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector per document."""
        embed, aembed = self._dense_embedder.embed_documents, self._dense_embedder.aembed_documents
        rows = (await call(embed, aembed, texts, task=self.task, sparse=False, show_progress=self.show_progress)).dense
        assert rows is not None
        return await in_turns(_lists, rows)

    aembed_documents = heard(awaiting(embed_documents))

    @blocking
    async def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        embed, aembed = self._dense_embedder.embed_queries, self._dense_embedder.aembed_queries
        rows = (await call(embed, aembed, [text], task=self.task, sparse=False)).dense
        assert rows is not None
        return _lists(rows)[0]

    aembed_query = heard(awaiting(embed_query))

    @overload
    def sparse(self, store: Literal["qdrant"] = "qdrant") -> TwinVecSparseEmbeddings: ...
    @overload
    def sparse(self, store: Literal["milvus"]) -> TwinVecMilvusSparseEmbeddings: ...
    def sparse(
        self, store: Literal["qdrant", "milvus"] = "qdrant"
    ) -> TwinVecSparseEmbeddings | TwinVecMilvusSparseEmbeddings:
        """Return the sparse side of the same Embedder, for stores that ask for it separately.

        For a store that embeds the same texts densely and then sparsely, both cost one forward pass.

        Args:
            store: the interface to provide: langchain-qdrant's ``SparseEmbeddings``, or langchain-milvus's
                ``BaseSparseEmbedding``.

        Raises:
            ConfigurationError: the model has no sparse half.
        """
        if store not in ("qdrant", "milvus"):
            raise ConfigurationError(f'store={store!r} is neither "qdrant" nor "milvus"')
        options: dict[str, Any] = {
            "embedder": self.embedder,
            "task": self.task,
            "show_progress": self.show_progress,
        }
        if store == "milvus":
            from langchain_twinvec.milvus import TwinVecMilvusSparseEmbeddings

            return TwinVecMilvusSparseEmbeddings(**options)
        from langchain_twinvec.sparse import TwinVecSparseEmbeddings

        return TwinVecSparseEmbeddings(**options)

    @classmethod
    def from_huggingface(
        cls, source: HuggingFaceEmbeddings | Mapping[str, Any] | None = None, /, **options: Any
    ) -> Self:
        """Convert a configuration of ``HuggingFaceEmbeddings``, from langchain_huggingface or langchain_community.

        Prompts, revision, device, dtype, dimensions and folders are translated, and so are the instructions of
        ``HuggingFaceBgeEmbeddings``. Batch sizes, padding and attention implementations have no counterpart, since
        batches are packed by tokens. ``trust_remote_code=True`` is dropped if the model does not need code from its
        repository. Where that class ignored or destroyed something, this one is correct, so some vectors differ from
        those in an existing index; a ``DifferenceWarning`` explains each difference once.

        Args:
            source: such an object, or a dict of its arguments. None: its arguments are among the keywords.
            options: without a source, arguments of that class: ``from_huggingface(model_name=...,
                model_kwargs={...})``; in addition, arguments of this class, which override the translated ones.

        Raises:
            ConfigurationError: an argument is unknown or has no counterpart.
        """
        return take_over(cls, *said_by(source, options))

    def count_tokens(self, text: str) -> int:
        """Return the number of the model's tokens in a text, without prompt and special tokens; for splitters.

        Up to ``embedder.token_room("document")`` tokens fit.
        """
        return len(self.embedder.token_offsets([text])[0])

    def tokenize(self, text: str) -> list[str]:
        """Return the parts of a text that correspond to the model's tokens."""
        return [text[start:end] for start, end in self.embedder.token_offsets([text])[0].tolist()]

    @property
    def _dense_embedder(self) -> BaseEmbedder:
        if self.embedder.dim is None:
            raise ConfigurationError(f"{self.embedder.spec.model} has no dense half: use sparse()")
        return self.embedder


def _lists(rows: Float32) -> list[list[float]]:
    lists: list[list[float]] = rows.tolist()
    return lists
