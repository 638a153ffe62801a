"""`twinvec models`: list what is supported."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twinvec.families import FAMILIES


def models() -> None:
    """List the checkpoints that run natively: dimensions, length, sparse half, prompts.

    Checkpoints are matched by their config and tensor names, never by the name of the repository, so copies and
    fine-tuned versions of these models run, too.
    """
    table = Table(title="Supported checkpoints", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Model", overflow="fold")
    for name, width in (("Dims", 10), ("Tokens", 7), ("Sparse", 10), ("Prompts", 11)):
        table.add_column(name, max_width=width)
    for family in FAMILIES:
        table.add_row(Text(family.name, style="bold"))
        for line in family.supported:
            table.add_row(*map(Text, (line.models, line.dims, line.max_length, line.sparse, line.prompts)))
        table.add_section()
    console = Console()
    console.print(table)
    published = ", ".join(family.name for family in FAMILIES if family.published)
    console.print(f"`twinvec verify` can recompute published scores of: {published}.", highlight=False, markup=False)
