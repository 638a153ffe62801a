"""`twinvec models` and `twinvec verify`: tables and exit statuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.conftest import Run
from test_verify import gte_scores
from twinvec.families import FAMILIES
from twinvec.families.gte import Gte


def test_models_lists_every_family(run: Run) -> None:
    result = run("models")
    assert result.exit_code == 0
    for family in FAMILIES:
        assert family.name in result.stdout
        for line in family.supported:
            assert line.models.split("/")[0][:20] in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout  # nothing is cut off


def test_verify_agrees(run: Run, gte: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published = gte_scores(Path(gte))
    monkeypatch.setattr(Gte, "published", (published,))
    result = run("verify", gte)
    assert result.exit_code == 0, result.stdout
    assert "30 of 30 scores agree" in result.stdout
    assert "FAIL" not in result.stdout
    assert f"{published.scores['dense'][0][0]:.4f}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_verify_disagrees(run: Run, gte: str) -> None:
    result = run("verify", gte)
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert "4.6009" in result.stdout
    assert result.stderr == ""


def test_verify_cannot_run(run: Run, bge: str) -> None:
    cases = (((bge, "--as", "BAAI/bge-base-en"), "there are no published scores"), (("/nowhere",), "no such folder"))
    for arguments, reason in cases:
        result = run("verify", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert reason in result.stderr


def test_verify_records_and_compares(run: Run, gte: str, tmp_path: Path) -> None:
    result = run("verify", gte, "--record", tmp_path / "ours.json")
    assert result.exit_code == 0, result.stderr
    result = run("verify", gte, "--expect", tmp_path / "ours.json")
    assert result.exit_code == 0, result.stdout
    assert "24 of 24 scores agree" in result.stdout
    assert "Not checked" not in result.stdout
    result = run("verify", gte, "--as", "Alibaba-NLP/gte-base-en-v1.5")
    assert result.exit_code == 1
    assert "0.7760" in result.stdout
    assert "Not checked: the lexical head (no scores)." in result.stdout
