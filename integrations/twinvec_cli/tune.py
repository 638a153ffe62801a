"""`twinvec tune`: choose how a store is searched by your own questions."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinvec_cli.opening import searched
from twinvec_cli.options import (
    AllowMissing,
    Collection,
    Device,
    Qrels,
    Queries,
    Rerank,
    Store,
    TaskText,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from rich.table import Table

    from twinvec_stores.evaluation import Tuning

_MEASURE = "What to maximise: nDCG@10, recall@10, MRR@10 ..."
_BY = "A field of the questions, such as lang, whose values are split evenly between both halves."
_SHOWN = 8


def tune(
    location: Store,
    queries: Queries,
    qrels: Qrels = None,
    measure: Annotated[str, typer.Option(metavar="NAME", help=_MEASURE)] = "nDCG@10",
    by: Annotated[str | None, typer.Option(metavar="FIELD", help=_BY)] = None,
    rerank: Rerank = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the split.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing in the store.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    allow_missing: AllowMissing = False,
    task: TaskText = None,
    collection: Collection = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Choose how to search a store by one half of the questions, and judge the choice by the other half.

    A choice that is significantly better there is stored: all later searches use it, `twinvec store info` shows it, and
    `twinvec store reset-search` undoes it. Otherwise the store is left as it is.

    Example: [bold]twinvec tune index/ --queries questions.csv --dry-run[/bold]
    """
    from twinvec import Reranker
    from twinvec_stores.addresses import without_secrets
    from twinvec_stores.evaluation import read_questions
    from twinvec_stores.evaluation import tune as tuned

    questions = read_questions(queries, qrels)
    with contextlib.ExitStack() as opened:
        loading = {"device": device, "trust_remote_code": trust_remote_code}
        index = opened.enter_context(searched(location, collection=collection, **loading))
        found = tuned(
            index,
            questions,
            measure=measure,
            by=by,
            seed=seed,
            task=task,
            rerank=None if rerank is None else opened.enter_context(Reranker(rerank, device=device)),
            allow_missing=allow_missing,
            show_progress=sys.stderr.isatty(),
        )
        if kept := found.better and not dry_run:
            index.set_search(**found.chosen)
    if as_json:
        typer.echo(json.dumps({**found.to_dict(), "kept": kept}, indent=2))
        return
    _print(without_secrets(location), found, kept=kept)


def _print(location: str, found: Tuning, *, kept: bool) -> None:
    from rich.console import Console

    console = Console()
    console.print(_trials(found))
    for line in _verdict(location, found, kept=kept):
        console.print(line, markup=False, highlight=False)


def _trials(found: Tuning) -> Table:
    from rich import box
    from rich.table import Table

    title = f"{found.measure} of {len(found.trials)} choices on {found.parts[0]} questions"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Choice", overflow="fold")
    table.add_column(found.measure, justify="right", no_wrap=True)
    for trial in found.trials[:_SHOWN]:
        table.add_row(_words(trial.options), f"{trial.mean:.3f}")
    table.add_section()
    table.add_row("as it is", f"{found.default_mean:.3f}")
    return table


def _words(options: Mapping[str, Any]) -> str:
    from twinvec_stores import Fusion

    parts = [
        f"{value.method} {value.dense_weight:g} : {value.sparse_weight:g}"
        if isinstance(value, Fusion)
        else f"{name} {value:g}"
        for name, value in options.items()
    ]
    return ", ".join(parts) or "as it is"


def _verdict(location: str, found: Tuning, *, kept: bool) -> list[str]:
    c, (before, after) = found.held_back, found.means
    lines = [
        f"On the other {found.parts[1]} questions: {before:.3f} as it is, {after:.3f} with {_words(found.chosen)} "
        f"({c.difference:+.3f}, 95% interval {c.low:+.3f} to {c.high:+.3f}, {c.p_value})."
    ]
    if not found.better:
        return [*lines, "Not significant: the search stays as it is."]
    if kept:
        return [*lines, f"{location} now uses it for all searches; `twinvec store reset-search` undoes it."]
    return [*lines, "Significant; without --dry-run the store would use it from now on."]
