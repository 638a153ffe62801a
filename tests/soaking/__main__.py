"""See the package."""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import soaking
from soaking.callers import Soak
from soaking.faults import FAULTS, Fault
from soaking.watching import Watch, check_growth
from twinvec import TruncationWarning
from twinvec.engine import dispatcher

WINDOW, MAX_PENDING = 64, 500  # in place of the core's, so that windows and backpressure are at work


def report(soak: Soak, console: Console) -> None:
    """Print what happened."""
    table = Table(title="soak")
    table.add_column("calls that ended with")
    table.add_column("n", justify="right")
    for name, n in soak.ledger.outcomes.most_common():
        table.add_row(name, str(n))
    table.add_section()
    for name, n in soak.chaos.counts.most_common():
        table.add_row(f"injected: {name}", str(n))
    table.add_section()
    table.add_row("rows verified", str(soak.ledger.rows))
    for name, n in soak.ledger.wrong.most_common():
        table.add_row(f"WRONG: {name}", str(n))
    console.print(table)
    for line in soak.ledger.shown:
        console.print(line, markup=False)


def verdict(soak: Soak, fault: Fault | None, console: Console) -> int:
    """Print and return whether all was well; with a seeded fault, whether its check has found it."""
    if fault is None:
        well, word = not soak.ledger.wrong, "passed" if not soak.ledger.wrong else "failed"
    else:
        well = fault.check in soak.ledger.wrong
        word = f"{'found' if well else 'NOT FOUND'} by the check of {fault.check}: {fault.what}"
    console.print(word, style="green" if well else "red")
    return 0 if well else 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    faults = "\n".join(f"  {name:16} {fault.what} (check: {fault.check})" for name, fault in FAULTS.items())
    parser = argparse.ArgumentParser(
        "soaking",
        description=soaking.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"faults to seed; exit status 0 where the check has found it:\n{faults}",
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=6, help="that call, besides event loops, owners and writers")
    parser.add_argument("--hang", type=float, default=60, help="seconds after which a call counts as hanging")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seed-fault", metavar="NAME", choices=FAULTS, help="see below")
    return parser.parse_args(arguments)


def main() -> int:
    """Parse arguments, soak, report."""
    options = parse()
    console = Console()
    warnings.simplefilter("ignore", TruncationWarning)
    logging.getLogger("twinvec").setLevel(logging.CRITICAL + 1)
    torch.set_num_threads(1)  # the callers are many enough
    dispatcher.WINDOW, dispatcher.MAX_PENDING = WINDOW, MAX_PENDING
    fault = FAULTS[options.seed_fault] if options.seed_fault else None

    def end() -> int:
        report(soak, console)
        return verdict(soak, fault, console)

    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), random.Random(options.seed))
        soak.chaos.install()
        if fault is not None:
            fault.install(soak)
        soak.chaos.on = True
        threads = soak.start(options.threads)
        console.print(f"{len(soak.texts)} texts, {len(soak.clients)} shared Embedders, {len(threads)} callers")
        watch = Watch(soak, options.hang, console, end)
        samples = watch.until(60 * options.minutes)
        watch.finish(threads)
    check_growth(soak, samples)
    return end()


if __name__ == "__main__":
    sys.exit(main())
