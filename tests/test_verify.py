"""verify against scores from the independent float64 computation."""

from __future__ import annotations

from dataclasses import replace
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
from twinvec.families import Published
from twinvec.families.cross_encoders import GteReranker
from twinvec.families.giga import Giga
from twinvec.families.gte import Gte
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
    assert len(report.rows) == 15
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


def test_family_without_numbers(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="there are no published scores for the family 'sentence-transformers'"
    ):
        verify(build_bge_m3(tmp_path))


def test_relatives_are_not_what_was_published(tmp_path: Path) -> None:
    folder = build_gte(tmp_path, variant="snowflake")
    with pytest.raises(ConfigurationError, match="it is another model"):
        verify(folder)


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
