"""`twinvec ingest`: load files and folders into a store."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from twinvec.errors import ConfigurationError, StoreNotFoundError, TruncationWarning
from twinvec_cli.console import note
from twinvec_cli.options import Collection, Device, Dim, Precision, Revision, Sparse, TrustRemoteCode

if TYPE_CHECKING:
    from twinvec import Embedder
    from twinvec_stores import HybridStore

OnError = Literal["skip", "stop"]
Context = Literal["headings", "document", "late"]
INCOMPLETE = 1  # the run completed, but some rows failed, or it did not prune


_SOURCE = "Files (.jsonl, .csv, .tsv, .parquet, .txt, .md, .rst, .html, .pdf; .gz), folders of them, or URLs of both."
_STORE = "A folder, or the URL of a Qdrant or Milvus server or of a PostgreSQL database."
_MODEL = "Folder or hub id; only needed for a new store."
_FIELD = "Metadata field to index: --field year:integer (keyword, integer, float, bool, datetime, text). Repeatable."
_PROMPTS = """Prompts of a new store, as JSON: '{"query": "query: ", "document": "passage: "}'."""
_CHUNK = "Split texts into chunks of at most N tokens."
_CONTEXT = (
    "headings: embed each chunk preceded by its title and headings; document: mixed with its document's vector, too; "
    "late: in one pass over its document."
)
_METADATA = "Fields to keep as metadata, separated by commas; others are dropped."
_PRUNE = "Delete documents that are in the store but not in the source."
_SHARE = "Prune nothing if more than this share of the documents would be deleted."
_POOL = "For a new store: keep vectors of tokens for MaxSim, one for N neighbours (bge-m3)."
_WATCH = "Keep running until Ctrl-C, and ingest again whenever a folder changes."


def ingest(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=_SOURCE)],
    location: Annotated[str, typer.Option("--store", "-s", metavar="STORE", help=_STORE)],
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help=_MODEL)] = None,
    text_field: Annotated[str, typer.Option(metavar="NAME", help="Field that contains the text.")] = "text",
    id_field: Annotated[
        str, typer.Option(metavar="NAME", help="Field that contains the id; for id, _id is accepted, too.")
    ] = "id",
    delimiter: Annotated[
        str | None, typer.Option(metavar="CHAR", help="Separator of table cells. Default: detected.")
    ] = None,
    chunk_tokens: Annotated[int | None, typer.Option(metavar="N", min=1, help=_CHUNK)] = None,
    overlap_tokens: Annotated[int, typer.Option(metavar="N", min=0, help="Tokens shared by consecutive chunks.")] = 0,
    chunk_context: Annotated[Context | None, typer.Option(metavar="HOW", help=_CONTEXT)] = None,
    metadata_fields: Annotated[str | None, typer.Option(metavar="NAMES", help=_METADATA)] = None,
    field: Annotated[list[str] | None, typer.Option(metavar="NAME:TYPE", help=_FIELD)] = None,
    prune: Annotated[bool, typer.Option("--prune", help=_PRUNE)] = False,
    prune_share: Annotated[float, typer.Option(metavar="SHARE", min=0, max=1, help=_SHARE)] = 0.5,
    watch: Annotated[bool, typer.Option("--watch", help=_WATCH)] = False,
    on_error: Annotated[OnError, typer.Option(metavar="HOW", help="What to do with a bad row: skip or stop.")] = "skip",
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Records per batch.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    sparse: Sparse = "auto",
    prompts: Annotated[str | None, typer.Option(metavar="JSON", help=_PROMPTS)] = None,
    dim: Dim = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="NAME", help="int8, binary or first_dim=256, for a new store.")
    ] = None,
    token_pool: Annotated[int | None, typer.Option(metavar="N", min=1, help=_POOL)] = None,
    collection: Collection = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Embed documents and put them into a store; run it again to bring the store up to date.

    Unchanged documents are skipped, so an interrupted run can be resumed. Exit status 1 means that some rows failed, or
    that --prune was not carried out.

    Examples:

    [bold]twinvec ingest docs/ --store index/ --model Alibaba-NLP/gte-multilingual-base --chunk-tokens 300[/bold]

    [bold]twinvec ingest news.jsonl -s index/ --text-field body --field year:integer --prune[/bold]

    [bold]twinvec ingest corpus.parquet -s http://localhost:6333 -m ai-sage/Giga-Embeddings-instruct-480M-0826
    --sparse bm25[/bold]
    """
    from twinvec_cli.watching import going_on, rounds
    from twinvec_stores import ingest as run
    from twinvec_stores.ingestion.readers import is_url

    options = {"revision": revision, "dtype": dtype, "dim": dim, "sparse": sparse, "prompts": _prompts(prompts)}
    new = {"fields": _fields(field), "quantization": quantization, "token_pool": token_pool}
    loading = {"device": device, "trust_remote_code": trust_remote_code}
    with (
        _opened(location, collection, model, options, new, **loading) as (embedder, store),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", TruncationWarning)  # the report counts them
        for _ in rounds(sources, location) if watch else [None]:
            with going_on(watch):
                report = run(
                    sources[0] if len(sources) == 1 else [s if is_url(s) else Path(s) for s in sources],
                    embedder,
                    store,
                    text_field=text_field,
                    id_field=id_field,
                    delimiter={"\\t": "\t"}.get(delimiter or "", delimiter),
                    chunk_tokens=chunk_tokens,
                    overlap_tokens=overlap_tokens,
                    chunk_context=chunk_context,
                    metadata_fields=None if metadata_fields is None else _names(metadata_fields),
                    prune=prune,
                    prune_share=prune_share,
                    on_error=on_error,
                    batch_size=batch_size,
                    show_progress=sys.stderr.isatty(),
                )
                typer.echo(json.dumps(asdict(report), ensure_ascii=False) if as_json else str(report))
    if report.failed or report.not_pruned:
        raise typer.Exit(INCOMPLETE)


@contextlib.contextmanager
def _opened(
    location: str,
    collection: str | None,
    model: str | None,
    options: Mapping[str, Any],
    new: Mapping[str, Any],
    **loading: Any,
) -> Iterator[tuple[Embedder, HybridStore]]:
    """Open the store and its model; ``options`` are those of a model, and ``new`` those of a store, to be created."""
    from twinvec import Embedder
    from twinvec_stores import StoreConfig, load_embedder, open_store

    if model is None:
        if set(map(str, (*options.values(), *new.values()))) - {"None", "auto"}:
            raise ConfigurationError("options of a new store require --model; an existing store keeps its own")
        try:
            store = open_store(location, collection=collection)
        except StoreNotFoundError as error:
            raise ConfigurationError(f"{error}: pass --model to create one") from None
        with store:
            note(f"Loading {store.config.model} ...")
            with load_embedder(store, **loading) as embedder:
                yield embedder, store
        return
    note(f"Loading {model} ...")
    with (
        Embedder(model, **loading, **options) as embedder,
        open_store(location, StoreConfig.for_embedder(embedder, **new), collection=collection) as store,
    ):
        yield embedder, store


def _fields(given: Sequence[str] | None) -> dict[str, Any] | None:
    fields = {}
    for item in given or ():
        name, colon, kind = item.rpartition(":")
        if not colon:
            raise ConfigurationError(f"--field {item}: must be NAME:TYPE, such as year:integer")
        fields[name] = kind
    return fields or None


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def _prompts(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    try:
        prompts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"--prompts: not JSON ({error})") from None
    if not isinstance(prompts, dict) or not all(isinstance(value, str) for value in prompts.values()):
        raise ConfigurationError("--prompts: must be a JSON object with string values")
    return prompts
