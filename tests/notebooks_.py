"""What the tests of both notebooks need: their parts, and a place to run them without the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NO_NETWORK = """
import socket
_resolve = socket.getaddrinfo
def _local(host, *rest, **options):
    assert host in (None, "localhost", "127.0.0.1"), f"the notebook asked for {host}"
    return _resolve(host, *rest, **options)
socket.getaddrinfo = _local
"""


def prose(notebook: Any) -> list[str]:
    """Return the lines of its markdown."""
    return [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]


def printed(notebook: Any) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def has_plot(notebook: Any) -> bool:
    return any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def imported(notebook: Any) -> set[str]:
    """Return the packages that its cells import."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return {name.partition(".")[0] for name in re.findall(r"^(?:from|import) ([\w.]+)", code, re.MULTILINE)}


def checkout_in(folder: Path) -> Path:
    """Return a folder of notebooks beside the collections; whatever a notebook writes stays in it."""
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    (folder / "notebooks").mkdir()
    return folder / "notebooks"
