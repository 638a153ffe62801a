"""Failures in every stage: the run ends with that error, no thread stays, and the next run finishes the work."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stores_ingest.conftest import Lines
from stores_ingest.holding import assert_equal, texts
from twinvec import Embedder, EmbeddingBatch
from twinvec.errors import (
    ConfigurationError,
    DeviceLostError,
    IngestError,
    InvalidRecordError,
    NonFiniteError,
    OutOfMemoryError,
    StoreEngineError,
    TextError,
)
from twinvec_stores import HybridStore, MemoryStore
from twinvec_stores.ingestion import Document, aingest, ingest, sources
from twinvec_stores.ingestion.readers import Reading

ROWS = [Document(str(i), f"the capital {i}") for i in range(100)]
Failing = Callable[[Any, str, BaseException, int], None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Let a method raise at its n-th call (from 0), until the test calls it again with -1."""

    def fail(owner: Any, name: str, error: BaseException, at: int) -> None:
        original, calls = getattr(owner, name), 0

        def method(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at + 1:
                raise error
            return original(*args, **options)

        monkeypatch.setattr(owner, name, method)

    return fail


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where a shell started these tests in the background, with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_main() -> None:
    """Press Ctrl-C: the signal reaches the main thread even where it waits for a lock."""
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGINT)


def check_the_next_run(embedder: Embedder, store: HybridStore) -> None:
    """Whatever is there now, the same call completes it."""
    stored = store.count()
    report = ingest(ROWS, embedder, store, batch_size=10)
    assert (report.new, report.unchanged) == (100 - stored, stored)
    clean = MemoryStore(store.config)
    ingest(ROWS, embedder, clean)
    assert_equal(store, clean)


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("upsert", StoreEngineError("no space")),
        ("get", StoreEngineError("no answer")),
        ("upsert", KeyboardInterrupt()),
        ("upsert", InvalidRecordError("harmful")),
    ],
)
def test_the_store_fails(
    embedder: Embedder, store: HybridStore, monkeypatch: pytest.MonkeyPatch, failing: Failing, method: str,
    error: BaseException, at: int,
) -> None:  # fmt: skip
    failing(store, method, error, at)
    with pytest.raises(type(error)):
        ingest(ROWS, embedder, store, batch_size=10)
    monkeypatch.undo()
    assert store.count() == 10 * at
    check_the_next_run(embedder, store)


def test_flushing_fails(
    embedder: Embedder, store: HybridStore, monkeypatch: pytest.MonkeyPatch, failing: Failing
) -> None:
    failing(store, "flush", StoreEngineError("no space"), 0)
    with pytest.raises(StoreEngineError, match="no space"):
        ingest(ROWS, embedder, store, batch_size=10)
    monkeypatch.undo()
    assert store.count() == 100
    check_the_next_run(embedder, store)


@pytest.mark.parametrize("error", [DeviceLostError("gone"), RuntimeError("a defect"), NonFiniteError("names no text")])
def test_the_embedder_fails(
    embedder: Embedder, store: HybridStore, monkeypatch: pytest.MonkeyPatch, failing: Failing, error: Exception
) -> None:
    failing(embedder, "aembed_documents", error, 4)
    with pytest.raises(type(error)):
        ingest(ROWS, embedder, store, batch_size=10)
    monkeypatch.undo()
    assert store.count() == 40
    check_the_next_run(embedder, store)


def test_the_embedder_is_closed(gte_folder: Path, memory: MemoryStore) -> None:
    with Embedder(gte_folder, dtype="float32") as other:

        def items() -> Iterator[Document]:
            yield from ROWS[:50]
            other.close()
            yield from ROWS[50:]

        with pytest.raises(ConfigurationError, match="closed"):
            ingest(items(), other, memory, batch_size=10)
    assert memory.count() <= 50


@pytest.mark.parametrize("error", [ValueError("the caller's own"), KeyboardInterrupt(), OSError("gone")])
def test_the_source_fails(embedder: Embedder, store: HybridStore, error: BaseException) -> None:
    def items() -> Iterator[Document]:
        yield from ROWS[:57]
        raise error

    with pytest.raises(type(error)) as caught:
        ingest(items(), embedder, store, batch_size=10, prune=True)
    assert caught.value is error
    # whoever interrupts does not want to wait for what is on its way
    assert store.count() == (50 if isinstance(error, Exception) else 30)
    check_the_next_run(embedder, store)


def test_a_file_that_cannot_be_read_further(
    embedder: Embedder, memory: MemoryStore, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines("rows.jsonl", [{"id": document.id, "text": document.text} for document in ROWS])
    source = sources.open_source(path, Reading({}))

    def rows() -> Any:
        for number, row in enumerate(source.rows()):
            if number == 57:
                raise OSError(5, "Input/output error", str(path))
            yield row

    monkeypatch.setattr(sources, "_open", lambda *_: sources._File(rows, path.stat().st_size))
    with pytest.raises(IngestError, match=r"rows\.jsonl cannot be read further: .*Input/output error"):
        ingest(path, embedder, memory, batch_size=10)
    monkeypatch.undo()
    check_the_next_run(embedder, memory)


@pytest.mark.parametrize("error", [OutOfMemoryError, NonFiniteError])
@pytest.mark.parametrize("chunk", [None, 20])
def test_one_text_that_the_model_cannot_take(
    embedder: Embedder, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, error: type[TextError], chunk: int | None
) -> None:
    original = embedder.aembed_documents

    async def embed(texts: Any) -> EmbeddingBatch:
        given = list(texts)
        for i, text in enumerate(given):
            if "poison" in text:
                raise error("alone does not fit", position=i)
        return await original(given)

    monkeypatch.setattr(embedder, "aembed_documents", embed)
    rows = [Document(str(i), "the capital " * 20 + ("poison" if i % 7 == 3 else "x")) for i in range(60)]
    report = ingest(rows, embedder, memory, chunk_tokens=chunk)
    assert (report.new, report.failed) == (51, 9)
    assert {failure.id for failure in report.failures} == {str(i) for i in range(60) if i % 7 == 3}
    reasons = {failure.reason for failure in report.failures}
    assert reasons == {"the text alone does not fit" if chunk is None else "chunk 2 alone does not fit"}
    assert len({id.split("#")[0] for id in texts(memory)}) == 51


def test_a_vector_of_zeros_fails_alone(
    embedder: Embedder, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = embedder.aembed_documents

    async def embed(texts: Any) -> EmbeddingBatch:
        batch = await original(texts)
        assert batch.dense is not None
        dense = batch.dense.copy()
        dense[3] = 0
        return EmbeddingBatch(dense, batch.sparse, batch.token_counts, np.zeros(len(batch), np.bool_))

    monkeypatch.setattr(embedder, "aembed_documents", embed)
    report = ingest(ROWS[:10], embedder, memory)
    assert [(f.id, f.reason) for f in report.failures] == [("3", "the model returned a vector of zeros")]
    monkeypatch.undo()
    clean = MemoryStore(memory.config)
    ingest([row for row in ROWS[:10] if row.id != "3"], embedder, clean)
    assert_equal(memory, clean)


def test_interrupted_while_it_writes(embedder: Embedder, store: HybridStore, monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.upsert

    def upsert(batch: Any) -> None:
        original(batch)
        if store.count() >= 30:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(store, "upsert", upsert)
    with pytest.raises(KeyboardInterrupt):
        ingest(ROWS, embedder, store, batch_size=10)
    monkeypatch.undo()
    assert store.count() == 30
    check_the_next_run(embedder, store)


@pytest.fixture
def stuck(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """From its fourth call on the embedder never answers; the event is set then."""
    original, reached, calls = embedder.aembed_documents, threading.Event(), 0

    async def embed(texts: Any) -> EmbeddingBatch:
        nonlocal calls
        calls += 1
        if calls < 4:
            return await original(texts)
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(embedder, "aembed_documents", embed)
    yield reached
    monkeypatch.undo()


def test_interrupted_while_it_waits_for_the_embedder(
    embedder: Embedder, memory: MemoryStore, stuck: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def items() -> Iterator[Document]:
        yield from ROWS[:50]
        stuck.wait()
        interrupt_main()
        yield from ROWS[50:]

    with pytest.raises(KeyboardInterrupt):
        ingest(items(), embedder, memory, batch_size=10)
    monkeypatch.undo()
    check_the_next_run(embedder, memory)


async def test_cancelled_while_it_waits_for_the_embedder(
    embedder: Embedder, memory: MemoryStore, stuck: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = asyncio.create_task(aingest(ROWS, embedder, memory, batch_size=10))
    await asyncio.to_thread(stuck.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert memory.count() <= 30
    check_the_next_run(embedder, memory)


def test_interrupted_while_it_waits_for_the_source(embedder: Embedder, memory: MemoryStore) -> None:
    closed = threading.Event()

    def items() -> Iterator[Document]:
        try:
            yield from ROWS[:57]
            interrupt_main()
            while True:
                yield Document("again", "and again")
        finally:
            closed.set()

    with pytest.raises(KeyboardInterrupt):
        ingest(items(), embedder, memory, batch_size=10)
    assert closed.is_set()
    memory.delete(["again"])
    check_the_next_run(embedder, memory)
