"""`twinvec mcp`: a store as a tool for agents."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from twinvec_cli.console import note
from twinvec_cli.opening import searched
from twinvec_cli.options import Collection, Device, Store, TrustRemoteCode

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
        options: dict[str, Any] = {"device": device, "trust_remote_code": trust_remote_code, "on_overload": "error"}
        index = opened.enter_context(searched(location, collection=collection, **options))
        reordering = None
        if reranker is not None:
            note(f"Loading {reranker} ...")
            reordering = opened.enter_context(Reranker(reranker, **options))
        mcp_server(index, reordering).run("stdio")
