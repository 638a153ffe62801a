"""A cluster's ingest beside that of one process: the same records, bit for bit, whoever dies meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from ray_.conftest import MEMORY
from ray_.shared_store import SharedStore, create_shared, open_shared
from stores import postgres
from stores_ingest.holding import assert_same
from twinvec import Embedder, ModelSpec
from twinvec.errors import CheckpointNotFoundError, ConfigurationError, FingerprintMismatchError, IngestError
from twinvec_ray import Workers
from twinvec_ray import ingest as ingest_on_cluster
from twinvec_stores import (
    EmbeddedStore,
    HybridStore,
    IngestReport,
    MemoryStore,
    ShardFolder,
    StoreConfig,
    import_store,
    ingest,
    open_store,
)
from twinvec_stores.ingestion.options import IngestKeywords

pytestmark = pytest.mark.usefixtures("cluster")
CHUNKS: IngestKeywords = {"chunk_tokens": 60, "overlap_tokens": 8, "batch_size": 8}


@pytest.fixture(autouse=True)
def shared_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinvec_ray.ingesting.open_store", open_store)
    open_shared()


@pytest.fixture(scope="module")
def source(answers: list[dict[str, Any]]) -> list[Any]:
    """Real texts, and what is wrong in real files."""
    bad = [{"_id": "null"}, {"_id": "empty", "text": " "}, 7, {**answers[3], "text": "the id of another"}]
    return [*answers[:20], *bad, *answers[20:]]


@pytest.fixture(scope="module")
def alone(source: list[Any], embedder: Embedder) -> tuple[HybridStore, IngestReport]:
    """What one process makes of it."""
    store = MemoryStore(StoreConfig.for_embedder(embedder))
    return store, ingest(source, embedder, store, **CHUNKS)


def outcomes(report: IngestReport) -> tuple[Any, ...]:
    return report.new + report.changed + report.unchanged, report.failed, report.failures, report.truncated


def test_two_workers_write_what_one_process_writes_though_both_are_killed(
    source: list[Any], spec: ModelSpec, alone: tuple[HybridStore, IngestReport]
) -> None:
    expected, report = alone
    owner = create_shared("killed", expected.config, deaths={2, 9})
    found = ingest_on_cluster(source, spec, "shared://killed", workers=Workers(count=2), **CHUNKS)
    assert_same(SharedStore("killed"), expected)
    assert outcomes(found) == outcomes(report)
    assert found.lost == 2
    assert len(expected.get([f"{source[0]['_id']}#1"])) == 1  # more than one record each
    ray.kill(owner)


@pytest.mark.slow
def test_all_workers_write_into_a_real_server(
    source: list[Any], spec: ModelSpec, alone: tuple[HybridStore, IngestReport]
) -> None:
    expected, report = alone
    address, name = postgres.url(), postgres.new_name()
    where, pruned = {"collection": name}, IngestKeywords(**CHUNKS)
    pruned["prune"] = True
    found = ingest_on_cluster(source, spec, address, workers=Workers(count=2), store_options=where, **CHUNKS)
    assert outcomes(found) == outcomes(report)
    with open_store(address, collection=name) as store:
        assert_same(store, expected)
    again = ingest_on_cluster(source[1:], spec, address, store_options=where, **pruned)
    assert (again.unchanged, again.new, again.pruned) == (report.new - 1, 0, False)  # a row could not be read


def test_a_folder_is_written_by_the_driver_alone_and_either_goes_on_with_the_other(
    source: list[Any], embedder: Embedder, alone: tuple[HybridStore, IngestReport], tmp_path: Path
) -> None:
    """One process stores the first third; the cluster the rest, from a packed model; then nothing is left to do."""
    expected, report = alone
    with EmbeddedStore(tmp_path / "store", expected.config) as store:
        ingest(source[:20], embedder, store, **CHUNKS)
        found = ingest_on_cluster(source, embedder, store, workers=Workers(pack=True), **CHUNKS)
        assert_same(store, expected)
        assert (found.unchanged, found.new) == (20, report.new - 20)
        assert outcomes(found) == outcomes(report)
        (worker,) = found.workers
        assert worker.documents == found.new
        assert worker.busy is not None
        assert 0 < worker.busy <= 1
        assert ingest(source, embedder, store, **CHUNKS).unchanged == report.new
        assert store.config.recipe == expected.config.recipe  # the model's own folder, not where it was unpacked


@pytest.mark.slow
def test_a_node_is_removed(
    cluster: Cluster, answers: list[dict[str, Any]], spec: ModelSpec, embedder: Embedder
) -> None:
    node = cluster.add_node(num_cpus=2, object_store_memory=MEMORY)

    def source() -> Iterator[Any]:
        for number, row in enumerate(answers):
            if number == 16:
                cluster.remove_node(node)
            yield row

    expected = MemoryStore(StoreConfig.for_embedder(embedder))
    ingest(answers, embedder, expected, **CHUNKS)
    create = create_shared("removed", expected.config)
    # with two CPUs each, one worker is on every node
    found = ingest_on_cluster(source(), spec, "shared://removed", workers=Workers(count=3, cpus=2), **CHUNKS)
    assert_same(SharedStore("removed"), expected)
    assert (found.lost, found.new + found.unchanged) == (1, len(answers))
    ray.kill(create)


DRIVER = """
import json, os, signal, sys
import ray
from ray_.shared_store import open_shared
from twinvec import ModelSpec
from twinvec_ray import ingest
from twinvec_stores import EmbeddedStore

address, model, corpus, store, chunks, rows = sys.argv[1:]


def source():
    for number, line in enumerate(open(corpus)):
        if number == int(rows):
            os.kill(os.getpid(), signal.SIGKILL)
        yield json.loads(line)


ray.init(address, log_to_driver=False)
spec = ModelSpec(model=model, dtype="float32", sparse="bm25", reproducible=True)
report = ingest(source(), spec, store, **json.loads(chunks))
print(json.dumps([report.new, report.unchanged]))
"""


@pytest.mark.slow
def test_a_driver_is_killed_and_started_again(
    cluster: Cluster, answers: list[dict[str, Any]], spec: ModelSpec, embedder: Embedder, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in answers), encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        DRIVER,
        cluster.address,
        spec.model,
        corpus,
        tmp_path / "store",
        json.dumps(CHUNKS),
    ]
    killed = subprocess.run([*command, "40"], check=False, timeout=120, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = subprocess.run([*command, "-1"], check=True, timeout=120, capture_output=True)
    new, unchanged = json.loads(again.stdout.splitlines()[-1])
    assert (new + unchanged, new > 0, unchanged > 0) == (len(answers), True, True)
    expected = MemoryStore(StoreConfig.for_embedder(embedder))
    ingest(answers, embedder, expected, **CHUNKS)
    with EmbeddedStore(tmp_path / "store") as store:
        assert_same(store, expected)


def test_a_dataset_becomes_shards_that_any_store_imports_and_a_second_run_embeds_nothing(
    answers: list[dict[str, Any]], spec: ModelSpec, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinvec_ray.pool._SHARD", 2)
    dataset = ray.data.from_items([{**row, "year": 2020 if i % 2 else None} for i, row in enumerate(answers)])
    rows = [{**row, **({"year": 2020} if i % 2 else {})} for i, row in enumerate(answers)]
    expected, target = (MemoryStore(StoreConfig.for_embedder(embedder)) for _ in range(2))
    report = ingest(rows, embedder, expected, **CHUNKS)
    folder = ShardFolder(tmp_path / "shards")
    found = ingest_on_cluster(dataset, spec, folder, **CHUNKS)
    assert outcomes(found) == outcomes(report)
    assert len(list(Path(folder.where).glob("part-*.parquet"))) == 4  # of two pages each
    assert import_store(folder.where, target) == expected.count()
    assert_same(target, expected)
    again = ingest_on_cluster(dataset, spec, folder, **CHUNKS)
    assert (again.new, again.unchanged) == (0, len(answers))
    assert [worker.documents for worker in again.workers] == [0]


def test_wrong_models_and_stores_are_told_as_on_one_machine(
    answers: list[dict[str, Any]], spec: ModelSpec, embedder: Embedder, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"on the worker \d+\.\d+\.\d+\.\d+: .*nowhere"):
        ingest_on_cluster(answers, str(tmp_path / "nowhere"), tmp_path / "store")
    assert not (tmp_path / "store").exists()
    with pytest.raises(ConfigurationError, match="room for 4"):
        ingest_on_cluster(answers, spec, tmp_path / "store", workers=Workers(count=5))
    with pytest.raises(ConfigurationError, match="prune"):
        ingest_on_cluster(answers, spec, ShardFolder(tmp_path), prune=True)
    other = MemoryStore(StoreConfig(fingerprint="another", dim=384))
    with pytest.raises(FingerprintMismatchError, match="another"):
        ingest_on_cluster(answers, embedder, other)


@pytest.mark.slow
def test_a_bad_row_stops_the_run_where_asked(source: list[Any], spec: ModelSpec, embedder: Embedder) -> None:
    alone, store = (MemoryStore(StoreConfig.for_embedder(embedder)) for _ in range(2))
    messages = []
    runs: list[Callable[[], IngestReport]] = [
        lambda: ingest(source, embedder, alone, on_error="stop", batch_size=16),
        lambda: ingest_on_cluster(source, spec, store, on_error="stop", batch_size=16),
    ]
    for stop in runs:
        with pytest.raises(IngestError, match="no field 'text'") as error:
            stop()
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert_same(store, alone)
