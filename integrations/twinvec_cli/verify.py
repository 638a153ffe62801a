"""`twinvec verify`: recompute a model's published scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinvec.errors import ConfigurationError
from twinvec_cli.console import note
from twinvec_cli.options import Device, Dtype, Model, Revision, TrustRemoteCode

if TYPE_CHECKING:
    from rich.table import Table

    from twinvec import Embedder, Reranker
    from twinvec.verify import VerifyReport, VerifyRow

_DTYPE = "float32 checks the computation; auto, bfloat16 and float16 check the rounding, too."
_AS = "Hub id of the model, if its folder has another name."
_EXPECT = "Compare with scores written by --record."
_RECORD = "Write the model's scores for a few texts, to compare with later."
_MTEB = "Run a task of mteb instead (downloads it), such as RuBQRetrieval."
_TASK_SCORES = {  # main scores, nDCG@10
    ("ai-sage/Giga-Embeddings-instruct-480M-0826", "RuBQRetrieval"): 0.73574,
    ("ai-sage/Giga-Embeddings-instruct-480M-0826", "MIRACLRetrievalHardNegatives.v2"): 0.71046,
    ("Alibaba-NLP/gte-multilingual-base", "RuBQRetrieval"): 0.67938,
}
_TASK_TOLERANCE = 0.005
_NUMBERS = 43  # columns taken by the numbers and all borders


def verify(
    model: Model,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(metavar="NAME", help=_DTYPE)] = "float32",
    name: Annotated[str | None, typer.Option("--as", metavar="ID", help=_AS)] = None,
    expect: Annotated[Path | None, typer.Option(metavar="FILE", help=_EXPECT)] = None,
    record: Annotated[Path | None, typer.Option(metavar="FILE", help=_RECORD)] = None,
    mteb: Annotated[str | None, typer.Option(metavar="TASK", help=_MTEB)] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Recompute the published scores of a model, and compare.

    Exit status: 0 if all are within the tolerance, 1 if not, 2 if the comparison is not possible.

    Examples:

    [bold]twinvec verify Alibaba-NLP/gte-multilingual-base[/bold]

    [bold]twinvec verify models/ours --record ours.json[/bold], and after an upgrade [bold]--expect ours.json[/bold]
    """
    from rich.console import Console

    import twinvec.verify as verification
    from twinvec import recorded
    from twinvec.reranker import load_local

    note(f"Loading {model} ...")
    with load_local(
        model, revision=revision, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    ) as loaded:
        if record is not None:
            recorded.record_scores(loaded, record)
            typer.echo(f"Recorded in {record}; compare with --expect {record}")
            return
        if mteb is not None:
            _run_task(loaded, mteb, name or model)
            return
        expected = None if expect is None else recorded.read_scores(expect)
        report = verification.verify(loaded, published=expected, name=name)
    console = Console()
    for variant in report.variants:
        console.print(_table(report, variant, console.width))
    console.print(_summary(report), highlight=False, markup=False)
    if not report.ok:
        raise typer.Exit(1)


def _table(report: VerifyReport, variant: str | None, width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    rows = [row for row in report.rows if row.variant == variant]
    title = f"{report.family}, {report.dtype}" + (f", rope {variant}" if variant is not None else "")
    table = Table(title=title, title_justify="left")
    room = (width - _NUMBERS) // 2
    for name in ("Query", "Document"):
        table.add_column(name, overflow="ellipsis", no_wrap=True, min_width=min(room, 8), max_width=room)
    for name, least in (("Card", 6), ("TwinVec", 7), ("Diff", 7), ("", 4)):
        table.add_column(name, justify="right", no_wrap=True, min_width=least)
    half = ""
    for row in sorted(rows, key=_order(rows)):
        if row.half != half:
            half = row.half
            table.add_section()
            table.add_row(Text(half, style="bold"), Text(row.source, style="dim"))
        table.add_row(
            Text(row.query),
            Text(row.document),
            f"{row.published:.4f}",
            f"{row.computed:.4f}",
            Text(f"{row.difference:+.4f}", style="" if row.ok else "bold red"),
            Text("ok", style="green") if row.ok else Text("FAIL", style="bold red"),
        )
    return table


def _run_task(loaded: Embedder | Reranker, task: str, model: str) -> None:
    """Run an mteb task with dense vectors, and compare its score if one is published."""
    from twinvec import Embedder
    from twinvec_stores.evaluation import MtebEncoder

    if not isinstance(loaded, Embedder):
        raise ConfigurationError("--mteb is for embedding models")
    try:
        import mteb
    except ImportError:
        raise ConfigurationError("--mteb needs an optional package: pip install 'twinvec[mteb]'") from None
    result = mteb.evaluate(MtebEncoder(loaded, mode="dense"), mteb.get_task(task), cache=None)
    score = float(result.task_results[0].get_score())
    published = _TASK_SCORES.get((model, task))
    if published is None:
        typer.echo(f"{task}: {score:.5f}; no score of {model} is published")
        return
    typer.echo(f"{task}: {score:.5f}, published {published:.5f} (tolerance: {_TASK_TOLERANCE})")
    if abs(score - published) > _TASK_TOLERANCE:
        raise typer.Exit(1)


def _order(rows: list[VerifyRow]) -> Callable[[VerifyRow], int]:
    halves = list(dict.fromkeys(row.half for row in rows))
    return lambda row: halves.index(row.half)


def _summary(report: VerifyReport) -> str:
    used = [row for row in report.rows if row.variant == report.variants[0]]
    good = sum(row.ok for row in used)
    lines = [
        f"{good} of {len(used)} scores agree (tolerance: 0.01; with sparse weights 0.01 + 1% of the published score)."
    ]
    if report.variants != (None,):
        names = ", ".join(map(str, report.agreeing)) or "none"
        lines.append(f"Rope in use: {report.variants[0]}. Agrees with the card: {names}.")
        if report.agreeing and not report.ok:
            flag = str(report.agreeing[0] == "interleaved").lower()
            lines.append(
                "The vectors of this checkpoint are wrong with the rope in use: set rope_interleave to "
                f"{flag} in text_config of its config.json, and please report it."
            )
    return "\n".join([*lines, *(f"Not checked: {what}." for what in report.unchecked)])
