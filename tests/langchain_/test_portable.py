"""A script that knows only langchain-core gives the same with our classes as with those of others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_huggingface import HuggingFaceEmbeddings

from langchain_ import portable_script
from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore


@pytest.fixture(scope="module")
def peers(bert_folder: str) -> dict[str, object]:
    return portable_script.run(HuggingFaceEmbeddings(model_name=bert_folder), InMemoryVectorStore)


@pytest.mark.parametrize("engine", ["memory", "embedded"])
def test_the_script_runs_unchanged(peers: dict[str, object], bert_folder: str, tmp_path: Path, engine: str) -> None:
    made: list[TwinVecVectorStore] = []

    def make_store(embeddings: Embeddings) -> VectorStore:
        path = tmp_path / f"index-{len(made)}" if engine == "embedded" else None
        made.append(TwinVecVectorStore(embeddings, path=path))
        return made[-1]

    embeddings = TwinVecEmbeddings(model=bert_folder, dtype="float32")
    assert portable_script.run(embeddings, make_store) == peers
    for store in made:
        store.close()
    embeddings.embedder.close()


def test_with_both_halves_too(gte: TwinVecEmbeddings) -> None:
    report = portable_script.run(gte, TwinVecVectorStore)
    assert [len(found) for found in report["found"]] == [3, 3]
    assert report["indexed"] == [5, 0, 0, 0, 5, 0, 0, 2, 3]


def test_the_script_imports_only_langchain_core() -> None:
    tree = ast.parse(Path(portable_script.__file__).read_text(encoding="utf-8"))
    froms = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in froms | names} == {
        "__future__", "asyncio", "collections", "typing", "langchain_core",
    }  # fmt: skip
