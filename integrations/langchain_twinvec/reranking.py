"""TwinVecReranker: LangChain's document compressor and cross-encoder interfaces over a Reranker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, Field

from twinvec import BaseReranker, Reranker, Task
from twinvec.errors import ConfigurationError
from twinvec.flows import awaiting, blocking, call
from twinvec.overriding import heard
from twinvec.scoring import Activation, rank


class TwinVecReranker(BaseDocumentCompressor, BaseCrossEncoder):
    """Keeps the documents that are most relevant according to a model that reads them together with the query.

    For ``ContextualCompressionRetriever``, and wherever LangChain accepts a cross-encoder. The async methods wait for
    the shared queue without occupying a thread, so concurrent calls share forward passes. Documents are copied, with
    the score in ``metadata["relevance_score"]``.

    Attributes:
        model: folder or hub id; to set other options, pass ``reranker``.
        reranker: a Reranker or a RemoteReranker to share instead of ``model``; always set afterwards.
        top_n: number of documents to keep; None: all, ordered by score.
        min_score: keep only documents with at least this score.
        task: an instruction, for models trained with them.
        activation: None for raw logits; for "sigmoid" and "model" see ``twinvec.Reranker.score``.
        windows: score long documents in windows; see there.

    Raises:
        CheckpointError: the model cannot be found or loaded, or is not a reranker.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    model: str | None = None
    reranker: BaseReranker = Field(default=cast("BaseReranker", None), exclude=True, repr=False)
    top_n: int | None = Field(default=3, ge=1)
    min_score: float | None = None
    task: Task | str | None = None
    activation: Activation | None = None
    windows: bool = False

    if not TYPE_CHECKING:  # type checkers derive the signature from the fields

        def __init__(self, **fields: Any) -> None:
            super().__init__(**fields)
            if (self.model is None) == (self.reranker is None):
                raise ConfigurationError("TwinVecReranker needs model= (a folder or a hub id) or reranker=")
            if self.reranker is None:
                self.__dict__["reranker"] = Reranker(self.model)

    @blocking
    async def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Return a score for each (query, text); higher is more relevant."""
        options: dict[str, Any] = {"task": self.task, "activation": self.activation, "windows": self.windows}
        scores = await call(self.reranker.score, self.reranker.ascore, text_pairs, **options)
        return cast("list[float]", scores.tolist())

    ascore = heard(awaiting(score))

    @blocking
    async def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Return the best documents, best first; ties keep their order."""
        pairs = [(query, document.page_content) for document in documents]
        scores = await call(self.score, self.ascore, pairs)
        kept = [one for one in rank(scores) if self.min_score is None or one.score >= self.min_score]
        return [
            documents[index].model_copy(update={"metadata": {**documents[index].metadata, "relevance_score": score}})
            for index, score in kept[: self.top_n]
        ]

    acompress_documents = heard(awaiting(compress_documents))
