"""evaluate: rankings of real stores, measured as ir-measures measures their run files."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import ir_measures
import pytest

from reference.rerankers import build_cross_encoder
from twinvec import Embedder, Reranker
from twinvec.errors import ConfigurationError
from twinvec_stores import Document, HybridIndex, MemoryStore, StoreConfig, ingest
from twinvec_stores.evaluation import Evaluation, Questions, evaluate, losses, to_html

SUBJECTS = [
    "sorting a list",
    "reading a file",
    "opening a socket",
    "parsing a date",
    "counting words",
    "a red <b>apple</b>",
]
TEXTS = {f"d{i}": f"{subject}: how it is done in python, step {i}" for i, subject in enumerate(SUBJECTS)}
QUESTIONS = Questions(
    {f"q{i}": subject for i, subject in enumerate(SUBJECTS)},
    {f"q{i}": {f"d{i}": 2, f"d{(i + 1) % 6}": 1} for i in range(6)},
    {f"q{i}": {"kind": "odd" if i % 2 else "even"} for i in range(6)},
)


@pytest.fixture(scope="module")
def index(embedder: Embedder) -> HybridIndex:
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    index.add(list(TEXTS.values()), ids=list(TEXTS))
    return index


@pytest.fixture(scope="module")
def evaluation(index: HybridIndex) -> Evaluation:
    return evaluate(index, QUESTIONS, measures=["nDCG@3", "R@2", "RR@5"])


def test_rankings_are_those_of_the_index(index: HybridIndex, evaluation: Evaluation) -> None:
    assert set(evaluation.ways) == {"dense", "sparse", "hybrid", "hybrid, rrf", "hybrid, dbsf", "hybrid, weighted"}
    for id, text in QUESTIONS.texts.items():
        for way, options in (("dense", {"mode": "dense"}), ("hybrid", {}), ("hybrid, rrf", {"fusion": "rrf"})):
            found = index.search(text, k=5, **options)  # type: ignore[arg-type]
            assert list(evaluation.ways[way].rankings[id]) == [result.record.id for result in found]


def test_scores_are_those_of_the_run_file(evaluation: Evaluation, tmp_path: Path) -> None:
    qrels = [ir_measures.Qrel(q, d, grade) for q, row in QUESTIONS.grades.items() for d, grade in row.items()]
    for way in evaluation.ways:
        evaluation.write_run(tmp_path / "run", way)
        run = list(ir_measures.read_trec_run(str(tmp_path / "run")))  # type: ignore[no-untyped-call]
        measures = [ir_measures.parse_measure(name) for name in evaluation.measures]
        expected = ir_measures.calc_aggregate(measures, qrels, run)
        found = {name: evaluation.ways[way].mean(name) for name in evaluation.measures}
        assert found == pytest.approx({str(measure): value for measure, value in expected.items()})
    assert len({way.mean("nDCG@3") for way in evaluation.ways.values()}) > 1


def test_ids_with_spaces_are_no_run_file(embedder: Embedder, tmp_path: Path) -> None:
    index = HybridIndex(embedder, MemoryStore(StoreConfig.for_embedder(embedder)))
    index.add(["a text"], ids=["an id"])
    found = evaluate(index, Questions({"q": "text"}, {"q": {"an id": 1}}))
    with pytest.raises(ConfigurationError, match="white space"):
        found.write_run(tmp_path / "run", "dense")


def test_by_field_and_changes(evaluation: Evaluation) -> None:
    assert evaluation.by("kind") == {"even": [0, 2, 4], "odd": [1, 3, 5]}
    with pytest.raises(ConfigurationError, match="no question has the field 'lang'; fields: kind"):
        evaluation.by("lang")
    halves = {name: evaluation.ways[name].mean("nDCG@3") for name in ("dense", "sparse")}
    assert evaluation.baseline == max(halves, key=lambda name: halves[name])
    changes = evaluation.changes("hybrid", "sparse")
    differences = evaluation.ways["hybrid"].scores["nDCG@3"] - evaluation.ways["sparse"].scores["nDCG@3"]
    assert [change for _, change in changes] == sorted(differences.tolist())
    assert dict(changes) == dict(zip(evaluation.asked, differences.tolist(), strict=True))


def test_json(evaluation: Evaluation) -> None:
    facts = json.loads(json.dumps(evaluation.to_dict()))
    assert facts["ways"]["hybrid"]["means"]["nDCG@3"] == pytest.approx(evaluation.ways["hybrid"].mean("nDCG@3"))
    assert facts["ways"][facts["baseline"]]["against_baseline"] is None
    assert facts["ways"]["hybrid, rrf"]["against_baseline"]["wins"] == evaluation.compare("hybrid, rrf").wins
    odd = json.loads(json.dumps(evaluation.to_dict("kind")))["by"]["kind"]["odd"]
    assert odd["questions"] == 3
    for way, means in odd["means"].items():
        assert means == {
            name: pytest.approx(scores[1::2].mean()) for name, scores in evaluation.ways[way].scores.items()
        }


def test_chunks_are_ranked_as_documents(embedder: Embedder) -> None:
    store = MemoryStore(StoreConfig.for_embedder(embedder))
    words = " ".join(f"word{i}" for i in range(30))
    documents = [Document(id=id, text=f"{text}. {words}") for id, text in TEXTS.items()]
    ingest(documents, embedder, store, chunk_tokens=16)
    assert store.count() > len(TEXTS)
    index = HybridIndex(embedder, store)
    found = evaluate(index, QUESTIONS, measures=["nDCG@5"])
    assert found.by_document
    assert any("documents are ranked" in note for note in found.notes)
    for id, text in QUESTIONS.texts.items():
        expected = dict.fromkeys(
            result.record.provenance["document"] for result in index.search(text, k=store.count(), fetch_k=100)
        )
        assert list(found.ways["hybrid"].rankings[id]) == list(expected)[:5]


def test_a_way_may_have_a_third_stage(index: HybridIndex, tmp_path: Path) -> None:
    with Reranker(build_cross_encoder(tmp_path / "reranker", "bert"), dtype="float32") as reranker:
        found = evaluate(index, QUESTIONS, ways={"reranked": {"rerank": reranker, "rerank_k": 6}}, measures=["nDCG@6"])
        for id, text in QUESTIONS.texts.items():
            best = index.search(text, k=6, rerank=reranker)
            assert list(found.ways["reranked"].rankings[id]) == [result.record.id for result in best]


def test_unknown_documents(index: HybridIndex) -> None:
    questions = Questions({"q": "sorting"}, {"q": {"d0": 1, "lost": 1}})
    with pytest.raises(ConfigurationError, match=r"1 of 2 judged documents are not in the store \('lost'\)"):
        evaluate(index, questions)
    found = evaluate(index, questions, measures=["R@6"], ways={"dense": {"mode": "dense"}}, allow_missing=True)
    assert found.ways["dense"].mean("R@6") == 0.5
    assert any("count as not found" in note for note in found.notes)


def test_a_store_of_one_half(embedder: Embedder) -> None:
    config = StoreConfig.for_embedder(embedder)
    dense = HybridIndex(embedder, MemoryStore(config))
    dense.add(list(TEXTS.values()), ids=list(TEXTS))
    found = evaluate(dense, QUESTIONS, ways={"only": {"mode": "dense"}})
    assert found.baseline == "only"
    assert found.to_dict()["ways"]["only"]["against_baseline"] is None


@pytest.mark.parametrize("options", [{"k": 5}, {"group_by": "document"}])
def test_ways_have_no_k_of_their_own(index: HybridIndex, options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="'mine': k comes from the measures"):
        evaluate(index, QUESTIONS, ways={"mine": options})  # type: ignore[dict-item]


class Page(HTMLParser):
    """The tags that a page opens, and what it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]


def test_losses_and_the_page(index: HybridIndex, evaluation: Evaluation) -> None:
    worst = min(evaluation.ways, key=lambda way: evaluation.ways[way].mean("nDCG@3"))
    lost = losses(index, evaluation, worst, n=3)
    assert [(loss.id, loss.difference) for loss in lost] == [c for c in evaluation.changes(worst)[:3] if c[1] < 0]
    assert lost
    for loss in lost:
        assert [place.document for place in loss.found] == list(evaluation.ways[worst].rankings[loss.id])[:5]
        assert [place.document for place in loss.baseline] == list(
            evaluation.ways[evaluation.baseline].rankings[loss.id]
        )[:5]
        assert {place.document: place.grade for place in loss.found if place.grade} == {
            document: grade
            for document, grade in QUESTIONS.grades[loss.id].items()
            if document in {p.document for p in loss.found}
        }
    page = to_html({"<store>": evaluation}, {"<store>": lost}, by="kind")
    parsed = Page(page)
    assert parsed.fetched == []  # opens offline
    assert {"script", "link", "b>apple"} & set(parsed.tags) == set()
    assert "&lt;store&gt;" in page
    assert "<b>apple" not in page
    assert parsed.tags.count("svg") == len(evaluation.ways)  # one for each way but the baseline, and the questions
    assert "viewbox" not in page.lower()  # shrunk with the screen, its words could not be read
    assert parsed.tags.count("details") == len(lost)
    assert f"{evaluation.ways['dense'].mean('nDCG@3'):.3f}" in page
