"""Sources elsewhere: an S3 server of moto's, an emulator of Google's storage, and a web server, all on this machine."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from stores_ingest.holding import assert_equal, texts
from twinvec import Embedder
from twinvec.errors import ConfigurationError, IngestError
from twinvec_stores import MemoryStore, ingest

FILES = {
    "docs/a.txt": b"apple",
    "docs/deep/b.md": b"---\ntitle: Figs\n---\n# Figs\n\nThey are sweet.\n",
    "docs/c.txt.gz": gzip.compress(b"plum"),
    "docs/.hidden/d.txt": b"hidden",
    "docs/logo.png": b"\x89PNG",
    "docs/deep/rows.csv": b"id;text\n1;quince\n",
    "docs/numbers.tsv": b"a\tb\n1\t2\n",
    "rows.jsonl": b'{"id": "1", "text": "one"}\nno json\n{"id": "2", "text": "two"}\n',
    "rows.csv": "id;text\n1;äpfel\n".encode(),
    "other/x.txt": b"other",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket named "texts" with the files; s3fs finds it through the environment, as users configure it."""
    for name, value in (
        ("AWS_ENDPOINT_URL", server),
        ("AWS_ACCESS_KEY_ID", "testing"),
        ("AWS_SECRET_ACCESS_KEY", "not-a-real-secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()
    made = boto3.resource("s3").create_bucket(Bucket="texts")
    for name, content in FILES.items():
        made.put_object(Key=name, Body=content)
    yield made
    made.objects.delete()
    made.delete()


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of Google's named "texts" with the files; gcsfs finds the emulator through the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with create_server("127.0.0.1", port, in_memory=True, default_bucket="texts"):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("NO_GCE_CHECK", "true")  # or credentials are looked for on the network
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it takes seconds to import
        file_system = pytest.importorskip("gcsfs").GCSFileSystem
        file_system.clear_instance_cache()
        made = file_system()
        for name, content in FILES.items():
            made.pipe_file(f"texts/{name}", content)
        yield made
    file_system.clear_instance_cache()


@pytest.mark.parametrize(("scheme", "filled"), [("s3", "bucket"), ("gs", "google")])
def test_a_folder_in_a_bucket_is_what_the_same_folder_is_here(
    request: pytest.FixtureRequest, embedder: Embedder, memory: MemoryStore, scheme: str, filled: str, tmp_path: Path
) -> None:
    request.getfixturevalue(filled)
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    there, here = memory, MemoryStore(memory.config)
    report = ingest(f"{scheme}://texts/docs", embedder, there)
    expected = ingest(tmp_path / "docs", embedder, here)
    assert texts(there) == {
        "a.txt": "apple",
        "deep/b.md": "# Figs\n\nThey are sweet.\n",
        "c.txt.gz": "plum",
        "deep/rows.csv/1": "quince",
    }
    assert_equal(there, here)
    for each in (report, expected):
        assert (each.new, each.failed, each.files) == (4, 0, 6)
        assert each.passed_over == {".png": 1, ".tsv without a column 'text'": 1}
    assert ingest(f"{scheme}://texts/docs/", embedder, there).unchanged == 4


def test_google_is_followed_and_what_it_does_not_have_is_told(
    embedder: Embedder, memory: MemoryStore, google: Any
) -> None:
    ingest("gs://texts/docs", embedder, memory)
    google.rm_file("texts/docs/a.txt")
    report = ingest("gs://texts/docs", embedder, memory, prune=True)
    assert (report.unchanged, report.deleted) == (3, 1)
    assert ingest(["gs://texts/rows.jsonl", "gs://texts/other"], embedder, memory).new == 3
    for url in ("gs://texts/none", "gs://nobucket/docs", "gs://texts/none.jsonl"):
        with pytest.raises(IngestError, match=url):
            ingest(url, embedder, memory)


def test_files_of_s3(embedder: Embedder, memory: MemoryStore, bucket: Any) -> None:
    report = ingest(["s3://texts/rows.jsonl", "s3://texts/other"], embedder, memory)
    assert texts(memory) == {"1": "one", "2": "two", "x.txt": "other"}
    assert [(failure.where, failure.reason[:8]) for failure in report.failures] == [
        ("s3://texts/rows.jsonl, line 2", "not JSON")
    ]
    assert ingest("s3://texts/rows.csv", embedder, memory).changed == 1
    assert texts(memory)["1"] == "äpfel"


def test_prune_follows_what_was_listed(embedder: Embedder, memory: MemoryStore, bucket: Any) -> None:
    ingest("s3://texts/docs", embedder, memory)
    bucket.Object("docs/a.txt").delete()
    report = ingest("s3://texts/docs", embedder, memory, prune=True)
    assert (report.unchanged, report.deleted) == (3, 1)
    assert sorted(texts(memory)) == ["c.txt.gz", "deep/b.md", "deep/rows.csv/1"]


def fail_at(monkeypatch: pytest.MonkeyPatch, method: str, ending: str, error: Exception) -> None:
    """Let a method of S3's file system fail for paths that end so."""
    original = getattr(S3FileSystem, method)

    async def failing(self: Any, path: str, *args: Any, **options: Any) -> Any:
        if path.rstrip("/").endswith(ending):
            raise error
        return await original(self, path, *args, **options)

    monkeypatch.setattr(S3FileSystem, method, failing)


def test_a_listing_that_fails_deletes_nothing(
    embedder: Embedder, memory: MemoryStore, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest("s3://texts/docs", embedder, memory)
    fail_at(monkeypatch, "_lsdir", "deep", PermissionError("Access Denied"))
    with pytest.raises(IngestError, match="s3://texts/docs: PermissionError: Access Denied"):
        ingest("s3://texts/docs", embedder, memory, prune=True)
    assert memory.count() == 4


@pytest.mark.parametrize(("file", "id"), [("a.txt", "a.txt"), ("deep/rows.csv", None)])
def test_a_file_that_cannot_be_read_is_a_bad_row_and_stays(
    embedder: Embedder, memory: MemoryStore, bucket: Any, monkeypatch: pytest.MonkeyPatch, file: str, id: str | None
) -> None:
    ingest("s3://texts/docs", embedder, memory)
    fail_at(monkeypatch, "_get_file", file, OSError("connection reset"))
    S3FileSystem.clear_instance_cache()
    report = ingest("s3://texts/docs", embedder, memory, prune=True)
    assert (report.unchanged, report.failed, report.deleted, memory.count()) == (3, 1, 0, 4)
    [failure] = report.failures
    assert (failure.where, failure.id) == (f"s3://texts/docs/{file}", id)
    assert "connection reset" in failure.reason


@pytest.mark.parametrize("url", ["s3://texts/none", "s3://nobucket/docs", "s3://texts/none.jsonl"])
def test_what_is_not_there(embedder: Embedder, memory: MemoryStore, bucket: Any, url: str) -> None:
    with pytest.raises(IngestError, match=url):
        ingest(url, embedder, memory)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "1", "text": "one"}) + "\n")
    (tmp_path / "page.html").write_text("<html><title>Figs</title><body><h1>Figs</h1>sweet</body></html>")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_files_of_a_web_server(embedder: Embedder, memory: MemoryStore, web: str) -> None:
    report = ingest([f"{web}/rows.jsonl", f"{web}/page.html"], embedder, memory)
    assert (report.new, report.failed) == (2, 0), str(report)
    assert memory.get(["page.html"])[0].metadata["title"] == "Figs"


@pytest.mark.parametrize("name", ["none.jsonl", "é.jsonl", "a space.jsonl"])  # aiohttp writes the second anew
def test_secrets_of_a_url_are_not_told(embedder: Embedder, memory: MemoryStore, web: str, name: str) -> None:
    secret = web.replace("//", "//user:hunter2@") + f"/{name}?signature=abcdef"
    with pytest.raises(IngestError) as caught:
        ingest(secret, embedder, memory)
    assert f"{web}/{name}" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "abcdef" not in str(caught.value)


def test_what_is_refused(embedder: Embedder, memory: MemoryStore) -> None:
    with pytest.raises(IngestError, match=r"^https://example\.invalid/page: unknown kind"):
        ingest("https://example.invalid/page", embedder, memory)
    with pytest.raises((IngestError, ConfigurationError), match="nosuch://x"):
        ingest("nosuch://x/y.txt", embedder, memory)
    assert ingest(["https://example.invalid is down", "s3://x"], embedder, memory).new == 2  # texts
