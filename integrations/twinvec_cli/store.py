"""`twinvec store`: show, maintain and move stores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinvec.errors import ConfigurationError
from twinvec_cli.console import note, progress_line, warn
from twinvec_cli.opening import readable
from twinvec_cli.options import Collection, Store
from twinvec_cli.reembed import reembed

if TYPE_CHECKING:
    from twinvec_stores import StoreConfig, StoreInfo

store = typer.Typer(no_args_is_help=True, help="Inspect, verify, optimize, copy, re-embed, export and import a store.")
store.command()(reembed)

_STORE = "A folder, or the URL of a Qdrant (http...) or Milvus server or of a PostgreSQL database."
_TARGET = "Likewise; it is created if it does not exist."
_FILE = "FILE.jsonl, or FILE.jsonl.gz for compression."
_EXPORT = "An exported file; or a folder of parquet files, written on a Ray cluster, or its URL."


@store.command()
def info(
    location: Store,
    collection: Collection = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a store contains: records, model, indexed fields, size."""
    from twinvec_stores import open_store

    with open_store(location, collection=collection) as opened:
        facts = opened.info()
    if as_json:
        typer.echo(json.dumps({**_facts(facts), "config": facts.config.to_dict()}, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for name, value in _readable(facts).items():
        table.add_row(Text(name, style="bold"), Text(value))
    Console().print(table)


@store.command()
def optimize(location: Store, collection: Collection = None) -> None:
    """Build the graph for fast dense search, and clean up after many writes.

    Takes seconds to minutes; worthwhile above about ten thousand records. Readers go on meanwhile. Interrupting it
    loses nothing, and the next call goes on with what is left.
    """
    from twinvec_stores import open_store

    with open_store(location, collection=collection) as opened:
        before = opened.info()
        with progress_line() as show:
            opened.optimize(
                lambda seconds, written: show(f"Optimizing: {seconds:.0f} s, {_megabytes(written)} written")
            )
        after = opened.info()
    graph = {True: "with a graph", False: "searched exactly, too small for a graph", None: "optimized"}[after.has_graph]
    typer.echo(f"{after.records} records, {graph}; {_megabytes(before.bytes)} before, {_megabytes(after.bytes)} after")


@store.command()
def reset_search(location: Store, collection: Collection = None) -> None:
    """Undo what `twinvec tune` has set: search with TwinVec's defaults."""
    from twinvec_stores import open_store
    from twinvec_stores.addresses import without_secrets

    with open_store(location, collection=collection) as opened:
        opened.set_search({})
    typer.echo(f"{without_secrets(location)}: now searched with the defaults")


@store.command()
def verify(
    location: Store,
    collection: Collection = None,
    sample: Annotated[int | None, typer.Option(metavar="N", help="Read only N random records.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look for damage: records against their checksums, and the indexes against the records.

    Exit status 1 means that something was found.
    """
    from dataclasses import asdict

    from twinvec_stores import open_store, verify_store

    with open_store(location, collection=collection) as opened:
        total = opened.count()
        with progress_line() as show:
            found = verify_store(opened, sample=sample, progress=lambda done: show(f"Verifying: {done} of {total}"))
    if as_json:
        typer.echo(json.dumps({**asdict(found), "intact": found.intact}, indent=2))
    else:
        for damage in found.damages:
            warn(damage.reason if damage.id is None else f"{damage.id}: {damage.reason}")
        if found.unsigned:
            warn(f"{found.unsigned} records from an earlier version have no checksum: export and import the store")
        state = "intact" if found.intact else f"{len(found.damages)} findings"
        typer.echo(f"{found.records} of {found.total} records read: {state}")
    if not found.intact:
        raise typer.Exit(1)


@store.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help=_STORE)],
    target: Annotated[str, typer.Argument(metavar="TO", help=_TARGET)],
    collection: Annotated[str | None, typer.Option(metavar="NAME", help="Collection of FROM on its server.")] = None,
    to_collection: Annotated[str | None, typer.Option(metavar="NAME", help="Collection of TO on its server.")] = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="NAME", help="int8, binary or none, for a new TO. Default: as FROM.")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Delete what TO has and FROM lacks.")] = False,
    sample: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of records whose rankings are compared at the end.")
    ] = 100,
) -> None:
    """Copy a store to another engine, vectors included; nothing is embedded again.

    Run it again to resume an interrupted copy, or to bring TO up to date: what TO already has is not written again. At
    the end both must have equally many records, and rank the same ones for the vectors of records drawn at random; exit
    status 1 means that they do not.

    Examples:

    [bold]twinvec store copy index/ postgresql://me@host/database --to-collection faq[/bold]

    [bold]twinvec store copy http://localhost:6333 index/ --collection faq[/bold]
    """
    from twinvec_stores import compare_stores, copy_store
    from twinvec_stores.addresses import without_secrets
    from twinvec_stores.opening import open_target

    place = without_secrets(target)
    with readable(source, collection) as read:
        config = _quantized(read.config, quantization)
        with open_target(target, config, collection=to_collection) as written:
            if read.info().location == written.info().location:
                raise ConfigurationError(f"FROM and TO are the same store, {place}")
            if config.quantization != written.config.quantization:
                warn(f"{place} has quantization {written.config.quantization}, not {config.quantization}")
            total = read.count()
            with progress_line() as show:
                n = copy_store(read, written, lambda done: show(f"Copying: {done} of {total}"), prune=prune)
                show("Comparing ...")
                differences = compare_stores(read, written, sample=sample)
            more = written.count() - n
    for difference in differences:
        warn(difference)
    if more > 0:
        warn(f"{place} has {more} other records: --prune deletes them")
    typer.echo(f"{n} records in {place}: {'the same as in' if not differences else 'NOT the same as in'} the source")
    if differences:
        raise typer.Exit(1)


@store.command()
def export(
    location: Store,
    file: Annotated[Path, typer.Argument(metavar="FILE", help=_FILE)],
    collection: Collection = None,
) -> None:
    """Write a store to a file, vectors included; completely or not at all."""
    from twinvec_stores import export_store, open_store

    with open_store(location, collection=collection) as opened:
        total = opened.count()
        with progress_line() as show:
            n = export_store(opened, file, lambda done: show(f"Exporting: {done} of {total}"))
    typer.echo(f"{n} records written to {file}")


@store.command(name="import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help=_EXPORT)],
    location: Store,
    collection: Collection = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="NAME", help="int8, binary or none, for a new store.")
    ] = None,
) -> None:
    """Read an export into a store, which is created if it does not exist.

    Use this to move from a folder to a server, or to other settings.
    """
    from twinvec_stores import import_store, open_store, read_export
    from twinvec_stores.addresses import without_secrets

    config, _ = read_export(file)
    config = _quantized(config, quantization)
    with open_store(location, config, collection=collection) as opened:
        with progress_line() as show:
            n = import_store(file, opened, lambda done: show(f"Importing: {done}"))
        total = opened.count()
    place = without_secrets(location)
    typer.echo(f"{n} records read from {file}; {place} has {total}")
    if config.dim is not None and total > 20_000:
        note(f"To make dense search faster, run: twinvec store optimize {place}")
    if total < n:
        warn(f"{n - total} duplicate ids were replaced")


def _facts(info: StoreInfo) -> dict[str, object]:
    names = ("engine", "location", "records", "has_graph", "segments", "bytes")
    return {name: getattr(info, name) for name in names}


def _readable(info: StoreInfo) -> dict[str, str]:
    config = info.config
    halves = [f"dense, {config.dim} dimensions"] if config.dim is not None else []
    halves += [("sparse, BM25" if config.idf else "sparse")] if config.sparse else []
    pool = config.token_pool
    halves += [f"tokens, {'one by one' if pool == 1 else f'{pool} pooled'}"] if pool is not None else []
    search = {True: "graph (HNSW)", False: "exact", None: "the server's choice"}[info.has_graph]
    return {
        "Engine": info.engine,
        "Where": info.location,
        "Records": f"{info.records:,}",
        "Model": config.model,
        "Vectors": "; ".join(halves) + (f"; {config.quantization}" if config.quantization else ""),
        "Dense search": search,
        "Searched with": json.dumps(config.search) if config.search else "the defaults",
        "Indexed fields": ", ".join(f"{name} ({kind})" for name, kind in config.fields.items()) or "none",
        "On disk": _megabytes(info.bytes) if info.bytes is not None else "on the server",
        "Fingerprint": config.fingerprint,
        "Schema version": str(config.schema_version),
    }


def _megabytes(size: int | None) -> str:
    return "unknown size" if size is None else f"{size / 1e6:.1f} MB"


def _quantized(config: StoreConfig, quantization: str | None) -> StoreConfig:
    if quantization is None:
        return config
    changed = replace(config, quantization=None if quantization == "none" else quantization)
    if changed.first_dim not in (None, config.first_dim):
        raise ConfigurationError(
            f"--quantization {quantization}: only the model can tell, so use it with `twinvec ingest`"
        )
    return changed
