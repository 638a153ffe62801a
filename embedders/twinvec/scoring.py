"""BaseReranker: the interface shared by rerankers in this process and on a server."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from twinvec.base import level_of_caller
from twinvec.closing import Closing
from twinvec.errors import ConfigurationError, TruncationWarning
from twinvec.flows import awaiting, blocking
from twinvec.options import EmbedderOptions
from twinvec.spec import ModelSpec
from twinvec.text.prompts import Task
from twinvec.text.unicode import check_texts
from twinvec.tracing import traced_scores
from twinvec.vectors import Bool, Float32, MultiBatch

Activation = Literal["sigmoid", "model"]


class Ranked(NamedTuple):
    """A text in a ranking: its ``index`` in the caller's list, and its score."""

    index: int  # type: ignore[assignment]  # of a tuple it is a method, which nobody needs here
    score: float


@dataclass(frozen=True)
class ScoreOptions:
    """The options of one call; see ``BaseReranker.score``, and for ``known`` ``MaxSim.score_tokens``."""

    task: Task | str | None = None
    activation: Activation | None = None
    windows: bool = False
    timeout: float | None = None
    show_progress: bool = False
    known: tuple[MultiBatch, Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.activation not in (None, "sigmoid", "model"):
            raise ConfigurationError(f'activation={self.activation!r} is neither "sigmoid" nor "model" nor None')


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of pairs.

    Attributes:
        values: float32 [n].
        truncated: bool [n], whether the pair's text was cut.
        tokens: how many the model read; 0: unknown.
    """

    values: Float32
    truncated: Bool
    tokens: int = 0


class BaseReranker(Closing):
    """Relevance scores of (query, text) pairs read together: the interface of Reranker and RemoteReranker.

    Attributes:
        spec: everything that decides a score.
        options: everything else, except the token.
    """

    spec: ModelSpec
    options: EmbedderOptions
    _closed: bool
    _advice = 'Pass windows=True to score the whole text, split it, raise max_length, or pass on_overflow="error".'

    @blocking
    async def score(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        task: Task | str | None = None,
        activation: Activation | None = None,
        windows: bool = False,
        timeout: float | None = None,
        show_progress: bool = False,
    ) -> Float32:
        """Score (query, text) pairs; higher is more relevant.

        Args:
            pairs: any number of them; equal pairs are computed only once.
            task: an instruction, for models trained with them (Qwen3-Reranker). None: the Reranker's task, or else the
                model's default.
            activation: None returns the model's raw logits; "sigmoid" maps them to 0 to 1 in the same order; "model"
                applies the checkpoint's own (sentence-transformers' ``activation_fn``), or else the sigmoid.
            windows: score a text that exceeds the model's limit in windows that overlap by a quarter, and take the best
                score. False: its tail is cut.
            timeout: seconds to wait before the work is cancelled and DeadlineError is raised. None: no limit.
            show_progress: draw a progress bar on stderr.

        Returns:
            float32 [pairs].

        Raises:
            TypeError: a pair is not two strings (the message names the position).
            InvalidTextError: a text is not valid Unicode.
            TextTooLongError: with ``on_overflow="error"``.
            ConfigurationError: a query, which is never cut, leaves no room for a text.
            PromptError: a task was given, but the model was not trained with instructions.
            OutOfMemoryError: a pair does not fit even by itself.
            OverloadedError: the queue is full, with ``on_overload="error"``.
            DeadlineError: the timeout has passed.
            DeviceLostError: no working device is left.
        """
        options = ScoreOptions(task, activation, windows, timeout, show_progress)
        return await self._checked(check_pairs(pairs), options)

    ascore = awaiting(score)

    @blocking
    async def rerank(
        self,
        query: str,
        texts: Iterable[str],
        *,
        top_n: int | None = None,
        task: Task | str | None = None,
        activation: Activation | None = None,
        windows: bool = False,
        timeout: float | None = None,
    ) -> list[Ranked]:
        """Rank texts for a query, best first; ties go to the lower index.

        Args:
            query: a string.
            texts: any number of them.
            top_n: how many to return; None: all.
            task: see ``score``, also for the other options and the errors.
            activation: see ``score``.
            windows: see ``score``.
            timeout: see ``score``.
        """
        options = ScoreOptions(task, activation, windows, timeout)
        check_texts([query], "query")
        if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
            raise ConfigurationError(f"top_n={top_n!r} must be an integer of at least 1, or None")
        return rank(await self._checked([(query, text) for text in check_texts(texts)], options))[:top_n]

    arerank = awaiting(rerank)

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Return the model's counters and settings; see ``Embedder.stats``."""

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """Return whether calls can be answered."""

    @property
    @abstractmethod
    def family(self) -> str:
        """Return the name of the checkpoint family."""

    @property
    def max_length(self) -> int:
        """Return the maximum number of tokens per pair, special tokens included."""
        assert self.spec.max_length is not None
        return self.spec.max_length

    @property
    def task(self) -> Task | str | None:
        """Return the default task."""
        return self.options.task

    @abstractmethod
    def close(self, *, drain: bool = False) -> None:
        """Release this object's resources; later calls raise ConfigurationError.

        Args:
            drain: let pending calls of other threads finish first.
        """

    @abstractmethod
    async def _compute(self, pairs: Sequence[tuple[str, str]], options: ScoreOptions) -> Scores: ...

    async def _traced(self, pairs: Sequence[tuple[str, str]], options: ScoreOptions) -> Scores:
        with traced_scores(self.spec, pairs) as answered:
            return answered(await self._compute(pairs, options))

    async def _checked(self, pairs: Sequence[tuple[str, str]], options: ScoreOptions) -> Float32:
        if self._closed:
            raise ConfigurationError(f"this {type(self).__name__} is closed; create a new one")
        found = await self._traced(pairs, options)
        if len(cut := np.flatnonzero(found.truncated)):
            warnings.warn(
                f"the texts of {len(cut)} of {len(pairs)} pairs were cut to fit the pair into {self.max_length} tokens "
                f"(first: pair {cut[0]}). {self._advice}",
                TruncationWarning,
                stacklevel=level_of_caller(),
            )
        return found.values


def rank(scores: Float32 | Sequence[float]) -> list[Ranked]:
    """Return all indices, best first; ties go to the lower index."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [Ranked(index, float(scores[index])) for index in order]


def check_pairs(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return pairs as a list.

    Raises:
        TypeError: something other than pairs of two strings (the message names the position).
        InvalidTextError: a text has a lone surrogate.
    """
    if isinstance(pairs, (str, bytes)):
        raise TypeError(f"pairs must be a list of (query, text), not a {type(pairs).__name__}")
    checked = []
    for position, pair in enumerate(pairs):
        if isinstance(pair, (str, bytes)) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"pairs[{position}] must be (query, text), not {pair!r:.60}")
        checked.append((pair[0], pair[1]))
    check_texts([query for query, _ in checked], "queries")
    check_texts([text for _, text in checked], "texts")
    return checked


def sigmoid(logits: Float32) -> Float32:
    """Return numbers between 0 and 1, without overflow."""
    return (0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))).astype(np.float32)
