"""verify: recompute published scores of a model, and compare."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from twinvec.embedder import Embedder
from twinvec.errors import ConfigurationError
from twinvec.reranker import Reranker, load_local
from twinvec.spec import ModelSpec
from twinvec.vectors import EmbeddingBatch, Float32

if TYPE_CHECKING:
    from twinvec.families import Published

# Names of the scores in Published: (weight of the cosine, weight of the common sparse terms).
_WEIGHTS = {"dense": (1.0, 0.0), "sparse": (0.0, 1.0), "dense + 0.3 sparse": (1.0, 0.3)}
_WEIGHT = "weight of a token"  # of a query; the documents are its tokens
SCORES = (*_WEIGHTS, _WEIGHT, "logit")


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
        unchecked: what these scores do not cover.
    """

    model: str
    family: str
    dtype: str
    rows: tuple[VerifyRow, ...]
    variants: tuple[str | None, ...] = (None,)
    unchecked: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Return whether the Embedder, as used normally, agrees with every published score."""
        return self.variants[0] in self.agreeing

    @property
    def agreeing(self) -> tuple[str | None, ...]:
        """Return the variants that agree with every published score."""
        return tuple(v for v in self.variants if all(r.ok for r in self.rows if r.variant == v))


def verify(
    model: Embedder | Reranker | str | os.PathLike[str] | ModelSpec,
    *,
    published: Sequence[Published] | None = None,
    name: str | None = None,
) -> VerifyReport:
    """Recompute the published scores of a model.

    Args:
        model: an Embedder or a Reranker, not in use by anyone else; or a model name, folder or spec, which is loaded in
            float32, so that the comparison shows the computation rather than this machine's rounding.
        published: scores to compare with instead, such as those of ``twinvec.recorded.read_scores``.
        name: hub id of a folder's model; None: the folder's name, or else the family's main model.

    Raises:
        ConfigurationError: nothing is published for the model, or its options change the scores.
        CheckpointError: the model cannot be loaded.
    """
    if isinstance(model, (Embedder, Reranker)):
        return _verify(model, published, name)
    spec = model if isinstance(model, ModelSpec) else ModelSpec(model=os.fspath(model), dtype="float32")
    with load_local(spec) as loaded:
        return _verify(loaded, published, name)


def _verify(embedder: Embedder | Reranker, published: Sequence[Published] | None, name: str | None) -> VerifyReport:
    model = embedder._core.model
    unchecked: list[str] = []
    if published is None:
        published, unchecked = _published(embedder, name)
    if isinstance(embedder, Embedder):
        unchecked += _uncovered(embedder, published)
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
    spec = embedder.spec
    return VerifyReport(str(spec.model), embedder.family, spec.dtype, tuple(rows), variants, tuple(unchecked))


def _published(embedder: Embedder | Reranker, name: str | None) -> tuple[Sequence[Published], list[str]]:
    """Return the scores published for a model, and any doubt that they are this model's."""
    model, called = embedder._core.model, name or str(embedder.spec.model)
    cards = model.family.published
    if named := [card for card in cards if not card.model or _is_called(called, card.model)]:
        return named, []
    main = cards[0].model if cards and name is None and Path(called).is_dir() else None
    found = [card for card in cards if card.model == main]
    if not found or (any(map(_needs_sparse, found)) and model.description.sparse is None):
        known = ", ".join(dict.fromkeys(card.model for card in cards)) or "none"
        raise ConfigurationError(
            f"{called}: there are no published scores of this model to compare with (models of the family "
            f"{embedder.family!r} that have some: {known}); record your own with `twinvec verify --record`"
        )
    return found, [f"whether this is {main}, whose scores these are (if not, name the model with --as)"]


def _is_called(name: str, model: str) -> bool:
    """Return whether a name is that of a model: its hub id, or a folder called so, also in the hub's cache."""
    names = {model.rpartition("/")[2].casefold(), "models--" + model.replace("/", "--").casefold()}
    in_folder = Path(name).is_dir() and any(part.casefold() in names for part in Path(name).parts)
    return name.casefold() == model.casefold() or in_folder


def _needs_sparse(card: Published) -> bool:
    return any(half == _WEIGHT or _WEIGHTS.get(half, (0, 0))[1] for half in card.scores)


def _uncovered(embedder: Embedder, published: Sequence[Published]) -> list[str]:
    """Return the halves of which there are no scores."""
    missing = []
    if embedder.dim is not None and not any(_WEIGHTS.get(half, (0, 0))[0] for c in published for half in c.scores):
        missing.append("dense vectors (no scores)")
    if embedder.spec.sparse == "head" and not any(map(_needs_sparse, published)):
        missing.append("the lexical head (no scores)")
    elif embedder.spec.sparse not in (None, "head"):
        missing.append(f"sparse={embedder.spec.sparse!r}, which is not part of the checkpoint")
    return missing


def _check_comparable(embedder: Embedder, published: Sequence[Published]) -> None:
    """Refuse options that change scores, and relatives that share the family without its published numbers."""
    spec, full = embedder.spec, embedder._core.model.description.dim
    needs_sparse = any(map(_needs_sparse, published))
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
    embed = embedder.embed_queries if card.roles else embedder.embed_documents
    queries = embed(card.queries, task=card.task)
    documents = embedder.embed_documents(card.documents, task=card.task)
    rows = []
    for half, scores in card.scores.items():
        computed = _token_weights(embedder, queries, card) if half == _WEIGHT else _similarity(queries, documents, half)
        rows += [
            VerifyRow(card.source, half, query, document, score, float(found), tolerance(half, score), variant)
            for query, line, values in zip(card.queries, scores, computed, strict=True)
            for document, score, found in zip(card.documents, line, values, strict=True)
        ]
    return rows


def _similarity(queries: EmbeddingBatch, documents: EmbeddingBatch, half: str) -> Float32:
    dense_weight, sparse_weight = _WEIGHTS[half]
    computed: Float32 = np.zeros((len(queries), len(documents)), np.float32)
    if dense_weight and queries.dense is not None and documents.dense is not None:
        computed = computed + dense_weight * (queries.dense @ documents.dense.T)
    if sparse_weight and queries.sparse is not None and documents.sparse is not None:
        computed = computed + sparse_weight * queries.sparse.similarity(documents.sparse)
    return computed


def _token_weights(embedder: Embedder, queries: EmbeddingBatch, card: Published) -> Float32:
    assert queries.sparse is not None
    rows = [{token.strip(): weight for token, weight in row.items()} for row in embedder.token_weights(queries.sparse)]
    return np.array([[row.get(token, 0.0) for token in card.documents] for row in rows], np.float32)


def tolerance(half: str, published: float) -> float:
    """Return the largest difference that counts as agreement: 0.01, plus 1% for sparse weights and logits."""
    # Model cards computed in fp16 or bf16: two runs of one card differ by up to 0.0026 in a cosine. Sparse scores are
    # sums of unnormalised products, so their rounding error grows with them.
    return 0.01 if half == "dense" else 0.01 + 0.01 * abs(published)
