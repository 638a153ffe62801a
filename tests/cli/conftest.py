"""Tiny checkpoints, and the command run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reference.gte import build_gte
from reference.sentence_layouts import build_bge_m3, build_sentence_transformer, build_splade
from twinvec import Embedder
from twinvec_cli.main import app

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    return str(build_sentence_transformer(folder, "bert", max_seq_length=32))


@pytest.fixture(scope="session")
def gte(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_gte(tmp_path_factory.mktemp("gte"), dtype="float32"))


@pytest.fixture(scope="session")
def bge(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_bge_m3(tmp_path_factory.mktemp("bge")))


@pytest.fixture(scope="session")
def splade(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_splade(tmp_path_factory.mktemp("splade")))


@pytest.fixture(scope="module")
def old(gte: str) -> Iterator[Embedder]:
    """A store's model before it is embedded again."""
    with Embedder(gte, dtype="float32") as embedder:
        yield embedder


@pytest.fixture(scope="module")
def new(bert: str) -> Iterator[Embedder]:
    """Its model afterwards."""
    with Embedder(bert, dtype="float32", sparse="bm25") as embedder:
        yield embedder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command on an 80 columns wide terminal; returns exit_code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    runner = CliRunner()
    return lambda *args, stdin=None: runner.invoke(app, list(map(str, args)), input=stdin)


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffhello world\r\n\n  Столица России\t\nwhat is python?".encode())
    return path
