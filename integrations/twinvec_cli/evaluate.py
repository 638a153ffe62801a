"""`twinvec eval`: find out which way of searching answers your questions best."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinvec.errors import ConfigurationError
from twinvec_cli.opening import searched
from twinvec_cli.options import AllowMissing, Collection, Device, Qrels, Queries, Rerank, TaskText, TrustRemoteCode

if TYPE_CHECKING:
    from rich.table import Table

    from twinvec_stores.evaluation import Comparison, Evaluation, Loss

_STORES = "A store, or several to compare: folders, or URLs of Qdrant and Milvus servers and PostgreSQL databases."
_MEASURE = "nDCG@10, R@10, RR@10, Success@5, P@5, AP@100 ... Repeatable; the first one is used for comparisons."
_SHOWN = 10  # questions with the largest losses
_COMPARED = ("95% interval", "p", "Better", "Worse", "Equal")


def evaluate(
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help=_STORES)],
    queries: Queries,
    qrels: Qrels = None,
    measure: Annotated[list[str] | None, typer.Option(metavar="NAME", help=_MEASURE)] = None,
    by: Annotated[str | None, typer.Option(metavar="FIELD", help="Also report by a field of the questions.")] = None,
    rerank: Rerank = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report with plots.")] = None,
    run: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write TREC run files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    allow_missing: AllowMissing = False,
    task: TaskText = None,
    collection: Collection = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure how well a store answers judged questions: each half alone, every fusion, reranked.

    All ways are compared with the better single half: 95% intervals of the difference and a permutation test. Several
    stores (with different chunk sizes or models) are compared by their default search.

    Examples:

    [bold]twinvec eval index/ --queries questions.csv --html report.html[/bold]

    [bold]twinvec eval small/ large/ --queries q.jsonl --qrels qrels.tsv --by language[/bold]
    """
    from twinvec import Reranker
    from twinvec_stores.addresses import without_secrets
    from twinvec_stores.evaluation import evaluate as evaluated
    from twinvec_stores.evaluation import losses, read_questions, to_html
    from twinvec_stores.evaluation.measures import DEFAULT

    questions = read_questions(queries, qrels)
    evaluations: dict[str, Evaluation] = {}
    lost: dict[str, list[Loss]] = {}
    for location in dict.fromkeys(stores):
        with contextlib.ExitStack() as opened:
            loading = {"device": device, "trust_remote_code": trust_remote_code}
            index = opened.enter_context(searched(location, collection=collection, **loading))
            found = evaluated(
                index,
                questions,
                measures=measure or DEFAULT,
                task=task,
                rerank=None if rerank is None else opened.enter_context(Reranker(rerank, device=device)),
                allow_missing=allow_missing,
                show_progress=sys.stderr.isatty(),
            )
            name = without_secrets(location)
            evaluations[name] = found
            if by is not None:
                found.by(by)
            lost[name] = losses(index, found, default_way(found), n=_SHOWN, task=task)
    if run is not None:
        _write_runs(run, evaluations)
    if html is not None:
        html.write_text(to_html(evaluations, lost, by=by), encoding="utf-8")
    if as_json:
        facts = {
            name: {**found.to_dict(by), "losses": [asdict(loss) for loss in lost[name]]}
            for name, found in evaluations.items()
        }
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    _print(evaluations, lost, by)


def default_way(evaluation: Evaluation) -> str:
    """Return the way used by searches that do not specify one."""
    return "hybrid" if "hybrid" in evaluation.ways else evaluation.baseline


def _write_runs(folder: Path, evaluations: Mapping[str, Evaluation]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, found in enumerate(evaluations.values(), 1):
        prefix = f"{number}-" if len(evaluations) > 1 else ""
        for way in found.ways:
            name = way.replace(",", "").replace(" ", "-")
            found.write_run(folder / f"{prefix}{name}.run", way)


def _print(evaluations: Mapping[str, Evaluation], lost: Mapping[str, list[Loss]], by: str | None) -> None:
    from rich.console import Console

    console = Console()
    for name, found in evaluations.items():
        title = f"{name}: {len(found.asked):,} questions, {found.records:,} records"
        console.print(title, style="bold", markup=False, highlight=False)
        console.print(_means(found))
        if len(found.ways) > 1:
            console.print(_against(found))
        for line in (*found.notes, _verdict(found)):
            console.print(line, markup=False, highlight=False)
        if by is not None:
            console.print(_groups(found, by))
        if lost[name]:
            console.print(_losses(lost[name], found.baseline))
    if len(evaluations) > 1:
        console.print(side_by_side(evaluations))


def _table(title: str, first: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _means(found: Evaluation) -> Table:
    table = _table("Means", "Way", *found.measures, "ms")
    for way, result in found.ways.items():
        table.add_row(way, *(f"{result.mean(m):.3f}" for m in found.measures), f"{result.milliseconds:.1f}")
    return table


def _against(found: Evaluation) -> Table:
    table = _table(f"{found.measures[0]} minus {found.baseline}", "Way", "Difference", *_COMPARED)
    for way in found.ways:
        if way != found.baseline:
            table.add_row(way, *_cells(found.compare(way)))
    return table


def _cells(c: Comparison) -> tuple[str, ...]:
    interval = f"{c.low:+.3f} to {c.high:+.3f}"
    return f"{c.difference:+.3f}", interval, c.p_value.removeprefix("p "), str(c.wins), str(c.losses), str(c.ties)


def _verdict(found: Evaluation) -> str:
    way = default_way(found)
    if way == found.baseline:
        return f"The better single half is {found.baseline}."
    c = found.compare(way)
    counts = f"{c.wins} questions better, {c.losses} worse, {c.ties} tied"
    if not c.significant:
        return f"No significant difference between {way} and {found.baseline} ({counts})."
    return f"{way} is significantly {'better' if c.difference > 0 else 'worse'} than {found.baseline} ({counts})."


def _groups(found: Evaluation, by: str) -> Table:
    measure = found.measures[0]
    table = _table(f"{measure} by {by}", by, "Questions", *found.ways)
    for value, rows in found.by(by).items():
        table.add_row(
            value, str(len(rows)), *(f"{way.scores[measure][rows].mean():.3f}" for way in found.ways.values())
        )
    return table


def _losses(lost: list[Loss], baseline: str) -> Table:
    from rich.text import Text

    table = _table(f"Largest losses against {baseline}", "Question", "Change")
    table.add_column("Top result", overflow="fold")
    table.add_column("Relevant", overflow="fold")
    for loss in lost:
        first = f"{loss.found[0].document} ({', '.join(loss.found[0].terms[:3])})" if loss.found else "nothing"
        table.add_row(Text(loss.text), f"{loss.difference:+.3f}", Text(first), Text(", ".join(loss.relevant[:3])))
    return table


def side_by_side(evaluations: Mapping[str, Evaluation]) -> Table:
    """Return a table that compares stores by their default search."""
    from twinvec_stores.evaluation import compare

    (first, base), *others = evaluations.items()
    measure = base.measures[0]
    if any(list(found.asked) != list(base.asked) for _, found in others):
        raise ConfigurationError("the stores were evaluated on different questions")
    table = _table("Side by side, default search", "Store", measure, "Minus the first", *_COMPARED)
    scores = base.ways[default_way(base)].scores[measure]
    table.add_row(first, f"{scores.mean():.3f}")
    for name, found in others:
        own = found.ways[default_way(found)].scores[measure]
        table.add_row(name, f"{own.mean():.3f}", *_cells(compare(own, scores)))
    return table
