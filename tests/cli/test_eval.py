"""`twinvec eval`: its tables, its files, its refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest import Run
from twinvec import Embedder
from twinvec_stores import EmbeddedStore, HybridIndex, StoreConfig

TEXTS = {f"d{i}": text for i, text in enumerate(["sorting a list", "reading a file", "a socket", "counting words"])}


@pytest.fixture(scope="module")
def embedder(gte: str) -> Iterator[Embedder]:
    with Embedder(gte, dtype="float32") as embedder:
        yield embedder


@pytest.fixture(scope="module")
def stores(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp(name) / "index" for name in ("one", "two")]
    for folder, texts in zip(folders, (TEXTS, {id: f"{text} and more" for id, text in TEXTS.items()}), strict=True):
        with HybridIndex(embedder, EmbeddedStore(folder, StoreConfig.for_embedder(embedder))) as index:
            index.add(list(texts.values()), ids=list(texts))
    return folders


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "questions.csv"
    rows = [f"{text},{id},{'odd' if id in ('d1', 'd3') else 'even'}" for id, text in TEXTS.items()]
    path.write_text("\n".join(["question,document,kind", *rows, "how to count,d3,odd"]), encoding="utf-8")
    return path


def test_a_store(run: Run, stores: list[Path], queries: Path, tmp_path: Path) -> None:
    files = ("--html", tmp_path / "report.html", "--run", tmp_path / "runs")
    result = run("eval", stores[0], "--queries", queries, "--by", "kind", *files)
    assert result.exit_code == 0, result.stderr
    for text in ("5 questions, 4 records", "hybrid, rrf", "nDCG@10", "nDCG@10 by kind"):
        assert text in " ".join(result.stdout.split())
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")
    names = {"dense", "sparse", "hybrid", "hybrid-rrf", "hybrid-dbsf", "hybrid-weighted"}
    assert {file.stem for file in (tmp_path / "runs").iterdir()} == names


def test_stores_side_by_side(run: Run, stores: list[Path], queries: Path) -> None:
    result = run("eval", *stores, "--queries", queries, "--measure", "recall@1")
    assert result.exit_code == 0, result.stderr
    assert "Side by side, default search" in result.stdout


def test_json(run: Run, stores: list[Path], queries: Path) -> None:
    result = run("eval", stores[0], "--queries", queries, "--measure", "RR@10", "--by", "kind", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)[str(stores[0])]
    assert facts["questions"] == 5
    assert facts["ways"]["dense"]["means"]["RR@10"] > 0.5
    assert {value: of["questions"] for value, of in facts["by"]["kind"].items()} == {"even": 2, "odd": 3}
    assert all(loss["difference"] < 0 for loss in facts["losses"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--by", "lang"), "no question has the field 'lang'"),
        (("--measure", "quality"), "'quality' is not a measure"),
        (("--qrels", "none.tsv"), "qrels are for a .jsonl"),
    ],
)
def test_refusals(run: Run, stores: list[Path], queries: Path, options: tuple[str, str], message: str) -> None:
    result = run("eval", stores[0], "--queries", queries, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_tune(run: Run, embedder: Embedder, tmp_path: Path) -> None:
    texts = {f"d{i}": f"entry number {i} of the list" for i in range(45)}
    folder = tmp_path / "index"
    with HybridIndex(embedder, EmbeddedStore(folder, StoreConfig.for_embedder(embedder))) as index:
        index.add(list(texts.values()), ids=list(texts))
    lines = [f"{text},{id}" for id, text in texts.items()]
    (tmp_path / "q.csv").write_text("\n".join(["question,document", *lines]), encoding="utf-8")
    result = run("tune", folder, "--queries", tmp_path / "q.csv", "--measure", "MRR@10", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "as it is" in result.stdout
    assert "On the other 22 questions" in " ".join(result.stdout.split())
    assert "the defaults" in run("store", "info", folder).stdout  # --dry-run
    facts = json.loads(run("tune", folder, "--queries", tmp_path / "q.csv", "--json").stdout)
    assert facts["kept"] == facts["better"]
    assert run("store", "reset-search", folder).exit_code == 0


def test_questions(run: Run, embedder: Embedder, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with HybridIndex(embedder, EmbeddedStore(folder, StoreConfig.for_embedder(embedder))) as index:
        index.add(["the list is sorted", "an entry"], ids=["a", "b"], metadata=[{"title": "Order of things"}, {}])
    result = run("questions", folder, "-o", tmp_path / "q.csv")
    assert (result.exit_code, result.stdout.split()) == (0, ["1", "questions", "in", str(tmp_path / "q.csv")])
    assert "1 made from: title" in result.stderr
    result = run("eval", folder, "--queries", tmp_path / "q.csv", "--by", "made")
    assert result.exit_code == 0, result.stderr
    assert "made from the documents" in " ".join(result.stdout.split())
    again = run("questions", folder, "-o", tmp_path / "q.csv")
    assert again.exit_code == 2
    assert "may have been reviewed" in " ".join(again.stderr.split())
