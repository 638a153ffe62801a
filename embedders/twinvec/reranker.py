"""Reranker: a cross-encoder on the same engine as embedders; pairs from all callers share packed passes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from twinvec.embedder import Embedder
from twinvec.engine.job import Job, Request
from twinvec.engine.waiting import Part, gather
from twinvec.errors import ConfigurationError, ModelKindError
from twinvec.local import LocalModel
from twinvec.options import EmbedderKeywords, EmbedderOptions, read_options, takes_options
from twinvec.scoring import BaseReranker, ScoreOptions, Scores, sigmoid
from twinvec.spec import ModelSpec
from twinvec.text.pairs import join_pair
from twinvec.text.prompts import Role
from twinvec.tracing import trace_work
from twinvec.vectors import EmbeddingBatch, Float32

if TYPE_CHECKING:
    from typing_extensions import Unpack

_INTERACTIVE = 256  # calls with more pairs count as bulk work; a search reranks fewer
_OF_VECTORS = ("dim", "sparse", "sparse_keys")
_OVERLAP = 4  # windows overlap by a quarter


class Reranker(LocalModel, BaseReranker):
    """Relevance scores of (query, text) pairs from a model that reads both together.

    Thread safe; calls from several threads and tasks share the model. Pickles contain the specification, not the
    weights. Use it as a context manager, or call ``close``, to release the model early.

    Examples:
        >>> reranker = Reranker("Alibaba-NLP/gte-multilingual-reranker-base")
        >>> reranker.rerank("capital of France?", ["Paris is the capital of France.", "Berlin"], top_n=1)[0].index
        0
    """

    @takes_options
    def __init__(self, model: str | os.PathLike[str] | ModelSpec, **options: Unpack[EmbedderKeywords]) -> None:
        """Load a model.

        Args:
            model: folder, hub id ("owner/name"), "modelscope:owner/name", or a ModelSpec; with a ModelSpec, omit the
                options that are its fields. ``dim``, ``sparse`` and ``sparse_keys`` only apply to an Embedder.
            {options}

        Raises:
            CheckpointError: the model cannot be found, read or loaded, or is not a reranker.
            ConfigurationError: an option cannot be honoured.
        """
        from twinvec.engine.registry import REGISTRY

        if given := [name for name in _OF_VECTORS if name in options]:
            raise ConfigurationError(f"{given[0]}: a reranker returns one score per pair, not vectors")
        spec, chosen = read_options(model, options)
        lease = REGISTRY.lease(spec, chosen, scores=True)
        self._hold([lease], chosen)
        self.spec = lease.spec
        prompts = self._core.model.description.prompts
        self._prompts = prompts.override(self.options.prompts) if self.options.prompts else prompts
        self._prompts.prefix(Role.QUERY, self.task)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.spec, self.options)

    def __repr__(self) -> str:
        encoder = self._core.model.encoder
        return (
            f"Reranker({self.spec.model!r}, family={self.family!r}, device='{encoder.device}', "
            f"dtype={self.spec.dtype!r})"
        )

    async def _compute(self, pairs: Sequence[tuple[str, str]], options: ScoreOptions) -> Scores:
        starts, pairs = self._windows(pairs, options)
        parts = self._parts(pairs, options)
        title = "Scoring pairs" if options.show_progress else None
        batch = await gather(parts, options.timeout, title)
        trace_work(parts[0].figures)
        return self._scores(batch, starts, options)

    def _parts(self, pairs: Sequence[tuple[str, str]], options: ScoreOptions) -> list[Part]:
        request = Request(
            max_length=self.max_length,
            prompt=self._prompt(options),
            dim=1,
            keys=None,
            normalize=False,
            urgent=len(pairs) <= _INTERACTIVE,
            fail_on_overflow=self.options.on_overflow == "error" and not options.windows,
            fail_on_overload=self.options.on_overload == "error",
            memo=self.options.memo_bytes > 0,
            cache=self.options.cache,
        )
        return [Job([join_pair(query, text) for query, text in pairs], request, self._core)]

    def _prompt(self, options: ScoreOptions) -> str:
        return self._prompts.prefix(Role.QUERY, options.task if options.task is not None else self.task)

    def _windows(
        self, pairs: Sequence[tuple[str, str]], options: ScoreOptions
    ) -> tuple[list[int], Sequence[tuple[str, str]]]:
        """Return where each pair's windows start, and all windows; a text that fits is a single window."""
        if not options.windows:
            return list(range(len(pairs))), pairs
        tokenizer, prompt = self._core.model.tokenizer, self._prompt(options)
        room = {q: self.max_length - tokenizer.overhead(prompt + q) for q in {query for query, _ in pairs}}
        starts: list[int] = []
        windows: list[tuple[str, str]] = []
        for (query, text), offsets in zip(pairs, tokenizer.offsets([text for _, text in pairs]), strict=True):
            starts.append(len(windows))
            windows += [(query, text[begin:end]) for begin, end in spans(offsets[:, 0].tolist(), room[query], text)]
        return starts, windows

    def _scores(self, batch: EmbeddingBatch, starts: list[int], options: ScoreOptions) -> Scores:
        assert batch.dense is not None
        if not starts:
            return Scores(np.zeros(0, np.float32), np.zeros(0, np.bool_))
        best = np.maximum.reduceat(batch.dense[:, 0], starts)
        last = np.array([*starts[1:], len(batch)]) - 1  # whatever an earlier window cuts off is in the next one
        return Scores(self._activated(best, options), batch.truncated[last], int(batch.token_counts.sum()))

    def _activated(self, logits: Float32, options: ScoreOptions) -> Float32:
        if options.activation is None:
            return logits
        if options.activation == "sigmoid":
            return sigmoid(logits)
        import torch

        from twinvec.families.modules import activation_named

        activation = activation_named(self._core.model.description.activation)
        assert activation is not None
        with torch.inference_mode():
            scores: Float32 = activation(torch.from_numpy(logits)).numpy()
        return scores


def spans(starts: Sequence[int], room: int, text: str) -> list[tuple[int, int]]:
    """Split a text, whose tokens start at ``starts``, into windows: (begin, end) in characters.

    Windows are a few tokens shorter than there is room for, since text that starts elsewhere may need more tokens.
    """
    if len(starts) <= room:
        return [(0, len(text))]
    size = max(room - room // (2 * _OVERLAP), 1)
    step = max(size - size // _OVERLAP, 1)
    begins = range(0, len(starts) - size + step, step)
    return [
        (starts[begin] if begin else 0, starts[begin + size] if begin + size < len(starts) else len(text))
        for begin in begins
    ]


def load_local(model: str | os.PathLike[str] | ModelSpec, **options: Unpack[EmbedderKeywords]) -> Embedder | Reranker:
    """Return an Embedder or a Reranker, depending on the checkpoint."""
    try:
        return Embedder(model, **options)
    except ModelKindError:
        return Reranker(model, **options)


def _rebuild(spec: ModelSpec, options: EmbedderOptions) -> Reranker:
    return Reranker(spec, **{field.name: getattr(options, field.name) for field in fields(options)})
