"""MaxSim: late interaction as a third stage. Each token of a query finds its best match among a text's tokens."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twinvec.base import BaseEmbedder
from twinvec.embedder import Embedder
from twinvec.errors import ConfigurationError
from twinvec.flows import awaiting, blocking
from twinvec.options import CallOptions, EmbedderKeywords, takes_options
from twinvec.scoring import BaseReranker, ScoreOptions, Scores, check_pairs, sigmoid
from twinvec.spec import ModelSpec
from twinvec.text.prompts import Role, Task
from twinvec.vectors import EmbeddingBatch, Float32, MultiBatch

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MaxSim(BaseReranker):
    """Scores pairs by vectors of their tokens, with the interface of a Reranker.

    A score is the sum over the query's vectors of the highest cosine with any vector of the text, divided by their
    number where the model was trained so (bge-m3). Texts are embedded when they are asked for, each once in a call.
    That costs about as much as a cross-encoder of the same size, but needs no second model. Searches in a store that
    keeps vectors of tokens (``StoreConfig.token_pool``) take those instead.

    Examples:
        >>> embedder = Embedder("BAAI/bge-m3")
        >>> index.search("capital of France?", k=5, rerank=MaxSim(embedder), rerank_k=50)
    """

    _advice = 'Split it, raise max_length, or pass on_overflow="error".'

    @takes_options
    def __init__(
        self, model: str | os.PathLike[str] | ModelSpec | BaseEmbedder, **options: Unpack[EmbedderKeywords]
    ) -> None:
        """Load a model, or share one.

        Args:
            model: an Embedder to share, which stays open at ``close``; or as for an Embedder: bge-m3, or a
                sentence-transformers MultiVectorEncoder.
            {options}

        Raises:
            CheckpointError: the model cannot be found, read or loaded.
            ConfigurationError: it gives no vectors of tokens, or an argument that cannot be honoured.
        """
        shared = isinstance(model, BaseEmbedder)
        if shared and options:
            raise ConfigurationError(f"{', '.join(options)}: already said by the embedder")
        self._embedder = model if isinstance(model, BaseEmbedder) else Embedder(model, **options)
        self._owned, self._closed = not shared, False
        self.spec, self.options = self._embedder.spec, self._embedder.options
        if self._embedder.multi_vectors is None:
            name = self.spec.model
            self.close()
            raise ConfigurationError(
                f"{name} gives no vectors of tokens: MaxSim needs bge-m3 with its colbert_linear.pt, or a "
                "sentence-transformers MultiVectorEncoder; a cross-encoder is a twinvec.Reranker"
            )
        self._mean = self._embedder.multi_vectors.mean

    @property
    def embedder(self) -> BaseEmbedder:
        """Return the model."""
        return self._embedder

    @blocking
    async def score_tokens(
        self,
        pairs: Iterable[tuple[str, str]],
        tokens: MultiBatch,
        places: Sequence[int],
        *,
        task: Task | str | None = None,
        timeout: float | None = None,
    ) -> Float32:
        """Score pairs with vectors of the texts' tokens that were computed before; only the queries are embedded.

        Args:
            pairs: (query, text).
            tokens: vectors by this model, with the role of documents.
            places: for each pair, the position of its text in ``tokens``.
            task: see ``score``, also for the errors.
            timeout: see ``score``.

        Returns:
            float32 [pairs].
        """
        options = ScoreOptions(task, timeout=timeout, known=(tokens, places))
        return await self._checked(check_pairs(pairs), options)

    ascore_tokens = awaiting(score_tokens)

    def stats(self) -> dict[str, Any]:
        """Return counters and choices of the model; see ``Embedder.stats``."""
        return self._embedder.stats()

    @property
    def healthy(self) -> bool:
        """Return whether calls can be answered."""
        return not self._closed and self._embedder.healthy

    @property
    def family(self) -> str:
        """Return the name of the checkpoint family."""
        return self._embedder.family

    def close(self, *, drain: bool = False) -> None:
        """Release the model, unless it is shared; later calls raise ConfigurationError."""
        self._closed = True
        if self._owned:
            self._embedder.close(drain=drain)

    def __reduce__(self) -> tuple[Any, ...]:
        return MaxSim, (self._embedder,)

    def __repr__(self) -> str:
        return f"MaxSim({self._embedder!r})"

    async def _compute(self, pairs: Sequence[tuple[str, str]], options: ScoreOptions) -> Scores:
        if options.windows:
            raise ConfigurationError("windows=True is for a Reranker: MaxSim cuts texts at the model's limit")
        if not pairs:
            return Scores(np.zeros(0, np.float32), np.zeros(0, np.bool_))
        queries, texts = (
            {text: i for i, text in enumerate(dict.fromkeys(column))} for column in zip(*pairs, strict=True)
        )
        end = None if options.timeout is None else time.monotonic() + options.timeout
        asked = await self._vectors(Role.QUERY, queries, options, end)
        if options.known is None:
            read = await self._vectors(Role.DOCUMENT, texts, options, end)
            places: Sequence[int] = [texts[text] for _, text in pairs]
        else:
            tokens, places = options.known
            read = EmbeddingBatch(None, None, np.zeros(len(tokens), np.int32), np.zeros(len(tokens), np.bool_), tokens)
        rows = np.array([(queries[query], place) for (query, _), place in zip(pairs, places, strict=True)])
        values = self._scores(rows, asked, read)
        truncated = asked.truncated[rows[:, 0]] | read.truncated[rows[:, 1]]
        count = int(asked.token_counts.sum() + read.token_counts.sum())
        return Scores(values if options.activation != "sigmoid" else sigmoid(values), truncated, count)

    async def _vectors(
        self, role: Role, texts: Iterable[str], options: ScoreOptions, end: float | None
    ) -> EmbeddingBatch:
        left = None if end is None else max(end - time.monotonic(), 0.0)
        asked = CallOptions(
            options.task, dense=False, sparse=False, timeout=left, show_progress=options.show_progress, multi=True
        )
        return await self._embedder._embed(role, list(texts), asked)

    def _scores(self, rows: Any, queries: EmbeddingBatch, texts: EmbeddingBatch) -> Float32:
        assert queries.multi is not None
        assert texts.multi is not None
        scores = np.zeros(len(rows), dtype=np.float32)
        for number, query in enumerate(queries.multi):
            own = np.flatnonzero(rows[:, 0] == number)
            scores[own] = compare_tokens(query, texts.multi[rows[own, 1]])
            if self._mean:
                scores[own] /= max(len(query), 1)
        return scores


def compare_tokens(query: Float32, texts: MultiBatch) -> Float32:
    """Return, for each text, the sum over the query's vectors of the highest cosine with one of the text's.

    A text without vectors has 0.

    Args:
        query: float32 [vectors, dim], normalised.
        texts: of n texts.

    Returns:
        float32 [n].
    """
    scores = np.zeros(len(texts), dtype=np.float32)
    there = np.flatnonzero(np.diff(texts.indptr))
    if len(query) and len(there):
        cosines = query @ texts.values.T
        scores[there] = np.maximum.reduceat(cosines, texts.indptr[there], axis=1).sum(axis=0, dtype=np.float64)
    return scores
