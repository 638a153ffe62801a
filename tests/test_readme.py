"""The README's examples run as they stand, on tiny checkpoints in the place of the real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from reference.giga import build_giga_0826
from reference.gte import build_gte
from twinvec import Embedder
from twinvec.server import create_app

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": "moscow", "text": "Москва — столица России.", "year": 2021}, {"id": "old", "text": "old", "year": 1}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    stand_ins = {
        "Alibaba-NLP/gte-multilingual-base": str(build_gte(tmp_path / "gte")),
        "ai-sage/Giga-Embeddings-instruct-480M-0826": str(build_giga_0826(tmp_path / "giga")),
        "dim=256": "dim=32",
    }
    remote = create_app(Embedder(stand_ins["Alibaba-NLP/gte-multilingual-base"]))
    monkeypatch.setattr("twinvec.server.transport._TRANSPORT", httpx.ASGITransport(app=remote))
    names: dict[str, Any] = {}
    ran = 0
    for block in BLOCKS:
        for name, stand_in in stand_ins.items():
            block = block.replace(name, stand_in)
        exec(block, names)
        ran += 1
    assert ran >= 5
    assert "2 new" in capsys.readouterr().out
    assert names["docs"].dense.shape == (2, 32)
    assert names["giga"].prompt_for("document", names["task"]) == ""
