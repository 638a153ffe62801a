"""`twinvec rerank` and `twinvec search --rerank`, against the scores of transformers' own class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import Run
from reference.rerankers import build_cross_encoder, reference_cross_encoder
from twinvec import Embedder
from twinvec_stores import EmbeddedStore, HybridIndex, StoreConfig

QUERY = "what is the capital of china"
TEXTS = ["北京", "the capital of russia is moscow", "quick sort in python", "gravity"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cross_encoder(tmp_path_factory.mktemp("reranker"), "bert")


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str, float]:
    scores = reference_cross_encoder(folder)([(QUERY, text) for text in TEXTS]).tolist()
    return dict(sorted(zip(TEXTS, scores, strict=True), key=lambda item: -item[1]))


def test_rerank(run: Run, folder: Path, wanted: dict[str, float], tmp_path: Path) -> None:
    result = run("rerank", folder, QUERY, *TEXTS, "--json", "--top-n", 3, "--dtype", "float32")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["text"] for row in rows] == list(wanted)[:3]
    assert [TEXTS[row["index"]] for row in rows] == list(wanted)[:3]
    assert [row["score"] for row in rows] == pytest.approx(list(wanted.values())[:3], abs=1e-4)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    lines = run("rerank", folder, QUERY, "--input", tmp_path / "texts.txt", "--sigmoid").stdout.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == list(wanted)
    assert all(0 < float(line.split()[0]) < 1 for line in lines)


def test_an_embedder_is_refused(run: Run, bert: str) -> None:
    result = run("rerank", bert, QUERY, "a")
    assert result.exit_code != 0
    assert "use twinvec.Embedder" in " ".join(f"{result.stderr}{result.exception}".split())


def test_search_with_a_third_stage(run: Run, folder: Path, gte: str, wanted: dict[str, float], tmp_path: Path) -> None:
    with Embedder(gte, dtype="float32") as embedder:
        store = EmbeddedStore(tmp_path / "index", StoreConfig.for_embedder(embedder))
        with HybridIndex(embedder, store) as index:
            index.add(TEXTS, ids=TEXTS)
    result = run("search", tmp_path / "index", QUERY, "--rerank", folder, "-k", 2, "--json", "--explain")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["results"]
    assert [each["id"] for each in found] == list(wanted)[:2]
    assert [each["explanation"]["rerank_rank"] for each in found] == [1, 2]
