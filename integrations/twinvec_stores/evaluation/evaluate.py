"""evaluate: compare the rankings of an index with judged questions."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from twinvec import BaseReranker, EmbeddingBatch, Task
from twinvec.errors import ConfigurationError
from twinvec_stores.evaluation.measures import DEFAULT, Measures
from twinvec_stores.evaluation.questions import Questions, named
from twinvec_stores.evaluation.statistics import Comparison, Floats, compare
from twinvec_stores.search.explain import Result
from twinvec_stores.search.fusion import Fusion
from twinvec_stores.search.index import HybridIndex
from twinvec_stores.search.options import SearchKeywords, SearchOptions

_HALVES = ("dense", "sparse")


@dataclass(frozen=True)
class WayResult:
    """One way of searching.

    Attributes:
        name: its name.
        options: keywords of ``HybridIndex.search``.
        rankings: question id -> document ids, best first.
        scores: measure -> float64 [n], one score per question.
        milliseconds: median time of a single search, without embedding the question.
    """

    name: str
    options: Mapping[str, Any]
    rankings: Mapping[str, Sequence[str]]
    scores: Mapping[str, Floats]
    milliseconds: float

    def mean(self, measure: str) -> float:
        """Return the mean over the questions."""
        return float(self.scores[measure].mean())


@dataclass(frozen=True)
class Evaluation:
    """The result of ``evaluate``.

    Attributes:
        store, model: the store searched, and its model.
        records: number of records in the store.
        questions: the judged questions.
        asked: ids of the questions with a relevant document, in the order of all scores.
        measures: names; ways are compared by the first.
        ways: name -> result.
        depth: number of results that the measures consider.
        by_document: whether the store has chunks and documents are ranked.
        embedding_milliseconds: time to embed a question: the total divided by their number.
        notes: remarks for readers of the results.
    """

    store: str
    model: str
    records: int
    questions: Questions
    asked: Sequence[str]
    measures: Sequence[str]
    ways: Mapping[str, WayResult]
    depth: int
    by_document: bool
    embedding_milliseconds: float
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def baseline(self) -> str:
        """Return the better single half; the first way if there is none."""
        halves = [name for name, way in self.ways.items() if way.options.get("mode") in _HALVES]
        return max(halves or [next(iter(self.ways))], key=lambda name: self.ways[name].mean(self.measures[0]))

    def compare(self, way: str, baseline: str | None = None, measure: str | None = None) -> Comparison:
        """Compare a way with another (None: the better single half), by a measure (None: the first)."""
        name = measure or self.measures[0]
        return compare(self.ways[way].scores[name], self.ways[baseline or self.baseline].scores[name])

    def by(self, name: str) -> dict[str, list[int]]:
        """Return value -> positions in ``asked`` of the questions with this value of a field.

        Raises:
            ConfigurationError: no question has the field.
        """
        values = [str(self.questions.fields.get(id, {}).get(name, "")) for id in self.asked]
        if not any(values):
            known = sorted({key for fields in self.questions.fields.values() for key in fields})
            raise ConfigurationError(f"no question has the field {name!r}; fields: {', '.join(known) or 'none'}")
        return {value or "(none)": [i for i, v in enumerate(values) if v == value] for value in sorted(set(values))}

    def changes(self, way: str, baseline: str | None = None) -> list[tuple[str, float]]:
        """Return (question id, difference in the first measure) between two ways, largest loss first."""
        name = self.measures[0]
        differences = self.ways[way].scores[name] - self.ways[baseline or self.baseline].scores[name]
        order = np.argsort(differences, kind="stable")
        return [(self.asked[i], float(differences[i])) for i in order.tolist()]

    def to_dict(self, by: str | None = None) -> dict[str, Any]:
        """Return everything except the rankings as JSON types, also for each value of a field of the questions.

        Raises:
            ConfigurationError: no question has the field.
        """
        groups: dict[str, Any] = {} if by is None else {"by": {by: self._groups(by)}}
        return groups | {
            "store": self.store,
            "model": self.model,
            "records": self.records,
            "questions": len(self.asked),
            "notes": list(self.notes),
            "embedding_milliseconds": self.embedding_milliseconds,
            "baseline": self.baseline,
            "ways": {
                name: {
                    "options": plain_options(way.options),
                    "milliseconds": way.milliseconds,
                    "means": {measure: way.mean(measure) for measure in self.measures},
                    "against_baseline": None if name == self.baseline else asdict(self.compare(name)),
                }
                for name, way in self.ways.items()
            },
        }

    def _groups(self, by: str) -> dict[str, Any]:
        return {
            value: {
                "questions": len(rows),
                "means": {
                    name: {measure: float(way.scores[measure][rows].mean()) for measure in self.measures}
                    for name, way in self.ways.items()
                },
            }
            for value, rows in self.by(by).items()
        }

    def write_run(self, path: str | os.PathLike[str], way: str) -> None:
        """Write a way's rankings as a TREC run file: question, Q0, document, rank, score, name."""
        found, tag = self.ways[way], way.replace(" ", "-")
        lines = [
            f"{id} Q0 {document} {rank} {len(found.rankings[id]) - rank + 1} {tag}\n"
            for id in self.asked
            for rank, document in enumerate(found.rankings[id], 1)
        ]
        if any(len(line.split()) != 6 for line in lines):
            raise ConfigurationError("ids with white space cannot be written as a TREC run")
        Path(path).write_text("".join(lines), encoding="utf-8")


def default_ways(index: HybridIndex, rerank: BaseReranker | None = None) -> dict[str, SearchKeywords]:
    """Return the ways in which a store can be searched: its halves, every fusion with its default weights, reranked."""
    config = index.store.config
    halves: dict[str, SearchKeywords] = {}
    if config.dim is not None:
        halves["dense"] = {"mode": "dense"}
    if config.sparse:
        halves["sparse"] = {"mode": "sparse"}
    reranked: dict[str, SearchKeywords] = {"reranked": {"rerank": rerank}} if rerank is not None else {}
    if len(halves) == 1:
        return halves | reranked
    fusions: dict[str, SearchKeywords] = {
        "hybrid": {},
        "hybrid, rrf": {"fusion": "rrf"},
        "hybrid, dbsf": {"fusion": "dbsf"},
        "hybrid, weighted": {"fusion": "weighted"},
    }
    return halves | fusions | reranked


def evaluate(
    index: HybridIndex,
    questions: Questions,
    *,
    ways: Mapping[str, SearchKeywords] | None = None,
    measures: Sequence[str] = DEFAULT,
    task: Task | str | None = None,
    rerank: BaseReranker | None = None,
    allow_missing: bool = False,
    show_progress: bool = False,
) -> Evaluation:
    """Search an index in several ways for judged questions, and measure the rankings.

    Rankings are as deep as the measures require. If the judgements name documents and the store has their chunks,
    documents are ranked, each at the position of its best chunk.

    Args:
        index: the index to search.
        questions: the questions, with the ids of the documents that answer them.
        ways: name -> keywords of ``HybridIndex.search``; None: ``default_ways``.
        measures: names as in ir-measures, with a cutoff.
        task: instruction for the questions, instead of the index's own.
        rerank: a reranker, to measure reranked searches as well; used if ``ways`` is None.
        allow_missing: count judged documents that are missing from the store as not found; otherwise they are an error.
        show_progress: draw a progress bar.

    Raises:
        ConfigurationError: unknown measures or documents, or ways that set ``k``.
    """
    measuring = Measures(measures)
    chosen = dict(default_ways(index, rerank) if ways is None else ways)
    if own := [name for name, options in chosen.items() if {"k", "group_by"} & set(options)]:
        raise ConfigurationError(f"{named(own)}: k comes from the measures, and group_by from the judgements")
    by_document, notes = judged_as(index, questions, allow_missing)
    asked = questions.asked
    texts = [questions.texts[id] for id in asked]
    start = time.perf_counter()
    queries = index.embedder.embed_queries(texts, task=index.task if task is None else task)
    embedding = (time.perf_counter() - start) * 1000 / len(asked)
    results = {}
    for name, options in chosen.items():
        deep = as_deep_as(measuring, options, index, by_document)
        found, milliseconds = _timed(index, queries, texts, deep, name if show_progress else None)
        rankings = {id: judged_ids(each, by_document) for id, each in zip(asked, found, strict=True)}
        results[name] = WayResult(
            name, options, rankings, measuring.score(questions.grades, rankings, asked), milliseconds
        )
    return Evaluation(
        store=repr(index.store),
        model=index.store.config.model,
        records=index.store.count(),
        questions=questions,
        asked=asked,
        measures=measuring.names,
        ways=results,
        depth=measuring.depth,
        by_document=by_document,
        embedding_milliseconds=embedding,
        notes=tuple(notes),
    )


def _timed(
    index: HybridIndex, queries: EmbeddingBatch, texts: Sequence[str], options: SearchKeywords, label: str | None
) -> tuple[list[list[Result]], float]:
    """Search for each embedded question individually; also return the median time in milliseconds."""
    found, seconds = [], []
    for i in tqdm(range(len(queries)), desc=label, disable=label is None, leave=False):
        row = queries[i : i + 1]
        start = time.perf_counter()
        found += index.search_vectors(row.dense, row.sparse, texts[i : i + 1], **options)
        seconds.append(time.perf_counter() - start)
    return found, float(np.median(seconds)) * 1000


def as_deep_as(measures: Measures, options: SearchKeywords, index: HybridIndex, by_document: bool) -> SearchKeywords:
    """Return search keywords that give as many results as the measures require."""
    deep: SearchKeywords = {**options, "k": measures.depth}
    if by_document:
        deep["group_by"] = "document"
    if options.get("rerank") is not None and "rerank_k" not in {*options, *index.store.config.search}:
        deep["rerank_k"] = max(SearchOptions().rerank_k, measures.depth)
    return deep


def judged_ids(results: Sequence[Result], by_document: bool) -> list[str]:
    """Return the name of each result in the judgements: the document of a chunk, or the record itself."""
    records = [result.record for result in results]
    return [str(record.provenance.get("document", record.id)) if by_document else record.id for record in records]


def judged_as(index: HybridIndex, questions: Questions, allow_missing: bool) -> tuple[bool, list[str]]:
    """Return whether the judgements name documents that are stored as chunks, and notes."""
    judged, notes = questions.documents, questions.notes()
    records = {record.id for record in index.store.get(judged)}
    others = [id for id in judged if id not in records]
    chunked = {r.provenance.get("document") for r in index.store.get([f"{id}#0" for id in others])} if others else set()
    missing = [id for id in others if id not in chunked]
    if missing and not allow_missing:
        raise ConfigurationError(
            f"{len(missing)} of {len(judged)} judged documents are not in the store ({named(missing)}): are these its "
            "questions? allow_missing counts them as not found"
        )
    if missing:
        notes.append(f"{len(missing)} of {len(judged)} judged documents are not in the store: they count as not found")
    if chunked:
        notes.append("the store has chunks: documents are ranked, each at the position of its best chunk")
    return bool(chunked), notes


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return search keywords as JSON types; values without such a form, such as filters, in their Python notation."""
    known = (str, int, float, bool, type(None))
    return {
        name: asdict(value) if isinstance(value, Fusion) else value if isinstance(value, known) else repr(value)
        for name, value in options.items()
    }
