"""A real server under clients that are slow, many, or mean no good; what is waited for must happen."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from langchain_.gate import Gate
from reference.gte import build_gte
from server.test_running import Running
from twinvec import Embedder
from twinvec.errors import DeviceLostError
from twinvec.server import Limits
from twinvec.server.logs import JsonLines, OnceASecond

Serve = Callable[..., Running]


@pytest.fixture
def serve(quick: Embedder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serve ``quick`` with limits; ended and waited for."""
    running: list[Running] = []

    def start(embedder: Embedder = quick, **limits: Any) -> Running:
        running.append(Running(embedder, monkeypatch, limits=Limits(**{"unready_seconds": 0, **limits})))
        return running[-1]

    yield start
    for server in running:
        server.stop()
        server.thread.join(60)
        assert not server.thread.is_alive()


def connect(server: Running, data: bytes = b"") -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=60)
    made.sendall(data.replace(b"HOST", f"{host}:{port}".encode()))
    return made


def answer_of(connection: socket.socket) -> tuple[int, Any]:
    """Return status and JSON of what comes until the server hangs up."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    if not data:
        return 0, None
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    return int(head.split()[1]), json.loads(body)


def healthy(connection: socket.socket) -> bool:
    """Read one answer of ``/health``."""
    data = b""
    while not data.endswith(b"{}"):
        data += connection.recv(65536)
    return data.startswith(b"HTTP/1.1 200")


def embed(server: Running, text: str = "a") -> httpx.Response:
    return httpx.post(f"{server.url}/embed", json={"inputs": text}, timeout=60)


UPLOAD = b"POST /embed HTTP/1.1\r\nHost: HOST\r\nContent-Length: 9\r\n\r\n{"


# --- connections


def test_headers_have_a_deadline(serve: Serve) -> None:
    server = serve(header_seconds=0.2)
    for begun, status in ((b"", 0), (b"GET /he", 408), (b"GET /health HTTP/1.1\r\nHost: a\r\nX: ", 408)):
        with connect(server, begun) as connection:
            assert answer_of(connection)[0] == status
    with connect(server, b"GET /health HTTP/1.1\r\nHost: HOST\r\n\r\n") as connection:
        assert healthy(connection)
        connection.sendall(b"GET /hea")  # of the next request, on a connection that was good
        assert answer_of(connection)[0] == 408


def test_connections_without_a_request_are_closed(serve: Serve) -> None:
    server = serve(idle_seconds=0.2)
    with connect(server, b"GET /health HTTP/1.1\r\nHost: HOST\r\n\r\n") as connection:
        assert healthy(connection)
        assert connection.recv(65536) == b""


def test_the_longest_waiting_connection_makes_room(serve: Serve) -> None:
    server = serve(max_connections=3, header_seconds=600)
    held = [connect(server, b"GET /") for _ in range(3)]
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert answer_of(held[0]) == (0, None)
    held[2].sendall(b"health HTTP/1.1\r\nHost: HOST\r\n\r\n".replace(b"HOST", server.url[7:].encode()))
    assert healthy(held[2])
    for connection in held:
        connection.close()


def test_connections_at_work_are_not_thrown_out(serve: Serve, gate: Gate) -> None:
    server = serve(max_connections=1)
    answers: list[int] = []
    caller = threading.Thread(target=lambda: answers.append(embed(server, "held").status_code))
    caller.start()
    assert gate.entered.wait(60)
    with connect(server) as connection:
        assert answer_of(connection)[0] == 503
    gate.open.set()
    caller.join(60)
    assert answers == [200]


@pytest.mark.parametrize("pieces", [1, 40])
def test_headers_have_a_size(serve: Serve, pieces: int) -> None:
    server = serve(max_header_bytes=2000)
    lines = b"".join(b"X-%d: %s\r\n" % (i, b"y" * 100) for i in range(40))
    request = b"GET /health HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n" + lines + b"\r\n"
    with connect(server, request[:60]) as connection:
        for start in range(60, len(request), len(request) // pieces):
            with contextlib.suppress(OSError):
                connection.sendall(request[start : start + len(request) // pieces])
        assert answer_of(connection)[0] in (431, 0)  # 0: it had hung up while more was being sent
    address = f"{server.url}/health?{'a' * 3000}"
    answer = httpx.get(address)
    assert (answer.status_code, answer.json()["error_type"]) == (431, "Validation")


def test_what_is_no_http(serve: Serve) -> None:
    server = serve()
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"BREW / HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with connect(server, garbage) as connection:
            status, body = answer_of(connection)
        assert status == 400
        assert body["error"]["message"] == "this is not HTTP/1.1"


# --- bodies


def test_unfinished_uploads_hold_no_place_and_have_a_deadline(serve: Serve) -> None:
    server = serve(max_requests=1, body_seconds=0.5)
    held = [connect(server, UPLOAD) for _ in range(5)]
    assert embed(server).status_code == 200
    for connection in held:
        status, body = answer_of(connection)
        assert (status, body["error_type"]) == (408, "Validation")
        connection.close()


def test_a_large_body_is_refused_and_its_client_hears_it(serve: Serve) -> None:
    server = serve(max_body_bytes=100_000)
    body = b'{"inputs":"' + b"a" * 1_000_000 + b'"}'
    answer = httpx.post(f"{server.url}/embed", content=body)
    assert (answer.status_code, answer.json()["error_type"]) == (413, "Validation")

    def pieces() -> Iterator[bytes]:
        yield from (body[start : start + 5000] for start in range(0, len(body), 5000))

    answer = httpx.post(f"{server.url}/v1/embeddings", content=pieces())  # chunked, of no announced length
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "invalid_request_error")
    asked = b"POST /embed HTTP/1.1\r\nHost: HOST\r\nExpect: 100-continue\r\nContent-Length: 100001\r\n\r\n"
    with connect(server, asked) as connection:  # and waits to be told to go on
        assert answer_of(connection)[0] == 413
    assert embed(server).status_code == 200


def test_a_body_without_end_is_cut_off(serve: Serve) -> None:
    server = serve(max_body_bytes=1000, body_seconds=600)
    head = b"POST /embed HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = 0
    with connect(server, head) as connection, contextlib.suppress(OSError):
        while sent < 100_000:
            connection.sendall(b"1000\r\n" + b"a" * 0x1000 + b"\r\n")
            sent += 1
    assert sent < 10_000


def test_a_client_that_leaves_is_no_error(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            connect(server, UPLOAD).close()
        assert embed(server).status_code == 200
    assert not caplog.records


# --- answers


def test_answers_that_nobody_reads_are_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinvec.server.protocol._BYTES_PER_SECOND", 1e9)
    server = serve(answer_seconds=0.1, max_requests=1)
    body = json.dumps({"inputs": ["a"] * 2048}).encode()
    head = b"POST /embed HTTP/1.1\r\nHost: HOST\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connect(server, (head + body) * 8):  # more answers than the system buffers
        seen = 0
        while b"unread_answer" not in (metrics := httpx.get(f"{server.url}/metrics").content) or seen == 0:
            seen = metrics.count(b'reason="unread_answer"} 1.0')
    assert embed(server).status_code == 200


# --- the end, in two phases


def test_not_ready_first_and_gone_later(serve: Serve) -> None:
    server = serve()
    assert httpx.get(f"{server.url}/ready").status_code == 200
    server.servers[0].stop(unready_seconds=600)
    answer = httpx.get(f"{server.url}/ready")
    assert (answer.status_code, answer.json()["error_type"]) == (503, "Unhealthy")
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert embed(server).status_code == 200
    server.servers[0].stop()
    server.thread.join(60)
    with pytest.raises(httpx.ConnectError):
        embed(server)


def test_what_takes_too_long_is_told_so_at_the_end(serve: Serve, gate: Gate) -> None:
    server = serve(drain_seconds=0.3)
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(embed(server, "never done")))
    caller.start()
    assert gate.entered.wait(60)
    server.stop()
    caller.join(60)
    server.thread.join(60)
    assert (answers[0].status_code, answers[0].json()["error_type"]) == (503, "Unhealthy")


# --- a lost device


def test_a_lost_device_is_restarted_once(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(batch: Any) -> Any:
        raise RuntimeError("CUDA error: device lost")

    outcome: list[BaseException] = []
    with Embedder(build_gte(tmp_path, seed=64), dtype="float32", memo_bytes=0) as embedder:
        server = serve(embedder)
        monkeypatch.setattr(threading, "excepthook", lambda args: outcome.append(args.exc_value))
        for _ in range(2):
            monkeypatch.setattr(embedder._core.model.encoder.backbone, "forward", lost)
            assert embed(server).status_code == 503
            if _ == 0:
                while httpx.get(f"{server.url}/ready").status_code != 200:
                    pass
                assert embed(server).status_code == 200
        server.thread.join(60)
    assert [type(error) for error in outcome] == [DeviceLostError]


# --- the log


def test_a_flood_is_logged_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("twinvec.server.logs.time.monotonic", lambda: now[0])
    once = OnceASecond()
    passed = []
    for step in range(2500):
        now[0] = 100 + step / 1000
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "failed: %s", ("x",), None)
        if once.filter(record):
            passed.append(record.getMessage())
    assert passed == ["failed: x", "failed: x (999 more before it)", "failed: x (999 more before it)"]
    assert once.filter(logging.LogRecord("a", logging.ERROR, "f", 1, "another", (), None))


def test_lines_of_json() -> None:
    record = logging.LogRecord("twinvec.server", logging.ERROR, "f", 1, "failed: %s", ("Привет",), None)
    record.created, record.msecs = 0.5, 500
    line = json.loads(JsonLines().format(record))
    expected = {"time": "1970-01-01T00:00:00.500Z", "level": "error", "logger": "twinvec.server"}
    assert line == {**expected, "message": "failed: Привет"}
