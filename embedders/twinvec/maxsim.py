"""MaxSim: late interaction as a third stage. Each token of a query finds its best match among a text's tokens."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from twinvec.base import BaseEmbedder
from twinvec.embedder import Embedder
from twinvec.errors import ConfigurationError
from twinvec.flows import block, wait
from twinvec.options import CallOptions, EmbedderKeywords, takes_options
from twinvec.scoring import BaseReranker, ScoreOptions, Scores, sigmoid
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

    def score_tokens(
        self,
        pairs: Sequence[tuple[str, int]],
        texts: MultiBatch,
        *,
        task: Task | str | None = None,
        timeout: float | None = None,
    ) -> Float32:
        """Score queries with vectors of texts' tokens that were computed before; only the queries are embedded.

        Args:
            pairs: queries, and positions in ``texts``.
            texts: vectors by this model, with the role of documents.
            task: see ``score``.
            timeout: see ``score``.

        Returns:
            float32 [pairs].
        """
        return block(self._scored_tokens(pairs, texts, ScoreOptions(task, timeout=timeout)))

    async def ascore_tokens(
        self,
        pairs: Sequence[tuple[str, int]],
        texts: MultiBatch,
        *,
        task: Task | str | None = None,
        timeout: float | None = None,
    ) -> Float32:
        """See ``score_tokens``."""
        return await wait(self._scored_tokens(pairs, texts, ScoreOptions(task, timeout=timeout)))

    async def _scored_tokens(
        self, pairs: Sequence[tuple[str, int]], texts: MultiBatch, options: ScoreOptions
    ) -> Float32:
        if self._closed:
            raise ConfigurationError("this MaxSim is closed; create a new one")
        queries = {query: i for i, query in enumerate(dict.fromkeys(query for query, _ in pairs))}
        rows = np.array([(queries[query], text) for query, text in pairs]).reshape(-1, 2)
        asked = CallOptions(options.task, dense=False, sparse=False, timeout=options.timeout, multi=True)
        batch = await self._embedder._embed(Role.QUERY, list(queries), asked)
        assert batch.multi is not None
        return self._scores(rows, batch.multi, texts)

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
        asked = CallOptions(options.task, dense=False, sparse=False, show_progress=options.show_progress, multi=True)
        both: list[EmbeddingBatch] = []
        for role, column in ((Role.QUERY, queries), (Role.DOCUMENT, texts)):
            left = None if end is None else max(end - time.monotonic(), 0.0)
            both.append(await self._embedder._embed(role, list(column), replace(asked, timeout=left)))
        rows = np.array([(queries[query], texts[text]) for query, text in pairs])
        queried, read = both[0].multi, both[1].multi
        assert queried is not None
        assert read is not None
        values = self._scores(rows, queried, read)
        truncated = both[0].truncated[rows[:, 0]] | both[1].truncated[rows[:, 1]]
        tokens = sum(int(batch.token_counts.sum()) for batch in both)
        return Scores(values if options.activation != "sigmoid" else sigmoid(values), truncated, tokens)

    def _scores(self, rows: Any, queries: MultiBatch, texts: MultiBatch) -> Float32:
        scores = np.zeros(len(rows), dtype=np.float32)
        for number, query in enumerate(queries):
            own = np.flatnonzero(rows[:, 0] == number)
            scores[own] = compare_tokens(query, texts[rows[own, 1]])
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
