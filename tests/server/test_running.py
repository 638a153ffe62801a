"""A real server on a port of this machine, in a thread and as the command."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from engine.fakes import until
from langchain_.gate import Gate
from reference.rerankers import build_cross_encoder
from server.conftest import client_of
from server.remote import assert_same
from support import TEXTS
from twinvec import Embedder, RemoteEmbedder, Reranker
from twinvec.errors import ConfigurationError
from twinvec.server import create_app, run
from twinvec.server.running import Server
from twinvec_cli.main import app
from twinvec_stores import EmbeddedStore, HybridIndex, StoreConfig

KEY = "a-secret-key"
COMMAND = [sys.executable, "-c", "from twinvec_cli.main import run; run()", "serve"]


class Running:
    """``run`` on a thread, until it is told to stop."""

    def __init__(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.servers: list[Server] = []
        monkeypatch.setattr("twinvec.server.running.Server", self._made)
        started = threading.Event()
        self.url = ""

        def on_start(url: str) -> None:
            self.url = url
            started.set()

        arguments = {"port": 0, "on_start": on_start, **options}
        self.thread = threading.Thread(target=run, args=(embedder,), kwargs=arguments)
        self.thread.start()
        assert started.wait(60)

    def _made(self, *args: Any) -> Server:
        self.servers.append(Server(*args))
        return self.servers[0]

    def stop(self) -> None:
        """What SIGTERM does."""
        self.servers[0].stop()


@pytest.fixture
def served(quick: Embedder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    server = Running(quick, monkeypatch, api_key=KEY)
    yield server
    server.stop()
    server.thread.join(60)
    assert not server.thread.is_alive()


def test_a_remote_over_a_port(served: Running, gte: Embedder, quick: Embedder) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    with RemoteEmbedder(served.url, api_key=KEY) as remote:
        batch = remote.embed_documents(TEXTS)
        assert len(batch) == len(TEXTS)
        assert remote.spec.fingerprint == quick.spec.fingerprint
        assert_same(remote.embed_queries([]), quick.embed_queries([]))
        assert KEY not in repr(pickle.dumps(remote))
    assert "uvicorn" not in httpx.get(f"{served.url}/health").headers.get("server", "")


def test_the_collector_leaves_the_models_alone(quick: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_threshold()
    server = Running(quick, monkeypatch)
    assert gc.get_freeze_count() > 50_000
    gc.collect()
    assert len(gc.get_objects()) < 50_000  # what a full collection of the server walks
    server.stop()
    server.thread.join(60)
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, before)


def test_cancelling_over_a_port_frees_the_work(served: Running, quick: Embedder, gate: Gate) -> None:
    core = quick._core
    with RemoteEmbedder(served.url, api_key=KEY) as remote:
        future = remote._submit(remote._batch(remote._check(*_call("over a port")), None))
        assert gate.entered.wait(60)
        (job,) = core.state.jobs
        future.cancel()
        until(lambda: not core.state.jobs)
        assert job.finished == 0, "it was computed after all"


def _call(text: str) -> Any:
    from twinvec import Role
    from twinvec.options import CallOptions

    return Role.QUERY, [text], CallOptions()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_connects_by_itself(served: Running) -> None:
    context = multiprocessing.get_context("fork")
    rows = context.SimpleQueue()
    with RemoteEmbedder(served.url, api_key=KEY) as remote:
        expected = remote.embed_queries(["a"]).token_counts.tolist()
        child = context.Process(target=lambda: rows.put(remote.embed_queries(["a"]).token_counts.tolist()))
        child.start()
        assert rows.get() == expected
        child.join(60)
        assert child.exitcode == 0
        assert remote.embed_queries(["a"]).token_counts.tolist() == expected


def test_stopping_lets_requests_finish(served: Running, quick: Embedder, gate: Gate) -> None:
    outcome: list[int] = []

    def call() -> None:
        with RemoteEmbedder(served.url, api_key=KEY, retries=0) as remote:
            outcome.append(len(remote.embed_queries(["asked before the end"])))

    caller = threading.Thread(target=call)
    caller.start()
    assert gate.entered.wait(60)
    served.stop()
    gate.open.set()
    caller.join(60)
    served.thread.join(60)
    assert outcome == [1]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/health")


def test_a_port_that_is_taken(quick: Embedder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            run(quick, port=port)
    with pytest.raises(ConfigurationError, match=r"cannot listen on 127\.0\.0\.1:70000"):
        run(quick, port=70000)


def test_listening_to_others_without_a_key_warns(quick: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        lost = None

        def __init__(self, *args: Any) -> None:
            pass

        def run(self, sockets: list[socket.socket]) -> None:
            pass

    monkeypatch.setattr("twinvec.server.running.Server", Stopped)
    with pytest.warns(UserWarning, match="listening on 0.0.0.0 without an API key: whoever can reach it"):
        run(quick, host="0.0.0.0", port=0)  # noqa: S104
    run(quick, host="0.0.0.0", port=0, api_key=KEY)  # noqa: S104
    run(quick, host="localhost", port=0)


# --- the command


def test_the_command_serves_and_stops(gte_folder: Path, gte: Embedder, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    options = ["--port", "0", "--dtype", "float32", "--max-length", "128", "--max-texts", "3"]
    process = subprocess.Popen(
        [*COMMAND, str(gte_folder), *options, "--api-key-file", str(tmp_path / "key")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(f"Serving {gte_folder} at http://127.0.0.1:"), line
        with RemoteEmbedder(line.split(" at ")[1].split()[0], api_key=KEY) as remote:
            assert len(remote.embed_documents(TEXTS[:7])) == 7
            assert remote.spec.max_length == 128
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 130
        assert rest == "interrupted\n"
        assert KEY not in line + rest
    finally:
        process.kill()
        process.wait()


def test_the_first_signal_is_heard(gte_folder: Path) -> None:
    options = ["--port", "0", "--dtype", "float32"]
    process = subprocess.Popen(
        [*COMMAND, str(gte_folder), *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TWINVEC_UNREADY_SECONDS": "0"},
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Serving ")
        process.terminate()  # at once: who supervises it reads that line
        assert process.wait(60) == 0
    finally:
        process.kill()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[httpx.Response]]]:
    """Run the command with these arguments; while it would serve, send these (path, body) to its application."""

    def serve(*arguments: str, asked: Sequence[tuple[str, Any]] = ()) -> tuple[Any, list[httpx.Response]]:
        answers: list[httpx.Response] = []

        async def ask(made: Any) -> None:
            async with client_of(made) as client:
                answers.extend([await client.post(path, json=body) for path, body in asked])

        def run_here(embedders: Any, *, extension: Any, limits: Any, **_: Any) -> None:
            asyncio.run(ask(create_app(embedders, extension=extension, limits=limits)))

        monkeypatch.setattr("twinvec.server.running.run", run_here)
        return CliRunner().invoke(app, ["serve", "--port", "0", "--dtype", "float32", *arguments]), answers

    return serve


def test_rerankers_beside_a_store_and_alone(command: Any, gte: Embedder, gte_folder: Path, tmp_path: Path) -> None:
    folder = str(build_cross_encoder(tmp_path / "mine", "bert"))
    with HybridIndex(gte, EmbeddedStore(tmp_path / "store", StoreConfig.for_embedder(gte))) as index:
        index.add(TEXTS, ids=[str(i) for i in range(len(TEXTS))])
    with Reranker(folder, dtype="float32") as reranker:
        ranked = [each.index for each in reranker.rerank("hello", TEXTS[:5])]
    asked = [("/rerank", {"query": "hello", "texts": TEXTS[:5]}), ("/embed", {"inputs": "a"})]
    search = ("/v1/search", {"query": "hello", "k": 5, "rerank": True, "explain": True})
    result, answers = command("--reranker", folder, asked=asked)
    assert result.exit_code == 0, result.stderr
    assert [answer.status_code for answer in answers] == [200, 404]
    assert [found["index"] for found in answers[0].json()] == ranked
    result, answers = command("--reranker", folder, "--store", str(tmp_path / "store"), asked=[*asked, search])
    assert result.exit_code == 0, result.stderr
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [found["explanation"]["rerank_rank"] for found in answers[2].json()["results"][0]] == [1, 2, 3, 4, 5]
    name = Path(folder).name
    for wrong, says in (
        ((), "nothing to serve"),
        ((str(gte_folder), "--reranker", folder, "--served-model-name", name), f"a reranker are called {name!r}"),
    ):
        result, _ = command(*wrong)
        assert (result.exit_code, says in " ".join(result.stderr.split())) == (2, True), result.stderr


def test_an_empty_key_file_and_a_missing_extra(tmp_path: Path, gte_folder: Path) -> None:
    (tmp_path / "key").write_text("\n")
    result = CliRunner().invoke(app, ["serve", str(gte_folder), "--api-key-file", str(tmp_path / "key")])
    assert result.exit_code == 2
    assert "contains no API keys: write one per line" in result.stderr
    code = "import sys; sys.modules['starlette'] = None; from twinvec_cli.main import run; run()"
    failed = subprocess.run(
        [sys.executable, "-c", code, "serve", str(gte_folder)], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert failed.stderr == "error: the server needs optional packages: pip install 'twinvec[serve]'\n"


def test_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = CliRunner().invoke(app, ["serve", "--help"])
    assert result.exit_code == 0
    for option in ("--host", "--port", "--api-key-file", "--max-texts", "--task", "RemoteEmbedder"):
        assert option in result.output


def test_importing_twinvec_needs_neither_server_nor_client() -> None:
    code = "import sys, twinvec; print([m for m in ('httpx', 'starlette', 'uvicorn', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
