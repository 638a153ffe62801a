"""Tiny models behind a server, which runs in this process and has no port."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from langchain_.gate import Gate
from reference.giga import build_giga_0826
from reference.gte import build_gte
from reference.sentence_layouts import build_multilingual_e5, build_splade
from twinvec import Embedder, RemoteEmbedder
from twinvec.server import create_app

Post = Callable[..., httpx.Response]
Connect = Callable[..., RemoteEmbedder]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWINVEC_API_KEY", raising=False)


@pytest.fixture(scope="session")
def gte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dense, elastic, and a sparse half."""
    return build_gte(tmp_path_factory.mktemp("gte"), dtype="float32", seed=61)


@pytest.fixture(scope="session")
def gte(gte_folder: Path) -> Iterator[Embedder]:
    """Bitwise the same vectors whatever a text travels with."""
    with Embedder(gte_folder, dtype="float32", reproducible=True, max_length=128) as embedder:
        yield embedder


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    """A model that batches, and remembers nothing."""
    folder = build_gte(tmp_path_factory.mktemp("quick"), dtype="float32", seed=62)
    with Embedder(folder, dtype="float32", memo_bytes=0, on_overload="error") as embedder:
        yield embedder


@pytest.fixture(scope="session")
def giga(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    """Instructions, BM25, no elastic dims."""
    folder = build_giga_0826(tmp_path_factory.mktemp("giga"), dtype="float32", seed=61)
    with Embedder(folder, dtype="float32", reproducible=True, sparse="bm25") as embedder:
        yield embedder


@pytest.fixture(scope="session")
def e5(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    """The prompts "query: " and "passage: "; no sparse half."""
    folder = build_multilingual_e5(tmp_path_factory.mktemp("e5"), with_prompts=True)
    with Embedder(folder, dtype="float32", reproducible=True) as embedder:
        yield embedder


@pytest.fixture(scope="session")
def splade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    """Sparse only."""
    with Embedder(build_splade(tmp_path_factory.mktemp("splade")), dtype="float32") as embedder:
        yield embedder


@pytest.fixture
def gate(quick: Embedder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds the forward passes of ``quick``."""
    backbone = quick._core.model.encoder.backbone
    gate = Gate(backbone.forward)
    monkeypatch.setattr(backbone, "forward", gate)
    yield gate
    gate.open.set()


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server")


class Hosts(httpx.AsyncBaseTransport):
    """A network: applications, and other things that answer, by the name of their host."""

    def __init__(self) -> None:
        self.answering: dict[str, httpx.AsyncBaseTransport] = {}
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.host not in self.answering:
            raise httpx.ConnectError("[Errno 111] Connection refused", request=request)
        return await self.answering[request.url.host].handle_async_request(request)


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    made = Hosts()
    monkeypatch.setattr("twinvec.server.transport._TRANSPORT", made)
    return made


@pytest.fixture
def connect(hosts: Hosts) -> Iterator[Connect]:
    """Serve an embedder, and connect to it; options of ``create_app`` after the embedder."""
    remotes: list[RemoteEmbedder] = []
    numbers = itertools.count()

    def connected(embedder: Embedder, *, timeout: float = 60, retries: int = 2, **options: Any) -> RemoteEmbedder:
        host = f"host-{next(numbers)}"
        hosts.answering[host] = httpx.ASGITransport(app=create_app(embedder, **options))
        key = options.get("api_key")
        remotes.append(RemoteEmbedder(f"http://{host}", api_key=key, timeout=timeout, retries=retries))
        return remotes[-1]

    yield connected
    for remote in remotes:
        remote.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a RemoteEmbedder would have waited."""
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("twinvec.server.transport._sleep", wait)
    return waited
