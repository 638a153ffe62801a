"""Late chunking: windows that the model takes, and chunks with vectors from the pass over their window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.sentence_layouts import build_sentence_transformer
from twinvec import Embedder
from twinvec.errors import ConfigurationError
from twinvec_stores import Document, MemoryStore, Record, StoreConfig, ingest
from twinvec_stores.ingestion.chunking import Chunker

ROOM = 60  # tokens of a window, beside the prompt and the special ones
WORDS = ["the", "capital", "of", "Russia", "is", "Moscow", "中国", "sort.", "a", "list", "in", "python\n\nhello", ""]


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    folder = build_sentence_transformer(tmp_path_factory.mktemp("mean"), "bert", prompts={"document": "passage: "})
    with Embedder(folder, dtype="float32", sparse="bm25") as unlimited:
        length = unlimited.max_length - unlimited.token_room("document") + ROOM
    with Embedder(folder, dtype="float32", sparse="bm25", max_length=length) as embedder:
        assert embedder.token_room("document") == ROOM
        yield embedder


def stored(embedder: Embedder, text: str, chunk_tokens: int = 16) -> list[Record]:
    store = MemoryStore(StoreConfig.for_embedder(embedder))
    report = ingest([Document("d", text)], embedder, store, chunk_tokens=chunk_tokens, chunk_context="late")
    assert (report.new, report.truncated) == (1, 0), str(report)
    return store.get([f"d#{i}" for i in range(report.records)], with_vectors=True)


def tokens(embedder: Embedder, text: str) -> int:
    return len(embedder.token_offsets([text])[0])


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=300).map(" ".join), st.integers(5, ROOM), st.booleans())
@settings(max_examples=60)
def test_each_chunk_is_in_one_window_that_fits_with_words_around_it(
    mean: Embedder, text: str, limit: int, overlap: bool
) -> None:
    chunker = Chunker(mean, limit, limit // 4 if overlap else 0, "late")
    [(chunks, windows, _)] = chunker.divide([text])
    placed = [(w.span.start + c.start, w.span.start + c.end) for w in windows for c in w.chunks]
    assert placed == [tuple(chunk) for chunk in chunks]
    margin = min(ROOM // 8, (ROOM - limit) // 2)
    for window in windows:
        assert tokens(mean, text[window.span.start : window.span.end]) <= ROOM
        first, last = window.chunks[0].start, window.chunks[-1].end
        length = window.span.end - window.span.start
        # what a cut changes in its neighbours may cost a token on either side
        if window.span.start > 0:
            assert tokens(mean, text[window.span.start : window.span.start + first]) >= margin - 1
        if window.span.end < len(text):
            assert tokens(mean, text[window.span.start + last : window.span.start + length]) >= margin - 1
    if tokens(mean, text) <= ROOM:
        assert len(windows) == 1


def test_chunks_of_a_document_that_fits_come_from_one_pass(mean: Embedder) -> None:
    text = "Moscow is the capital of Russia. It is a city. " + "It is old and large and the list is long. " * 2
    found = stored(mean, text)
    assert len(found) > 2
    assert "".join(record.text for record in found) == text
    spans = [(record.provenance["start"], record.provenance["end"]) for record in found]
    expected = mean.embed_documents([text], spans=[spans])
    assert expected.dense is not None
    assert expected.sparse is not None
    for record, dense, sparse in zip(found, expected.dense, expected.sparse, strict=True):
        assert record.dense is not None
        assert record.sparse is not None
        np.testing.assert_allclose(record.dense, dense, atol=1e-5)
        assert record.sparse.to_dict() == pytest.approx(sparse.to_dict())


def test_a_chunk_knows_what_is_around_it_and_only_that(mean: Embedder) -> None:
    """The same chunk has another vector where its window's other words are others, and the same beyond its window."""
    filler = "a list in python and the sort of hello. "
    near = [stored(mean, f"{word} is a list. {filler}{filler}", chunk_tokens=10)[-1] for word in ("the", "capital")]
    assert near[0].text == near[1].text
    assert np.abs(near[0].dense - near[1].dense).max() > 1e-3  # type: ignore[operator]
    far = [stored(mean, f"{word} is a list. {filler * 40}")[-1] for word in ("the", "capital")]
    assert far[0].text == far[1].text
    np.testing.assert_allclose(far[0].dense, far[1].dense, atol=1e-5)  # type: ignore[arg-type]


def test_late_is_another_recipe(mean: Embedder) -> None:
    store, text = MemoryStore(StoreConfig.for_embedder(mean)), [Document("d", "the capital of Russia " * 20)]
    reports = [ingest(text, mean, store, chunk_tokens=16, chunk_context=how) for how in (None, "late", "late")]
    assert [(r.new, r.changed, r.unchanged) for r in reports] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def test_a_document_without_a_vector_fails_alone(mean: Embedder) -> None:
    store = MemoryStore(StoreConfig.for_embedder(mean))
    report = ingest(
        [Document("a", "hello"), Document("b", "\x01\x02"), Document("c", "China")],
        mean,
        store,
        chunk_tokens=16,
        chunk_context="late",
    )
    assert (report.new, report.failed) == (2, 1)
    assert "without a token" in report.failures[0].reason
    assert store.count() == 2


def test_the_stores_of_both_frameworks_ingest_late(mean: Embedder) -> None:
    from langchain_core.documents import Document as LangChainDocument
    from llama_index.core import Document as LlamaDocument

    from langchain_twinvec import TwinVecEmbeddings
    from langchain_twinvec import TwinVecVectorStore as LangChainStore
    from llama_index_twinvec import TwinVecEmbedding
    from llama_index_twinvec import TwinVecVectorStore as LlamaStore

    text = "the capital of Russia is Moscow. " * 20
    expected = [record.dense for record in stored(mean, text)]
    chain, llama = LangChainStore(TwinVecEmbeddings(embedder=mean)), LlamaStore(TwinVecEmbedding(embedder=mean))
    with chain, llama:
        chain.ingest([LangChainDocument(id="d", page_content=text)], chunk_tokens=16, chunk_context="late")
        llama.ingest([LlamaDocument(id_="d", text=text)], chunk_tokens=16, chunk_context="late")
        for store in (chain.index.store, llama.client):
            [records] = store.scroll_all(limit=1000, with_vectors=True)
            assert len(records) > 5
            for record in records:
                assert record.dense is not None
                np.testing.assert_allclose(record.dense, expected[record.provenance["chunk"]], atol=1e-5)


def test_models_that_do_not_pool_the_mean_are_refused(embedder: Embedder, memory: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pools by cls"):
        ingest(tmp_path, embedder, memory, chunk_tokens=10, chunk_context="late")
