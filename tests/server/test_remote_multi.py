"""Late interaction over HTTP: vectors of tokens are the Embedder's, in bounded answers, and nothing is believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save

from reference.sentence_layouts import build_bge_m3, build_sentence_transformer
from rerankers.pairs import random_pairs
from rerankers.test_maxsim import build_multi_vector_encoder
from server.conftest import Connect, Hosts, client_of
from server.remote import assert_same
from support import TEXTS
from twinvec import Embedder, MaxSim
from twinvec.errors import RemoteError
from twinvec.server import create_app, wire

PAIRS = random_pairs(40, longest=6, seed=9)


@pytest.fixture(scope="module", params=["bge-m3", "encoder"])
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    place: Path = tmp_path_factory.mktemp("multi")
    if request.param == "bge-m3":
        folder = build_bge_m3(place / "bge", seed=7)
    else:
        source = build_sentence_transformer(place / "bert", "bert", max_seq_length=64, seed=7)
        prompts = {"query": "query: ", "document": "passage: "}
        folder = build_multi_vector_encoder(place / "encoder", source, prompts=prompts, query_length=12)
    with Embedder(folder, dtype="float32", reproducible=True) as made:
        yield made


def sent(hosts: Hosts) -> list[int]:
    """Return how many texts each request for vectors had."""
    bodies = [json.loads(r.content) for r in hosts.requests if r.url.path == "/v1/twinvec/embed"]
    return [len(body["texts"]) for body in bodies]


@pytest.mark.filterwarnings("ignore::twinvec.TruncationWarning")
def test_scores_are_those_of_the_embedder(connect: Connect, hosts: Hosts, embedder: Embedder) -> None:
    remote = connect(embedder)
    assert (remote.multi_vectors is not None, remote.dim) == (True, embedder.dim)
    own, there = (each.embed_queries(TEXTS, dense=False, sparse=False, multi=True).multi for each in (embedder, remote))
    assert own is not None
    assert there is not None
    np.testing.assert_array_equal(own.indptr, there.indptr)
    np.testing.assert_array_equal(own.values, there.values)
    np.testing.assert_array_equal(MaxSim(remote).score(PAIRS), MaxSim(embedder).score(PAIRS))
    if embedder.dim is not None:
        assert_same(remote.embed_documents(TEXTS), embedder.embed_documents(TEXTS))


@pytest.mark.filterwarnings("ignore::twinvec.TruncationWarning")
async def test_answers_are_bounded(
    connect: Connect, hosts: Hosts, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    dim = embedder._core.model.encoder.multi_dim
    assert dim is not None
    monkeypatch.setattr(wire, "MULTI_BYTES", 4 * dim * 300)
    remote, texts = connect(embedder), [f"{'word ' * 30}{i}" for i in range(9)]
    await remote.aembed_documents(texts, dense=False, sparse=False, multi=True)
    assert max(sent(hosts)) < 9
    assert sum(sent(hosts)) == 9
    assert len(remote.embed_documents(["word " * 2000], dense=False, sparse=False, multi=True)) == 1
    asked = {"role": "document", "texts": ["word " * 40] * 30, "dense": False, "sparse": False, "multi": True}
    async with client_of(create_app(embedder)) as client:
        refused = await client.post("/v1/twinvec/embed", json=asked)
    assert (refused.status_code, "send them in parts" in refused.json()["error"]["message"]) == (413, True)


def _set(name: str, where: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays[name][where] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("multi.values", (0, 0), np.nan),
        _set("multi.values", (0, 0), 3.0),
        _set("multi.indptr", 1, 10**6),
        _set("multi.indptr", -1, 2),
        _set("multi.indptr", 0, 1),
        _set("token_counts", 0, 1),
        lambda arrays: arrays.update({"multi.values": arrays["multi.values"][:, :-1]}),
        lambda arrays: arrays.pop("multi.values"),
        lambda arrays: [arrays.pop("multi.values"), arrays.pop("multi.indptr")],
    ],
)
def test_vectors_that_no_embedder_would_give(
    connect: Connect, hosts: Hosts, embedder: Embedder, change: Callable[[dict[str, Any]], object]
) -> None:
    remote, texts = connect(embedder), ["a text of words", "two words"]
    batch = embedder.embed_documents(texts, dense=False, sparse=False, multi=True)
    arrays = {name: array.copy() for name, array in load(wire.pack_batch(batch)).items()}
    change(arrays)
    headers = {wire.FINGERPRINT: embedder.spec.fingerprint}
    packed = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    answer = httpx.Response(200, content=packed, headers=headers)
    hosts.answering["host-0"] = httpx.MockTransport(lambda request: answer)
    with pytest.raises(RemoteError, match="returned invalid vectors: "):
        remote.embed_documents(texts, dense=False, sparse=False, multi=True)


def test_a_model_without_them_says_so(connect: Connect, gte: Embedder) -> None:
    remote = connect(gte)
    assert remote.multi_vectors is None
    with pytest.raises(Exception, match="no vectors of tokens"):
        MaxSim(remote)
