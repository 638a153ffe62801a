"""TwinVecEmbeddings: the Embedder's vectors as Python floats, prompts by role, async that waits without a thread."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from langchain_.gate import Gate, turns_while_held
from langchain_twinvec import TwinVecEmbeddings
from reference.giga import DEFAULT_QUERY_PROMPT
from reference.sentence_layouts import build_splade
from support import TEXTS, dense_of
from twinvec import Embedder, Task, TruncationWarning
from twinvec.errors import CheckpointNotFoundError, ConfigurationError, InvalidTextError, PromptError, TextTooLongError

TASK = "Given a question, find a paragraph with the answer"


def test_vectors_are_the_embedders_as_python_floats(gte: TwinVecEmbeddings) -> None:
    rows = gte.embed_documents(TEXTS)
    np.testing.assert_array_equal(np.array(rows, np.float32), dense_of(gte.embedder.embed_documents(TEXTS)))
    row = gte.embed_query(TEXTS[1])
    np.testing.assert_array_equal(np.array(row, np.float32), dense_of(gte.embedder.embed_queries([TEXTS[1]]))[0])
    assert {type(value) for value in (*rows[0], *row)} == {float}
    assert gte.embed_documents([]) == []


def test_the_async_twins_give_the_same(gte: TwinVecEmbeddings) -> None:
    texts = [f"{text} {i}" for i in range(30) for text in TEXTS]  # more than one turn of the conversion

    async def both() -> tuple[list[list[float]], list[float], list[list[float]]]:
        return await gte.aembed_documents(texts), await gte.aembed_query("a b"), await gte.aembed_documents([])

    rows, row, nothing = asyncio.run(both())
    np.testing.assert_allclose(rows, gte.embed_documents(texts), atol=1e-5)
    np.testing.assert_allclose(row, gte.embed_query("a b"), atol=1e-5)
    assert nothing == []


def test_queries_get_the_models_prompt_and_documents_do_not(giga: TwinVecEmbeddings) -> None:
    raw = Embedder(giga.embedder.spec, prompts={"query": "", "document": ""})
    prompted = dense_of(raw.embed_documents([DEFAULT_QUERY_PROMPT + "Кто?"]))[0]
    np.testing.assert_allclose(giga.embed_query("Кто?"), prompted, atol=1e-5)
    np.testing.assert_allclose(giga.embed_documents(["Кто?"]), dense_of(raw.embed_documents(["Кто?"])), atol=1e-5)
    raw.close()


def test_a_task_wraps_queries_and_a_symmetric_one_everything(giga: TwinVecEmbeddings) -> None:
    asked = giga.with_task(TASK)
    assert asked.embedder is giga.embedder
    assert (giga.task, asked.task) == (None, TASK)
    np.testing.assert_array_equal(asked.embed_query("q"), dense_of(giga.embedder.embed_queries(["q"], task=TASK))[0])
    assert asked.embed_documents(["q"]) == giga.embed_documents(["q"])
    alike = giga.with_task(Task("Find similar texts", symmetric=True))
    np.testing.assert_allclose(alike.embed_documents(["q"])[0], alike.embed_query("q"), atol=1e-5)
    assert alike.embed_documents(["q"]) != giga.embed_documents(["q"])


def test_the_task_of_the_constructor_is_the_embedders_default_too(giga_folder: str, giga: TwinVecEmbeddings) -> None:
    made = TwinVecEmbeddings(model=giga_folder, dtype="float32", sparse=None, task=TASK)
    assert made.embed_query("q") == dense_of(made.embedder.embed_queries(["q"]))[0].tolist()
    np.testing.assert_allclose(made.embed_query("q"), giga.with_task(TASK).embed_query("q"), atol=1e-5)
    made.embedder.close()


def test_options_reach_the_embedder(gte_folder: str) -> None:
    made = TwinVecEmbeddings(
        model=Path(gte_folder), dtype="float32", device="cpu", dim=32, max_length=8, sparse=None, sparse_keys="ids",
        on_overflow="error", prompts={"query": "q: "}, reproducible=True, token_budget=64,
        quantization="int8",
    )  # fmt: skip
    assert made.model == gte_folder
    assert len(made.embed_query("a")) == 32
    assert made.embedder.prompt_for("query") == "q: "
    spec = made.embedder.spec
    assert (spec.dim, spec.max_length, spec.sparse, spec.sparse_keys, spec.reproducible) == (32, 8, None, "ids", True)
    assert spec.quantization == "int8"
    with pytest.raises(TextTooLongError):
        made.embed_documents(["sort a list of lists of lists in python"])
    made.embedder.close()


def test_the_cache_keeps_vectors_for_the_next_run(own_folder: str, tmp_path: Path) -> None:
    for hits in (0, 1):
        made = TwinVecEmbeddings(model=own_folder, dtype="float32", cache=tmp_path / "cache")
        made.embed_documents(["kept"])
        stats = made.embedder.stats()
        assert (stats["cache_hits"], stats["texts"]) == (hits, 1 - hits)
        made.embedder.close()


def test_truncation_is_reported(gte_folder: str) -> None:
    made = TwinVecEmbeddings(model=gte_folder, dtype="float32", max_length=8)
    with pytest.warns(TruncationWarning, match="cut at 8 tokens"):
        made.embed_documents(["sort a list of lists of lists in python"])
    made.embedder.close()


def test_progress_is_drawn_where_asked_for(gte: TwinVecEmbeddings, capsys: pytest.CaptureFixture[str]) -> None:
    gte.embed_documents(["quiet"])
    assert capsys.readouterr().err == ""
    TwinVecEmbeddings(embedder=gte.embedder, show_progress=True).embed_documents(["loud"])
    assert "Embedding documents" in capsys.readouterr().err
    asyncio.run(TwinVecEmbeddings(embedder=gte.embedder, show_progress=True).aembed_documents(["loud, too"]))
    assert "Embedding documents" in capsys.readouterr().err


def test_unknown_and_wrong_arguments_fail(gte_folder: str, gte: TwinVecEmbeddings) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        TwinVecEmbeddings(model=gte_folder, batch_size=32)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="from_huggingface"):
        TwinVecEmbeddings(model_name=gte_folder, encode_kwargs={})  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="Embedder"):
        TwinVecEmbeddings(embedder="a name")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="needs model="):
        TwinVecEmbeddings()
    with pytest.raises(ConfigurationError, match="dim: already determined by embedder="):
        TwinVecEmbeddings(embedder=gte.embedder, dim=32)
    with pytest.raises(ConfigurationError, match="dtype='int8' is not one of"):
        TwinVecEmbeddings(model=gte_folder, dtype="int8")
    with pytest.raises(ValidationError, match="Input should be 'truncate' or 'error'"):
        TwinVecEmbeddings(model=gte_folder, on_overflow="cut")  # type: ignore[arg-type]
    with pytest.raises(CheckpointNotFoundError):
        TwinVecEmbeddings(model="/no/such/folder")
    with pytest.raises(ValidationError, match="frozen"):
        gte.task = "x"
    with pytest.raises(ConfigurationError, match='neither "qdrant" nor "milvus"'):
        gte.sparse("pinecone")  # type: ignore[call-overload]


def test_a_task_for_a_model_without_instructions_fails_at_once(gte_folder: str, gte: TwinVecEmbeddings) -> None:
    with pytest.raises(PromptError, match="not trained with instructions"):
        TwinVecEmbeddings(model=gte_folder, task=TASK)
    with pytest.raises(PromptError):
        TwinVecEmbeddings(embedder=gte.embedder, task=TASK)
    with pytest.raises(PromptError):
        gte.with_task(TASK)


@pytest.mark.parametrize(
    ("texts", "error"), [("one text", TypeError), ([1], TypeError), (["a", "\ud800"], InvalidTextError)]
)
def test_bad_texts_are_named(gte: TwinVecEmbeddings, texts: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="texts"):
        gte.embed_documents(texts)
    with pytest.raises(error, match="texts"):
        asyncio.run(gte.aembed_documents(texts))


def test_a_closed_embedder_says_so(gte_folder: str) -> None:
    made = TwinVecEmbeddings(model=gte_folder, dtype="float32")
    made.embedder.close()
    for call in (made.embed_query, made.sparse().embed_query, lambda text: asyncio.run(made.aembed_query(text))):
        with pytest.raises(ConfigurationError, match="closed"):
            call("a")


def test_a_model_that_is_only_sparse_says_so(tmp_path: Path) -> None:
    made = TwinVecEmbeddings(model=str(build_splade(tmp_path)), dtype="float32")
    with pytest.raises(ConfigurationError, match=r"no dense half: use sparse\(\)"):
        made.embed_query("a")
    with pytest.raises(ConfigurationError, match="no dense half"):
        asyncio.run(made.aembed_documents(["a"]))
    assert made.sparse().embed_query("sort a list").indices
    made.embedder.close()


def test_the_event_loop_goes_on_while_the_model_works(gte: TwinVecEmbeddings, gate: Gate) -> None:
    async def main() -> tuple[int, list[float]]:
        work = asyncio.create_task(gte.aembed_query("a query that takes its time"))
        return await turns_while_held(gate, work), await work

    turns, row = asyncio.run(main())
    assert turns >= 100
    assert len(row) == 64


def test_a_cancelled_call_frees_its_work(gte: TwinVecEmbeddings, gate: Gate) -> None:
    async def main() -> None:
        held = asyncio.create_task(gte.aembed_query("held in the device"))
        await asyncio.to_thread(gate.entered.wait, 60)
        waiting = asyncio.create_task(gte.aembed_documents([f"never computed {i}" for i in range(50)]))
        while gte.embedder.stats()["queued"] < 50:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.open.set()
        await held
        await gte.aembed_query("the queue goes on")

    asyncio.run(main())
    assert sum(gate.batches) == 2
