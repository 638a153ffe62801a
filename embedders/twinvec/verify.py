"""verify: recompute the scores published on a model card, and compare."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from twinvec.embedder import Embedder
from twinvec.errors import ConfigurationError
from twinvec.reranker import Reranker, load_local
from twinvec.spec import ModelSpec
from twinvec.vectors import Float32

if TYPE_CHECKING:
    from twinvec.families import Published

# Names of the scores in Published: (weight of the cosine, weight of the common sparse terms).
_WEIGHTS = {"dense": (1.0, 0.0), "sparse": (0.0, 1.0), "dense + 0.3 sparse": (1.0, 0.3)}


@dataclass(frozen=True)
class VerifyRow:
    """One published score and the computed one.

    Attributes:
        source: where the number is published.
        half: "dense" (cosine), "sparse", or their weighted sum; "logit" for rerankers.
        query, document: the texts.
        published, computed: the scores.
        tolerance: largest absolute difference that counts as agreement.
        variant: the rotation tried; None if the checkpoint leaves no choice.
    """

    source: str
    half: str
    query: str
    document: str
    published: float
    computed: float
    tolerance: float
    variant: str | None = None

    @property
    def difference(self) -> float:
        """Return computed - published."""
        return self.computed - self.published

    @property
    def ok(self) -> bool:
        """Return whether the scores agree."""
        return abs(self.difference) <= self.tolerance


@dataclass(frozen=True)
class VerifyReport:
    """The result of ``verify``.

    Attributes:
        model, family, dtype: the verified model, and its precision.
        rows: every published score; once per variant if variants were tried.
        variants: rotations that were tried; the first is the one used by the Embedder.
    """

    model: str
    family: str
    dtype: str
    rows: tuple[VerifyRow, ...]
    variants: tuple[str | None, ...] = (None,)

    @property
    def ok(self) -> bool:
        """Return whether the Embedder, as used normally, agrees with every published score."""
        return self.variants[0] in self.agreeing

    @property
    def agreeing(self) -> tuple[str | None, ...]:
        """Return the variants that agree with every published score."""
        return tuple(v for v in self.variants if all(r.ok for r in self.rows if r.variant == v))


def verify(
    model: Embedder | Reranker | str | os.PathLike[str] | ModelSpec, *, published: Sequence[Published] | None = None
) -> VerifyReport:
    """Recompute the published scores of a model's family.

    Args:
        model: an Embedder or a Reranker, not in use by anyone else; or a model name, folder or spec, which is loaded in
            float32, so that the comparison shows the computation rather than this machine's rounding.
        published: scores to compare with, instead of the family's.

    Raises:
        ConfigurationError: nothing is published for the family, or this model is not the published one.
        CheckpointError: the model cannot be loaded.
    """
    if isinstance(model, (Embedder, Reranker)):
        return _verify(model, published)
    with load_local(model if isinstance(model, ModelSpec) else _in_float32(model)) as loaded:
        return _verify(loaded, published)


def _in_float32(model: str | os.PathLike[str]) -> ModelSpec:
    return ModelSpec(model=os.fspath(model), dtype="float32")


def _verify(embedder: Embedder | Reranker, published: Sequence[Published] | None) -> VerifyReport:
    model = embedder._core.model
    if published is None:
        published = model.family.published
    if not published:
        raise ConfigurationError(
            f"{embedder.spec.model}: there are no published scores for the family {embedder.family!r} to "
            "compare with; `twinvec models` lists the families"
        )
    if isinstance(embedder, Embedder):
        _check_comparable(embedder, published)
    backbone = model.encoder.backbone
    variants: tuple[str | None, ...] = backbone.rope_variants() or (None,)
    rows: list[VerifyRow] = []
    try:
        for variant in variants:
            if variant is not None:
                backbone.use_rope(variant)
                embedder._core.clear_memo()
            rows += [row for card in published for row in _compare(embedder, card, variant)]
    finally:
        if variants[0] is not None:
            backbone.use_rope(variants[0])
            embedder._core.clear_memo()
    return VerifyReport(str(embedder.spec.model), embedder.family, embedder.spec.dtype, tuple(rows), variants)


def _check_comparable(embedder: Embedder, published: Sequence[Published]) -> None:
    """Refuse options that change scores, and relatives that share the family without its published numbers."""
    spec, full = embedder.spec, embedder._core.model.description.dim
    needs_sparse = any(_WEIGHTS[half][1] for card in published for half in card.scores)
    if needs_sparse and spec.sparse != "head":
        raise ConfigurationError(
            f"{spec.model}: the published scores of the family {embedder.family!r} need the checkpoint's own lexical "
            f"head, but this Embedder has sparse={spec.sparse!r}: it is another model, or load it with "
            'sparse="head"'
        )
    if needs_sparse and spec.sparse_keys != "surface":
        raise ConfigurationError('the published sparse scores count equal strings: load with sparse_keys="surface"')
    if spec.dim != full:
        raise ConfigurationError(f"the published scores are for all {full} dimensions: load without dim={spec.dim}")


def _compare_logits(reranker: Reranker, card: Published) -> list[VerifyRow]:
    pairs = [(query, document) for query in card.queries for document in card.documents]
    published = [score for line in card.scores["logit"] for score in line]
    return [
        VerifyRow(card.source, "logit", *pair, score, logit, tolerance("logit", score))
        for pair, score, logit in zip(pairs, published, reranker.score(pairs, task=card.task).tolist(), strict=True)
    ]


def _compare(embedder: Embedder | Reranker, card: Published, variant: str | None) -> list[VerifyRow]:
    if isinstance(embedder, Reranker):
        return _compare_logits(embedder, card)
    queries = embedder.embed_queries(card.queries, task=card.task)
    documents = embedder.embed_documents(card.documents, task=card.task)
    assert queries.dense is not None
    assert documents.dense is not None
    cosine = queries.dense @ documents.dense.T
    common: Float32 = np.zeros_like(cosine)
    if queries.sparse is not None and documents.sparse is not None:
        common = queries.sparse.similarity(documents.sparse)
    rows = []
    for half, scores in card.scores.items():
        dense_weight, sparse_weight = _WEIGHTS[half]
        computed = dense_weight * cosine + sparse_weight * common
        rows += [
            VerifyRow(card.source, half, query, document, score, float(found), tolerance(half, score), variant)
            for query, line, values in zip(card.queries, scores, computed, strict=True)
            for document, score, found in zip(card.documents, line, values, strict=True)
        ]
    return rows


def tolerance(half: str, published: float) -> float:
    """Return the largest difference that counts as agreement: 0.01, plus 1% for sparse weights and logits."""
    # Model cards computed in fp16 or bf16: two runs of one card differ by up to 0.0026 in a cosine. Sparse scores are
    # sums of unnormalised products, so their rounding error grows with them.
    return 0.01 if half == "dense" else 0.01 + 0.01 * abs(published)
