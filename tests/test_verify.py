"""verify against scores from the independent float64 computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from reference.giga_original import build_giga_original, reference_giga_original
from reference.gte import build_gte, reference_gte
from reference.rerankers import reference_gte_reranker
from reference.sentence_layouts import build_bge_m3
from reference.sentence_reference import token_ids
from twinvec import Embedder, ModelSpec
from twinvec.errors import ConfigurationError
from twinvec.families import FAMILIES, Published
from twinvec.families.cross_encoders import GteReranker
from twinvec.families.giga import Giga
from twinvec.families.gte import Gte
from twinvec.recorded import read_scores, record_scores
from twinvec.reranker import load_local
from twinvec.verify import tolerance, verify

Table = tuple[tuple[float, ...], ...]


def table(scores: object) -> Table:
    return tuple(tuple(map(float, row)) for row in np.asarray(scores))


def gte_scores(folder: Path) -> Published:
    """Scores of a tiny GTE checkpoint for the texts of the card, by the reference."""
    reference = reference_gte(folder)
    card = Gte.published[1]
    queries = [token_ids(folder, text) for text in (*card.queries, "hello world")]
    documents = [token_ids(folder, text) for text in (*card.documents, "hello hello world")]
    dense = np.array([[reference.dense(q) @ reference.dense(d) for d in documents] for q in queries])
    weights = [[reference.sparse_surface(ids) for ids in side] for side in (queries, documents)]
    sparse = np.array([[sum(w * d.get(k, 0.0) for k, w in q.items()) for d in weights[1]] for q in weights[0]])
    return Published(
        source="reference",
        queries=(*card.queries, "hello world"),
        documents=(*card.documents, "hello hello world"),
        scores={
            "dense": table(dense),
            "sparse": table(sparse),
            "dense + 0.3 sparse": table(dense + 0.3 * sparse),
        },
    )


@pytest.fixture(scope="module")
def gte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gte(tmp_path_factory.mktemp("gte"))


def test_agrees_with_the_reference(gte: Path) -> None:
    published = gte_scores(gte)
    report = verify(gte, published=[published])
    assert report.ok
    assert report.agreeing == (None,)
    assert (report.family, report.dtype) == ("gte", "float32")
    assert len(report.rows) == 3 * 2 * 5
    assert max(abs(row.difference) for row in report.rows) < 1e-4
    sparse = [row for row in report.rows if row.half == "sparse"]
    assert max(row.computed for row in sparse) > 0.1  # there was something to compare
    assert (sparse[0].query, sparse[0].document) == (published.queries[0], published.documents[0])


def test_one_wrong_score_fails(gte: Path) -> None:
    right = gte_scores(gte)
    rows = [list(row) for row in right.scores["dense"]]
    rows[1][2] += 0.011
    with Embedder(gte, dtype="float32") as embedder:
        report = verify(embedder, published=[replace(right, scores={**right.scores, "dense": table(rows)})])
        assert not report.ok
        assert [(row.half, row.query, row.document) for row in report.rows if not row.ok] == [
            ("dense", right.queries[1], right.documents[2])
        ]
        assert embedder.embed_documents(["the caller's Embedder stays open"]).dense is not None


def test_random_weights_fail(gte: Path) -> None:
    report = verify(gte)
    assert not report.ok
    assert len(report.rows) == 16
    (doubt,) = report.unchecked
    assert "whether this is Alibaba-NLP/gte-multilingual-base" in doubt
    assert {row.half for row in report.rows} == {"dense", "sparse", "dense + 0.3 sparse"}


def test_tolerance() -> None:
    assert tolerance("dense", 0.85) == 0.01
    assert tolerance("sparse", 4.6) == pytest.approx(0.056)
    assert tolerance("dense + 0.3 sparse", 2.0) == pytest.approx(0.03)


def test_prompt_of_the_task_is_used(tmp_path: Path) -> None:
    folder = build_giga_original(tmp_path, generation=1)
    report = verify(folder, published=[giga_scores(folder)])
    assert report.ok
    assert max(abs(row.difference) for row in report.rows) < 1e-4


@pytest.mark.parametrize("interleaved", [True, False])
def test_says_which_rotation_agrees(tmp_path: Path, interleaved: bool) -> None:
    folder = build_giga_original(tmp_path, generation=2)
    published = giga_scores(folder, interleaved=interleaved)
    with Embedder(folder, dtype="float32") as embedder:
        before = embedder.embed_documents(["hello world"]).dense
        report = verify(embedder, published=[published])
        np.testing.assert_array_equal(embedder.embed_documents(["hello world"]).dense, before)
    assert report.variants == ("interleaved", "half")
    assert report.agreeing == ("interleaved" if interleaved else "half",)
    assert report.ok is interleaved  # interleaved is what the Embedder computes
    assert {row.variant for row in report.rows} == {"interleaved", "half"}


def giga_scores(folder: Path, *, interleaved: bool = False) -> Published:
    reference = reference_giga_original(folder, interleaved=interleaved)
    (card,) = Giga.published
    prompt = f"Instruct: {card.task}\nQuery: "
    queries = np.stack([reference.dense(token_ids(folder, prompt + text)) for text in card.queries])
    documents = np.stack([reference.dense(token_ids(folder, text)) for text in card.documents])
    return replace(card, scores={"dense": table(queries @ documents.T)})


def test_models_without_numbers(gte: Path, tmp_path: Path) -> None:
    relative = build_gte(tmp_path / "relative", variant="snowflake")
    for folder, name in ((relative, None), (gte, "Alibaba-NLP/gte-large-en-v1.5")):
        with pytest.raises(ConfigurationError, match="no published scores of this model"):
            verify(folder, name=name)


@pytest.mark.parametrize(
    ("folder", "name", "rows"),
    [
        ("snowflake-arctic-embed-m-v2.0", None, 1),
        ("any", "snowflake/Snowflake-arctic-embed-m-v2.0", 1),
        ("models--Snowflake--snowflake-arctic-embed-m-v2.0/snapshots/1", None, 1),
    ],
)
def test_a_model_is_known_by_its_name(tmp_path: Path, folder: str, name: str | None, rows: int) -> None:
    (tmp_path / folder).mkdir(parents=True)
    path = build_gte(tmp_path / folder, variant="snowflake", dtype="float32")
    report = verify(path, name=name)
    assert (len(report.rows), report.unchecked) == (rows, ())
    with Embedder(path, dtype="float32") as embedder:  # without its prompt, as it was published
        pair = embedder.embed_documents([report.rows[0].query, report.rows[0].document]).dense
        assert pair is not None
        assert report.rows[0].computed == pytest.approx(float(pair[0] @ pair[1]), abs=1e-6)


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "Alibaba-NLP/gte-multilingual-base": build_gte,
    "Alibaba-NLP/gte-base-en-v1.5": build_gte,
    "Snowflake/snowflake-arctic-embed-m-v2.0": build_gte,
    "Alibaba-NLP/gte-multilingual-reranker-base": partial(build_gte, variant="reranker"),
    "BAAI/bge-m3": build_bge_m3,
    "ai-sage/Giga-Embeddings-instruct": partial(build_giga_original, generation=1),
}


def test_every_model_with_numbers_is_tried() -> None:
    assert {card.model for family in FAMILIES for card in family.published} == set(BUILDERS)


def with_scores(cards: list[Published], numbers: list[float]) -> list[Published]:
    """Return the cards with other scores, in the order of a report's rows."""
    left = iter(numbers)

    def table(rows: Table) -> Table:
        return tuple(tuple(next(left) for _ in row) for row in rows)

    return [replace(card, scores={half: table(rows) for half, rows in card.scores.items()}) for card in cards]


@pytest.mark.parametrize("name", BUILDERS)
def test_every_published_number_can_fail(tmp_path: Path, name: str) -> None:
    """Every number in turn is moved off the computed one; that one fails, and no other."""
    with load_local(str(BUILDERS[name](tmp_path)), dtype="float32") as model:
        cards = [card for card in model._core.model.family.published if card.model == name]
        right = with_scores(cards, [row.computed for row in verify(model, name=name).rows])
        report = verify(model, published=right)
        assert report.ok
        for moved, row in enumerate(report.rows):
            wrong = [r.computed + 1.1 * r.tolerance * (i == moved) for i, r in enumerate(report.rows)]
            failed = [
                (r.query, r.document, r.half)
                for r in verify(model, published=with_scores(cards, wrong)).rows
                if not r.ok
            ]
            assert failed == [(row.query, row.document, row.half)]


def test_what_a_team_records_is_compared(gte: Path, tmp_path: Path) -> None:
    with Embedder(gte, dtype="float32") as embedder:
        record_scores(embedder, tmp_path / "ours.json")
        report = verify(embedder, published=read_scores(tmp_path / "ours.json"))
        assert report.ok
        assert {row.half for row in report.rows} == {"dense", "sparse"}
        first = report.rows[0]
        pair = embedder.embed_queries([first.query]).dense, embedder.embed_documents([first.document]).dense
        assert pair[0] is not None
        assert pair[1] is not None
        assert first.computed == pytest.approx(float(pair[0][0] @ pair[1][0]), abs=1e-6)
    other = build_gte(tmp_path / "other", seed=5, dtype="float32")
    assert not verify(other, published=read_scores(tmp_path / "ours.json")).ok


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "is empty"),
        ("{", "no scores to compare with"),
        ('[{"queries": ["a"], "documents": ["b"]}]', "scores"),
        ('[{"queries": ["a"], "documents": ["b"], "scores": {"cosine": [[1]]}}]', "'cosine' is not one of"),
        ('[{"queries": ["a"], "documents": ["b"], "scores": {"dense": [[1, 2]]}}]', "not 1 queries x 1 documents"),
    ],
)
def test_expected_scores_that_are_none(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=reason):
        read_scores(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [({"sparse": None}, 'sparse="head"'), ({"dim": 32}, "dim=32"), ({"sparse_keys": "ids"}, "surface")],
)
def test_options_that_change_the_scores(gte: Path, spec: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        verify(ModelSpec(model=str(gte), **spec))  # type: ignore[arg-type]


@pytest.mark.parametrize(("published", "ok"), [(0.0, True), (0.1, False)])
def test_a_reranker_has_its_logit(tmp_path: Path, published: float, ok: bool) -> None:
    folder = build_gte(tmp_path, variant="reranker", dtype="float32")
    (card,) = GteReranker.published
    pair = (card.queries[0], card.documents[0])
    wanted = float(reference_gte_reranker(folder)([pair])[0]) + published
    report = verify(folder, published=[replace(card, scores={"logit": ((wanted,),)})])
    assert (report.family, report.ok, len(report.rows)) == ("gte-reranker", ok, 1)
    assert not verify(folder).ok, "random weights are not the published ones"
