"""Any LangChain Embeddings as the dense half of a store."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from langchain_twinvec.base import TwinVecSparseModel
from langchain_twinvec.embeddings import TwinVecEmbeddings
from twinvec import BaseEmbedder, Task
from twinvec.errors import ConfigurationError
from twinvec.joined import DenseSource, JoinedEmbedder, half_of
from twinvec.overriding import overridden

_METHODS = ("embed_documents", "embed_query", "aembed_documents", "aembed_query")
_NAMES = ("model", "model_name", "model_id", "deployment", "repo_id")


class LangChainSource(DenseSource):
    """The dense vectors of an embeddings object, through the methods that it, or a subclass, has."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings
        self.name = model_name(embeddings)
        if isinstance(embeddings, TwinVecEmbeddings):
            self.prompts = embeddings.embedder._prompts

    def documents(self, texts: list[str], task: Task | str | None) -> list[list[float]]:
        """Return one row per document."""
        return self._for(task).embed_documents(texts)

    async def adocuments(self, texts: list[str], task: Task | str | None) -> list[list[float]]:
        """See ``documents``."""
        return await self._for(task).aembed_documents(texts)

    def query(self, text: str, task: Task | str | None) -> list[float]:
        """Return the row of a query."""
        return self._for(task).embed_query(text)

    async def aquery(self, text: str, task: Task | str | None) -> list[float]:
        """See ``query``."""
        return await self._for(task).aembed_query(text)

    def _for(self, task: Task | str | None) -> Embeddings:
        known = self._embeddings
        if isinstance(known, TwinVecEmbeddings) and task is not None and task != known.task:
            return known.with_task(task)
        return known


def embedder_of(embeddings: Embeddings, sparse: TwinVecSparseModel | str | None) -> BaseEmbedder:
    """Return the embedder of a store: the Embedder itself, or a wrapper if its methods are overridden or third-party.

    Raises:
        ConfigurationError: these are not embeddings, or the sparse half is invalid.
    """
    if not isinstance(embeddings, Embeddings):
        raise ConfigurationError(f"embedding must be LangChain Embeddings, not {type(embeddings).__name__}")
    if isinstance(embeddings, TwinVecEmbeddings):
        if sparse is not None:
            raise ConfigurationError("sparse= is determined by the TwinVecEmbeddings: pass it to them")
        if not overridden(embeddings, TwinVecEmbeddings, *_METHODS):
            return embeddings.embedder
        half = embeddings.embedder if embeddings.embedder.has_sparse else None
        return JoinedEmbedder(LangChainSource(embeddings), half, task=embeddings.task)
    if sparse is not None and not isinstance(sparse, str | TwinVecSparseModel):
        raise ConfigurationError(f'sparse must be "bm25" or TwinVecSparseEmbeddings, not {type(sparse).__name__}')
    if isinstance(sparse, TwinVecSparseModel):
        own = next(each for each in type(sparse).__mro__ if each.__module__.startswith("langchain_twinvec."))
        return JoinedEmbedder(LangChainSource(embeddings), half_of(sparse, own, _METHODS))
    return JoinedEmbedder(LangChainSource(embeddings), sparse)


def model_name(embeddings: Embeddings) -> str:
    """Return the names of class and model, for fingerprints."""
    cls = type(embeddings)
    names = (getattr(embeddings, name, None) for name in _NAMES)
    model = next((name for name in names if isinstance(name, str) and name), None)
    if isinstance(embeddings, TwinVecEmbeddings):
        model = embeddings.embedder.spec.fingerprint
    return f"{cls.__module__}.{cls.__qualname__}" + (f":{model}" if model else "")
