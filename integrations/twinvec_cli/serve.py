"""`twinvec serve`: share models between programs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from twinvec.errors import ConfigurationError, DeviceLostError
from twinvec_cli.console import note, report
from twinvec_cli.opening import searched
from twinvec_cli.options import (
    Collection,
    Device,
    Dim,
    MaxLength,
    OnOverflow,
    Precision,
    Revision,
    Sparse,
    TaskText,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from twinvec import Embedder, Reranker
    from twinvec.server import Extension
    from twinvec_stores import HybridIndex

DEVICE_LOST = 75  # EX_TEMPFAIL: may work after a restart, which supervisors do

_MODEL = "Folders, hub ids (owner/name) or modelscope:owner/name; the first is used when a request names none."
_STORE = "Folder or URL of a store to search at /v1/search; without MODEL its model is served."
_RERANKERS = "Reranker to serve at /rerank, /v1/rerank and /v2/rerank, and for searches; repeatable; needs no MODEL."
_NAME = "Model name for clients; repeat for each model. Default: the hub id, or the folder's name."
_HOST = "Address to listen on; 0.0.0.0 means all interfaces, and should have an API key."
_PORT = "Port to listen on; 0 picks a free one."
_KEY = """File of accepted API keys, one KEY or TENANT KEY per line; read again when it changes. Default:
TWINVEC_API_KEY, else none."""
_HOSTS = "Accepted value of the Host header; repeatable. Default: see docs/server.md."
_ORIGINS = "Origin of web pages allowed to call the API (CORS); repeatable; * for all."
_FORMAT = "text or json."


def _limit(name: str, help: str) -> Any:
    """Return the option for a field of ``twinvec.server.Limits``."""
    kind: dict[str, Any] = {"metavar": "N", "min": 1} if name.startswith("max_") else {"metavar": "SECONDS", "min": 0.0}
    return typer.Option(help=help, envvar=f"TWINVEC_{name.upper()}", rich_help_panel="Limits", **kind)


def serve(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL...]", help=_MODEL)] = None,
    store: Annotated[str | None, typer.Option(metavar="STORE", help=_STORE)] = None,
    collection: Collection = None,
    mcp: Annotated[bool, typer.Option("--mcp", help="Also let agents search it: MCP over HTTP at /mcp.")] = False,
    served_model_name: Annotated[list[str] | None, typer.Option(metavar="NAME", help=_NAME)] = None,
    reranker: Annotated[list[str] | None, typer.Option(metavar="MODEL", help=_RERANKERS)] = None,
    host: Annotated[str, typer.Option(metavar="HOST", help=_HOST)] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help=_PORT)] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help=_KEY)] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(metavar="HOST", help=_HOSTS)] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(metavar="ORIGIN", help=_ORIGINS)] = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    dim: Dim = None,
    max_length: MaxLength = None,
    on_overflow: OnOverflow = "truncate",
    sparse: Sparse = "auto",
    task: TaskText = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request, never its texts.")] = False,
    log_format: Annotated[Literal["text", "json"], typer.Option(metavar="FORMAT", help=_FORMAT)] = "text",
    max_requests: Annotated[int, _limit("max_requests", "Concurrent requests; more get status 429.")] = 512,
    max_texts: Annotated[int, _limit("max_texts", "Texts per request.")] = 2048,
    max_body_bytes: Annotated[int, _limit("max_body_bytes", "Bytes of a request body.")] = 2_000_000,
    max_header_bytes: Annotated[int, _limit("max_header_bytes", "Bytes of the request headers.")] = 32768,
    max_connections: Annotated[
        int, _limit("max_connections", "Open connections; one more replaces the longest idle one.")
    ] = 1024,
    header_seconds: Annotated[float, _limit("header_seconds", "Time to receive a request's headers.")] = 10,
    body_seconds: Annotated[float, _limit("body_seconds", "Time to receive a request's body.")] = 30,
    idle_seconds: Annotated[float, _limit("idle_seconds", "Time until an idle connection is closed.")] = 75,
    answer_seconds: Annotated[float, _limit("answer_seconds", "Time for a client to receive its response.")] = 60,
    drain_seconds: Annotated[float, _limit("drain_seconds", "Time from SIGTERM to exit.")] = 25,
    unready_seconds: Annotated[float, _limit("unready_seconds", "Of these, how long only /ready fails.")] = 3,
) -> None:
    """Serve models over HTTP to TwinVec's RemoteEmbedder and to clients of OpenAI and TEI.

    Concurrent requests share forward passes. Ctrl-C or SIGTERM stops the server once current requests are answered.
    Exit status 75 means that a device was lost twice: restart the process.

    Examples:

    [bold]twinvec serve Alibaba-NLP/gte-multilingual-base[/bold]

    [bold]TWINVEC_API_KEY=... twinvec serve BAAI/bge-m3 --host 0.0.0.0 --device cuda[/bold]

    [bold]curl localhost:8000/v1/embeddings -d '{"input": "capital of France", "input_type": "query"}'[/bold]
    """
    from twinvec import Embedder, Reranker
    from twinvec.server import Extension, KeysFile, Limits, reserve, run
    from twinvec.server.logs import configure_logging
    from twinvec.server.reranking import rerank_extension

    limits = Limits(
        max_requests=max_requests,
        max_texts=max_texts,
        max_body_bytes=max_body_bytes,
        max_header_bytes=max_header_bytes,
        max_connections=max_connections,
        header_seconds=header_seconds,
        body_seconds=body_seconds,
        idle_seconds=idle_seconds,
        answer_seconds=answer_seconds,
        drain_seconds=drain_seconds,
        unready_seconds=unready_seconds,
    )
    keys = None if api_key_file is None else KeysFile(api_key_file)
    if not models and store is None and not reranker:
        raise ConfigurationError("nothing to serve: pass a MODEL, --store STORE or --reranker MODEL")
    if mcp and store is None:
        raise ConfigurationError("--mcp serves searches: pass --store STORE, too")
    names, reranker_names = _names(models or [], served_model_name), _names(reranker or [], None)
    if twice := names.keys() & reranker_names.keys():
        raise ConfigurationError(f"a model and a reranker are called {min(twice)!r}: pass --served-model-name")
    with contextlib.ExitStack() as opened:
        reserved = opened.enter_context(reserve(host, port))
        configure_logging(log_format, access_log=access_log)
        embedders = {}
        for name, model in names.items():
            note(f"Loading {model} ...")
            embedders[name] = opened.enter_context(
                Embedder(
                    model, revision=revision, device=device, dtype=dtype, dim=dim, max_length=max_length,
                    sparse=sparse, task=task,
                    on_overflow=on_overflow, on_overload="error", trust_remote_code=trust_remote_code,
                )
            )  # fmt: skip
        rerankers = {}
        for name, model in reranker_names.items():
            note(f"Loading {model} ...")
            rerankers[name] = opened.enter_context(
                Reranker(model, device=device, dtype=dtype, on_overflow=on_overflow, on_overload="error",
                    trust_remote_code=trust_remote_code)
            )  # fmt: skip
        extension = rerank_extension(rerankers) if rerankers else Extension()
        if store is not None:
            loading = {"device": device, "trust_remote_code": trust_remote_code, "on_overload": "error"}
            index = opened.enter_context(searched(store, collection=collection, **loading))
            extension += _searches(index, next(iter(rerankers.values()), None), mcp=mcp)
            if not embedders:
                embedders = _named_as_stored(index, served_model_name)
        try:
            run(
                embedders, host=host, port=port, api_key=keys, limits=limits, hosts=allowed_host or None,
                origins=cors_origin or (), extension=extension, reserved=reserved,
                on_start=_started([*(models or embedders), *rerankers], store),
            )  # fmt: skip
        except DeviceLostError as error:
            report(error)
            raise typer.Exit(DEVICE_LOST) from None


def _names(models: list[str], given: list[str] | None) -> dict[str, str]:
    """Return the models by their names for clients."""
    from twinvec.server.service import public_name

    names = given if given and models else [public_name(model) for model in models]
    if len(names) != len(models):
        raise ConfigurationError(
            f"{len(models)} models but {len(names)} names: pass --served-model-name once per model"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigurationError(f"two models are called {twice[0]!r}: pass --served-model-name for each")
    return dict(zip(names, models, strict=True))


def _named_as_stored(index: HybridIndex, given: list[str] | None) -> dict[str, Embedder]:
    from twinvec import Embedder
    from twinvec.server.service import public_name

    embedder = index.embedder
    assert isinstance(embedder, Embedder)
    if given is not None and len(given) != 1:
        raise ConfigurationError("a store has one model: pass --served-model-name once")
    return {given[0] if given else public_name(embedder.spec.model): embedder}


def _searches(index: HybridIndex, reranker: Reranker | None, *, mcp: bool) -> Extension:
    from twinvec_stores.serving import search_extension

    extension = search_extension(index, reranker)
    if mcp:
        from twinvec_stores.agents import mcp_extension

        extension += mcp_extension(index, reranker)
    return extension


def _started(names: Iterable[str], store: str | None) -> Callable[[str], None]:
    from twinvec_stores.addresses import without_secrets

    served = ", ".join(names) + (f" and searches in {without_secrets(store)}" if store is not None else "")

    def show(url: str) -> None:
        typer.echo(f"Serving {served} at {url} (OpenAI clients: {url}/v1). Ctrl-C stops it.", err=True)

    return show
