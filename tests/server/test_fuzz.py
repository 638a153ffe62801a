"""Bodies that nobody would write by hand: no route answers one with a 5xx, and each refusal is JSON of its dialect.

``make fuzz-server`` sends 5,000 of them, the suite 300.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import cast

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.rerankers import build_cross_encoder
from server.conftest import client_of
from twinvec import Embedder, Reranker
from twinvec.server import Limits, create_app
from twinvec.server.operations import OPERATIONS, Extension
from twinvec.server.reranking import rerank_extension
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig
from twinvec_stores.serving import search_extension

EXAMPLES = int(os.environ.get("TWINVEC_FUZZ", "300"))
ALL = (*OPERATIONS, *rerank_extension({}).operations, *search_extension(cast("HybridIndex", None)).operations)
POSTS = sorted(operation.path for operation in ALL if operation.body is not None)
FIELDS = sorted({name for operation in ALL if operation.body for name in operation.body.__struct_fields__})

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 700)
    | st.sampled_from([10**400, -(10**30)])
    | st.floats()
    | st.text(max_size=40)
    | st.text(st.characters(categories=["Cs"]), max_size=2)
    | st.sampled_from(["query", "document", "Left", "base64", "a text", "similarity"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
bodies = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), values, max_size=7).map(json.dumps)
wholes = bodies.map(str.encode) | values.map(json.dumps).map(str.encode) | st.binary(max_size=60)
cut = st.builds(lambda body, end: body[:end], wholes, st.integers(1, 60))


@pytest.fixture(scope="module")
def extension(gte: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Extension]:
    folder = build_cross_encoder(tmp_path_factory.mktemp("reranker"), "bert")
    with (
        Reranker(folder, dtype="float32") as reranker,
        HybridIndex(gte, MemoryStore(StoreConfig.for_embedder(gte))) as index,
    ):
        index.add(["a text", "столица России"], metadata=[{"lang": "en"}, {"lang": "ru"}])
        yield rerank_extension({"reranker": reranker}) + search_extension(index, reranker)


@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(POSTS), body=wholes | cut)
def test_no_body_is_the_servers_fault(gte: Embedder, extension: Extension, path: str, body: bytes) -> None:
    answer = asyncio.run(_post(gte, extension, path, body))
    assert answer.status_code < 424, (answer.status_code, answer.text)
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/json"
        if path in ("/v1/rerank", "/v2/rerank"):
            assert isinstance(answer.json()["message"], str)
        else:
            assert isinstance(answer.json()["error"], dict) is path.startswith("/v1/"), answer.text
        assert answer.status_code in (400, 404, 413) or not path.startswith("/v1/")


async def _post(embedder: Embedder, extension: Extension, path: str, body: bytes) -> httpx.Response:
    async with client_of(create_app(embedder, limits=Limits(max_texts=16), extension=extension)) as client:
        return await client.post(path, content=body)
