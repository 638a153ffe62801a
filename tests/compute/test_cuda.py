"""The whole way of a text on an NVIDIA GPU; skipped without one, but for what is pure arithmetic."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.giga import build_giga_0826
from reference.giga_original import build_giga_original
from reference.gte import build_gte
from reference.sentence_layouts import build_bge_m3, build_qwen3_embedding
from support import dense_of, sparse_of
from twinvec import Embedder
from twinvec.compute.encoder import choose_budget
from twinvec.errors import OutOfMemoryError

needs_gpu = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
BUILD: dict[str, Callable[[Path], Any]] = {
    "gte": build_gte,
    "giga-0826": build_giga_0826,
    "giga-original": build_giga_original,
    "bge-m3": build_bge_m3,
    "qwen3": build_qwen3_embedding,
}
LENGTHS = (1, 3, 200, 40, 40, 7, 90, 11)
TEXTS = [" ".join(f"word{i}" for i in range(n)) for n in LENGTHS]


@given(st.integers(0, 2**40), st.floats(1, 2**24), st.integers(0, 2**36))
def test_a_budget_fits_the_memory_and_the_time(free: int, per_token: float, weights: int) -> None:
    budget = choose_budget(free, per_token, weights)
    assert budget == 1 or budget * per_token <= 0.8 * free
    assert 1 <= budget <= 16384
    if budget > 4096:
        assert 2 * weights * budget <= 2e13
    assert choose_budget(2 * free, per_token, weights) >= budget >= choose_budget(free, per_token, 2 * weights)


def test_a_small_model_fills_large_batches_and_a_large_one_does_not_keep_queries_waiting() -> None:
    assert choose_budget(70 * 2**30, 50_000, 85_000_000) == 16384
    assert choose_budget(70 * 2**30, 200_000, 3_000_000_000) == 4096
    assert choose_budget(2**30, 2**20, 85_000_000) == 819


@pytest.fixture(params=list(BUILD.values()), ids=list(BUILD))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def gte(tmp_path: Path) -> Path:
    return build_gte(tmp_path / "gte")


@pytest.fixture
def little_memory() -> Iterator[Callable[[int], None]]:
    """Let the allocator have so many bytes more than it has now."""
    total = torch.cuda.get_device_properties(0).total_memory

    def limit(extra: int) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + extra) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def cosines(a: Any, b: Any) -> Any:
    return (a * b).sum(1)


class TestOnTheGpu:
    pytestmark = needs_gpu

    @pytest.mark.parametrize(("dtype", "least"), [("float32", 0.99999), ("bfloat16", 0.995), ("float16", 0.999)])
    def test_vectors_are_those_of_the_cpu(self, folder: Path, dtype: str, least: float) -> None:
        on_gpu = Embedder(folder, device="cuda", dtype=dtype)
        with Embedder(folder, device="cpu", dtype="float32") as cpu, on_gpu as gpu:
            expected, found = cpu.embed_documents(TEXTS), gpu.embed_documents(TEXTS)
            assert gpu.stats()["attention"] == ("sdpa" if dtype == "float32" else "varlen")
            assert cosines(dense_of(found), dense_of(expected)).min() >= least
            if cpu.has_sparse and dtype == "float32":
                np.testing.assert_array_equal(sparse_of(found).indices, sparse_of(expected).indices)
                np.testing.assert_allclose(sparse_of(found).values, sparse_of(expected).values, atol=1e-4)

    def test_kernels_and_graphs_are_in_use(self, gte: Path) -> None:
        with Embedder(gte, device="cuda", dtype="bfloat16") as embedder:
            stats = embedder.stats()
            assert stats["kernels"] == "triton"
            assert stats["graphs"] == 6
            assert stats["load_seconds"] > 0

    def test_a_text_has_the_same_vector_alone_and_in_company(self, folder: Path) -> None:
        with Embedder(folder, device="cuda", dtype="bfloat16", memo_bytes=0) as embedder:
            together = dense_of(embedder.embed_documents([*TEXTS, *TEXTS, *(f"{text} more" for text in TEXTS)]))
            alone = np.concatenate([dense_of(embedder.embed_documents([text])) for text in TEXTS])
            assert cosines(together[: len(TEXTS)], alone).min() >= 0.9995

    def test_reproducible_is_bitwise(self, folder: Path) -> None:
        with Embedder(folder, device="cuda", dtype="bfloat16", memo_bytes=0, reproducible=True) as embedder:
            together = dense_of(embedder.embed_documents([*TEXTS, "another one"]))
            backwards = dense_of(embedder.embed_documents(TEXTS[::-1]))[::-1]
            np.testing.assert_array_equal(together[:-1], backwards)
            np.testing.assert_array_equal(together[2], dense_of(embedder.embed_documents([TEXTS[2]]))[0])

    def test_many_callers_get_their_own_rows(self, gte: Path) -> None:
        with Embedder(gte, device="cuda", dtype="bfloat16", memo_bytes=0) as embedder:
            calls = [[f"{text} {i}" for text in TEXTS] for i in range(32)]
            with ThreadPoolExecutor(32) as pool:
                found = list(pool.map(embedder.embed_documents, calls))
            for texts, batch in zip(calls, found, strict=True):
                assert cosines(dense_of(batch), dense_of(embedder.embed_documents(texts))).min() >= 0.9995

    def test_memory_stays_below_what_was_predicted(self, gte: Path) -> None:
        with Embedder(gte, device="cuda", dtype="bfloat16", memo_bytes=0) as embedder:
            predicted = embedder.stats()["predicted_memory"]
            torch.cuda.reset_peak_memory_stats()
            embedder.embed_documents([f"{TEXTS[2]} {i}" for i in range(300)])
            assert 0 < torch.cuda.max_memory_allocated() <= 1.1 * predicted

    def test_when_memory_runs_out_the_batch_is_halved_and_nothing_is_lost(
        self, gte: Path, little_memory: Callable[[int], None]
    ) -> None:
        texts = [f"{TEXTS[2]} {i}" for i in range(200)]
        with Embedder(gte, device="cuda", dtype="bfloat16", memo_bytes=0, token_budget=65536) as embedder:
            expected = dense_of(embedder.embed_documents(texts))
            little_memory(24 * 2**20)
            found = dense_of(embedder.embed_documents(texts))
            stats = embedder.stats()
            assert stats["out_of_memory"] > 0
            assert stats["token_budget"] < 65536
            assert cosines(found, expected).min() >= 0.9995

    def test_a_text_that_cannot_fit_is_named(self, gte: Path, little_memory: Callable[[int], None]) -> None:
        with Embedder(gte, device="cuda", dtype="bfloat16", memo_bytes=0, max_length=8192) as embedder:
            little_memory(0)
            with pytest.raises(OutOfMemoryError, match=r"texts\[1\] alone"):
                embedder.embed_documents(["short", "word " * 8000])
            assert len(embedder.embed_documents(["short"])) == 1

    def test_int8_weights_take_half_the_memory_of_the_linear_layers(self, tmp_path: Path) -> None:
        folder = build_gte(tmp_path / "wide", hidden=512, heads=8)
        used = []
        for quantization in (None, "int8"):
            gc.collect()
            before = torch.cuda.memory_allocated()
            with Embedder(folder, device="cuda", dtype="bfloat16", quantization=quantization) as embedder:
                rows = dense_of(embedder.embed_documents(TEXTS))
                used.append((torch.cuda.memory_allocated() - before, rows))
        (plain, expected), (small, found) = used
        assert small < plain
        assert cosines(found, expected).min() >= 0.98
