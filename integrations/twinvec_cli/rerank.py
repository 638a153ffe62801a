"""`twinvec rerank`: order texts by their relevance to a query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from twinvec_cli.console import note
from twinvec_cli.options import Device, MaxLength, Model, Precision, Revision, TaskText, TrustRemoteCode
from twinvec_cli.reading import TextSource


def rerank(
    model: Model,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The query that the texts should answer.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts, or - to read one per line from stdin.")
    ] = None,
    input: Annotated[
        Path | None, typer.Option("--input", "-i", metavar="FILE", help="One text per line, or JSON lines.")
    ] = None,
    field: Annotated[str | None, typer.Option(metavar="NAME", help="Field of each JSON object. Default: text.")] = None,
    top_n: Annotated[
        int | None, typer.Option("-n", "--top-n", min=1, metavar="N", help="Number of texts to show.")
    ] = None,
    sigmoid: Annotated[bool, typer.Option("--sigmoid", help="Print scores from 0 to 1 instead of raw logits.")] = False,
    windows: Annotated[bool, typer.Option("--windows", help="Score long texts in windows.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per text.")] = False,
    task: TaskText = None,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    max_length: MaxLength = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Order texts by how well they answer a query, best first.

    Example: [bold]twinvec rerank Alibaba-NLP/gte-multilingual-reranker-base "capital of France?" Paris Berlin[/bold]
    """
    from twinvec import Reranker

    source = list(TextSource.choose(texts or [], input, field))
    note(f"Loading {model} ...")
    options: Any = {"task": task, "revision": revision, "device": device, "dtype": dtype, "max_length": max_length}
    with Reranker(model, trust_remote_code=trust_remote_code, **options) as reranker:
        ranked = reranker.rerank(query, source, top_n=top_n, activation="sigmoid" if sigmoid else None, windows=windows)
    for index, score in ranked:
        if as_json:
            typer.echo(json.dumps({"index": index, "score": score, "text": source[index]}, ensure_ascii=False))
        else:
            typer.echo(f"{score:8.4f}  {' '.join(source[index].split())}")
