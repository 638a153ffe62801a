"""The memo and the persistent cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.fakes import until
from reference.giga import build_giga_0826
from support import TEXTS, dense_of, sparse_of
from twinvec import Embedder
from twinvec.cache import VectorCache
from twinvec.errors import (
    TextTooLongError,
)


def test_dense_then_sparse_of_the_same_texts_is_one_pass(folder: Path) -> None:
    with Embedder(folder, dtype="float32") as embedder:
        dense = embedder.embed_documents(TEXTS, sparse=False)
        sparse = embedder.embed_documents(TEXTS, dense=False)
        both = embedder.embed_documents(TEXTS)
        assert embedder.stats()["forwards"] == 1
        assert embedder.stats()["texts"] == len(TEXTS)
        assert embedder.stats()["memo_hits"] == 2 * len(TEXTS)
    np.testing.assert_array_equal(dense_of(dense), dense_of(both))
    assert sparse_of(sparse).to_dicts() == sparse_of(both).to_dicts()
    np.testing.assert_array_equal(sparse.token_counts, dense.token_counts)


def test_the_memo_never_mixes_prompts_lengths_or_dims(tmp_path: Path) -> None:
    folder = build_giga_0826(tmp_path)
    text = "how to sort a list in python " * 3
    with (
        Embedder(folder, dtype="float32") as embedder,
        Embedder(folder, dtype="float32", max_length=12) as short,
        Embedder(folder, dtype="float32", memo_bytes=0) as fresh,
    ):
        document, query = embedder.embed_documents([text]), embedder.embed_queries([text])
        other = embedder.embed_queries([text], task="Another task")
        with pytest.warns(UserWarning, match="12 tokens"):
            cut = short.embed_documents([text])
        np.testing.assert_allclose(dense_of(document), dense_of(fresh.embed_documents([text])), atol=1e-6)
        np.testing.assert_allclose(dense_of(query), dense_of(fresh.embed_queries([text])), atol=1e-6)
        rows = [dense_of(b)[0] for b in (document, query, other, cut)]
        for i, row in enumerate(rows):
            for later in rows[i + 1 :]:
                assert np.abs(row - later).max() > 1e-4
        with (
            Embedder(folder, dtype="float32", max_length=12, on_overflow="error") as strict,
            pytest.raises(TextTooLongError),
        ):
            strict.embed_documents([text])  # answered by the memo, and refused all the same


def test_the_memo_stays_within_its_bytes() -> None:
    from twinvec.cache.memo import Memo
    from twinvec.cache.rows import Key, Row

    row = Row(np.zeros(256, np.float32), None, 3, 3)
    memo = Memo(max_bytes=10 * 1500)
    for i in range(100):
        memo.put(Key("", f"{i:04}", 512), row)
    assert 5 <= len(memo) <= 10
    assert memo.get(Key("", "0099", 512)) is row
    assert memo.get(Key("", "0000", 512)) is None
    memo.put(Key("", "huge", 512), Row(np.zeros(10**6, np.float32), None, 3, 3))
    assert memo.get(Key("", "huge", 512)) is None


def test_without_a_memo_every_call_computes(embedder: Embedder) -> None:
    before = embedder.stats()["forwards"]
    embedder.embed_documents(["x"])
    embedder.embed_documents(["x"])
    assert embedder.stats()["forwards"] - before == 2


def test_the_cache_answers_a_later_model_exactly(tmp_path: Path, folder: Path) -> None:
    with VectorCache(tmp_path / "cache") as cache:
        with Embedder(folder, dtype="float32", cache=cache, dim=32) as embedder:
            first = embedder.embed_documents(TEXTS)
        with Embedder(folder, dtype="float32", cache=cache, memo_bytes=0, sparse_keys="ids") as embedder:
            until(lambda: cache.stats()["entries"] == 2 * len(TEXTS))  # dense and sparse halves
            again = embedder.embed_documents(TEXTS)
            stats = embedder.stats()
            assert (stats["forwards"], stats["cache_hits"], stats["cache_misses"]) == (0, len(TEXTS), 0)
            embedder.embed_documents(TEXTS, prompt="another prompt: ")
            assert embedder.stats()["texts"] == len(TEXTS)
        sliced = dense_of(again)[:, :32] / np.linalg.norm(dense_of(again)[:, :32], axis=1, keepdims=True)
        np.testing.assert_allclose(sliced, dense_of(first), atol=1e-6)
        with Embedder(folder, dtype="bfloat16", cache=cache, memo_bytes=0) as embedder:
            embedder.embed_documents(TEXTS)
            assert embedder.stats()["cache_hits"] == 0  # another precision is another vector


def test_a_cache_that_fails_costs_no_vectors(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def get_many(self, namespace: str, keys: Any) -> Any:
            return [None] * len(keys)

        def put_many(self, namespace: str, rows: Any) -> None:
            raise OSError("disk full")

    with Embedder(folder, dtype="float32", cache=Broken(), memo_bytes=0) as embedder:
        assert len(embedder.embed_documents(TEXTS)) == len(TEXTS)
        until(lambda: "persistent cache failed" in caplog.text)
