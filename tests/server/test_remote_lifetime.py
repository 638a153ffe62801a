"""RemoteEmbedder: secrets, addresses, pickles, closing."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import warnings
from typing import Any

import httpx
import pytest

from langchain_.gate import Gate
from server.conftest import Connect, Hosts
from server.remote import KEY, assert_same
from twinvec import Embedder, RemoteEmbedder
from twinvec.errors import (
    ConfigurationError,
    RemoteError,
)
from twinvec.server import create_app


def test_the_key_is_sent_and_never_shown(connect: Connect, gte: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = connect(gte, api_key=KEY)
    assert_same(remote.embed_queries(["a"]), gte.embed_queries(["a"]))
    with pytest.raises(RemoteError, match="rejected the API key") as refused:
        RemoteEmbedder(remote.url, api_key="another-key")
    shown = [repr(remote), str(remote), repr(pickle.dumps(remote)), repr(vars(remote)), str(refused.value)]
    assert not [text for text in shown if KEY in text or "another-key" in text]
    monkeypatch.setenv("TWINVEC_API_KEY", KEY)
    with pickle.loads(pickle.dumps(remote)) as made:
        assert_same(made.embed_queries(["a"]), gte.embed_queries(["a"]))
    for key in ("key\n", "ключ"):
        with pytest.raises(ConfigurationError, match="printable ASCII") as caught:
            RemoteEmbedder(remote.url, api_key=key)
        assert key not in str(caught.value)


def test_a_password_in_the_url_is_sent_and_never_shown(connect: Connect, hosts: Hosts, gte: Embedder) -> None:
    connect(gte)
    with RemoteEmbedder("http://somebody:pass-word@host-0/?token=pass-word#x") as remote:
        assert hosts.requests[-1].headers["authorization"].startswith("Basic ")
        assert remote.url == "http://host-0"
        shown = [repr(remote), repr(pickle.dumps(remote)), repr(vars(remote))]
        assert not [text for text in shown if "pass-word" in text or "somebody" in text]
    with pytest.raises(ConfigurationError, match="not both"):
        RemoteEmbedder("http://somebody:pass-word@host-0", api_key=KEY)
    with pytest.raises(RemoteError) as caught:
        RemoteEmbedder("http://somebody:pass-word@nowhere", retries=0)
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("host:8000", {}),
        ("ftp://host", {}),
        ("http://", {}),
        ("http://host:port", {}),
        (3, {}),
        ("http://host", {"timeout": 0}),
        ("http://host", {"timeout": True}),
        ("http://host", {"retries": -1}),
        ("http://host", {"retries": 1.5}),
    ],
)
def test_arguments_that_make_no_sense(url: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        RemoteEmbedder(url, **options)


def test_a_prefix_in_the_url(hosts: Hosts, gte: Embedder) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    hosts.answering["host"] = httpx.ASGITransport(app=Starlette(routes=[Mount("/models/gte", create_app(gte))]))
    with RemoteEmbedder("http://host/models/gte/") as remote:
        assert_same(remote.embed_queries(["a"]), gte.embed_queries(["a"]))


def test_pickles_and_copies(connect: Connect, gte: Embedder) -> None:
    remote = connect(gte)
    with pickle.loads(pickle.dumps(remote)) as made:
        assert made.spec == remote.spec
        assert_same(made.embed_queries(["a"]), gte.embed_queries(["a"]))
    assert copy.copy(remote) is remote
    assert copy.deepcopy([remote])[0] is remote


def test_closed_is_closed(connect: Connect, gte: Embedder) -> None:
    remote = connect(gte)
    with remote:
        pass
    remote.close()
    for call in (
        lambda: remote.embed_queries(["a"]),
        lambda: asyncio.run(remote.aembed_queries(["a"])),
        lambda: remote.token_offsets(["a"]),
        remote.stats,
    ):
        with pytest.raises(ConfigurationError, match="this RemoteEmbedder is closed"):
            call()
    assert not remote.healthy
    assert remote.spec.fingerprint == gte.spec.fingerprint


@pytest.mark.parametrize("drain", [False, True])
def test_closing_while_a_call_waits(connect: Connect, quick: Embedder, gate: Gate, drain: bool) -> None:
    remote = connect(quick)
    outcome: list[object] = []

    def call() -> None:
        try:
            outcome.append(len(remote.embed_queries([f"pending {drain}"])))
        except ConfigurationError as error:
            outcome.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    assert gate.entered.wait(60)
    closer = threading.Thread(target=remote.close, kwargs={"drain": drain})
    closer.start()
    if drain:
        assert not outcome
        gate.open.set()
    closer.join()
    caller.join()
    assert outcome == [1 if drain else "this RemoteEmbedder is closed; create a new one"]


def test_a_forgotten_one_ends_its_thread(connect: Connect, hosts: Hosts, gte: Embedder) -> None:
    connect(gte)
    remote = RemoteEmbedder("http://host-0")
    thread = remote._line._thread
    del remote
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_no_warning_is_left_by_loops_that_end(connect: Connect, gte: Embedder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        remote = connect(gte)
        asyncio.run(remote.aembed_queries(["a"]))
        remote.close()
        gc.collect()
