"""The Embedder at work: memory that runs out, async, threads, cancellation, pickling, fork."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reference.gte import build_gte
from support import TEXTS, dense_of
from twinvec import Embedder, ModelSpec
from twinvec.errors import ConfigurationError


def limit_memory(embedder: Embedder, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    backbone = embedder._core.model.encoder.backbone
    forward = backbone.forward

    def limited(batch: Any) -> Any:
        if batch.n_tokens > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(batch)

    monkeypatch.setattr(backbone, "forward", limited)


def test_out_of_memory_halves_the_budget_and_loses_nothing(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Embedder(own_folder, dtype="float32", token_budget=4096, memo_bytes=0) as embedder:
        expected = embedder.embed_documents(TEXTS)
        limit_memory(embedder, monkeypatch, 100)
        batch = embedder.embed_documents(TEXTS)
        np.testing.assert_allclose(dense_of(batch), dense_of(expected), atol=1e-5)
        assert embedder.stats()["out_of_memory"] > 0
        assert embedder.stats()["token_budget"] < 4096
        calls = embedder.stats()["out_of_memory"]
        embedder.embed_documents(["another text"])
        assert embedder.stats()["out_of_memory"] == calls


def test_a_text_that_does_not_fit_alone_is_named(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twinvec.errors import OutOfMemoryError

    with Embedder(own_folder, dtype="float32") as embedder:
        limit_memory(embedder, monkeypatch, 20)
        texts = ["a", "b", "one two three " * 30]
        with pytest.raises(OutOfMemoryError, match=r"texts\[2\] \(\d+ tokens\)"):
            embedder.embed_documents(texts)
        assert len(embedder.embed_documents(texts[:2])) == 2


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"])
def test_the_cpu_allocators_error_is_out_of_memory(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    from twinvec.errors import OutOfMemoryError

    with Embedder(own_folder, dtype="float32") as embedder:

        def fail(batch: Any) -> Any:
            raise RuntimeError(message)

        monkeypatch.setattr(embedder._core.model.encoder.backbone, "forward", fail)
        with pytest.raises(OutOfMemoryError):
            embedder.embed_documents(["a"])


def test_other_errors_of_the_model_reach_the_caller(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Embedder(own_folder, dtype="float32") as embedder:

        def fail(batch: Any) -> Any:
            raise RuntimeError("shape mismatch")

        with monkeypatch.context() as patch:
            patch.setattr(embedder._core.model.encoder.backbone, "forward", fail)
            with pytest.raises(RuntimeError, match="shape mismatch"):
                embedder.embed_documents(["a"])
        assert len(embedder.embed_documents(["a"])) == 1


def test_nan_names_the_text(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twinvec.errors import NonFiniteError

    with Embedder(own_folder, dtype="float32") as embedder:
        backbone = embedder._core.model.encoder.backbone
        forward = backbone.forward

        def poison(batch: Any) -> Any:
            states = forward(batch).clone()
            states[batch.cu_seqlens[1]] = torch.nan
            return states

        monkeypatch.setattr(backbone, "forward", poison)
        with pytest.raises(NonFiniteError, match=r"texts\[0\]"):
            embedder.embed_documents(["a", "a much longer text goes first"])


# --- async, threads, cancellation, lifetime


def test_async_gives_the_same_vectors_in_any_loop(gte: Embedder) -> None:
    expected = dense_of(gte.embed_queries(TEXTS))

    async def run() -> list[Any]:
        return list(await asyncio.gather(*(gte.aembed_queries([t]) for t in TEXTS), gte.aembed_documents(TEXTS)))

    for _ in range(2):
        *singles, documents = asyncio.run(run())
        np.testing.assert_allclose(np.concatenate([dense_of(s) for s in singles]), expected, atol=1e-5)
        np.testing.assert_allclose(dense_of(documents), expected, atol=1e-5)


def test_awaiting_does_not_block_the_loop(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Embedder(own_folder, dtype="float32") as embedder:
        backbone = embedder._core.model.encoder.backbone
        forward = backbone.forward
        entered, release = threading.Event(), threading.Event()

        def hold(batch: Any) -> Any:
            entered.set()
            assert release.wait(60)
            return forward(batch)

        monkeypatch.setattr(backbone, "forward", hold)

        async def run() -> int:
            task = asyncio.create_task(embedder.aembed_documents(["a"]))
            while not entered.is_set():
                await asyncio.sleep(0)
            release.set()  # reached only because the loop still runs while the model is busy
            return len(await task)

        assert asyncio.run(run()) == 1


def test_cancelling_stops_the_job_between_batches(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Embedder(own_folder, dtype="float32", token_budget=1) as embedder:
        backbone = embedder._core.model.encoder.backbone
        forward = backbone.forward
        entered, release = threading.Event(), threading.Event()

        def hold(batch: Any) -> Any:
            entered.set()
            assert release.wait(60)
            return forward(batch)

        monkeypatch.setattr(backbone, "forward", hold)

        async def run() -> None:
            task = asyncio.create_task(embedder.aembed_documents([str(i) for i in range(500)]))
            while not entered.is_set():
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(run())
        release.set()
        assert len(embedder.embed_documents(["next"])) == 1
        assert embedder.stats()["texts"] == 2


def test_threads_share_one_model(gte: Embedder) -> None:
    expected = dense_of(gte.embed_documents(TEXTS))
    results: dict[int, Any] = {}

    def work(i: int) -> None:
        results[i] = dense_of(gte.embed_documents(TEXTS))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        np.testing.assert_allclose(results[i], expected, atol=1e-5)


def test_a_closed_embedder_says_so(own_folder: Path) -> None:
    embedder = Embedder(own_folder, dtype="float32")
    embedder.close()
    embedder.close()
    with pytest.raises(ConfigurationError, match="closed"):
        embedder.embed_documents(["a"])


@pytest.mark.parametrize("awaited", [False, True])
def test_progress_counts_every_text(awaited: bool, gte: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["x", "y", "x", *TEXTS]
    if awaited:
        asyncio.run(gte.aembed_documents(texts, show_progress=True))
    else:
        gte.embed_documents(texts, show_progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{len(texts)}/{len(texts)}" in shown.err


# --- spec, pickling, fork


def test_pickling_carries_the_spec_and_not_the_weights(own_folder: Path) -> None:
    with Embedder(own_folder, dtype="float32", dim=32, token="hf_secret", prompts={"query": "q: "}) as embedder:
        data = pickle.dumps(embedder)
        assert len(data) < 2000
        assert b"hf_secret" not in data
        assert "hf_secret" not in repr(embedder)
        expected = dense_of(embedder.embed_queries(TEXTS))
        with pickle.loads(data) as copy:
            assert copy.spec == embedder.spec
            np.testing.assert_array_equal(dense_of(copy.embed_queries(TEXTS)), expected)


def test_a_pickle_of_a_changed_checkpoint_is_refused(tmp_path: Path) -> None:
    from twinvec.errors import CheckpointError

    folder = build_gte(tmp_path)
    with Embedder(folder, dtype="float32") as embedder:
        data = pickle.dumps(embedder)
    build_gte(folder, seed=1)
    with pytest.raises(CheckpointError, match="content has changed"):
        pickle.loads(data)


def test_the_resolved_spec_loads_the_same_model(own_folder: Path) -> None:
    with Embedder(own_folder, device="cpu") as embedder:
        spec = embedder.spec
    assert spec.dtype in ("float32", "bfloat16")
    assert spec.dim == 64
    assert spec.sparse == "head"
    assert spec.digest is not None
    with Embedder(spec) as again:
        assert again.spec == spec
        assert again.spec.fingerprint == spec.fingerprint
    with pytest.raises(ConfigurationError, match="dim: already part of the ModelSpec"):
        Embedder(spec, dim=32)


def test_dtype_auto_follows_the_cpu_and_shows_in_stats(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda native=native: {"avx512_bf16": native})
        with Embedder(own_folder, device="cpu") as embedder:
            assert embedder.stats()["dtype"] == expected


def _embed_in_child(embedder: Embedder, queue: Any) -> None:
    try:
        embedder.embed_documents(["a"])
    except ConfigurationError as error:
        queue.put(str(error))


@pytest.mark.skipif(sys.platform == "win32", reason="fork does not exist there")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_use_after_fork_is_refused_instead_of_hanging(gte: Embedder) -> None:
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_embed_in_child, args=(gte, queue))
    child.start()
    assert "before the process forked" in queue.get(timeout=60)
    child.join()


def test_importing_twinvec_imports_no_torch() -> None:
    code = "import sys, twinvec; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'tokenizers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_warns_on_ordinary_use(own_folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Embedder(ModelSpec(model=str(own_folder), dtype="float32")) as embedder:
            embedder.embed_documents(TEXTS)
