"""TwinVecEmbedding: roles and prompts, batches, async, events, what it refuses."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import TextNode
from llama_index_instrumentation import get_dispatcher
from pydantic import ValidationError

from llama_index_.conftest import Gate, Recorder, passes_of_64
from llama_index_.counting import Counter
from llama_index_twinvec import TwinVecEmbedding
from reference.sentence_layouts import build_splade
from support import TEXTS, dense_of
from twinvec import BaseEmbedder, Embedder, Task
from twinvec.errors import ConfigurationError, PromptError, TextTooLongError

TASK = "Given a question, find a paragraph with the answer"
SYMMETRIC = Task("Retrieve semantically similar text", symmetric=True)


def raw(embedder: BaseEmbedder, text: str) -> list[float]:
    """Return the vector of a text that the model sees as it stands."""
    row: list[float] = dense_of(embedder.embed_documents([text], prompt="", sparse=False))[0].tolist()
    return row


def close(one: list[float], other: list[float]) -> None:
    np.testing.assert_allclose(one, other, atol=1e-6)


# --- roles and prompts


def test_the_vectors_are_the_embedders(embedding: TwinVecEmbedding, gte: Embedder) -> None:
    assert isinstance(embedding, BaseEmbedding)
    np.testing.assert_allclose(
        embedding.get_text_embedding_batch(TEXTS), dense_of(gte.embed_documents(TEXTS)), atol=1e-6
    )
    close(embedding.get_query_embedding("hello"), dense_of(gte.embed_queries(["hello"]))[0].tolist())
    row = embedding.get_text_embedding("hello")
    assert type(row) is list
    assert {type(value) for value in row} == {float}
    assert len(row) == embedding.dim == 64


@pytest.mark.parametrize("text", ["hello", "  two  spaces around ", "def f(x):\n\treturn x\n", ""])
def test_queries_get_the_instruction_byte_for_byte_and_documents_stay_raw(giga: Embedder, text: str) -> None:
    embedding = TwinVecEmbedding(embedder=giga, task=TASK)
    close(embedding.get_query_embedding(text), raw(giga, f"Instruct: {TASK}\nQuery: {text}"))
    close(embedding.get_text_embedding(text), raw(giga, text))


def test_a_symmetric_task_wraps_documents_too(giga: Embedder) -> None:
    embedding = TwinVecEmbedding(embedder=giga, task=SYMMETRIC)
    seen = raw(giga, f"Instruct: {SYMMETRIC.instruction}\nQuery: a text")
    close(embedding.get_query_embedding("a text"), seen)
    close(embedding.get_text_embedding("a text"), seen)


def test_the_checkpoints_own_prompts_are_kept(e5_folder: str) -> None:
    embedding = TwinVecEmbedding(model_name=e5_folder, dtype="float32")
    close(embedding.get_query_embedding("hello"), raw(embedding.embedder, "query: hello"))
    close(embedding.get_text_embedding("hello"), raw(embedding.embedder, "passage: hello"))


def test_a_node_is_embedded_with_its_metadata(embedding: TwinVecEmbedding, gte: Embedder) -> None:
    (node,) = embedding([TextNode(text="a text", metadata={"title": "T"})])
    assert node.embedding is not None
    close(node.embedding, raw(gte, "title: T\n\na text"))


# --- batches and async


def test_hundreds_of_texts_are_one_batch(own: TwinVecEmbedding) -> None:
    texts = [f"text number {i}" for i in range(200)]
    counter = Counter(own.embedder)
    own.get_text_embedding_batch(texts)
    assert own.embed_batch_size == 256
    assert counter.texts == 200
    assert counter.forwards <= 4  # by the token budget; LlamaIndex's own default would make 20


def test_the_base_class_bound_of_batches_is_kept(gte: Embedder) -> None:
    assert TwinVecEmbedding(embedder=gte, embed_batch_size=2048).embed_batch_size == 2048
    for size in (0, 2049):
        with pytest.raises(ValidationError):
            TwinVecEmbedding(embedder=gte, embed_batch_size=size)


def test_concurrent_queries_share_forward_passes(embedding: TwinVecEmbedding, gate: Gate) -> None:
    assert asyncio.run(passes_of_64(gate, embedding.embedder, embedding.aget_query_embedding)) <= 3


@pytest.mark.parametrize("num_workers", [None, 1, 2])
def test_async_batches_with_and_without_workers(gte: Embedder, num_workers: int | None) -> None:
    async def run() -> None:
        embedding = TwinVecEmbedding(embedder=gte, num_workers=num_workers, embed_batch_size=4)
        rows = await embedding.aget_text_embedding_batch(TEXTS)
        np.testing.assert_allclose(rows, dense_of(gte.embed_documents(TEXTS)), atol=1e-6)
        close(await embedding.aget_text_embedding("a"), embedding.get_text_embedding("a"))

    asyncio.run(run())


def test_workers_that_cannot_be_are_refused(gte: Embedder) -> None:
    with pytest.raises(ValidationError, match="num_workers"):
        TwinVecEmbedding(embedder=gte, num_workers=0)


def test_the_event_loop_goes_on_meanwhile(embedding: TwinVecEmbedding, gate: Gate) -> None:
    async def run() -> None:
        nodes = [TextNode(text=f"never seen before {i}") for i in range(3)]
        work = asyncio.gather(embedding.aget_query_embedding("never asked before"), embedding.acall(nodes))
        assert await asyncio.to_thread(gate.entered.wait, 60)
        gate.open.set()  # only a loop that is not blocked comes here
        row, embedded = await work
        assert len(row) == 64
        assert all(node.embedding for node in embedded)

    asyncio.run(run())


def test_sync_methods_work_inside_a_running_loop(embedding: TwinVecEmbedding) -> None:
    async def run() -> None:
        assert embedding.get_query_embedding("hello") == await embedding.aget_query_embedding("hello")
        assert len(embedding.get_text_embedding_batch(["a", "b"])) == 2

    asyncio.run(run())


def test_a_cancelled_caller_does_not_hurt_the_others(embedding: TwinVecEmbedding, gate: Gate) -> None:
    async def run() -> None:
        given_up = asyncio.create_task(embedding.aget_query_embedding("a question that is given up"))
        other = asyncio.create_task(embedding.aget_query_embedding("another question"))
        assert await asyncio.to_thread(gate.entered.wait, 60)
        given_up.cancel()
        gate.open.set()
        assert len(await other) == 64
        with pytest.raises(asyncio.CancelledError):
            await given_up

    asyncio.run(run())


# --- events and callbacks


def test_events_callbacks_and_spans_are_the_base_classs(gte: Embedder, recorder: Recorder) -> None:
    debug, spans = LlamaDebugHandler(print_trace_on_end=False), SimpleSpanHandler()
    embedding = TwinVecEmbedding(embedder=gte, callback_manager=CallbackManager([debug]), embed_batch_size=2)
    get_dispatcher().add_span_handler(spans)
    try:
        query = embedding.get_query_embedding("a question")
        rows = embedding.get_text_embedding_batch(["a", "b", "c"])
    finally:
        get_dispatcher().span_handlers.remove(spans)
    assert recorder.names() == ["EmbeddingStartEvent", "EmbeddingEndEvent"] * 3
    assert recorder.events[0].model_dict["model_name"] == embedding.model_name
    assert [event.chunks for event in recorder.events[1::2]] == [["a question"], ["a", "b"], ["c"]]
    assert [event.embeddings for event in recorder.events[1::2]] == [[query], rows[:2], rows[2:]]
    pairs = debug.get_event_pairs(CBEventType.EMBEDDING)
    assert [(end.payload or {})[EventPayload.CHUNKS] for _, end in pairs] == [["a question"], ["a", "b"], ["c"]]
    named = [span.id_.split("-")[0] for span in spans.completed_spans]
    assert sorted(named) == [
        "TwinVecEmbedding._get_query_embedding",
        "TwinVecEmbedding.get_query_embedding",
        "TwinVecEmbedding.get_text_embedding_batch",
    ]


def test_async_calls_give_the_same_events(embedding: TwinVecEmbedding, recorder: Recorder) -> None:
    async def run() -> None:
        await embedding.aget_query_embedding("a question")
        await embedding.aget_text_embedding_batch(["a", "b"])
        assert recorder.names() == ["EmbeddingStartEvent", "EmbeddingEndEvent"] * 2
        assert recorder.events[3].chunks == ["a", "b"]

    asyncio.run(run())


# --- what is refused, and what is shown


def test_unknown_arguments_fail(gte_folder: str) -> None:
    with pytest.raises(TypeError, match="query_instruction"):
        TwinVecEmbedding(model_name=gte_folder, query_instruction="Query: ")  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match=r"model_name= or embedder="):
        TwinVecEmbedding()


def test_an_embedder_has_said_its_options_already(gte: Embedder) -> None:
    with pytest.raises(ConfigurationError, match="dim, device: already determined"):
        TwinVecEmbedding(embedder=gte, dim=32, device="cpu")
    with pytest.raises(ConfigurationError, match=r"must be a twinvec\.Embedder"):
        TwinVecEmbedding(embedder="gte")  # type: ignore[arg-type]


def test_a_task_that_the_model_was_not_trained_for_is_refused(gte: Embedder, gte_folder: str) -> None:
    for given in ({"embedder": gte}, {"model_name": gte_folder}):
        with pytest.raises(PromptError, match="not trained with instructions"):
            TwinVecEmbedding(**given, task=TASK)


def test_fewer_dims_only_from_models_trained_for_them(gte_folder: str, giga_folder: str) -> None:
    embedding = TwinVecEmbedding(model_name=gte_folder, dim=32, dtype="float32")
    assert (len(embedding.get_text_embedding("a")), embedding.dim) == (32, 32)
    with pytest.raises(ConfigurationError, match="Matryoshka"):
        TwinVecEmbedding(model_name=giga_folder, dim=32)


def test_a_model_without_a_dense_half_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match="has no dense half"):
        TwinVecEmbedding(model_name=str(build_splade(tmp_path)))


def test_options_reach_the_embedder(gte_folder: str) -> None:
    embedding = TwinVecEmbedding(model_name=gte_folder, max_length=8, on_overflow="error", dtype="float32")
    assert embedding.max_length == 8
    with pytest.raises(TextTooLongError):
        embedding.get_text_embedding("far more than eight tokens in one text, for sure")


def test_options_stay_as_they_are(embedding: TwinVecEmbedding) -> None:
    for name in ("dim", "task", "model_name", "embedder"):
        with pytest.raises(ConfigurationError, match="create another"):
            setattr(embedding, name, None)
    embedding.embed_batch_size = 10
    assert embedding.embed_batch_size == 10


def test_secrets_are_neither_kept_nor_shown(gte_folder: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        embedding = TwinVecEmbedding(model_name=gte_folder, token="hf_secret", dtype="float32")
        shown = [repr(embedding), str(embedding), embedding.to_json(), str(embedding.to_payload()), caplog.text]
    assert embedding.token is None
    assert not any("hf_secret" in text for text in shown)
    assert embedding.to_payload()["class_name"] == embedding.class_name() == "TwinVecEmbedding"
