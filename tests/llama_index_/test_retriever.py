"""HybridRetriever: nodes with reasons, alone and inside of LlamaIndex's engines."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.postprocessor import LongContextReorder, MetadataReplacementPostProcessor, SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine, TransformQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llama_index_.conftest import Gate, Recorder, passes_of_64
from llama_index_.counting import Counter
from llama_index_twinvec import ExplainedNode, HybridRetriever, TwinVecEmbedding, TwinVecVectorStore
from llama_index_twinvec.filters import from_llama_index
from support import dense_of, sparse_of
from twinvec import Embedder
from twinvec.errors import ConfigurationError, FilterError, PromptError
from twinvec_stores import Fusion, HybridIndex, MemoryStore, Record, RecordBatch, StoreConfig

TEXTS = [f"number {i} about {'sorting lists' if i % 2 else 'the capital of Russia'}" for i in range(12)]
QUERY = "the capital number 7"


@pytest.fixture
def filled(store: TwinVecVectorStore) -> TwinVecVectorStore:
    store.add([TextNode(id_=f"n{i:02}", text=text, metadata={"n": i}) for i, text in enumerate(TEXTS)])
    return store


def ids(found: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in found]


# --- nodes with reasons


def test_it_finds_what_the_index_finds_and_says_why(filled: TwinVecVectorStore, gte: Embedder) -> None:
    retriever = HybridRetriever(filled, similarity_top_k=5)
    assert isinstance(retriever, BaseRetriever)
    found = retriever.retrieve(QUERY)
    expected = filled.index.search(QUERY, k=5, fusion=filled.fusion, explain=True)
    assert ids(found) == [result.record.id for result in expected]
    assert [node.score for node in found] == pytest.approx([result.score for result in expected])
    for node, result in zip(found, expected, strict=True):
        assert isinstance(node, ExplainedNode)
        assert result.explanation is not None
        why = node.metadata["_twinvec"]
        assert why == node.explanation
        assert set(why) == {"dense_score", "sparse_score", "dense_rank", "sparse_rank", "terms"}
        document = gte.embed_documents([node.node.get_content(MetadataMode.EMBED)])
        query = gte.embed_queries([QUERY])
        assert why["dense_score"] == pytest.approx(float(dense_of(query)[0] @ dense_of(document)[0]), abs=1e-5)
        assert why["sparse_score"] == pytest.approx(float(sparse_of(query).similarity(sparse_of(document))[0, 0]))
        assert sum(a * b for _, a, b in why["terms"]) == pytest.approx(why["sparse_score"], rel=1e-4)
    assert asyncio.run(retriever.aretrieve(QUERY)) == found


def test_reasons_stay_out_of_nodes_hashes_and_prompts(filled: TwinVecVectorStore) -> None:
    (found, *_) = HybridRetriever(filled).retrieve(QUERY)
    (plain, *_) = HybridRetriever(filled, explain=False).retrieve(QUERY)
    assert type(plain) is NodeWithScore
    assert found.node == plain.node
    assert found.node.hash == plain.node.hash
    assert found.metadata["n"] == found.node.metadata["n"]
    assert "_twinvec" not in found.node.metadata
    for mode in MetadataMode:
        assert found.get_content(mode) == plain.get_content(mode)


@pytest.mark.parametrize("through_async", [False, True])
def test_a_query_is_one_forward_pass(own: TwinVecEmbedding, through_async: bool) -> None:
    with TwinVecVectorStore(own) as store:
        store.add([TextNode(text=text) for text in TEXTS])
        retriever, counter = HybridRetriever(store), Counter(own.embedder)
        found = asyncio.run(retriever.aretrieve(QUERY)) if through_async else retriever.retrieve(QUERY)
        assert len(found) == 10
        assert counter.texts == 1


def test_concurrent_queries_share_forward_passes(filled: TwinVecVectorStore, gate: Gate) -> None:
    retriever = HybridRetriever(filled)
    assert asyncio.run(passes_of_64(gate, filled.index.embedder, retriever.aretrieve)) <= 3


def test_concurrent_queries_of_an_index_share_forward_passes(filled: TwinVecVectorStore, gate: Gate) -> None:
    """Dense by the index, then sparse by the store: still one pass for both."""
    index = VectorStoreIndex.from_vector_store(filled, embed_model=filled.embedding)
    retriever = index.as_retriever(vector_store_query_mode="hybrid")
    assert asyncio.run(passes_of_64(gate, filled.index.embedder, retriever.aretrieve)) <= 3


def test_the_event_loop_goes_on_meanwhile(filled: TwinVecVectorStore, gate: Gate) -> None:
    async def run() -> None:
        work = asyncio.create_task(HybridRetriever(filled).aretrieve("a question that nobody has retrieved before"))
        assert await asyncio.to_thread(gate.entered.wait, 60)
        gate.open.set()
        assert await work

    asyncio.run(run())


def test_search_options_and_filters(filled: TwinVecVectorStore) -> None:
    odd = MetadataFilters(filters=[MetadataFilter.from_dict({"key": "n", "value": 6, "operator": ">="})])
    tried: tuple[dict[str, Any], ...] = (
        {"mode": "dense"},
        {"mode": "sparse"},
        {"fusion": "rrf"},
        {"fusion": Fusion("weighted", 1.0, 0.3)},
        {"mmr": 0.3, "mode": "dense"},
        {"score_threshold": 0.6},
        {"fetch_k": 20, "exact": True},
    )
    for options in tried:
        made = HybridRetriever(filled, similarity_top_k=4, filters=odd, explain=False, **options)
        given: Any = {"k": 4, "fusion": filled.fusion, "filter": from_llama_index(odd), **options}
        expected = filled.index.search(QUERY, **given)
        assert ids(made.retrieve(QUERY)) == [result.record.id for result in expected]
        assert all(node.node.metadata["n"] >= 6 for node in made.retrieve(QUERY))


def test_a_bundle_may_bring_its_vector_or_other_texts_for_it(filled: TwinVecVectorStore, gte: Embedder) -> None:
    vector = dense_of(gte.embed_queries(["sorting lists"]))
    sparse = gte.embed_queries([QUERY]).sparse
    given = QueryBundle(QUERY, embedding=vector[0].tolist())
    for options in ({}, {"mode": "dense"}, {"mode": "sparse"}):
        retriever = HybridRetriever(filled, explain=False, **options)  # type: ignore[arg-type]
        halves = {
            "dense": None if options.get("mode") == "sparse" else vector,
            "sparse": None if options.get("mode") == "dense" else sparse,
        }
        (expected,) = filled.index.search_vectors(**halves, fusion=filled.fusion)  # type: ignore[arg-type]
        assert ids(retriever.retrieve(given)) == [result.record.id for result in expected]
        assert ids(asyncio.run(retriever.aretrieve(given))) == ids(retriever.retrieve(given))
    instead = ["a made up answer", "sorting lists in python"]
    mean = dense_of(gte.embed_queries(instead)).mean(axis=0, keepdims=True).astype(np.float32)
    (expected,) = filled.index.search_vectors(mean, sparse, fusion=filled.fusion)
    bundle = QueryBundle(QUERY, custom_embedding_strs=instead)
    assert ids(HybridRetriever(filled).retrieve(bundle)) == [result.record.id for result in expected]


def test_another_task_than_the_embeddings(giga: Embedder) -> None:
    with TwinVecVectorStore(TwinVecEmbedding(embedder=giga, task="One task")) as store:
        store.add([TextNode(id_=str(i), text=text) for i, text in enumerate(TEXTS)])
        own, other = HybridRetriever(store), HybridRetriever(store, task="Another task")
        for retriever, task in ((own, "One task"), (other, "Another task")):
            expected = store.index.search(QUERY, task=task)
            assert [node.score for node in retriever.retrieve(QUERY)] == pytest.approx([r.score for r in expected])


def test_records_that_twinvec_ingested_say_where_they_come_from(gte: Embedder) -> None:
    store = MemoryStore(StoreConfig.for_embedder(gte))
    HybridIndex(gte, store).add(["a text of a file"], ids=["x"], metadata=[{"year": 2024}])
    batch = store.get(["x"], with_vectors=True)
    (record,) = batch
    origin = {"source": "a.txt", "part": 0}
    store.upsert(RecordBatch.of([Record("x", record.text, record.metadata, origin, record.dense, record.sparse)]))
    (found,) = HybridRetriever(TwinVecVectorStore(TwinVecEmbedding(embedder=gte), store=store)).retrieve("text")
    assert found.text == "a text of a file"
    assert found.metadata["_twinvec"]["provenance"] == origin


# --- what is refused


def test_what_cannot_be_honoured_is_refused_at_once(filled: TwinVecVectorStore, giga: Embedder) -> None:
    for options in ({"mode": "text"}, {"similarity_top_k": 0}, {"mmr": 3}, {"fusion": "sum"}):
        with pytest.raises(ConfigurationError):
            HybridRetriever(filled, **options)
    with pytest.raises(ConfigurationError, match="alpha weights both"):
        HybridRetriever(filled, alpha=0.5, mode="dense")
    with pytest.raises(ConfigurationError, match="top_k=: use similarity_top_k= instead"):
        HybridRetriever(filled, top_k=3)
    with pytest.raises(ConfigurationError, match="not str"):
        HybridRetriever("a name")  # type: ignore[arg-type]
    with pytest.raises(PromptError):
        HybridRetriever(filled, task="a task for a model without")
    bad = MetadataFilters(filters=[MetadataFilter.from_dict({"key": "n", "value": "x", "operator": "in"})])
    with pytest.raises(FilterError):
        HybridRetriever(filled, filters=bad)
    with (
        TwinVecVectorStore(TwinVecEmbedding(embedder=giga)) as dense,
        pytest.raises(ConfigurationError, match="sparse"),
    ):
        HybridRetriever(dense, mode="hybrid")


# --- inside of LlamaIndex


@pytest.mark.parametrize("use_async", [False, True])
def test_in_a_query_engine_with_postprocessors(filled: TwinVecVectorStore, use_async: bool) -> None:
    retriever = HybridRetriever(filled, similarity_top_k=6)
    scores = [node.score or 0.0 for node in retriever.retrieve(QUERY)]
    engine = RetrieverQueryEngine.from_args(
        retriever, node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=scores[3]), LongContextReorder()]
    )
    response: Any = asyncio.run(engine.aquery(QUERY)) if use_async else engine.query(QUERY)
    assert len(response.source_nodes) == 4
    assert {"terms", "dense_rank"} <= set(response.source_nodes[0].metadata["_twinvec"])
    assert all(node.text in str(response) for node in response.source_nodes)  # the mock repeats its prompt
    assert "_twinvec" not in str(response)


def test_metadata_replacement_sees_the_nodes_own_metadata(embedding: TwinVecEmbedding) -> None:
    with TwinVecVectorStore(embedding) as store:
        node = TextNode(text="a sentence", metadata={"window": "the sentences around a sentence"})
        node.excluded_embed_metadata_keys = ["window"]
        store.add([node])
        found = HybridRetriever(store).retrieve("a sentence")
        (replaced,) = MetadataReplacementPostProcessor(target_metadata_key="window").postprocess_nodes(found)
        assert replaced.get_content() == "the sentences around a sentence"


@pytest.mark.parametrize("mode", ["reciprocal_rerank", "relative_score", "dist_based_score", "simple"])
@pytest.mark.parametrize("use_async", [False, True])
def test_in_a_fusion_retriever_equal_nodes_merge(filled: TwinVecVectorStore, mode: Any, use_async: bool) -> None:
    halves = [HybridRetriever(filled, mode="dense"), HybridRetriever(filled, mode="sparse")]
    fused = QueryFusionRetriever(list(halves), mode=mode, num_queries=1, similarity_top_k=12, use_async=use_async)
    found = fused.retrieve(QUERY)
    assert len(ids(found)) == len(set(ids(found))) > 10
    assert set(ids(found)) == {*ids(halves[0].retrieve(QUERY)), *ids(halves[1].retrieve(QUERY))}


def test_hyde_embeds_the_made_up_answer(filled: TwinVecVectorStore) -> None:
    engine = RetrieverQueryEngine.from_args(HybridRetriever(filled, similarity_top_k=3))
    response: Any = TransformQueryEngine(engine, HyDEQueryTransform(include_original=True)).query(QUERY)
    assert len(response.source_nodes) == 3


def test_events_and_callbacks(filled: TwinVecVectorStore, recorder: Recorder) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    HybridRetriever(filled, callback_manager=CallbackManager([debug])).retrieve(QUERY)
    events = ["RetrievalStartEvent", "EmbeddingStartEvent", "EmbeddingEndEvent", "RetrievalEndEvent"]
    assert recorder.names() == events
    assert len(recorder.events[-1].nodes) == 10
    assert len(debug.get_event_pairs(CBEventType.RETRIEVE)) == 1
