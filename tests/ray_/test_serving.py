"""The server's app with two replicas behind Ray Serve's proxy."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import serve

from twinvec import Embedder, EmbeddingBatch, ModelSpec, RemoteEmbedder
from twinvec.errors import ConfigurationError, RemoteError
from twinvec.options import EmbedderOptions
from twinvec.server import Extension
from twinvec_ray import Workers, embedding_app

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]


@pytest.fixture
def address() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def replicas() -> dict[str, int]:
    (deployment,) = serve.status().applications["default"].deployments.values()
    return {str(state): n for state, n in deployment.replica_states.items()}


def test_two_replicas_answer_what_an_embedder_returns(
    address: str, spec: ModelSpec, embedder: Embedder, answers: list[dict[str, Any]]
) -> None:
    serve.run(embedding_app(spec, workers=Workers(count=2), api_key="secret"))
    assert replicas() == {"RUNNING": 2}
    texts = [row["text"][:200] for row in answers]
    with RemoteEmbedder(address, api_key="secret") as remote, ThreadPoolExecutor(8) as callers:
        rows = list(callers.map(lambda text: remote.embed_documents([text]), texts))
        assert remote.spec.fingerprint == embedder.spec.fingerprint
    expected = embedder.embed_documents(texts)
    assert expected.dense is not None
    assert expected.sparse is not None
    np.testing.assert_array_equal(np.concatenate([row.dense for row in rows if row.dense is not None]), expected.dense)
    assert [row.sparse.to_dicts()[0] for row in rows if row.sparse is not None] == expected.sparse.to_dicts()
    with pytest.raises(RemoteError, match="key"):
        RemoteEmbedder(address, api_key="another")
    with pytest.raises(ConfigurationError, match="room for 4"):
        embedding_app(spec, workers=Workers(count=5))


def test_the_collector_leaves_a_replica_s_model_alone(address: str, spec: ModelSpec, tmp_path: Path) -> None:
    seen = tmp_path / "frozen"

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        seen.write_text(str(gc.get_freeze_count()))
        yield

    serve.run(embedding_app(spec, extension=Extension(lifespan=lifespan)))
    assert int(seen.read_text()) > 50_000


def test_a_second_replica_is_started_while_calls_wait(
    address: str,
    spec: ModelSpec,
    embedder: Embedder,
    answers: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight calls are in flight all the time, and more than one per replica is too many."""
    make = serve.deployment

    def at_once(*, autoscaling_config: dict[str, Any], **options: Any) -> Any:
        return make(autoscaling_config={**autoscaling_config, "upscale_delay_s": 0}, **options)

    monkeypatch.setattr(serve, "deployment", at_once)
    serve.run(embedding_app(spec, max_count=2, waiting=1, embedder_options=EmbedderOptions(memo_bytes=0)))
    assert replicas() == {"RUNNING": 1}
    texts, enough = [row["text"][:200] for row in answers[:8]], threading.Event()

    def call() -> list[EmbeddingBatch]:
        batches = [remote.embed_documents(texts)]
        while not enough.is_set():
            batches.append(remote.embed_documents(texts))
        return batches

    with RemoteEmbedder(address) as remote, ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(call) for _ in range(8)]
        try:
            deadline = time.monotonic() + 180
            while replicas() != {"RUNNING": 2}:
                assert time.monotonic() < deadline, f"after three minutes: {replicas()}"
                time.sleep(0.5)
        finally:
            enough.set()
        batches = [batch for found in calls for batch in found.result()]
    expected = embedder.embed_documents(texts)
    assert expected.dense is not None
    for batch in batches:
        assert batch.dense is not None
        np.testing.assert_array_equal(batch.dense, expected.dense)
