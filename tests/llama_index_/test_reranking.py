"""TwinVecRerank behind LlamaIndex's interface, its events, and the retriever's third stage."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from llama_index_ import conftest
from llama_index_twinvec import HybridRetriever, TwinVecRerank, TwinVecVectorStore
from reference.rerankers import build_cross_encoder, reference_cross_encoder
from twinvec import Reranker
from twinvec.errors import ConfigurationError

QUERY = "what is the capital of china"
TEXTS = ["北京", "the capital of russia is moscow", "quick sort in python", "gravity", "столица", "a query", "china"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cross_encoder(tmp_path_factory.mktemp("reranker"), "bert")


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Iterator[Reranker]:
    with Reranker(folder, dtype="float32") as made:
        yield made


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str, float]:
    scores = reference_cross_encoder(folder)([(QUERY, text) for text in TEXTS])
    return dict(sorted(zip(TEXTS, scores.tolist(), strict=True), key=lambda item: -item[1]))


def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text, id_=f"n{i}"), score=i / 10) for i, text in enumerate(TEXTS)]


def texts(found: list[NodeWithScore]) -> list[str]:
    return [each.node.get_content() for each in found]


def test_the_best_nodes_with_their_scores(reranker: Reranker, wanted: dict[str, float]) -> None:
    made, given = TwinVecRerank(reranker=reranker, top_n=3), nodes()
    found = made.postprocess_nodes(given, query_str=QUERY)
    assert texts(found) == list(wanted)[:3]
    assert [each.score for each in found] == pytest.approx(list(wanted.values())[:3], abs=1e-4)
    assert given == nodes(), "the given ones stay as they are"
    assert asyncio.run(made.apostprocess_nodes(given, query_bundle=QueryBundle(QUERY))) == found
    kept = TwinVecRerank(reranker=reranker, top_n=1, keep_retrieval_score=True).postprocess_nodes(
        given, query_str=QUERY
    )
    assert kept[0].node.metadata["retrieval_score"] == given[TEXTS.index(next(iter(wanted)))].score
    least = list(wanted.values())[2] - 1e-3
    assert (
        len(TwinVecRerank(reranker=reranker, top_n=7, min_score=least).postprocess_nodes(given, query_str=QUERY)) == 3
    )
    assert made.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(ConfigurationError, match="query"):
        made.postprocess_nodes(given)


def test_events(reranker: Reranker, recorder: conftest.Recorder) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    made = TwinVecRerank(reranker=reranker, top_n=2, callback_manager=CallbackManager([debug]))
    found = made.postprocess_nodes(nodes(), query_str=QUERY)
    assert recorder.names() == ["ReRankStartEvent", "ReRankEndEvent"]
    start, end = recorder.events
    assert (start.top_n, start.model_name, len(start.nodes)) == (2, reranker.spec.model, len(TEXTS))
    assert end.nodes == found
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 1


def test_written_down_and_read_again(folder: Path) -> None:
    made = TwinVecRerank(model_name=str(folder), top_n=2)
    again = TwinVecRerank.from_dict(made.to_dict())
    assert isinstance(again, BaseNodePostprocessor)
    assert again.postprocess_nodes(nodes(), query_str=QUERY) == made.postprocess_nodes(nodes(), query_str=QUERY)
    with pytest.raises(ConfigurationError, match="model_name="):
        TwinVecRerank()
    with pytest.raises(ValueError, match="top"):
        TwinVecRerank(model_name=str(folder), top=2)


class Last(TwinVecRerank):
    """A user's own order."""

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
        return nodes[-1:]


def test_a_subclass_is_heard(reranker: Reranker) -> None:
    last = Last(reranker=reranker)
    assert texts(last.postprocess_nodes(nodes(), query_str=QUERY)) == TEXTS[-1:]
    assert texts(asyncio.run(last.apostprocess_nodes(nodes(), query_str=QUERY))) == TEXTS[-1:]


def test_the_retriever_has_a_third_stage(
    store: TwinVecVectorStore, reranker: Reranker, wanted: dict[str, float]
) -> None:
    embedding = store.embedding
    store.add([TextNode(text=text, embedding=embedding.get_text_embedding(text)) for text in TEXTS])
    retriever = HybridRetriever(store, similarity_top_k=3, rerank=reranker, rerank_k=7)
    found = retriever.retrieve(QUERY)
    assert texts(found) == list(wanted)[:3]
    assert [each.score for each in found] == pytest.approx(list(wanted.values())[:3], abs=1e-4)
    assert texts(asyncio.run(retriever.aretrieve(QUERY))) == list(wanted)[:3]
