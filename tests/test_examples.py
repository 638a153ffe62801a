"""Every code block of the README and of docs/ runs as it stands, on tiny checkpoints in the place of the real ones."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from reference.giga import build_giga_0826
from reference.gte import build_gte
from reference.rerankers import build_qwen3_reranker
from reference.sentence_layouts import build_bge_m3, build_multilingual_e5
from twinvec import Embedder, Reranker, errors
from twinvec.server import create_app
from twinvec.server.reranking import rerank_extension
from twinvec_stores import HybridIndex, MemoryStore, StoreConfig
from twinvec_stores.serving import search_extension

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
GTE = "Alibaba-NLP/gte-multilingual-base"
ROWS = [{"id": "moscow", "text": "Москва — столица России.", "year": 2021}, {"id": "old", "text": "old", "year": 1}]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


EXAMPLES = [
    pytest.param(page, id=name(page), marks=[pytest.mark.slow] if page.name == "cluster.md" else [])  # starts Ray
    for page in PAGES
    if blocks(page)
]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        GTE: str(build_gte(folder / "gte")),
        "ai-sage/Giga-Embeddings-instruct-480M-0826": str(build_giga_0826(folder / "giga")),
        "BAAI/bge-m3": str(build_bge_m3(folder / "bge-m3")),
        "intfloat/multilingual-e5-small": str(build_multilingual_e5(folder / "e5")),
        "Alibaba-NLP/gte-multilingual-reranker-base": str(build_gte(folder / "gte-reranker", variant="reranker")),
        "Qwen/Qwen3-Reranker-0.6B": str(build_qwen3_reranker(folder / "qwen3-reranker")),
        "dim=256": "dim=32",
    }


@pytest.fixture
def served(stand_ins: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """GTE behind every address, its reranker, and a store."""
    with (
        Embedder(stand_ins[GTE]) as embedder,
        Reranker(stand_ins["Alibaba-NLP/gte-multilingual-reranker-base"]) as reranker,
        MemoryStore(StoreConfig.for_embedder(embedder)) as store,
    ):
        extension = search_extension(HybridIndex(embedder, store)) + rerank_extension({"gte-reranker": reranker})
        app = create_app(embedder, extension=extension)
        monkeypatch.setattr("twinvec.server.transport._TRANSPORT", httpx.ASGITransport(app=app))
        yield


@pytest.mark.parametrize("page", EXAMPLES)
@pytest.mark.usefixtures("served")
def test_the_examples_of_a_page_run_in_order(
    page: Path, stand_ins: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(Qdrant|qdrant|Deprecat).*")
        for block in blocks(page):
            for real, tiny in stand_ins.items():
                block = block.replace(real, tiny)
            exec(compile(block, name(page), "exec"), names)


def test_the_first_examples_say_what_comes_out(
    stand_ins: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(PAGES[0])[:2]:
        for real, tiny in stand_ins.items():
            block = block.replace(real, tiny)
        exec(block, names)
    assert names["docs"].dense.shape == (2, 32)
    assert names["giga"].prompt_for("query", names["task"]) == f"Instruct: {names['task']}\nQuery: "
    assert names["giga"].prompt_for("document", names["task"]) == ""


def test_no_code_is_left_out() -> None:
    """Code in another fence would not run: commands are indented, and everything else is python."""
    fences = {fence for page in PAGES for fence in re.findall(r"^```(\w+)", page.read_text("utf-8"), re.MULTILINE)}
    assert fences <= {"python", "mermaid"}
    assert sum(len(blocks(page)) for page in PAGES) > 20


def test_troubleshooting_has_every_error() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    named = set(re.findall(r"^### (\w+)$", text, re.MULTILINE))
    assert named == {kind.__name__ for kind in classes if issubclass(kind, Exception)} - {"TwinVecError"}


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert [link for link in links if link and ":" not in link and not (page.parent / link).exists()] == []
