"""The `twinvec` command: an app made of small commands, one per file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from twinvec import __version__
from twinvec_cli.console import Commands, exit_status, open_streams
from twinvec_cli.demo import demo
from twinvec_cli.embed import embed
from twinvec_cli.evaluate import evaluate
from twinvec_cli.ingest import ingest
from twinvec_cli.mcp import mcp
from twinvec_cli.models import models
from twinvec_cli.questions import questions
from twinvec_cli.rerank import rerank
from twinvec_cli.search import search
from twinvec_cli.serve import serve
from twinvec_cli.store import store
from twinvec_cli.tune import tune
from twinvec_cli.verify import verify

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (models, embed, ingest, search, rerank, questions, tune, serve, mcp, verify, demo):
    app.command()(command)
app.command(name="eval")(evaluate)
app.add_typer(store, name="store")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"twinvec {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Dense and sparse text embeddings from one forward pass, with the prompts the models were trained on."""


def run() -> None:
    """Entry point of the `twinvec` command."""
    output = open_streams()
    sys.exit(exit_status(output, lambda: app(prog_name="twinvec")))
