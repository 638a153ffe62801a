"""Bodies that nobody would write by hand: no route answers one with a 5xx, and each refusal is JSON of its dialect.

``make fuzz-server`` sends 5,000 of them, the suite 300.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.conftest import client_of
from twinvec import Embedder
from twinvec.server import Limits, create_app
from twinvec.server.operations import OPERATIONS

EXAMPLES = int(os.environ.get("TWINVEC_FUZZ", "300"))
POSTS = sorted(operation.path for operation in OPERATIONS if operation.body is not None)
FIELDS = sorted({name for operation in OPERATIONS if operation.body for name in operation.body.__struct_fields__})

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


@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(POSTS), body=wholes | cut)
def test_no_body_is_the_servers_fault(gte: Embedder, path: str, body: bytes) -> None:
    answer = asyncio.run(_post(gte, path, body))
    assert answer.status_code < 424, (answer.status_code, answer.text)
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/json"
        error: Any = answer.json()["error"]
        assert isinstance(error, dict) is path.startswith("/v1/"), answer.text
        assert answer.status_code in (400, 404, 413) or not path.startswith("/v1/")


async def _post(embedder: Embedder, path: str, body: bytes) -> httpx.Response:
    async with client_of(create_app(embedder, limits=Limits(max_texts=16))) as client:
        return await client.post(path, content=body)
