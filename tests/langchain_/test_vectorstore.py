"""TwinVecVectorStore: HybridIndex behind LangChain's interface, one forward pass per text, every engine alike."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from qdrant_client import QdrantClient

from langchain_.gate import Gate, turns_while_held
from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore
from reference.sentence_layouts import build_splade
from stores import milvus, postgres
from twinvec import Task
from twinvec.errors import (
    ConfigurationError,
    FilterError,
    FingerprintMismatchError,
    InvalidRecordError,
    PromptError,
    StoreClosedError,
    StoreMismatchError,
    StoreNotFoundError,
)
from twinvec_stores import Eq, Fusion, HybridIndex, MemoryStore, QdrantStore, RecordBatch, StoreConfig

TEXTS = [f"{verb} {what}" for verb in ("sort", "find", "delete", "Москва") for what in ("a list", "files", "北京")]
IDS = [f"doc-{i:02}" for i in range(len(TEXTS))]
METADATA = [{"year": 2000 + i, "kind": "ab"[i % 2]} for i in range(len(TEXTS))]
QUERY = "sort files"


@pytest.fixture(params=["memory", "embedded", "qdrant", "postgres", pytest.param("milvus", marks=pytest.mark.slow)])
def filled(request: pytest.FixtureRequest, gte: TwinVecEmbeddings, tmp_path: Path) -> Iterator[TwinVecVectorStore]:
    if request.param == "qdrant":
        config = StoreConfig.for_embedder(gte.embedder)
        store = TwinVecVectorStore(gte, store=QdrantStore(client=QdrantClient(":memory:"), config=config))
    elif request.param == "postgres":
        store = TwinVecVectorStore(gte, url=postgres.url(), collection=postgres.new_name())
    elif request.param == "milvus":
        store = TwinVecVectorStore(gte, url=milvus.url(), collection=milvus.new_name())
    else:
        store = TwinVecVectorStore(gte, path=tmp_path / "index" if request.param == "embedded" else None)
    with store:
        store.add_texts(TEXTS, METADATA, ids=IDS)
        yield store


def ids_of(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


def test_searches_are_hybrid_indexs(filled: TwinVecVectorStore) -> None:
    ways: list[dict[str, Any]] = [{}, {"mode": "dense"}, {"mode": "sparse"}, {"fusion": "rrf"}]
    for options in (*ways, {"fusion": Fusion("weighted", 1.0, 0.3)}):
        expected = filled.index.search(QUERY, k=5, **options)
        found = filled.similarity_search_with_score(QUERY, k=5, **options)
        assert [(d.id, d.page_content, d.metadata, s) for d, s in found] == [
            (r.record.id, r.record.text, r.record.metadata, r.score) for r in expected
        ]
        assert filled.similarity_search(QUERY, 5, **options) == [document for document, _ in found]
    assert len(filled.similarity_search(QUERY)) == 4


def test_a_vector_finds_its_neighbours(filled: TwinVecVectorStore, gte: TwinVecEmbeddings) -> None:
    row = gte.embed_query(QUERY)
    expected = filled.similarity_search_with_score(QUERY, k=3, mode="dense")
    found = filled.similarity_search_with_score_by_vector(row, k=3)
    assert ids_of(filled.similarity_search_by_vector(row, 3)) == [d.id for d, _ in found] == [d.id for d, _ in expected]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-5)
    assert ids_of(filled.similarity_search_by_vector(row, k=1, filter={"kind": "b"}, exact=True))[0] in IDS[1::2]


def test_filters_in_both_forms(filled: TwinVecVectorStore) -> None:
    assert set(ids_of(filled.similarity_search(QUERY, 99, {"kind": "a"}))) == set(IDS[::2])
    assert set(ids_of(filled.similarity_search(QUERY, 99, filter=Eq("kind", "b")))) == set(IDS[1::2])
    assert ids_of(filled.similarity_search(QUERY, filter={"year": {"$gt": 2010}})) == IDS[11:]
    with pytest.raises(FilterError, match=r"\$near"):
        filled.similarity_search(QUERY, filter={"year": {"$near": 3}})


def test_diversity(filled: TwinVecVectorStore, gte: TwinVecEmbeddings) -> None:
    expected = [r.record.id for r in filled.index.search(QUERY, k=3, mmr=0.2, fetch_k=8)]
    assert ids_of(filled.max_marginal_relevance_search(QUERY, 3, 8, 0.2)) == expected
    by_vector = filled.max_marginal_relevance_search_by_vector(gte.embed_query(QUERY), 3, 8, 0.2)
    assert len(set(ids_of(by_vector))) == 3
    # LangChain's default fetch_k is 20, also where more documents are asked for
    assert len(filled.max_marginal_relevance_search(QUERY, k=40)) == len(TEXTS)
    relevant = ids_of(filled.max_marginal_relevance_search(QUERY, 3, 8, 1.0))
    assert relevant == ids_of(filled.similarity_search(QUERY, 3, fetch_k=8))


def test_the_async_twins_find_the_same(filled: TwinVecVectorStore, gte: TwinVecEmbeddings) -> None:
    row = gte.embed_query(QUERY)

    async def every() -> list[Any]:
        calls = [
            filled.asimilarity_search(QUERY, 3, {"kind": "a"}),
            filled.asimilarity_search_with_score(QUERY, k=3, fusion="rrf"),
            filled.asimilarity_search_many([QUERY, "Москва"], 2),
            filled.asimilarity_search_by_vector(row, 3),
            filled.asimilarity_search_with_score_by_vector(row, 3),
            filled.amax_marginal_relevance_search(QUERY, 3, 8, 0.2),
            filled.amax_marginal_relevance_search_by_vector(row, 3, 8, 0.2),
            filled.asimilarity_search_with_relevance_scores(QUERY, 3),
            filled.aget_by_ids([IDS[3], "missing", IDS[1]]),
            filled.asearch(QUERY, "mmr", k=2),
        ]
        return [await call for call in calls]

    assert asyncio.run(every()) == [
        filled.similarity_search(QUERY, 3, {"kind": "a"}),
        filled.similarity_search_with_score(QUERY, k=3, fusion="rrf"),
        filled.similarity_search_many([QUERY, "Москва"], 2),
        filled.similarity_search_by_vector(row, 3),
        filled.similarity_search_with_score_by_vector(row, 3),
        filled.max_marginal_relevance_search(QUERY, 3, 8, 0.2),
        filled.max_marginal_relevance_search_by_vector(row, 3, 8, 0.2),
        filled.similarity_search_with_relevance_scores(QUERY, 3),
        filled.get_by_ids([IDS[3], "missing", IDS[1]]),
        filled.search(QUERY, "mmr", k=2),
    ]


def test_explanations_lie_in_the_metadata(filled: TwinVecVectorStore) -> None:
    ((document, score),) = filled.similarity_search_with_score("sort a list", k=1, explain=True)
    why = document.metadata.pop("_twinvec")
    assert document == filled.get_by_ids([document.id or ""])[0]
    (expected,) = filled.index.search("sort a list", k=1, explain=True)
    assert expected.explanation is not None
    assert (why["score"], why["dense_rank"]) == (score, 1)
    assert why["sparse_rank"] == expected.explanation.sparse_rank
    assert why["terms"] == [list(term) for term in expected.explanation.terms]
    assert why["dense_score"] == pytest.approx(1, abs=1e-4)  # the same text
    assert why["sparse_score"] == pytest.approx(sum(q * d for _, q, d in why["terms"]), rel=1e-4)
    assert set(why) == {"score", "dense_score", "sparse_score", "dense_rank", "sparse_rank", "terms"}


def test_relevance_goes_from_0_to_1(filled: TwinVecVectorStore) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # LangChain warns of relevances outside
        bounded: list[dict[str, Any]] = [{"mode": "dense"}, *({"fusion": name} for name in ("rrf", "relative", "dbsf"))]
        for options in bounded:
            found = filled.similarity_search_with_relevance_scores("sort a list", k=12, **options)
            cosines = {r.record.id: r.score for r in filled.index.search("sort a list", k=12, mode="dense")}
            ranked = filled.similarity_search("sort a list", k=12, **options)
            assert [document for document, _ in found] == ranked  # in the order of the search
            expected = np.array([max(cosines[str(d.id)], 0) for d in ranked])
            np.testing.assert_allclose(np.array([r for _, r in found]), expected, atol=1e-5)
    ((_, cosine),) = filled.similarity_search_with_score(QUERY, k=1, mode="dense")
    ((_, relevance),) = filled.similarity_search_with_relevance_scores(QUERY, k=1, mode="dense")
    assert relevance == pytest.approx(cosine)
    kept = filled.similarity_search_with_relevance_scores("sort a list", 12, mode="dense", score_threshold=0.999)
    assert [document.page_content for document, _ in kept] == ["sort a list"]
    with pytest.raises(ConfigurationError, match="no upper bound"):
        filled.similarity_search_with_relevance_scores(QUERY, mode="sparse")


def test_each_text_is_one_pass(store: TwinVecVectorStore, gte: TwinVecEmbeddings) -> None:
    def passed() -> int:
        return int(gte.embedder.stats()["texts"])

    before = passed()
    store.add_texts([f"hybrid text {i}" for i in range(70)])
    assert passed() - before == 70
    asyncio.run(store.aadd_documents([Document(page_content=f"hybrid document {i}") for i in range(30)]))
    assert passed() - before == 100
    store.similarity_search("a hybrid query")
    store.similarity_search_many([f"many queries {i}" for i in range(10)])
    assert passed() - before == 111


def test_ids_and_upserts(store: TwinVecVectorStore) -> None:
    assert store.add_texts(["one", "two"], ids=["1", None])[0] == "1"
    assert store.add_documents([Document(page_content="three", id="3"), Document(page_content="four")])[0] == "3"
    assert store.index.store.count() == 4
    assert store.add_texts(["new one"], [{"a": 1}], ids=["1"]) == ["1"]
    assert store.get_by_ids(["1"]) == [Document(id="1", page_content="new one", metadata={"a": 1})]
    assert store.index.store.count() == 4
    assert store.add_texts(["a", "b"], ids=["x", "x"]) == ["x", "x"]
    assert [d.page_content for d in store.get_by_ids(["x"])] == ["b"]
    assert store.add_texts([]) == []
    assert len(store.add_texts(iter(["generated"]))) == 1


def test_batches_are_written_as_they_come(store: TwinVecVectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    upsert = store.index.store._upsert

    def counted(batch: RecordBatch) -> Awaitable[None]:
        sizes.append(len(batch))
        return upsert(batch)

    monkeypatch.setattr(store.index.store, "_upsert", counted)
    store.add_texts([f"t{i}" for i in range(7)], ids=[str(i) for i in range(7)], batch_size=3)
    assert sizes == [3, 3, 1]
    asyncio.run(store.aadd_texts([f"u{i}" for i in range(4)], batch_size=3))
    assert sizes == [3, 3, 1, 3, 1]
    assert store.get_by_ids(["6"])[0].page_content == "t6"


def test_deleting(filled: TwinVecVectorStore) -> None:
    assert filled.delete([IDS[0], "missing"]) is True
    filled.delete(filter={"kind": "b"})
    assert filled.index.store.count() == 5
    assert asyncio.run(filled.adelete([IDS[2]])) is True
    filled.delete([])
    assert filled.index.store.count() == 4
    asyncio.run(filled.adelete(filter={"year": 2004}))
    assert filled.index.store.count() == 3
    filled.delete()
    assert filled.similarity_search(QUERY) == []
    with pytest.raises(ConfigurationError):
        filled.delete(["a"], filter={"kind": "a"})


def test_from_texts_documents_and_existing(gte: TwinVecEmbeddings, tmp_path: Path) -> None:
    path = tmp_path / "index"
    documents = [Document(page_content=t, metadata=m, id=i) for t, m, i in zip(TEXTS, METADATA, IDS, strict=True)]
    with TwinVecVectorStore.from_documents(documents, gte, path=path, fields={"year": "integer"}, mode="dense") as made:
        expected = made.similarity_search(QUERY)
    with TwinVecVectorStore.from_existing(gte, path=path) as made:
        assert made.similarity_search(QUERY, mode="dense") == expected
        assert made.index.store.config.fields == {"year": "integer"}
    with TwinVecVectorStore(gte, path=path, fusion="rrf", mode="sparse") as made:
        assert made.similarity_search(QUERY) == made.similarity_search(QUERY, mode="sparse", fusion="relative")

    async def main() -> list[Document]:
        async with await TwinVecVectorStore.afrom_documents(documents, gte, path=tmp_path / "other") as made:
            return await made.asimilarity_search(QUERY, mode="dense")

    assert asyncio.run(main()) == expected


def test_the_same_search_whatever_the_engine(gte: TwinVecEmbeddings, filled: TwinVecVectorStore) -> None:
    reference = TwinVecVectorStore.from_texts(TEXTS, gte, METADATA, ids=IDS)
    assert ids_of(filled.similarity_search(QUERY, 12)) == ids_of(reference.similarity_search(QUERY, 12))


def test_a_failing_start_leaves_the_folder_free(gte: TwinVecEmbeddings, tmp_path: Path) -> None:
    path = tmp_path / "index"
    wrong: list[list[dict[str, Any]]] = [[{"a": object()}], [{}, {}]]
    for metadata in wrong:
        with pytest.raises(InvalidRecordError):
            TwinVecVectorStore.from_texts(["a"], gte, metadata, path=path)
        with pytest.raises(InvalidRecordError):
            asyncio.run(TwinVecVectorStore.afrom_texts(["a"], gte, metadata, path=path))
    with pytest.raises(ConfigurationError):
        TwinVecVectorStore.from_existing(gte, path=path, mode="other")  # type: ignore[arg-type]
    given = TwinVecVectorStore(gte, path=path)
    with pytest.raises(InvalidRecordError):
        TwinVecVectorStore.from_texts(["a"], gte, [{}, {}], store=given.index.store)
    assert given.similarity_search("a") == []  # a store that was given stays open
    given.close()


def test_another_model_is_refused(gte: TwinVecEmbeddings, bert_folder: str, tmp_path: Path) -> None:
    TwinVecVectorStore.from_texts(["a"], gte, path=tmp_path / "index").close()
    other = TwinVecEmbeddings(model=bert_folder, dtype="float32")
    for attempt in (TwinVecVectorStore, TwinVecVectorStore.from_existing):
        with pytest.raises(FingerprintMismatchError):
            attempt(other, path=tmp_path / "index")
    other.embedder.close()


def test_arguments_that_do_not_fit_fail(gte: TwinVecEmbeddings, tmp_path: Path) -> None:
    memory = MemoryStore(StoreConfig.for_embedder(gte.embedder))
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"path": tmp_path, "url": "http://localhost"}, ConfigurationError, "path= or url=, not both"),
        ({"store": memory, "path": tmp_path}, ConfigurationError, "path: already determined by store="),
        ({"store": memory, "fields": {"year": "integer"}}, StoreMismatchError, "fields"),
        ({"url": "localhost:6333"}, ConfigurationError, "must begin with http"),
        ({"collection": "x"}, ConfigurationError, "only for a server"),
        ({"paths": tmp_path}, ConfigurationError, "paths: only for a server"),
        ({"mode": "both"}, ConfigurationError, "mode='both'"),
        ({"fusion": "sum"}, ConfigurationError, "fusion 'sum'"),
    ]
    for arguments, error, message in wrong:
        with pytest.raises(error, match=message):
            TwinVecVectorStore(gte, **arguments)
    with pytest.raises(StoreNotFoundError):
        TwinVecVectorStore.from_existing(gte, path=tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="needs path= or url="):
        TwinVecVectorStore.from_existing(gte)


def test_unknown_arguments_of_calls_fail(store: TwinVecVectorStore, gte: TwinVecEmbeddings) -> None:
    row = gte.embed_query("a")
    calls: list[Callable[[], Any]] = [
        lambda: store.similarity_search("a", topk=3),
        lambda: store.similarity_search_by_vector(row, mode="sparse"),
        lambda: store.add_texts(["a"], namespace="x"),
        lambda: store.delete(["a"], namespace="x"),
        lambda: asyncio.run(store.aadd_texts(["a"], namespace="x")),
        lambda: asyncio.run(store.adelete(namespace="x")),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"unknown (search )?argument '(topk|mode|namespace)'"):
            call()
    with pytest.raises(ConfigurationError, match="fetch_k=2 is less than k=4"):
        store.similarity_search("a", fetch_k=2)
    with pytest.raises(PromptError):
        store.similarity_search("a", task="Find")
    with pytest.raises(TypeError, match="must be a list of strings"):
        store.add_texts("one text")
    with pytest.raises(InvalidRecordError, match="2 texts but 1 ids"):
        store.add_texts(["a", "b"], ids=["1"])
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        store.add_texts(["a"], batch_size=0)


def test_a_closed_store_says_so(gte: TwinVecEmbeddings, tmp_path: Path) -> None:
    for path in (None, tmp_path / "index"):
        store = TwinVecVectorStore.from_texts(["a"], gte, path=path)
        store.close()
        with pytest.raises(StoreClosedError):
            store.similarity_search("a")
        with pytest.raises(StoreClosedError):
            asyncio.run(store.aadd_texts(["b"]))


def test_tasks_reach_both_sides(giga: TwinVecEmbeddings) -> None:
    alike = giga.with_task(Task("Find similar texts", symmetric=True))
    store = TwinVecVectorStore.from_texts(TEXTS, alike, ids=IDS)
    record = store.index.store.get(IDS[:1], with_vectors=True)[0]
    assert record.dense is not None
    np.testing.assert_allclose(record.dense.tolist(), alike.embed_documents(TEXTS[:1])[0], atol=1e-5)
    ((best, score),) = store.similarity_search_with_score(TEXTS[0], k=1, mode="dense")
    assert best.id == IDS[0]
    assert score == pytest.approx(1, abs=1e-4)
    with pytest.raises(StoreMismatchError, match="Find similar texts"):  # its documents have another prompt
        HybridIndex(giga.embedder, store.index.store)
    index = HybridIndex(giga.embedder, store.index.store, task=alike.task)
    task = "Given a question, find a paragraph with the answer"
    assert ids_of(store.similarity_search(TEXTS[0], 12, task=task)) == [
        r.record.id for r in index.search(TEXTS[0], task=task, k=12)
    ]


def test_models_with_one_half_only(bert_folder: str, tmp_path: Path) -> None:
    for embeddings in (
        TwinVecEmbeddings(model=bert_folder, dtype="float32"),
        TwinVecEmbeddings(model=str(build_splade(tmp_path)), dtype="float32"),
    ):
        store = TwinVecVectorStore.from_texts(TEXTS, embeddings, ids=IDS)
        assert len(store.similarity_search("sort files", k=2)) == 2
        with pytest.raises(ConfigurationError, match=r"needs (dense|sparse) vectors"):
            TwinVecVectorStore(embeddings, mode="hybrid")
        embeddings.embedder.close()


def test_indexing_with_a_record_manager(store: TwinVecVectorStore, gte: TwinVecEmbeddings) -> None:
    manager = InMemoryRecordManager("twinvec")
    manager.create_schema()
    options: dict[str, Any] = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}
    documents = [Document(page_content=f"indexed {i}", metadata={"source": f"{i}.md"}) for i in range(5)]

    assert index(documents, manager, store, **options)["num_added"] == 5
    before = gte.embedder.stats()["texts"]
    assert index(documents, manager, store, **options)["num_skipped"] == 5
    assert gte.embedder.stats()["texts"] == before
    changed = [*documents[:3], Document(page_content="indexed anew", metadata={"source": "3.md"})]
    counts = index(changed, manager, store, **options)
    assert (counts["num_added"], counts["num_skipped"], counts["num_deleted"]) == (1, 3, 2)
    assert store.index.store.count() == 4
    assert store.similarity_search("indexed anew", k=1)[0].page_content == "indexed anew"

    counts = asyncio.run(aindex(changed[:1], manager, store, **options))
    assert (counts["num_skipped"], counts["num_deleted"]) == (1, 3)
    assert store.index.store.count() == 1


def test_the_event_loop_goes_on_while_a_store_adds_and_searches(store: TwinVecVectorStore, gate: Gate) -> None:
    async def main() -> list[Document]:
        adding = asyncio.create_task(store.aadd_texts([f"added slowly {i}" for i in range(9)]))
        assert await turns_while_held(gate, adding) >= 100
        await adding
        gate.entered.clear()
        gate.open.clear()
        searching = asyncio.create_task(store.asimilarity_search("searched slowly"))
        assert await turns_while_held(gate, searching) >= 100
        return await searching

    assert len(asyncio.run(main())) == 4


def test_a_cancelled_search_frees_its_work(store: TwinVecVectorStore, gate: Gate) -> None:
    gate.open.set()
    store.add_texts(["something to find"])
    gate.open.clear()
    gate.entered.clear()
    done = len(gate.batches)

    async def main() -> None:
        held = asyncio.create_task(store.asimilarity_search("held in the device too"))
        await asyncio.to_thread(gate.entered.wait, 60)
        waiting = asyncio.create_task(store.asimilarity_search("never searched"))
        while not store.index.embedder.stats()["queued"]:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.open.set()
        assert len(await held) == 1

    asyncio.run(main())
    assert gate.batches[done:] == [1]
