"""chunk_context="document": a chunk's vector is its own and its document's, added and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.sentence_layouts import build_splade
from twinvec import BaseEmbedder, Embedder, EmbeddingBatch
from twinvec.errors import ConfigurationError, TextError
from twinvec_stores import Document, MemoryStore, Record, StoreConfig, ingest

PAGE = (
    "# Fruit\n\nApples are red. " + "the capital of Russia is Moscow. " * 12 + "\n\n## Pears\n\n" + "gravity is. " * 30
)
LONG = PAGE + "what is the capital of china? " * 100


def stored(embedder: BaseEmbedder, store: MemoryStore, documents: Sequence[Document], **options: Any) -> list[Record]:
    given = {"chunk_tokens": 24, "chunk_context": "document", **options}
    report = ingest(documents, embedder, store, **given)
    assert (report.failed, report.truncated) == (0, 0), str(report)
    return [record for page in store.scroll_all(with_vectors=True) for record in page]


def rows(records: Sequence[Record]) -> np.ndarray[Any, Any]:
    return np.stack([record.dense for record in records if record.dense is not None])


def dense(embedder: Embedder, texts: list[str]) -> np.ndarray[Any, Any]:
    found = embedder.embed_documents(texts).dense
    assert found is not None
    return found.astype(np.float64)


@pytest.mark.filterwarnings("ignore::twinvec.TruncationWarning")
@pytest.mark.parametrize("text", [PAGE, LONG])
def test_a_chunk_is_mixed_with_the_beginning_of_its_document(
    embedder: Embedder, memory: MemoryStore, text: str
) -> None:
    found = stored(embedder, memory, [Document("d", text, {"title": "Guide"}), Document("e", "Apples.")])
    chunks = [record for record in found if record.provenance["document"] == "d"]
    assert "".join(record.text for record in sorted(chunks, key=lambda each: each.provenance["chunk"])) == text
    assert {"Guide > Fruit\n\n", "Guide > Fruit > Pears\n\n"} < {r.provenance["context"] for r in chunks}
    own = dense(embedder, [record.provenance["context"] + record.text for record in chunks])
    mixed = own + dense(embedder, [text])  # the embedder cuts what is too long
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    np.testing.assert_allclose(rows(chunks), mixed, atol=1e-4)
    plain = MemoryStore(memory.config)
    alone = {each.id: each for each in stored(embedder, plain, [Document("d", text)], chunk_context=None)}
    for record in chunks:
        assert record.sparse is not None
        assert record.text == alone[record.id].text
    (single,) = [record for record in found if record.provenance["document"] == "e"]
    np.testing.assert_allclose(rows([single]), dense(embedder, ["Apples."]), atol=1e-6)


def test_it_is_another_recipe(embedder: Embedder, memory: MemoryStore) -> None:
    documents = [Document("d", PAGE)]
    stored(embedder, memory, documents, chunk_context="headings")
    assert ingest(documents, embedder, memory, chunk_tokens=24, chunk_context="document").changed == 1
    assert ingest(documents, embedder, memory, chunk_tokens=24, chunk_context="document").unchanged == 1


def test_nothing_is_too_long_for_a_strict_model(gte_folder: Path) -> None:
    with Embedder(gte_folder, dtype="float32", max_length=128, on_overflow="error") as strict:
        store = MemoryStore(StoreConfig.for_embedder(strict))
        assert len(stored(strict, store, [Document("d", LONG)])) > 5


def test_a_document_whose_beginning_fails_fails_alone(
    embedder: Embedder, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = embedder.aembed_documents

    async def failing(texts: list[str], **options: Any) -> EmbeddingBatch:
        for position, text in enumerate(texts):
            if text.startswith("# Bad") and len(text) > 300:
                raise TextError("cannot be read", position=position)
        return await original(texts, **options)

    monkeypatch.setattr(embedder, "aembed_documents", failing)
    documents = [Document("a", PAGE), Document("b", PAGE.replace("# Fruit", "# Bad")), Document("c", PAGE)]
    report = ingest(documents, embedder, memory, chunk_tokens=24, chunk_context="document")
    assert (report.new, [(failure.id, failure.reason) for failure in report.failures]) == (
        2,
        [("b", "chunk of its beginning cannot be read")],
    )


def test_what_has_no_dense_vectors_is_refused(tmp_path: Path) -> None:
    with Embedder(build_splade(tmp_path), dtype="float32") as splade:
        store = MemoryStore(StoreConfig.for_embedder(splade))
        with pytest.raises(ConfigurationError, match="for dense vectors"):
            ingest([], splade, store, chunk_tokens=10, chunk_context="document")
