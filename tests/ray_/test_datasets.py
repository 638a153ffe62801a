"""embed_dataset against an Embedder in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray

from twinvec import Embedder, ModelSpec
from twinvec.errors import ConfigurationError
from twinvec_ray import Workers, embed_dataset

pytestmark = pytest.mark.usefixtures("cluster")
LONG = "word " * 600


def test_columns_are_what_an_embedder_returns(
    answers: list[dict[str, Any]], spec: ModelSpec, embedder: Embedder
) -> None:
    texts = [row["text"] for row in answers[:40]] + [LONG]
    dataset = ray.data.from_items([{"id": i, "body": text} for i, text in enumerate(texts)])
    embedded = embed_dataset(dataset, embedder, "body", workers=Workers(count=2), batch_size=8)
    table = pa.concat_tables(ray.get(embedded.to_arrow_refs())).sort_by("id")
    with pytest.warns(match="cut at"):
        expected = embedder.embed_documents(texts)
    assert expected.dense is not None
    assert expected.sparse is not None
    assert table["dense"].type == pa.list_(pa.float32(), 384)
    np.testing.assert_array_equal(np.array(table["dense"].to_pylist(), np.float32), expected.dense)
    found = [
        dict(zip(keys, values, strict=True))
        for keys, values in zip(table["sparse_indices"].to_pylist(), table["sparse_values"].to_pylist(), strict=True)
    ]
    assert found == expected.sparse.to_dicts()
    assert table["token_counts"].to_pylist() == expected.token_counts.tolist()
    assert table["truncated"].to_pylist() == expected.truncated.tolist()
    assert 0 < expected.truncated.sum() < len(texts)


@pytest.mark.slow
def test_batches_of_a_worker_that_is_killed_are_done_again(answers: list[dict[str, Any]], embedder: Embedder) -> None:
    rows = [{**row, "text": row["text"][:200]} for row in answers]
    dataset = ray.data.from_items(rows, override_num_blocks=12)
    batches = embed_dataset(dataset, embedder, batch_size=5).iter_batches(batch_size=5, prefetch_batches=0)
    found: dict[str, Any] = {}
    killed = 0
    for batch in batches:
        found |= dict(zip(batch["_id"], batch["dense"], strict=True))
        if not killed:
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::MapWorker"):
                    process.kill()
                    killed += 1
    assert killed == 1
    expected = embedder.embed_documents([row["text"] for row in rows]).dense
    assert expected is not None
    for row, dense in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(found[row["_id"]], dense)


def test_missing_and_taken_columns_are_refused(spec: ModelSpec) -> None:
    dataset = ray.data.from_items([{"text": "a", "dense": 1}]).materialize()
    with pytest.raises(ConfigurationError, match=r"no column 'body' \(its columns: text, dense\)"):
        embed_dataset(dataset, spec, "body")
    with pytest.raises(ConfigurationError, match="columns dense already"):
        embed_dataset(dataset, spec)


@pytest.mark.slow
def test_what_is_wrong_with_a_text_or_a_model_is_told_in_the_words_of_an_embedder(
    spec: ModelSpec, embedder: Embedder, tmp_path: Path
) -> None:
    strict, folder = Embedder(spec, device="cpu", on_overflow="error"), tmp_path / "model"
    shutil.copytree(spec.model, folder)
    lost = embed_dataset(ray.data.from_items([{"text": "a"}]), str(folder))
    shutil.rmtree(folder)
    null, long = (ray.data.from_items([{"text": "a"}, {"text": text}]) for text in (None, LONG))
    runs: list[tuple[Callable[[], Any], ray.data.Dataset]] = [
        (lambda: embedder.embed_documents(["a", None]), embed_dataset(null, embedder)),  # type: ignore[list-item]
        (lambda: strict.embed_documents(["a", LONG]), embed_dataset(long, strict)),
        (lambda: Embedder(str(folder)), lost),
    ]
    for alone, embedded in runs:
        with pytest.raises(Exception) as expected:  # noqa: PT011
            alone()
        with pytest.raises(ray.exceptions.RayError) as found:
            embedded.materialize()
        assert f"{type(expected.value).__name__}: {expected.value}" in str(found.value)
