"""BM25 as an Embedder's sparse half: threads, deadlines, async, pickling."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.giga import build_giga_0826
from reference.gte import build_gte
from support import TEXTS, dense_of, sparse_of
from text.bm25_support import AUTO, CANONICAL, documents, queries
from twinvec import Embedder, ModelSpec, SparseBatch
from twinvec.errors import ConfigurationError, DeadlineError, InvalidTextError, TextTooLongError
from twinvec.text import bm25 as bm25_module
from twinvec.text.bm25 import Bm25, term_id


@pytest.mark.parametrize("installed", [False, True])
def test_a_missing_or_old_stemmer_says_how_to_get_it(
    giga_folder: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    import Stemmer

    monkeypatch.setitem(sys.modules, "Stemmer", Stemmer if installed else None)
    monkeypatch.setattr(Stemmer, "algorithms", lambda: ["english"])
    bm25_module._vocabulary.cache_clear()
    spec = ModelSpec(model=str(giga_folder), sparse="bm25")  # needs no stemmer yet
    message = "arabic.*pip install -U 'PyStemmer" if installed else r"pip install 'twinvec\[bm25\]'"
    with pytest.raises(ConfigurationError, match=message):
        Embedder(spec)


# --- the Embedder


@pytest.fixture(scope="module")
def giga_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_giga_0826(tmp_path_factory.mktemp("giga"), seed=25)


@pytest.fixture(scope="module")
def giga(giga_folder: Path) -> Iterator[Embedder]:
    with Embedder(giga_folder, dtype="float32", sparse="bm25", memo_bytes=0) as embedder:
        yield embedder


def test_both_halves_of_a_model_without_a_head(giga: Embedder, giga_folder: Path) -> None:
    assert giga.has_sparse
    assert giga.needs_idf
    assert giga.spec.sparse == CANONICAL
    with Embedder(giga_folder, dtype="float32") as plain:
        assert not plain.needs_idf
        for embed, expected, weigh in (
            (giga.embed_documents, plain.embed_documents(TEXTS), documents),
            (giga.embed_queries, plain.embed_queries(TEXTS), queries),
        ):
            batch = embed(TEXTS)
            np.testing.assert_allclose(dense_of(batch), dense_of(expected), atol=1e-5)
            np.testing.assert_array_equal(batch.token_counts, expected.token_counts)
            assert sparse_of(batch).to_dicts() == weigh(*TEXTS).to_dicts()
            assert embed(TEXTS, sparse=False).sparse is None
            assert embed(TEXTS, prompt="Кот: ").sparse is not None
    with pytest.raises(ConfigurationError, match="nothing to compute"):
        giga.embed_documents(TEXTS, dense=False, sparse=False)


def test_without_the_dense_half_there_is_no_forward_pass(giga: Embedder) -> None:
    before = giga.stats()
    texts = [*TEXTS, "word " * 50_000]  # beyond the model's length: nothing is cut, nothing warns
    batch = giga.embed_documents(texts, dense=False, sparse=True)
    assert batch.dense is None
    assert batch.token_counts.tolist() == AUTO.weigh_documents(texts)[1].tolist()
    assert not batch.truncated.any()
    assert sparse_of(batch).to_dicts() == documents(*texts).to_dicts()
    assert len(giga.embed_queries([], dense=False)) == 0
    assert len(giga.embed_queries([])) == 0
    assert {k: giga.stats()[k] for k in ("forwards", "texts")} == {k: before[k] for k in ("forwards", "texts")}


def test_a_checkpoint_with_a_head_can_have_bm25_instead(tmp_path: Path) -> None:
    with Embedder(build_gte(tmp_path), dtype="float32", sparse="bm25:russian,b=0.5") as embedder:
        batch = embedder.embed_documents(TEXTS)
        assert sparse_of(batch).to_dicts() == documents(*TEXTS, bm25=Bm25("russian", b=0.5)).to_dicts()
        assert embedder.stats()["forwards"] == 1


def test_async_gives_the_same_rows(giga: Embedder) -> None:
    many = [f"text {i}" for i in range(300)]

    async def run() -> None:
        q, d, alone = await asyncio.gather(
            giga.aembed_queries(TEXTS), giga.aembed_documents(many), giga.aembed_documents(many, dense=False)
        )
        assert sparse_of(q).to_dicts() == queries(*TEXTS).to_dicts()
        assert sparse_of(d).to_dicts() == sparse_of(alone).to_dicts() == documents(*many).to_dicts()
        assert dense_of(q).shape[0] == len(TEXTS)

    asyncio.run(run())


def hold_documents(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event, list[int]]:
    """Let BM25 of documents wait; returns (entered, release, sizes of the windows)."""
    entered, release, windows = threading.Event(), threading.Event(), []
    weigh = Bm25.weigh_documents

    def held(self: Bm25, texts: list[str]) -> Any:
        windows.append(len(texts))
        entered.set()
        assert release.wait(60)
        return weigh(self, texts)

    monkeypatch.setattr(Bm25, "weigh_documents", held)
    return entered, release, windows


def test_awaiting_does_not_block_the_loop_and_cancelling_stops(giga: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release, windows = hold_documents(monkeypatch)

    async def run() -> None:
        task = asyncio.create_task(giga.aembed_documents(["x1"] * 1000, dense=False))
        while not entered.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()  # reached only because the loop still runs
        await giga.aembed_documents(["x2"], dense=False)  # the same thread, after what was cancelled

    asyncio.run(run())
    assert windows[-1] == 1
    assert sum(windows) < 1000


def test_a_deadline_is_kept_and_queries_overtake(giga: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release, _ = hold_documents(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(giga.embed_documents, ["x1"], dense=False)
        assert entered.wait(60)
        assert len(giga.embed_queries(["x1"], dense=False)) == 1
        with pytest.raises(DeadlineError, match=r"1 texts were not embedded within 0\.01 s"):
            giga.embed_documents(["x1"], timeout=0.01)
        release.set()
        assert len(waiting.result(60)) == 1


def test_an_error_in_bm25_reaches_its_caller(giga: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("defect")

    with monkeypatch.context() as patch:
        patch.setattr(Bm25, "weigh_documents", fail)
        for dense in (True, False):
            with pytest.raises(RuntimeError, match="defect"):
                giga.embed_documents(["x1"], dense=dense)
    assert len(giga.embed_documents(["x1"])) == 1


def test_texts_are_checked_as_for_the_dense_half(giga: Embedder, giga_folder: Path) -> None:
    for dense in (True, False):
        with pytest.raises(InvalidTextError, match=r"texts\[1\] has a lone surrogate"):
            giga.embed_documents(["a", "\ud800"], dense=dense)
        with pytest.raises(TypeError, match="not a str"):
            giga.embed_queries("a", dense=dense)
    with Embedder(giga_folder, dtype="float32", sparse="bm25", max_length=16, on_overflow="error") as embedder:
        with pytest.raises(TextTooLongError, match=r"texts\[0\]"):
            embedder.embed_documents(["x " * 100])
        assert len(embedder.embed_documents(["x " * 100], dense=False)) == 1
        embedder.close()
        with pytest.raises(ConfigurationError, match="closed"):
            embedder.embed_documents(["x"], dense=False)


def test_progress_counts_both_halves(giga: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    for dense in (True, False):
        giga.embed_documents([f"x{i}" for i in range(150)], dense=dense, show_progress=True)
        assert "150/150" in capsys.readouterr().err


def test_weights_read_as_stemmed_words(giga: Embedder) -> None:
    sparse = sparse_of(giga.embed_documents(["Sorting lists, sorting 北京"]))
    words = giga.token_weights(sparse)[0]
    assert list(words) == ["sort", *sorted(("list", "北京"), key=term_id)]
    assert words["sort"] == pytest.approx(sparse[0].to_dict()[term_id("sort")])
    unknown = SparseBatch.from_dicts([{12345: 2.0, term_id("sort"): 1.0}])
    assert giga.token_weights(unknown) == [{"#12345": 2.0, "sort": 1.0}]


def test_pairs_cannot_be_scored_without_a_collection(giga: Embedder) -> None:
    with pytest.raises(ConfigurationError, match=r"idf.*sparse_weight=0"):
        giga.score_pairs([("a", "b")])
    assert giga.score_pairs([("a", "b")], sparse_weight=0).shape == (1,)


def test_pickling_and_reloading_keep_the_spec(giga: Embedder) -> None:
    with pickle.loads(pickle.dumps(giga)) as copy:
        assert copy.spec == giga.spec
        assert copy.needs_idf
        assert sparse_of(copy.embed_queries(TEXTS)).to_dicts() == queries(*TEXTS).to_dicts()
    with Embedder(giga.spec) as again:
        assert again.spec.fingerprint == giga.spec.fingerprint
    with Embedder(replace(giga.spec, sparse="bm25:k1=0.9")) as other:
        assert other.spec.fingerprint != giga.spec.fingerprint
    assert "k1=1.2" in repr(giga)


def _rows_in_child(embedder: Embedder, queue: Any) -> None:
    queue.put(sparse_of(embedder.embed_documents(["Столица x1"], dense=False)).to_dicts())


@pytest.mark.skipif(sys.platform == "win32", reason="fork does not exist there")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_bm25_threads_of_its_own(giga: Embedder) -> None:
    giga.embed_documents(["x1"], dense=False)
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_rows_in_child, args=(giga, queue))
    child.start()
    assert queue.get(timeout=60) == documents("Столица x1").to_dicts()
    child.join()
