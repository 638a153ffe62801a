"""`twinvec mcp`: a store as a tool for agents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from twinvec_cli.console import note
from twinvec_cli.options import Collection, Device, Store, TrustRemoteCode

if TYPE_CHECKING:
    from twinvec_stores import HybridIndex


_RERANKER = "A reranker (folder or hub id), for searches that ask to be reranked."


def mcp(
    location: Store,
    reranker: Annotated[str | None, typer.Option(metavar="MODEL", help=_RERANKER)] = None,
    collection: Collection = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Let agents search a store: an MCP server on stdin and stdout, with the tool `search`.

    An agent's configuration: {"command": "twinvec", "args": ["mcp", "/path/of/store"]}. For MCP over HTTP see
    `twinvec serve --store STORE --mcp`.
    """
    from twinvec import Reranker
    from twinvec_stores.agents import mcp_server

    with contextlib.ExitStack() as opened:
        index = opened.enter_context(
            searched(location, collection=collection, device=device, trust_remote_code=trust_remote_code)
        )
        reordering = None
        if reranker is not None:
            note(f"Loading {reranker} ...")
            loaded = Reranker(reranker, device=device, on_overload="error", trust_remote_code=trust_remote_code)
            reordering = opened.enter_context(loaded)
        mcp_server(index, reordering).run("stdio")


@contextlib.contextmanager
def searched(
    location: str, *, collection: str | None = None, device: str = "auto", trust_remote_code: bool = False
) -> Iterator[HybridIndex]:
    """Open an existing store and its own model."""
    from twinvec_stores import HybridIndex, load_embedder, open_store

    with open_store(location, collection=collection) as store:
        note(f"Loading {store.config.model} ...")
        with load_embedder(store, device=device, trust_remote_code=trust_remote_code, on_overload="error") as embedder:
            yield HybridIndex(embedder, store, task=embedder.task)
