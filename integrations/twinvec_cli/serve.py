"""`twinvec serve`: one model for many programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from twinvec.errors import ConfigurationError
from twinvec_cli.console import note
from twinvec_cli.options import (
    Device,
    Dim,
    Dtype,
    MaxLength,
    Model,
    OnOverflow,
    Overflow,
    Precision,
    Revision,
    SparseSource,
    TaskText,
    TrustRemoteCode,
)

_HOST = "Address to listen at; 0.0.0.0 for all of this machine's, which needs an API key."
_PORT = "Port to listen at; 0 for any free one."
_KEY = "File with the API key that clients must send. Default: TWINVEC_API_KEY, else none is asked for."
_REQUESTS = "Requests at the same time; more get status 429."
_TEXTS = "Texts of one request."
_CHARACTERS = "Characters of one request's texts."


def serve(
    model: Model,
    host: Annotated[str, typer.Option(metavar="HOST", help=_HOST)] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help=_PORT)] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help=_KEY, show_default=False)] = None,
    device: Device = "auto",
    dtype: Precision = Dtype.AUTO,
    dim: Dim = None,
    max_length: MaxLength = None,
    on_overflow: OnOverflow = Overflow.TRUNCATE,
    sparse_source: SparseSource = None,
    task: TaskText = None,
    max_requests: Annotated[int, typer.Option(metavar="N", min=1, help=_REQUESTS)] = 512,
    max_texts: Annotated[int, typer.Option(metavar="N", min=1, help=_TEXTS)] = 2048,
    max_characters: Annotated[int, typer.Option(metavar="N", min=1, help=_CHARACTERS)] = 4_000_000,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve a model over HTTP: to TwinVec's RemoteEmbedder, to OpenAI's clients, and to those of TEI.

    Concurrent requests share forward passes. Ctrl-C stops it, after what is being answered.

    Examples:

    [bold]twinvec serve Alibaba-NLP/gte-multilingual-base[/bold]

    [bold]TWINVEC_API_KEY=... twinvec serve BAAI/bge-m3 --host 0.0.0.0 --device cuda[/bold]

    [bold]curl localhost:8000/v1/embeddings -d '{"input": "capital of France", "input_type": "query"}'[/bold]
    """
    from twinvec.server import Limits, run

    key = None if api_key_file is None else api_key_file.read_text(encoding="utf-8").strip()
    if key == "":
        raise ConfigurationError(f"{api_key_file} is empty: write the API key into it")
    limits = Limits(max_requests=max_requests, max_texts=max_texts, max_characters=max_characters)
    note(f"Loading {model} ...")
    from twinvec import Embedder

    with Embedder(
        model, revision=revision, device=device, dtype=dtype.value, dim=dim, max_length=max_length,
        sparse=None if sparse_source == "none" else sparse_source or "auto", task=task,
        on_overflow=on_overflow.value, on_overload="error", trust_remote_code=trust_remote_code,
    ) as embedder:  # fmt: skip
        run(embedder, host=host, port=port, api_key=key, limits=limits, on_start=_started(model))


def _started(model: str) -> Callable[[str], None]:
    def show(url: str) -> None:
        typer.echo(f"Serving {model} at {url} (OpenAI clients: {url}/v1). Ctrl-C stops it.", err=True)

    return show
