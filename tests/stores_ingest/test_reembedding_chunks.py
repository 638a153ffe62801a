"""Chunks under another model: what an ingest with that model makes of the same chunks, their documents' context too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.sentence_layouts import build_sentence_transformer
from stores_ingest.holding import assert_equal, held
from twinvec import Embedder
from twinvec.errors import ConfigurationError, StoreEngineError
from twinvec_stores import Document, HybridStore, MemoryStore, Record, RecordBatch, StoreConfig, ingest, reembed

WORDS = ["the", "capital", "of", "Russia", "is", "Moscow.", "\n\n## A list\n\n", " \n" * 40, "中国", "python\n\nhello"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=120).map(" ".join).filter(str.strip)
KINDS = ("document", "late", "headings", None)
LONG = "# Moscow\n\nIt is the capital of Russia. " + "\n" * 90 + "It is old. " * 30


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Embedder, Embedder]]:
    """Two models with one tokenizer, whose tokens include white space, and which take 120 of them."""
    folders = [build_sentence_transformer(tmp_path_factory.mktemp("m"), "llama", seed=seed) for seed in (0, 1)]
    options: dict[str, Any] = {"dtype": "float32", "sparse": "bm25", "max_length": 120}
    with Embedder(folders[0], **options) as old, Embedder(folders[1], **options) as new:
        yield old, new


def filled(documents: list[Document], embedder: Embedder, **options: Any) -> MemoryStore:
    store = MemoryStore(StoreConfig.for_embedder(embedder))
    report = ingest(documents, embedder, store, chunk_tokens=16, **options)
    assert (report.new, report.failed, report.truncated) == (len(documents), 0, 0), str(report)
    return store


def chunks(store: HybridStore, name: str) -> list[Record]:
    found = [record for record in held(store).values() if record.provenance["document"] == name]
    return sorted(found, key=lambda record: int(record.provenance["chunk"]))


@given(st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from(KINDS), st.integers(0, 15))
@settings(max_examples=60)
def test_it_is_what_an_ingest_with_the_new_model_makes(
    models: tuple[Embedder, Embedder], texts: list[str], kind: Any, overlap: int
) -> None:
    old, new = models
    documents = [Document(f"d{i}", text, {"title": "Cities"}) for i, text in enumerate(texts)]
    options: dict[str, Any] = {"overlap_tokens": overlap, "chunk_context": kind}
    target = MemoryStore(StoreConfig.for_embedder(new))
    source = filled(documents, old, **options)
    assert reembed(source, target, new) == source.count()
    assert_equal(target, filled(documents, new, **options))
    assert reembed(source, target, new) == 0


def test_white_space_that_is_in_no_chunk_is_part_of_the_document(models: tuple[Embedder, Embedder]) -> None:
    old, new = models
    source = filled([Document("d", LONG)], old, chunk_context="late")
    found = chunks(source, "d")
    assert sum(len(record.text) for record in found) < len(LONG)  # or this shows nothing
    target = MemoryStore(StoreConfig.for_embedder(new))
    reembed(source, target, new)
    assert_equal(target, filled([Document("d", LONG)], new, chunk_context="late"))


@pytest.mark.parametrize("kind", ["document", "late"])
def test_later_changes_are_followed(models: tuple[Embedder, Embedder], kind: Any) -> None:
    old, new = models
    documents = [Document(name, f"{name} is a list. {LONG}") for name in ("a", "b", "c")]
    source = filled(documents, old, chunk_context=kind)
    target = MemoryStore(StoreConfig.for_embedder(new))
    reembed(source, target, new)
    target.delete(["c#1"])
    assert reembed(source, target, new) == len(chunks(source, "c"))
    changed = [documents[0], Document("b", f"another list. {LONG}")]
    ingest(changed, old, source, chunk_tokens=16, chunk_context=kind, prune=True)
    assert reembed(source, target, new) == len(chunks(source, "b"))
    assert_equal(target, filled(changed, new, chunk_context=kind))


def test_a_document_that_is_not_whole_is_named_and_the_others_are_there(models: tuple[Embedder, Embedder]) -> None:
    old, new = models
    documents = [Document(name, f"{name} is a list. {LONG}") for name in ("gone", "written", "whole")]
    source = filled(documents, old, chunk_context="document")
    source.delete(["gone#1"])
    head = chunks(source, "written")[0]  # as while it is replaced
    unsure = [Record(head.id, head.text, head.metadata, {**head.provenance, "hash": None}, head.dense, head.sparse)]
    source.upsert(RecordBatch.of(unsure))
    target = MemoryStore(StoreConfig.for_embedder(new))
    with pytest.raises(StoreEngineError, match=r"2 documents could not .*: 'gone', 'written'"):
        reembed(source, target, new)
    assert_equal(target, filled(documents[2:], new, chunk_context="document"))
    for name in ("gone", "written"):
        source.delete([record.id for record in chunks(source, name)])
    ingest(documents, old, source, chunk_tokens=16, chunk_context="document")
    reembed(source, target, new)
    assert_equal(target, filled(documents, new, chunk_context="document"))


def test_models_that_cannot_are_told_what_to_do(models: tuple[Embedder, Embedder], gte_folder: Path) -> None:
    source = filled([Document("d", LONG)], models[0], chunk_context="late")
    with (
        Embedder(gte_folder, dtype="float32", sparse="bm25") as first,
        pytest.raises(ConfigurationError, match=r"'late': .*pools by cls.* into a new store"),
    ):
        reembed(source, MemoryStore(StoreConfig.for_embedder(first)), first)
