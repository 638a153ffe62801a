"""tune: how to search, chosen on one part of the questions and judged on the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from twinvec import BaseReranker, EmbeddingBatch, Task
from twinvec.errors import ConfigurationError
from twinvec_stores.evaluation.evaluate import as_deep_as, judged_as, judged_ids, plain_options
from twinvec_stores.evaluation.measures import DEFAULT, Measures
from twinvec_stores.evaluation.questions import Questions
from twinvec_stores.evaluation.statistics import Comparison, compare
from twinvec_stores.search.fusion import Fusion
from twinvec_stores.search.index import HybridIndex
from twinvec_stores.search.options import SearchKeywords

_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # weights of the sparse half
_RAW = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # weights of raw sparse scores, whose scale depends on the head
_CANDIDATES = (50, 200, 500)
_DEPTHS = (10, 20, 50, 100, 200)  # texts that a reranker reads
_GATES = (1, 5, 10)  # percentiles of the relevant documents' cosines
_FEWEST = 20  # minimum questions per part


@dataclass(frozen=True)
class Trial:
    """One choice, and its mean on the tuning part."""

    options: SearchKeywords
    mean: float


@dataclass(frozen=True)
class Tuning:
    """The result of ``tune``.

    Attributes:
        measure: what was maximised.
        trials: all choices tried on the tuning part, best first; with a reranker, all reranked ones.
        chosen: the best of them.
        default_mean: mean of the store's current search, on the tuning part.
        held_back: the chosen search minus the store's current one, on questions that took no part in choosing.
        means: means of the store's current search and of the chosen one, on these questions.
        parts: numbers of questions used for tuning and held back.
    """

    measure: str
    trials: Sequence[Trial]
    chosen: SearchKeywords
    default_mean: float
    held_back: Comparison
    means: tuple[float, float]
    parts: tuple[int, int]

    @property
    def better(self) -> bool:
        """Return whether the choice is significantly better on the held-back questions; if not, keep the default."""
        return self.held_back.low > 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "measure": self.measure,
            "chosen": plain_options(self.chosen),
            "better": self.better,
            "default_mean_tuning": self.default_mean,
            "means_held_back": list(self.means),
            "held_back": asdict(self.held_back),
            "questions": {"tuning": self.parts[0], "held back": self.parts[1]},
            "trials": [{"options": plain_options(trial.options), "mean": trial.mean} for trial in self.trials],
        }


def tune(
    index: HybridIndex,
    questions: Questions,
    *,
    measure: str = DEFAULT[0],
    by: str | None = None,
    seed: int = 0,
    task: Task | str | None = None,
    rerank: BaseReranker | None = None,
    allow_missing: bool = False,
    show_progress: bool = False,
) -> Tuning:
    """Choose how to search an index that has both halves.

    Half of the questions (a stratified, seeded split) are used for choosing: first fusion and weights, then the number
    of candidates, then ``min_dense``, and finally the number of texts to rerank. The other half is searched twice, once
    with the current settings and once with the choice.

    Args:
        index: the index; its store has both halves.
        questions: judged questions; at least 20 for each part.
        measure: what to maximise.
        by: a field of the questions, such as the language, whose values are split evenly between both parts.
        seed: seed of the split.
        task: instruction for the questions, instead of the index's own.
        rerank: the reranker of these searches, if they use one.
        allow_missing: see ``evaluate``.
        show_progress: draw a progress bar.

    Raises:
        ConfigurationError: there are too few questions, the store has only one half, or ``evaluate`` refuses.
    """
    config = index.store.config
    if config.dim is None or not config.sparse:
        raise ConfigurationError("there is nothing to tune: this store has only one half")
    chosen_ids, held_back_ids = split(questions, by=by, seed=seed)
    by_document, _ = judged_as(index, questions, allow_missing)
    trying = _Part(index, questions.part(chosen_ids), measure, task, by_document)
    with tqdm(desc="tuning", disable=not show_progress, leave=False) as bar:
        trials = trying.trials(bar)
        if rerank is not None:
            trying.rerank = rerank
            trials = trying.depths(trials[0].options, bar)
    default, chosen = next(trial.mean for trial in trials if not trial.options), trials[0].options
    judging = _Part(index, questions.part(held_back_ids), measure, task, by_document)
    judging.rerank = rerank
    before, after = judging.scores({}), judging.scores(chosen)
    return Tuning(
        measure=trying.measures.names[0],
        trials=trials,
        chosen=chosen,
        default_mean=default,
        held_back=compare(after, before),
        means=(float(before.mean()), float(after.mean())),
        parts=(len(chosen_ids), len(held_back_ids)),
    )


def split(questions: Questions, *, by: str | None = None, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return the ids of two halves of the questions, with the values of a field split evenly."""
    asked = questions.asked
    values = [str(questions.fields.get(id, {}).get(by, "")) if by is not None else "" for id in asked]
    if by is not None and not any(values):
        raise ConfigurationError(f"no question has the field {by!r}")
    random = np.random.default_rng(seed)
    halves: tuple[list[str], list[str]] = ([], [])
    for value in sorted(set(values)):
        members = [id for id, own in zip(asked, values, strict=True) if own == value]
        first = len(halves[0]) > len(halves[1])
        for place, i in enumerate(random.permutation(len(members)).tolist()):
            halves[(place + first) % 2].append(members[i])
    if len(halves[1]) < _FEWEST:
        raise ConfigurationError(
            f"{len(asked)} questions are too few to choose by some and judge by others: at least 40 are needed"
        )
    return halves


class _Part:
    """Some of the questions, embedded once."""

    def __init__(
        self, index: HybridIndex, questions: Questions, measure: str, task: Task | str | None, by_document: bool
    ) -> None:
        self.measures = Measures([measure])
        self.rerank: BaseReranker | None = None
        self._index, self._questions, self._by_document = index, questions, by_document
        self._texts = [questions.texts[id] for id in questions.asked]
        task = index.task if task is None else task
        self._queries: EmbeddingBatch = index.embedder.embed_queries(self._texts, task=task)

    def trials(self, bar: tqdm[Any]) -> list[Trial]:
        """Return ways to search the two halves, best first; each stage starts from the best way so far."""
        trials = [self._try({}, bar)]
        for stage in (_fusions, _candidates, self._gates):
            best = max(trials, key=lambda trial: trial.mean)
            trials += [self._try(options, bar) for options in stage(best.options)]
        return _best_first(trials)

    def depths(self, best: SearchKeywords, bar: tqdm[Any]) -> list[Trial]:
        """Return reranked searches, best first: with the current settings, and with the best retrieval."""
        choices: list[SearchKeywords] = [{}]
        starts: list[SearchKeywords] = [{}, best] if best else [{}]
        for options in starts:
            choices += [{**options, "rerank_k": depth} for depth in _DEPTHS if depth >= self.measures.depth]
        return _best_first([self._try(options, bar) for options in choices])

    def _try(self, options: SearchKeywords, bar: tqdm[Any]) -> Trial:
        bar.update()
        return Trial(options, self.mean(options))

    def mean(self, options: SearchKeywords) -> float:
        return float(self.scores(options).mean())

    def scores(self, options: SearchKeywords) -> Any:
        """Return the score of each question."""
        if self.rerank is not None:
            options = {**options, "rerank": self.rerank}
        deep = as_deep_as(self.measures, options, self._index, self._by_document)
        found = self._index.search_vectors(self._queries.dense, self._queries.sparse, self._texts, **deep)
        rankings = {
            id: judged_ids(results, self._by_document) for id, results in zip(self._questions.asked, found, strict=True)
        }
        return self.measures.score(self._questions.grades, rankings, self._questions.asked)[self.measures.names[0]]

    def _gates(self, best: SearchKeywords) -> Iterator[SearchKeywords]:
        """Yield thresholds on the cosine below which few relevant documents fall."""
        found = self._index.search_vectors(
            self._queries.dense, self._queries.sparse, k=self.measures.depth, explain=True
        )
        cosines = [
            result.explanation.dense_score
            for id, results in zip(self._questions.asked, found, strict=True)
            for result, judged in zip(results, judged_ids(results, self._by_document), strict=True)
            if self._questions.grades[id].get(judged, 0) > 0
            and result.explanation is not None
            and result.explanation.dense_score is not None
        ]
        if cosines:
            for percentile in _GATES:
                yield {**best, "min_dense": round(float(np.percentile(cosines, percentile)), 3)}


def _best_first(trials: list[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: -trial.mean)  # stable: of equal ones, the first one tried wins


def _fusions(best: SearchKeywords) -> Iterator[SearchKeywords]:
    yield {**best, "fusion": Fusion("rrf")}
    for share in _SHARES:
        for method in ("relative", "dbsf", "rrf"):
            yield {**best, "fusion": Fusion(method, round(1 - share, 3), share)}
    for weight in _RAW:
        yield {**best, "fusion": Fusion("weighted", 1.0, weight)}


def _candidates(best: SearchKeywords) -> Iterator[SearchKeywords]:
    for candidates in _CANDIDATES:
        yield {**best, "fetch_k": candidates}
