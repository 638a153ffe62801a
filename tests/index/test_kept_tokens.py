"""Vectors of tokens that a store keeps: pooled, in 8 bits, and read by MaxSim instead of the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import TextNode

from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore
from llama_index_twinvec import TwinVecEmbedding
from llama_index_twinvec import TwinVecVectorStore as LlamaIndexStore
from reference.sentence_layouts import build_bge_m3
from rerankers.test_maxsim import Vectors, bge_vectors
from support import TEXTS
from twinvec import Embedder, MaxSim
from twinvec.errors import ConfigurationError, InvalidRecordError, StoreMismatchError
from twinvec.vectors import Float32
from twinvec_stores import EmbeddedStore, HybridIndex, HybridStore, MemoryStore, StoreConfig, ingest
from twinvec_stores.checking import verify_store
from twinvec_stores.records import RecordBatch
from twinvec_stores.reembedding import reembed
from twinvec_stores.tokens import pack_tokens, unpack_tokens
from twinvec_stores.transfer import copy_store, export_store, import_store

DOCUMENTS = [text for text in dict.fromkeys(TEXTS) if text.strip()]
QUERY = "the capital of France"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bge_m3(tmp_path_factory.mktemp("kept") / "bge", seed=7)


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Iterator[Embedder]:
    with Embedder(folder, dtype="float32", on_overflow="truncate") as made:
        yield made


@pytest.fixture(scope="module")
def vectors(folder: Path) -> Vectors:
    return bge_vectors(folder)


def store_of(embedder: Embedder, pool: int | None) -> MemoryStore:
    return MemoryStore(StoreConfig.for_embedder(embedder, token_pool=pool))


def filled(embedder: Embedder, pool: int | None = 2) -> HybridIndex:
    index = HybridIndex(embedder, store_of(embedder, pool))
    index.add(DOCUMENTS, ids=[str(i) for i in range(len(DOCUMENTS))])
    return index


def kept(store: HybridStore) -> dict[str, bytes | None]:
    return {r.text: r.tokens for page in store.scroll_all(limit=50, with_vectors=True) for r in page}


def expected(vectors: Vectors, pool: int) -> dict[str, float]:
    """bge-m3's score in float64: the mean of the highest cosines, with means of neighbours as a text's vectors."""
    [query] = vectors([QUERY], "query")
    found = {}
    for text, rows in zip(DOCUMENTS, vectors(DOCUMENTS, "document"), strict=True):
        means = [rows[i : i + pool].mean(axis=0) for i in range(0, len(rows), pool)]
        found[text] = float((query @ np.stack([m / np.linalg.norm(m) for m in means]).T).max(axis=1).mean())
    return found


@pytest.mark.filterwarnings("ignore::twinvec.TruncationWarning")
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_scores_are_those_of_pooled_vectors(embedder: Embedder, vectors: Vectors, pool: int) -> None:
    index, wanted = filled(embedder, pool), expected(vectors, pool)
    found = index.search(QUERY, k=len(DOCUMENTS), rerank=MaxSim(embedder), rerank_k=100)
    assert len(found) == len(DOCUMENTS)
    for result in found:
        assert result.score == pytest.approx(wanted[result.record.text], abs=0.01)
        assert result.record.tokens is None  # nobody asked for them


def test_texts_are_not_read_again(embedder: Embedder) -> None:
    reranker = MaxSim(embedder)
    counts = {}
    for pool in (None, 2):
        index = filled(embedder, pool)
        before = embedder.stats()["texts"]
        index.search(QUERY, k=3, rerank=reranker, rerank_k=5)
        counts[pool] = embedder.stats()["texts"] - before
    assert counts[2] <= 2  # the query, for the first stage and for the third
    assert counts[None] >= 5


def test_a_subclass_reads_texts_in_its_own_way(embedder: Embedder) -> None:
    class Own(MaxSim):
        def score(self, pairs: Any, **options: Any) -> Float32:
            return np.array([len(text) for _, text in pairs], np.float32)

    found = filled(embedder).search(QUERY, k=3, rerank=Own(embedder), rerank_k=100)
    assert [len(result.record.text) for result in found] == sorted(map(len, DOCUMENTS), reverse=True)[:3]


def test_another_models_vectors_are_not_taken(embedder: Embedder, tmp_path: Path) -> None:
    with Embedder(build_bge_m3(tmp_path / "other", seed=8), dtype="float32") as other:
        results = filled(embedder).search(QUERY, k=3, rerank=MaxSim(other), rerank_k=5)
        pairs = [(QUERY, result.record.text) for result in results]
        assert [result.score for result in results] == pytest.approx(MaxSim(other).score(pairs).tolist(), abs=1e-6)


def test_every_door_keeps_the_same(embedder: Embedder, folder: Path) -> None:
    wanted = kept(filled(embedder).store)
    assert None not in wanted.values()
    store = store_of(embedder, 2)
    ingest([{"id": str(i), "text": text} for i, text in enumerate(DOCUMENTS)], embedder, store)
    assert kept(store) == wanted
    options: Any = {"dtype": "float32", "on_overflow": "truncate"}
    langchain = TwinVecVectorStore(TwinVecEmbeddings(str(folder), **options), store=store_of(embedder, 2))
    langchain.add_texts(DOCUMENTS)
    assert kept(langchain.index.store) == wanted
    llama = LlamaIndexStore(TwinVecEmbedding(str(folder), **options), store=store_of(embedder, 2))
    pairs = zip(DOCUMENTS, dense(embedder), strict=True)
    llama.add([TextNode(text=text, embedding=row.tolist()) for text, row in pairs])
    assert kept(llama.index.store) == wanted


def dense(embedder: Embedder) -> Sequence[Float32]:
    rows = embedder.embed_documents(DOCUMENTS, sparse=False).dense
    assert rows is not None
    return list(rows)


def test_copies_exports_and_reembedding_keep_them(embedder: Embedder, tmp_path: Path) -> None:
    source = filled(embedder).store
    wanted = kept(source)
    with EmbeddedStore(tmp_path / "copy", source.config) as copy:
        copy_store(source, copy)
        assert kept(copy) == wanted
        assert verify_store(copy).damages == ()
        export_store(copy, tmp_path / "export.jsonl.gz")
    back = MemoryStore(source.config)
    import_store(tmp_path / "export.jsonl.gz", back)
    assert kept(back) == wanted
    again = store_of(embedder, 2)
    reembed(source, again, embedder)
    assert kept(again) == wanted


def test_nothing_is_dropped_in_silence(embedder: Embedder) -> None:
    source = filled(embedder).store
    with pytest.raises(StoreMismatchError, match="token_pool"):
        copy_store(source, store_of(embedder, None))
    record = source.get(["0"], with_vectors=True)[0]
    with pytest.raises(InvalidRecordError, match="tokens are missing"):
        source.upsert(RecordBatch.of([replace(record, tokens=None)]))
    with pytest.raises(InvalidRecordError, match="no vectors of tokens"):
        store_of(embedder, None).upsert(RecordBatch.of([record]))
    assert record.tokens is not None
    for damaged in (b"", record.tokens[:3], record.tokens[:-1], record.tokens + b"\x01", "text", bytes(8)):
        with pytest.raises(InvalidRecordError, match="pack_tokens"):
            source.upsert(RecordBatch.of([replace(record, tokens=damaged)]))  # type: ignore[arg-type]


def test_refusals(embedder: Embedder) -> None:
    for pool in (0, -1, True, 1.5, "2"):
        with pytest.raises(ConfigurationError, match="token_pool"):
            StoreConfig.for_embedder(embedder, token_pool=pool)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="late"):
        ingest([{"id": "a", "text": "b"}], embedder, store_of(embedder, 2), chunk_tokens=20, chunk_context="late")


def test_packing_is_a_rounding_of_means() -> None:
    rows = np.random.default_rng(0).standard_normal((7, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    packed = pack_tokens(rows, 3)
    assert len(packed) == 4 + 3 * 16
    [found] = unpack_tokens([packed])
    means = np.stack([rows[:3].mean(axis=0), rows[3:6].mean(axis=0), rows[6]]).astype(np.float64)
    wanted = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert (found * wanted).sum(axis=1).min() > 0.9999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert [len(rows) for rows in unpack_tokens([pack_tokens(rows[:0], 2), packed])] == [0, 3]
