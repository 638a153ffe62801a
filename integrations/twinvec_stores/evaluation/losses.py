"""Individual questions: what one way found and another did not, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twinvec import Task
from twinvec_stores.evaluation.evaluate import Evaluation, judged_ids
from twinvec_stores.search.explain import Result
from twinvec_stores.search.index import HybridIndex
from twinvec_stores.search.options import SearchKeywords


@dataclass(frozen=True)
class Place:
    """One position of a ranking.

    Attributes:
        document: the document's id.
        text: the record's text.
        grade: the document's grade; 0 if it is not judged.
        terms: the most important common terms.
    """

    document: str
    text: str
    grade: int
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Loss:
    """A question that a way answers worse than the baseline.

    Attributes:
        id, text: the question.
        difference: difference in the first measure; negative.
        relevant: ids of the documents that answer it.
        found: the way's top positions.
        baseline: the baseline's top positions.
    """

    id: str
    text: str
    difference: float
    relevant: tuple[str, ...]
    found: tuple[Place, ...]
    baseline: tuple[Place, ...]


def losses(
    index: HybridIndex, evaluation: Evaluation, way: str, *, n: int = 10, k: int = 5, task: Task | str | None = None
) -> list[Loss]:
    """Return the questions with the largest losses against the better single half, with both rankings and common terms.

    Args:
        index: the index that was evaluated.
        evaluation: its evaluation.
        way: name of a way.
        n: maximum number of questions.
        k: positions of each ranking.
        task: as in ``evaluate``.
    """
    lost = [(id, change) for id, change in evaluation.changes(way)[:n] if change < 0]
    if not lost:
        return []
    questions = evaluation.questions
    texts = [questions.texts[id] for id, _ in lost]
    rankings = [
        _ranked(index, evaluation, name, texts, [id for id, _ in lost], k, task) for name in (way, evaluation.baseline)
    ]
    return [
        Loss(
            id=id,
            text=questions.texts[id],
            difference=change,
            relevant=tuple(document for document, grade in questions.grades[id].items() if grade > 0),
            found=rankings[0][i],
            baseline=rankings[1][i],
        )
        for i, (id, change) in enumerate(lost)
    ]


def _ranked(
    index: HybridIndex,
    evaluation: Evaluation,
    way: str,
    texts: Sequence[str],
    ids: Sequence[str],
    k: int,
    task: Task | str | None,
) -> list[tuple[Place, ...]]:
    result = evaluation.ways[way]
    deep = max(k, evaluation.depth)  # as measured: fewer results would come from fewer candidates
    options: SearchKeywords = {**result.options, "k": deep, "explain": True}  # type: ignore[typeddict-item]
    if evaluation.by_document:
        options["group_by"] = "document"
    found = index.search_many(texts, task=task, **options)
    grades = evaluation.questions.grades
    return [
        tuple(
            _place(result, judged, grades[id].get(judged, 0))
            for result, judged in zip(results[:k], judged_ids(results, evaluation.by_document), strict=False)
        )
        for id, results in zip(ids, found, strict=True)
    ]


def _place(result: Result, document: str, grade: int) -> Place:
    terms = result.explanation.terms if result.explanation is not None else ()
    return Place(document, result.record.text, grade, tuple(term for term, _, _ in terms[:6]))
