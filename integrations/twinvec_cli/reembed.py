"""`twinvec store reembed`: another model for a store that goes on serving."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinvec.errors import ConfigurationError, StoreLockedError
from twinvec_cli.console import note, progress_line, warn
from twinvec_cli.evaluate import default_way, side_by_side
from twinvec_cli.options import Collection, Device, Dim, Precision, Qrels, Revision, Sparse, TrustRemoteCode

if TYPE_CHECKING:
    from twinvec import Embedder
    from twinvec_stores import HybridStore, Reembedding
    from twinvec_stores.evaluation import Questions

_QUERIES = "Judged questions, as for twinvec eval: switch only if the new model is not significantly worse."


def reembed(
    location: Annotated[str, typer.Argument(metavar="STORE", help="A folder, or a server's URL.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NEW", help="Folder or hub id of the new model.")
    ] = None,
    collection: Collection = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the model before the last switch.")] = False,
    switch: Annotated[bool, typer.Option("--switch/--no-switch", help="Serve the new vectors at the end.")] = True,
    queries: Annotated[Path | None, typer.Option("--queries", "-q", metavar="PATH", help=_QUERIES)] = None,
    qrels: Qrels = None,
    sparse: Sparse = "auto",
    dim: Dim = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Embed a store's texts with another model, beside the old vectors, which go on serving; then switch to the new.

    Run it again to resume an interrupted run: what is embedded is not embedded again. What was written meanwhile is
    embedded before the switch, which is one step: whoever opens the store gets the old vectors or the new ones, whole.
    For the switch no other process may have a folder open for writing; readers may. On a server other processes'
    writes wait for it (PostgreSQL), or are refused meanwhile.

    --rollback is the same in the other direction: what was written since the switch is embedded with the model before.
    The vectors of both models stay.

    Examples:

    [bold]twinvec store reembed index/ --model BAAI/bge-m3 --queries questions.csv[/bold]

    [bold]twinvec store reembed index/ --rollback[/bold]

    [bold]twinvec store reembed postgresql://me@host/database --collection faq --model BAAI/bge-m3[/bold]
    """
    from twinvec import Embedder
    from twinvec_stores import Reembedding, load_embedder
    from twinvec_stores.addresses import without_secrets
    from twinvec_stores.evaluation import read_questions
    from twinvec_stores.reembedding import previous

    if (model is None) != rollback:
        raise ConfigurationError("pass either --model or --rollback")
    load = partial(load_embedder, device=device, trust_remote_code=trust_remote_code)
    questions = None if queries is None else read_questions(queries, qrels)
    with contextlib.ExitStack() as opened:
        if model is None:
            with previous(location, collection=collection) as store:
                note(f"Loading {store.config.model} ...")
                embedder = load(store)
        else:
            note(f"Loading {model} ...")
            embedder = Embedder(
                model,
                device=device,
                dtype=dtype,
                revision=revision,
                dim=dim,
                sparse=sparse,
                trust_remote_code=trust_remote_code,
            )
        opened.enter_context(embedder)
        work = Reembedding(location, embedder, collection=collection)
        with progress_line() as show:
            n = work.run(lambda done: show(f"Embedding: {done} records"))
        typer.echo(f"{n} records embedded with {embedder.spec.model}")
        if questions is not None and not _is_as_good(work, embedder, questions, load):
            typer.echo("Not switched: it is significantly worse. Without --queries it is switched nevertheless.")
            raise typer.Exit(1)
        if switch:
            _switch(work)
            typer.echo(f"{without_secrets(location)} now has the vectors of {embedder.spec.model}")


def _switch(work: Reembedding) -> None:
    try:
        with progress_line() as show:
            work.switch(lambda done: show(f"Switching: {done} records"))
    except StoreLockedError:
        warn("the new vectors are ready: run this again to switch")
        raise


def _is_as_good(
    work: Reembedding, embedder: Embedder, questions: Questions, load: Callable[[HybridStore], Embedder]
) -> bool:
    """Compare both models on judged questions, by their default searches."""
    from rich.console import Console

    from twinvec_stores import HybridIndex
    from twinvec_stores.evaluation import compare, evaluate

    progress = sys.stderr.isatty()
    with work.open_source() as source, load(source) as old:
        before = evaluate(HybridIndex(old, source), questions, show_progress=progress)
    with work.open_target() as target:
        after = evaluate(HybridIndex(embedder, target), questions, show_progress=progress)
    Console().print(side_by_side({f"now: {source.config.model}": before, embedder.spec.model: after}))
    measure = before.measures[0]
    scores = [found.ways[default_way(found)].scores[measure] for found in (after, before)]
    found = compare(*scores)
    return found.difference >= 0 or not found.significant
