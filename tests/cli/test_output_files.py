"""Output files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cli.conftest import Run


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["out.jsonl", "out.npz"])
def test_existing_file_is_replaced_at_the_end(run: Run, bert: str, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("before")
    assert run("embed", bert, "a", "-o", path).exit_code == 0
    assert path.read_bytes() != b"before"
    assert os.listdir(tmp_path) == [name]


def test_existing_file_survives_an_error(run: Run, bert: str, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("before")
    result = run("embed", bert, "a", "-", "hello " * 50, "-o", path, "--on-overflow", "error")
    assert result.exit_code == 2
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.npz"])
def test_full_disk(run: Run, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    path = tmp_path / name
    result = run("embed", bert, "a", "-o", path)
    assert result.exit_code == 2
    assert result.stderr == f"error: {path}: No space left on device; the file was not written\n"
    assert os.listdir(tmp_path) == []


def test_link_stays_a_link(run: Run, bert: str, tmp_path: Path) -> None:
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    target.write_text("before")
    link.symlink_to(target)
    assert run("embed", bert, "a", "-o", link).exit_code == 0
    assert link.is_symlink()
    assert target.read_text().startswith('{"index": 0')


def test_only_regular_files(run: Run, bert: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    result = run("embed", bert, "a", "-o", pipe)
    assert result.exit_code == 2
    assert "not a regular file" in result.stderr
