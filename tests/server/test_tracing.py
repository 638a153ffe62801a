"""Spans by OpenInference's conventions: what was sent, what it cost, what was found, and whose request it was."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from reference.rerankers import build_cross_encoder
from reference.sentence_layouts import build_bge_m3
from server.conftest import Hosts, client_of
from twinvec import Embedder, MaxSim, RemoteEmbedder, Reranker
from twinvec.errors import TextTooLongError, TruncationWarning
from twinvec.server import create_app
from twinvec.text.pairs import join_pair
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig

TEXT = "embedding.embeddings.{}.embedding.text"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def only(spans: InMemorySpanExporter, name: str = "CreateEmbeddings") -> ReadableSpan:
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_the_prompt_really_sent(e5: Embedder, spans: InMemorySpanExporter) -> None:
    e5.embed_queries(["capital of France", "b"])
    seen = attributes(only(spans))
    assert seen["openinference.span.kind"] == "EMBEDDING"
    assert seen["embedding.model_name"] == e5.spec.model
    assert seen[TEXT.format(0)] == "query: capital of France"
    assert seen[TEXT.format(1)] == "query: b"
    assert json.loads(seen["input.value"]) == ["capital of France", "b"]
    ids = [e5.tokenizer.encode([f"query: {text}"], "", 512)[0].ids for text in ("capital of France", "b")]
    assert seen["llm.token_count.prompt"] == seen["llm.token_count.total"] == sum(map(len, ids))
    assert seen["twinvec.truncated"] == 0


def test_an_async_call_says_the_same(e5: Embedder, spans: InMemorySpanExporter) -> None:
    e5.embed_documents(["one", "two"])
    asyncio.run(e5.aembed_documents(["one", "two"]))
    one, other = map(attributes, spans.get_finished_spans())
    costs = {f"twinvec.{name}" for name in ("wait_seconds", "compute_seconds", "memo_hits")}
    assert {k: v for k, v in one.items() if k not in costs} == {k: v for k, v in other.items() if k not in costs}


def test_what_a_call_cost(e5: Embedder, spans: InMemorySpanExporter) -> None:
    texts = [f"a text that nothing else embeds {i}" for i in range(3)]
    e5.embed_documents(texts)
    e5.embed_documents([*texts, "and a new one"])
    e5.embed_documents(texts)
    first, second, third = map(attributes, spans.get_finished_spans())
    assert [seen["twinvec.memo_hits"] for seen in (first, second, third)] == [0, 3, 3]
    assert first["twinvec.compute_seconds"] > 0
    assert first["twinvec.wait_seconds"] >= 0
    assert third["twinvec.compute_seconds"] == 0


def test_truncation_and_errors(e5: Embedder, spans: InMemorySpanExporter) -> None:
    with Embedder(e5.spec.model, dtype="float32", max_length=16) as short, pytest.warns(TruncationWarning):
        short.embed_documents(["word " * 40, "a"])
    assert attributes(only(spans))["twinvec.truncated"] == 1
    spans.clear()
    strict = Embedder(e5.spec.model, dtype="float32", max_length=16, on_overflow="error")
    with strict, pytest.raises(TextTooLongError):
        strict.embed_documents(["word " * 40])
    span = only(spans)
    assert span.status.status_code is trace.StatusCode.ERROR
    assert attributes(span)[TEXT.format(0)].startswith("passage: word")


@pytest.mark.parametrize("name", ["INPUTS", "INPUT_TEXT", "EMBEDDINGS_TEXT", "OUTPUTS", "OUTPUT_TEXT"])
def test_what_is_to_be_hidden_is_in_no_span(
    name: str, giga: Embedder, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"OPENINFERENCE_HIDE_{name}", "true")
    index = HybridIndex(giga, MemoryStore(StoreConfig.for_embedder(giga)))
    index.add(["the private document"], metadata=[{"owner": "private too"}])
    spans.clear()  # what is found is an input there
    assert index.search("the secret question")
    written = "".join(span.to_json() for span in spans.get_finished_spans())
    queries_are_hidden = {"INPUTS": True, "INPUT_TEXT": True}.get(name, False)
    assert ("secret question" in written) != queries_are_hidden
    assert ("private" in written) == (not name.startswith("OUTPUT"))
    asked = attributes(only(spans))
    assert ("secret" in json.dumps(asked)) == name.startswith("OUTPUT")


def test_a_search_and_its_embedding_are_one_trace(giga: Embedder, spans: InMemorySpanExporter) -> None:
    index = HybridIndex(giga, MemoryStore(StoreConfig.for_embedder(giga)))
    index.add(["Paris", "Rome"], ids=["p", "r"], metadata=[{"n": 1}, {"n": 2}])
    searches: list[Callable[..., Any]] = [index.search, lambda query, k: asyncio.run(index.asearch(query, k=k))]
    for search in searches:
        spans.clear()
        results = search("capital", k=2)
        retrieval, embedding = only(spans, "Retrieve"), only(spans)
        assert embedding.parent is not None
        assert embedding.parent.span_id == retrieval.context.span_id
        seen = attributes(retrieval)
        assert (seen["openinference.span.kind"], seen["input.value"]) == ("RETRIEVER", "capital")
        for i, result in enumerate(results):
            at = f"retrieval.documents.{i}.document"
            assert seen[f"{at}.id"] == result.record.id
            assert seen[f"{at}.score"] == result.score
            assert seen[f"{at}.content"] == result.record.text
            assert json.loads(seen[f"{at}.metadata"]) == result.record.metadata
    spans.clear()
    index.search_vectors(giga.embed_queries(["capital"]).dense, k=1)
    seen = attributes(only(spans, "Retrieve"))
    assert (seen["openinference.span.kind"], "input.value" in seen) == ("RETRIEVER", False)
    assert seen["retrieval.documents.0.document.id"] == results[0].record.id


def test_a_ranking_by_kept_vectors_of_tokens_is_recorded(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    with Embedder(build_bge_m3(tmp_path / "bge"), dtype="float32") as bge, MaxSim(bge) as maxsim:
        index = HybridIndex(bge, MemoryStore(StoreConfig.for_embedder(bge, token_pool=1)))
        index.add(["Paris", "Rome"], ids=["p", "r"])
        spans.clear()
        results = index.search("capital?", k=2, rerank=maxsim)
    seen = attributes(only(spans, "Rerank"))
    assert (seen["openinference.span.kind"], seen["reranker.query"]) == ("RERANKER", "capital?")
    for i, result in enumerate(results):
        assert seen[f"reranker.output_documents.{i}.document.content"] == result.record.text
        assert seen[f"reranker.output_documents.{i}.document.score"] == result.score


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reranker]:
    folder = build_cross_encoder(tmp_path_factory.mktemp("reranker"), "bert")
    with Reranker(folder, dtype="float32", max_length=24) as made:
        yield made


@pytest.mark.parametrize("through_async", [False, True])
@pytest.mark.filterwarnings("ignore::twinvec.TruncationWarning")
def test_a_ranking_is_recorded_with_its_order(
    reranker: Reranker, spans: InMemorySpanExporter, through_async: bool
) -> None:
    texts = ["Paris", "Rome is the capital of Italy", "gravity " * 30]
    ranked = asyncio.run(reranker.arerank("capital?", texts)) if through_async else reranker.rerank("capital?", texts)
    seen = attributes(only(spans, "Rerank"))
    assert (seen["openinference.span.kind"], seen["reranker.query"]) == ("RERANKER", "capital?")
    assert seen["reranker.model_name"] == reranker.spec.model
    for i, (text, best) in enumerate(zip(texts, ranked, strict=True)):
        assert seen[f"reranker.input_documents.{i}.document.content"] == text
        assert seen[f"reranker.output_documents.{i}.document.content"] == texts[best.index]
        assert seen[f"reranker.output_documents.{i}.document.score"] == best.score
    encode = reranker._core.model.tokenizer.encode
    assert seen["llm.token_count.prompt"] == sum(
        len(encode([join_pair("capital?", text)], "", 24)[0].ids) for text in texts
    )
    assert (seen["twinvec.truncated"], seen["twinvec.pairs"]) == (1, 3)
    assert {"twinvec.wait_seconds", "twinvec.compute_seconds", "twinvec.memo_hits"} <= seen.keys()


def test_a_ranking_of_many_is_in_its_search(
    giga: Embedder, reranker: Reranker, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = HybridIndex(giga, MemoryStore(StoreConfig.for_embedder(giga)))
    index.add([f"the private document {i}" for i in range(40)])
    spans.clear()
    index.search_many(["a secret", "b"], k=2, rerank=reranker, rerank_k=40)
    span = only(spans, "Rerank")
    assert span.parent is not None
    assert span.parent.span_id == only(spans, "Retrieve").context.span_id
    assert span.dropped_attributes == 0
    assert (attributes(span)["twinvec.pairs"], "reranker.query" in attributes(span)) == (80, False)
    monkeypatch.setenv("OPENINFERENCE_HIDE_INPUT_TEXT", "true")
    monkeypatch.setenv("OPENINFERENCE_HIDE_OUTPUT_TEXT", "true")
    spans.clear()
    assert len(reranker.score([("a secret", "private"), ("another secret", "private too")])) == 2
    assert "secret" not in only(spans, "Rerank").to_json()
    assert "private" not in only(spans, "Rerank").to_json()


def test_many_texts_do_not_push_the_rest_out(e5: Embedder, spans: InMemorySpanExporter) -> None:
    e5.embed_documents([f"text {i}" for i in range(300)])
    span = only(spans)
    assert span.dropped_attributes == 0
    assert attributes(span)["twinvec.texts"] == 300
    assert "llm.token_count.prompt" in attributes(span)


def test_a_request_carries_its_clients_trace(
    connect: Callable[..., RemoteEmbedder], hosts: Hosts, e5: Embedder, spans: InMemorySpanExporter
) -> None:
    remote = connect(e5)
    ways: list[Callable[..., Any]] = [remote.embed_queries, lambda texts: asyncio.run(remote.aembed_queries(texts))]
    for embed in ways:
        spans.clear()
        embed(["who is asking?"])
        served, asked = spans.get_finished_spans()  # in the order of their ends
        assert attributes(served)[TEXT.format(0)] == attributes(asked)[TEXT.format(0)] == "query: who is asking?"
        ids = f"{asked.context.trace_id:032x}-{asked.context.span_id:016x}"
        assert hosts.requests[-1].headers["traceparent"].startswith(f"00-{ids}-")


async def test_the_server_goes_on_with_it(e5: Embedder, spans: InMemorySpanExporter) -> None:
    trace_id, span_id = 0x1234 << 100, 0x5678 << 40
    headers = {"traceparent": f"00-{trace_id:032x}-{span_id:016x}-01"}
    async with client_of(create_app(e5)) as client:
        await client.post("/embed", json={"inputs": "a"}, headers=headers)
        await client.post("/embed", json={"inputs": "b"})
    *traced, other = spans.get_finished_spans()
    assert traced
    for span in traced:
        assert span.parent is not None
        assert (span.context.trace_id, span.parent.span_id) == (trace_id, span_id)
    assert other.parent is None


def test_it_can_be_suppressed_and_carries_the_session(e5: Embedder, spans: InMemorySpanExporter) -> None:
    for key, value in (("suppress_instrumentation", True), ("session.id", "s-1")):
        token = context.attach(context.set_value(key, value))
        try:
            e5.embed_queries(["a"])
        finally:
            context.detach(token)
    assert attributes(only(spans))["session.id"] == "s-1"


def test_opentelemetry_is_not_imported_by_us() -> None:
    code = "import sys, twinvec.server.client, twinvec_stores; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
