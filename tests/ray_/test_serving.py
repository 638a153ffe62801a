"""The server's app with two replicas behind Ray Serve's proxy."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from ray import serve

from twinvec import Embedder, ModelSpec, RemoteEmbedder
from twinvec.errors import ConfigurationError, RemoteError
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


def test_two_replicas_answer_what_an_embedder_returns(
    address: str, spec: ModelSpec, embedder: Embedder, answers: list[dict[str, Any]]
) -> None:
    serve.run(embedding_app(spec, workers=Workers(count=2), api_key="secret"))
    (deployment,) = serve.status().applications["default"].deployments.values()
    assert deployment.replica_states == {"RUNNING": 2}
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
