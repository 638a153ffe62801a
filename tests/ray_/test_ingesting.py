"""A cluster's ingest beside that of one process: the same records, bit for bit, whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from pyarrow import Table, parquet
from ray.cluster_utils import Cluster
from ray.exceptions import OutOfMemoryError
from typer.testing import CliRunner

from checkpoints.test_hub import fill_cache
from ray_.conftest import MEMORY
from ray_.shared_store import SharedStore, create_shared, open_shared
from reference.gte import build_gte
from stores import milvus, postgres
from stores.qdrant_server import QdrantServer
from stores_ingest.holding import assert_equal, assert_same, held
from twinvec import Embedder, ModelSpec
from twinvec.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    FingerprintMismatchError,
    IngestError,
)
from twinvec_cli.main import app
from twinvec_ray import Workers, embed_dataset
from twinvec_ray import ingest as ingest_on_cluster
from twinvec_ray.worker import Page
from twinvec_stores import (
    EmbeddedStore,
    HybridStore,
    IngestReport,
    MemoryStore,
    ShardFolder,
    StoreConfig,
    ingest,
    open_store,
)
from twinvec_stores.ingestion.options import IngestKeywords

pytestmark = pytest.mark.usefixtures("cluster")
CHUNKS: IngestKeywords = {"chunk_tokens": 60, "overlap_tokens": 8, "batch_size": 8}
SHOWN: IngestKeywords = {**CHUNKS, "show_progress": True}


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


@pytest.mark.parametrize("bitwise", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_thousands_of_texts_are_written_as_by_one_process_though_a_node_goes_and_a_worker_is_killed(
    cluster: Cluster, lines: list[dict[str, Any]], source: list[Any], spec: ModelSpec, bitwise: bool
) -> None:
    """One worker on each of three nodes, one of which goes after a third; of the other two one dies near the end."""
    node = cluster.add_node(num_cpus=2, object_store_memory=MEMORY)
    rows, chosen = [*source[:24], *lines], replace(spec, reproducible=bitwise)
    options: IngestKeywords = {"chunk_tokens": 20, "overlap_tokens": 4, "batch_size": 64}

    def read() -> Iterator[Any]:
        for number, row in enumerate(rows):
            if number == len(rows) // 3:
                cluster.remove_node(node)
            yield row

    with Embedder(chosen, device="cpu") as embedder:
        alone = MemoryStore(StoreConfig.for_embedder(embedder))
        report = ingest(rows, embedder, alone, **options)
    assert (report.new, report.failed) == (len(rows) - 4, 4)
    owner = create_shared("lines", alone.config, deaths={140})
    found = ingest_on_cluster(read(), chosen, "shared://lines", workers=Workers(count=3, cpus=1.5), **options)
    (assert_same if bitwise else assert_equal)(SharedStore("lines"), alone)
    assert outcomes(found) == outcomes(report)
    assert found.lost == 2
    assert alone.count() > report.new  # some have more than one record
    ray.kill(owner)


@pytest.fixture(params=["postgresql", "milvus", "qdrant's interface"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The address of a server, and a collection that it does not have."""
    if (real := {"postgresql": postgres, "milvus": milvus}.get(request.param)) is not None:
        yield real.url(), real.new_name()
        return
    qdrant = QdrantServer()
    yield qdrant.url, "records"
    qdrant.close()


@pytest.mark.slow
def test_all_workers_write_into_a_server(
    server: tuple[str, str], source: list[Any], spec: ModelSpec, alone: tuple[HybridStore, IngestReport]
) -> None:
    expected, report = alone
    address, name = server
    where, pruned = {"collection": name}, IngestKeywords(**CHUNKS)
    pruned["prune"] = True
    found = ingest_on_cluster(source, spec, address, workers=Workers(count=2), store_options=where, **CHUNKS)
    assert outcomes(found) == outcomes(report)
    assert [worker.documents > 0 for worker in found.workers] == [True, True]
    with open_store(address, collection=name) as store:
        assert_same(store, expected)
    again = ingest_on_cluster(source[1:], spec, address, store_options=where, **pruned)
    assert (again.unchanged, again.new, again.pruned) == (report.new - 1, 0, False)  # a row could not be read
    some = [*source[:20], *source[24:50]]  # without the bad rows
    fewer = ingest_on_cluster(some, spec, address, store_options=where, **pruned)
    assert (fewer.deleted, fewer.unchanged, fewer.pruned) == (report.new - len(some), len(some), True)
    with open_store(address, collection=name) as store:
        assert {record.provenance["document"] for record in held(store).values()} == {row["_id"] for row in some}


def test_a_folder_is_written_by_the_driver_alone_and_either_goes_on_with_the_other(
    source: list[Any],
    embedder: Embedder,
    alone: tuple[HybridStore, IngestReport],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One process stores the first third; the cluster the rest, from a packed model; then nothing is left to do."""
    expected, report = alone
    with EmbeddedStore(tmp_path / "store", expected.config) as store:
        ingest(source[:20], embedder, store, **CHUNKS)
        found = ingest_on_cluster(source, embedder, store, workers=Workers(pack=True), **SHOWN)
        assert_same(store, expected)
        assert (found.unchanged, found.new) == (20, report.new - 20)
        assert outcomes(found) == outcomes(report)
        (worker,) = found.workers
        assert worker.documents == found.new
        assert worker.busy is not None
        assert 0 < worker.busy <= 1
        shown = r"64/64 \[\d+:\d\d<00:00, .*, 64 documents, 4 failed, 1 worker, devices \d+% busy\]"
        assert re.search(shown, capsys.readouterr().err)
        assert re.search(r"worker +\d+\.\d+\.\d+\.\d+: 40 documents in .* s, its device was busy for \d+%", str(found))
        assert ingest(source, embedder, store, **CHUNKS).unchanged == report.new
        assert store.config.recipe == expected.config.recipe  # the model's own folder, not where it was unpacked


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
spec = ModelSpec(model=model, dtype="bfloat16", sparse="bm25", reproducible=True)
report = ingest(source(), spec, store, **json.loads(chunks))
print(json.dumps([report.new, report.unchanged]))
"""


@pytest.mark.slow
def test_a_driver_is_killed_and_started_again(
    cluster: Cluster, answers: list[dict[str, Any]], spec: ModelSpec, tmp_path: Path
) -> None:
    """In bfloat16, too, each bit is the one of a single process."""
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
    with Embedder(replace(spec, dtype="bfloat16"), device="cpu") as embedder:
        expected = MemoryStore(StoreConfig.for_embedder(embedder))
        ingest(answers, embedder, expected, **CHUNKS)
    with EmbeddedStore(tmp_path / "store") as store:
        assert_same(store, expected)


def test_a_dataset_becomes_shards_that_a_folder_imports_and_a_second_run_embeds_nothing(
    answers: list[dict[str, Any]],
    spec: ModelSpec,
    embedder: Embedder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("twinvec_ray.pool._SHARD", 2)
    dataset = ray.data.from_items([{**row, "year": 2020 if i % 2 else None} for i, row in enumerate(answers)])
    rows = [{**row, **({"year": 2020} if i % 2 else {})} for i, row in enumerate(answers)]
    expected = MemoryStore(StoreConfig.for_embedder(embedder))
    report = ingest(rows, embedder, expected, **CHUNKS)
    folder = ShardFolder(tmp_path / "shards")
    found = ingest_on_cluster(dataset, spec, folder, **CHUNKS)
    assert outcomes(found) == outcomes(report)
    assert len(list(Path(folder.where).glob("part-*.parquet"))) == 4  # of two pages each
    imported = CliRunner().invoke(app, ["store", "import", folder.where, str(tmp_path / "store")])
    assert f"{expected.count()} records read from {folder.where}" in imported.output
    with EmbeddedStore(tmp_path / "store") as store:
        assert_same(store, expected)
    again = ingest_on_cluster(dataset, spec, folder, **SHOWN)
    assert f"{len(answers)}/{len(answers)} [" in capsys.readouterr().err
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
    dataset, trap = ray.data.from_items(answers), Workers(count=2, cpus=1.5)
    refused = r"no node with a whole CPU.*: 2 CPUs, 1 workers, .*: 2 CPUs, 1 workers"  # half a CPU is left on both
    with pytest.raises(ConfigurationError, match=refused):
        ingest_on_cluster(dataset, spec, tmp_path / "store", workers=trap)
    with pytest.raises(ConfigurationError, match=refused):
        embed_dataset(dataset, spec, workers=trap)
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


@pytest.mark.slow
def test_texts_that_are_too_long_fail_as_on_one_machine(
    source: list[Any], spec: ModelSpec, embedder: Embedder, tmp_path: Path
) -> None:
    rows = [*source[:24], {"id": "long", "text": "word " * 600}, {"id": "after", "text": "short"}]
    strict = Embedder(spec, device="cpu", on_overflow="error")
    alone, store = (MemoryStore(StoreConfig.for_embedder(embedder)) for _ in range(2))
    report = ingest(rows, strict, alone, batch_size=8)
    found = ingest_on_cluster(rows, strict, store, batch_size=8)
    assert outcomes(found) == outcomes(report)
    assert {"long"} < {failure.id for failure in report.failures}
    assert_same(store, alone)


@pytest.mark.slow
def test_a_column_that_is_missing_is_told_as_on_one_machine(
    answers: list[dict[str, Any]], embedder: Embedder, tmp_path: Path
) -> None:
    parquet.write_table(Table.from_pylist(answers), tmp_path / "answers.parquet")
    store, messages = MemoryStore(StoreConfig.for_embedder(embedder)), []
    runs: list[Callable[[], IngestReport]] = [
        lambda: ingest(tmp_path / "answers.parquet", embedder, store, text_field="body"),
        lambda: ingest_on_cluster(tmp_path / "answers.parquet", embedder, store, text_field="body"),
        lambda: ingest_on_cluster(ray.data.from_items(answers), embedder, store, text_field="body"),
    ]
    for run in runs:
        with pytest.raises(IngestError, match="no column 'body'") as error:
            run()
        messages.append(str(error.value).partition(": ")[2])
    assert len(set(messages)) == 1
    assert store.count() == 0


@pytest.mark.slow
def test_a_worker_that_lacks_the_model_or_has_another_one_is_named(
    cluster: Cluster,
    hub_cache: Path,
    answers: list[dict[str, Any]],
    embedder: Embedder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With two CPUs each, one worker is on every node; the third, without which all goes well, looks elsewhere."""
    repo = "owner/tiny"
    fill_cache(hub_cache, build_gte(tmp_path / "gte"), repo=repo)
    node = cluster.add_node(
        num_cpus=2, object_store_memory=MEMORY, env_vars={"TWINVEC_CACHE_DIR": str(tmp_path / "cache")}
    )
    monkeypatch.setenv("TWINVEC_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(CheckpointNotFoundError) as alone:
        Embedder(repo)
    workers, store = Workers(count=3, cpus=2), MemoryStore(StoreConfig.for_embedder(embedder))
    with pytest.raises(CheckpointNotFoundError) as found:
        ingest_on_cluster(answers, repo, store, workers=workers)
    assert re.sub(r"on the worker \d+\.\d+\.\d+\.\d+: ", "", str(found.value)) == str(alone.value)
    fill_cache(tmp_path / "cache", build_gte(tmp_path / "other", seed=1), repo=repo)
    with pytest.raises(CheckpointError, match="has another model than the others"):
        ingest_on_cluster(answers, repo, store, workers=workers)
    cluster.remove_node(node)
    assert ingest_on_cluster(answers, repo, tmp_path / "store", workers=Workers(count=2)).new == len(answers)


@pytest.mark.slow
def test_a_worker_that_ray_kills_as_memory_runs_out_is_a_lost_worker(
    answers: list[dict[str, Any]], embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray tells of it with an error of another kind; here it does so of a page that it has."""
    told: list[Page] = []

    def get(asked: Any, **options: Any) -> Any:
        found = ray_get(asked, **options)
        if isinstance(found, Page) and not told:
            told.append(found)
            raise OutOfMemoryError("the node ran out of memory")
        return found

    ray_get = ray.get
    expected, store = (MemoryStore(StoreConfig.for_embedder(embedder)) for _ in range(2))
    ingest(answers, embedder, expected, **CHUNKS)
    monkeypatch.setattr(ray, "get", get)
    found = ingest_on_cluster(answers, embedder, store, **CHUNKS)
    assert (found.lost, len(told)) == (1, 1)
    assert_same(store, expected)


@pytest.mark.slow
def test_workers_have_as_many_threads_as_cpus() -> None:
    def threads() -> tuple[int, str | None]:
        import torch

        return torch.get_num_threads(), os.environ.get("RAYON_NUM_THREADS")

    for cpus, expected in ((2, 2), (0.5, 1)):
        asked = ray.remote(threads).options(**Workers(cpus=cpus).remote_options())
        assert ray.get(asked.remote()) == (expected, str(expected))
