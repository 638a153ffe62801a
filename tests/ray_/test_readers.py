"""Ray Data's readers: what they read is ingested as the same rows from a list are."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest
import ray
from moto.server import ThreadedMotoServer
from pyarrow import parquet
from ray.cluster_utils import Cluster

from stores_ingest.holding import assert_same
from twinvec import Embedder, ModelSpec
from twinvec_ray import ingest as ingest_on_cluster
from twinvec_stores import IngestReport, MemoryStore, StoreConfig, import_store, ingest

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]
Rows = list[dict[str, Any]]


def read_parquet(rows: Rows, path: Path) -> ray.data.Dataset:
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return ray.data.read_parquet(str(path))


def read_json(rows: Rows, path: Path) -> ray.data.Dataset:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ray.data.read_json(str(path))


def read_csv(rows: Rows, path: Path) -> ray.data.Dataset:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return ray.data.read_csv(str(path))


def read_text(rows: Rows, path: Path) -> ray.data.Dataset:
    path.write_text("".join(f"{row['text']}\n" for row in rows), encoding="utf-8")
    return ray.data.read_text(str(path))


def told(report: IngestReport) -> tuple[Any, ...]:
    """Return what became of the rows, wherever they are from."""
    reasons = [(failure.id, re.sub(r": (\S+, )?(row|item) ", ": ", failure.reason)) for failure in report.failures]
    return report.new, report.failed, reasons, report.truncated


@pytest.mark.parametrize("read", [read_parquet, read_json, read_csv, read_text])
def test_rows_are_documents_as_those_of_a_list(
    read: Callable[[Rows, Path], ray.data.Dataset], lines: Rows, spec: ModelSpec, embedder: Embedder, tmp_path: Path
) -> None:
    """The cells of a csv are numbers, too, and a line of a text has nothing but itself."""
    rows = [{"id": row["_id"], "text": row["text"].strip(), "line": i} for i, row in enumerate(lines[:40])]
    rows[7]["id"] = rows[3]["id"]
    given = [{"text": row["text"]} for row in rows] if read is read_text else rows
    alone, store = (MemoryStore(StoreConfig.for_embedder(embedder)) for _ in range(2))
    report = ingest(given, embedder, alone, batch_size=8)
    path = tmp_path / f"rows.{read.__name__.removeprefix('read_').replace('text', 'txt')}"
    found = ingest_on_cluster(read(rows, path), spec, store, batch_size=8)
    assert told(found) == told(report)
    assert report.failed == (read is not read_text)
    assert_same(store, alone)


def test_rows_of_parquet_that_are_no_documents_are_told_as_on_one_machine(
    spec: ModelSpec, embedder: Embedder, tmp_path: Path
) -> None:
    columns = {
        "id": pa.array(["a", "null", "empty", "late", "a", None, "b"]),
        "text": pa.array(["fine", None, " ", "of the year 33658", "the id of another", "without an id", "fine, too"]),
        "when": pa.array([0, 0, 0, 10**12, 0, 0, 0], pa.timestamp("s")),
    }
    parquet.write_table(pa.table(columns), path := tmp_path / "rows.parquet")
    alone, store = (MemoryStore(StoreConfig.for_embedder(embedder)) for _ in range(2))
    report = ingest(path, embedder, alone)
    assert (report.new, report.failed) == (3, 4)
    found = ingest_on_cluster(ray.data.read_parquet(str(path)), spec, store)
    assert told(found) == told(report)
    assert_same(store, alone)


S3_DRIVER = """
import json, os, sys
import ray, twinvec_ray
from twinvec import ModelSpec
from twinvec_stores import ShardFolder

address, model = sys.argv[1:]
variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
ray.init(address, log_to_driver=False, runtime_env={"env_vars": variables})
spec = ModelSpec(model=model, dtype="float32", sparse="bm25", reproducible=True)
rows = ray.data.read_parquet("s3://texts/rows.parquet")
for source, target in ((rows, "s3://texts/dataset"), ("s3://texts/rows.jsonl", "s3://texts/path")):
    twinvec_ray.ingest(source, spec, ShardFolder(target), workers=twinvec_ray.Workers(count=2), batch_size=1)
"""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "testing"),
        ("AWS_SECRET_ACCESS_KEY", "not-a-real-secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    yield boto3.resource("s3").create_bucket(Bucket="texts")
    server.stop()


def test_from_s3_to_s3(
    cluster: Cluster, bucket: Any, lines: Rows, spec: ModelSpec, embedder: Embedder, tmp_path: Path
) -> None:
    """Ray's reader and ours; every worker writes; the address and the keys travel in Ray's runtime environment."""
    rows = lines[:100]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    bucket.upload_file(str(tmp_path / "rows.parquet"), "rows.parquet")
    bucket.put_object(Key="rows.jsonl", Body="".join(json.dumps(row) + "\n" for row in rows).encode())
    subprocess.run([sys.executable, "-c", S3_DRIVER, cluster.address, spec.model], check=True, timeout=240)
    alone = MemoryStore(StoreConfig.for_embedder(embedder))
    ingest(rows, embedder, alone)
    for where in ("s3://texts/dataset", "s3://texts/path"):
        store = MemoryStore(alone.config)
        assert import_store(where, store) == len(rows)
        assert_same(store, alone)
