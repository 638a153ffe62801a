"""OpenTelemetry's spans beside LlamaIndex's own: each inside of what has caused it, and LlamaIndex's events once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span.base import BaseSpan
from llama_index_instrumentation.span_handlers.base import BaseSpanHandler
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llama_index_.conftest import Recorder
from llama_index_.samples import QUERY, nodes
from llama_index_twinvec import HybridRetriever, TwinVecVectorStore


class Bridge(BaseSpanHandler[BaseSpan]):
    """Opens a span of OpenTelemetry for each of LlamaIndex's, as OpenInference's instrumentor does."""

    def new_span(
        self, id_: str, bound_args: Any, instance: Any = None, parent_span_id: Any = None, tags: Any = None, **more: Any
    ) -> BaseSpan:
        span = trace.get_tracer("llama_index").start_span(id_.rpartition("-")[0].partition("-")[0])
        made = BaseSpan(id_=id_, parent_id=parent_span_id)
        object.__setattr__(made, "_kept", (span, context.attach(trace.set_span_in_context(span))))
        return made

    def prepare_to_exit_span(self, id_: str, *args: Any, **kwargs: Any) -> BaseSpan:
        made = self.open_spans[id_]
        span, token = object.__getattribute__(made, "_kept")
        context.detach(token)
        span.end()
        return made

    def prepare_to_drop_span(self, id_: str, *args: Any, **kwargs: Any) -> BaseSpan:
        return self.prepare_to_exit_span(id_)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider, root, bridge = InMemorySpanExporter(), TracerProvider(), get_dispatcher(), Bridge()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    root.add_span_handler(bridge)
    yield exporter
    root.span_handlers.remove(bridge)


def above(span: ReadableSpan, spans: InMemorySpanExporter) -> list[str]:
    """Return the names of the spans around one, the nearest first."""
    by_id = {each.context.span_id: each for each in spans.get_finished_spans() if each.context is not None}
    names, parent = [], span.parent
    while parent is not None and parent.span_id in by_id:
        names.append(by_id[parent.span_id].name)
        parent = by_id[parent.span_id].parent
    return names


@pytest.mark.parametrize("through_async", [False, True])
@pytest.mark.parametrize("hybrid", [False, True])
def test_spans_are_inside_of_what_has_caused_them(
    store: TwinVecVectorStore, spans: InMemorySpanExporter, recorder: Recorder, hybrid: bool, through_async: bool
) -> None:
    store.add(nodes(8))
    spans.clear()
    recorder.events.clear()
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embedding)
    retriever: Any = HybridRetriever(index) if hybrid else index.as_retriever()
    engine = RetrieverQueryEngine.from_args(retriever)
    asyncio.run(engine.aquery(QUERY)) if through_async else engine.query(QUERY)
    found = {span.name: span for span in reversed(spans.get_finished_spans())}  # the first of each name
    around = above(found["CreateEmbeddings"], spans)
    kind = type(retriever).__name__
    assert around[0].startswith("TwinVecEmbedding.")
    assert any(name.startswith(f"{kind}.") for name in around)
    assert around[-1].startswith("RetrieverQueryEngine.")
    assert above(found["Retrieve"], spans)[0].startswith(f"{kind}.")
    assert (found["CreateEmbeddings"].attributes or {})["twinvec.prompt"] == ""
    names = recorder.names()
    for name in ("RetrievalStartEvent", "EmbeddingStartEvent", "EmbeddingEndEvent", "RetrievalEndEvent"):
        assert names.count(name) == 1, name


@pytest.mark.parametrize("through_async", [False, True])
@pytest.mark.parametrize("mode", ["default", "sparse", "hybrid", "mmr"])
def test_a_query_of_the_store_is_a_retrieval_with_its_documents(
    store: TwinVecVectorStore, spans: InMemorySpanExporter, mode: str, through_async: bool
) -> None:
    store.add(nodes(8))
    spans.clear()
    query = VectorStoreQuery(query_str=QUERY, mode=VectorStoreQueryMode(mode), similarity_top_k=3)
    found = asyncio.run(store.aquery(query)) if through_async else store.query(query)
    (span,) = [span for span in spans.get_finished_spans() if span.name == "Retrieve"]
    seen = dict(span.attributes or {})
    assert (seen["openinference.span.kind"], seen["input.value"]) == ("RETRIEVER", QUERY)
    assert [seen[f"retrieval.documents.{i}.document.id"] for i in range(3)] == found.ids
    assert [seen[f"retrieval.documents.{i}.document.score"] for i in range(3)] == found.similarities
    contents = [node.get_content(MetadataMode.NONE) for node in found.nodes or []]
    assert [seen[f"retrieval.documents.{i}.document.content"] for i in range(3)] == contents
