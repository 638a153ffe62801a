"""BM25 through a store: scores follow the formula over what the store holds at that moment.

The weights themselves are checked against the bm25s library in tests/text/test_bm25.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from reference.giga import build_giga_0826
from stores import milvus, postgres
from twinvec import Embedder
from twinvec.errors import FusionWarning
from twinvec_stores import EmbeddedStore, Fusion, HybridIndex, HybridStore, MemoryStore, StoreConfig

TEXTS = {
    "a": "Столица России — Москва",
    "b": "столицы и города: Москва, Казань, Тверь",
    "c": "sorting lists in Python, and sorting again",
    "d": "Python sorts a list; Москва не сортирует",
    "e": "",
    "f": "Казань стоит на Волге",
}
QUERIES = ["столица Москва", "sort list", "Казань Казань Python"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    folder = build_giga_0826(tmp_path_factory.mktemp("giga"))
    with Embedder(folder, dtype="float32", sparse="bm25:auto,average_length=5") as embedder:
        yield embedder


@pytest.fixture(params=["memory", "embedded", "postgres", pytest.param("milvus", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, embedder: Embedder, tmp_path: Path) -> Iterator[HybridStore]:
    config = StoreConfig.for_embedder(embedder)
    makes: dict[str, Callable[[], HybridStore]] = {
        "memory": lambda: MemoryStore(config),
        "embedded": lambda: EmbeddedStore(tmp_path / "s", config),
        "postgres": lambda: postgres.new_store(config),
        "milvus": lambda: milvus.new_store(config),
    }
    with makes[request.param]() as made:
        yield made


def expected(texts: dict[str, str], query: str, embedder: Embedder) -> dict[str, float]:
    """The formula of Robertson and Zaragoza (2009) with document frequencies counted here."""
    rows = embedder.embed_documents([*texts.values(), query], dense=False)
    assert rows.sparse is not None
    *documents, _ = rows.sparse
    lengths = embedder.embed_documents(texts.values(), dense=False).token_counts
    wanted = embedder.embed_queries([query], dense=False).sparse
    assert wanted is not None
    scores = {}
    for id, row, length in zip(texts, documents, lengths.tolist(), strict=True):
        total = 0.0
        for key, times in wanted[0].to_dict().items():
            df = sum(key in other.indices for other in documents)
            weight = row.to_dict().get(key, 0.0)
            tf = weight * 1.2 * (0.25 + 0.75 * length / 5) / (2.2 - weight)  # the weight's formula, solved for tf
            assert tf == pytest.approx(round(tf), abs=1e-4)
            idf = np.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            total += times * idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / 5))
        if total > 0:
            scores[id] = total
    return scores


def test_scores_follow_the_store_under_upsert_and_delete(store: HybridStore, embedder: Embedder) -> None:
    index = HybridIndex(embedder, store)
    texts = dict(TEXTS)
    index.add(list(texts.values()), ids=list(texts))
    changes: list[tuple[str, str | None]] = [
        ("b", None),
        ("c", "Казань, Казань"),
        ("g", "сортировка списка"),
        ("f", None),
    ]
    for id, text in [("a", texts["a"]), *changes]:
        if text is None:
            store.delete([id])
            del texts[id]
        else:
            index.add([text], ids=[id])
            texts[id] = text
        for query in QUERIES:
            found = {r.record.id: r.score for r in index.search(query, mode="sparse", k=10)}
            assert found == pytest.approx(expected(texts, query, embedder), rel=1e-4)


def test_inflected_words_are_found_and_explained(store: HybridStore, embedder: Embedder) -> None:
    index = HybridIndex(embedder, store)
    index.add(list(TEXTS.values()), ids=list(TEXTS))
    best = index.search("столицами", mode="sparse", explain=True)
    assert {result.record.id for result in best} == {"a", "b"}
    why = best[0].explanation
    assert why is not None
    assert [term for term, _, _ in why.terms] == ["столиц"]
    assert why.sparse_score == pytest.approx(best[0].score)


def test_raw_scores_of_another_sparse_half_are_warned_of(store: HybridStore, embedder: Embedder) -> None:
    index = HybridIndex(embedder, store)
    index.add(["столица", "Python"], ids=["a", "b"])
    with pytest.warns(FusionWarning, match="a different scale"):
        index.search("столица", k=1, fusion="weighted")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusionWarning)
        index.search("столица", k=1, fusion=Fusion("weighted", dense_weight=1, sparse_weight=0.02))
        index.search("столица", k=1, fusion="weighted", mode="dense")
        index.search("столица", k=1)
