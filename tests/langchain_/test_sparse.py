"""The sparse half for other people's stores: their types where they are installed, and no need of them."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import langchain_qdrant
import pytest
from langchain_milvus import Milvus
from langchain_milvus.utils.sparse import BaseSparseEmbedding

import langchain_twinvec
from langchain_twinvec import TwinVecEmbeddings, TwinVecMilvusSparseEmbeddings, TwinVecSparseEmbeddings
from reference.sentence_layouts import build_splade
from support import TEXTS, sparse_of
from twinvec.errors import ConfigurationError

QUERY = "how to sort a list in python"


def test_qdrant_gets_its_own_vectors(gte: TwinVecEmbeddings) -> None:
    sparse = gte.sparse()
    assert isinstance(sparse, langchain_qdrant.SparseEmbeddings)
    assert isinstance(sparse, TwinVecSparseEmbeddings)
    rows = sparse.embed_documents(TEXTS)
    expected = sparse_of(gte.embedder.embed_documents(TEXTS))
    assert {type(row) for row in rows} == {langchain_qdrant.SparseVector}
    assert [dict(zip(row.indices, row.values, strict=True)) for row in rows] == expected.to_dicts()
    query = sparse_of(gte.embedder.embed_queries([QUERY]))[0]
    assert sparse.embed_query(QUERY).indices == query.indices.tolist()
    assert sparse.embed_query("").indices == []


def test_milvus_gets_dicts(gte: TwinVecEmbeddings) -> None:
    sparse = gte.sparse("milvus")
    assert isinstance(sparse, BaseSparseEmbedding)
    assert isinstance(sparse, TwinVecMilvusSparseEmbeddings)
    assert sparse.embed_documents(TEXTS) == sparse_of(gte.embedder.embed_documents(TEXTS)).to_dicts()
    row = sparse.embed_query(query=QUERY)
    assert row == sparse_of(gte.embedder.embed_queries([QUERY])).to_dicts()[0]
    assert {(type(key), type(weight)) for key, weight in row.items()} == {(int, float)}


def test_a_real_milvus_searches_by_both_halves_in_one_pass(gte: TwinVecEmbeddings, tmp_path: Path) -> None:
    texts = [f"{verb} {what}" for verb in ("sort", "find", "open") for what in ("lists", "files", "tables")]
    sparse: dict[str, Any] = {"metric_type": "IP", "params": {}}  # the lite engine takes no drop ratio
    store = Milvus.from_texts(
        texts,
        [gte, gte.sparse("milvus")],
        vector_field=["dense", "sparse"],
        connection_args={"uri": str(tmp_path / "milvus.db")},
        index_params=[
            {"index_type": "FLAT", "metric_type": "COSINE"},
            {"index_type": "SPARSE_INVERTED_INDEX", **sparse},
        ],
        search_params=[{"metric_type": "COSINE"}, sparse],
        consistency_level="Strong",
    )
    before = gte.embedder.stats()["texts"]
    found = store.similarity_search("sort all the tables", k=3)
    assert gte.embedder.stats()["texts"] - before == 1
    assert len({document.page_content for document in found} & set(texts)) == 3


def test_the_async_twins_give_the_same(gte: TwinVecEmbeddings) -> None:
    qdrant, milvus = gte.sparse(), gte.sparse("milvus")

    async def every() -> tuple[Any, ...]:
        calls = (qdrant.aembed_documents(TEXTS), qdrant.aembed_query(QUERY))
        return await asyncio.gather(*calls, milvus.aembed_documents(TEXTS), milvus.aembed_query(QUERY))

    rows, row, dicts, one = asyncio.run(every())
    assert rows == qdrant.embed_documents(TEXTS)
    assert row == qdrant.embed_query(QUERY)
    assert dicts == milvus.embed_documents(TEXTS)
    assert one == milvus.embed_query(QUERY)


def test_without_the_other_packages_the_shapes_are_the_same(
    gte: TwinVecEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("langchain_qdrant", "langchain_qdrant.sparse_embeddings", "langchain_milvus.utils.sparse"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("langchain_twinvec.sparse", "langchain_twinvec.milvus"):
        monkeypatch.delitem(sys.modules, name)
        importlib.import_module(name)
    row, theirs = gte.sparse().embed_query(QUERY), TwinVecSparseEmbeddings(embedder=gte.embedder).embed_query(QUERY)
    assert (row.indices, row.values) == (theirs.indices, theirs.values)
    assert not isinstance(row, langchain_qdrant.SparseVector)
    assert not isinstance(gte.sparse(), langchain_qdrant.SparseEmbeddings)
    milvus = gte.sparse("milvus")
    assert not isinstance(milvus, BaseSparseEmbedding)
    assert milvus.embed_query(QUERY) == dict(zip(row.indices, row.values, strict=True))


def test_importing_the_package_imports_neither_torch_nor_other_stores() -> None:
    code = (
        "import sys, langchain_twinvec; "
        "print([n for n in ('torch', 'transformers', 'qdrant_client', 'langchain_qdrant') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stderr


def test_all_public_names_are_there() -> None:
    assert langchain_twinvec.TwinVecMilvusSparseEmbeddings is TwinVecMilvusSparseEmbeddings
    assert all(hasattr(langchain_twinvec, name) for name in langchain_twinvec.__all__)
    with pytest.raises(AttributeError, match="Nothing"):
        _ = langchain_twinvec.Nothing


def test_the_same_options_make_the_sparse_class_alone(tmp_path: Any) -> None:
    sparse = TwinVecSparseEmbeddings(model=str(build_splade(tmp_path)), dtype="float32")
    assert sparse.embed_query(QUERY).indices
    sparse.embedder.close()


def test_dense_then_sparse_is_one_pass(gte: TwinVecEmbeddings) -> None:
    texts = [f"only met here {i}" for i in range(20)]
    before = gte.embedder.stats()["texts"]
    gte.embed_documents(texts)
    gte.sparse().embed_documents(texts)
    gte.embed_query(texts[0])
    gte.sparse("milvus").embed_query(texts[0])
    assert gte.embedder.stats()["texts"] - before == len(texts)  # the model has no query prompt: the same row


def test_bm25_is_a_sparse_half_as_well(giga: TwinVecEmbeddings) -> None:
    row = giga.sparse().embed_documents(["sorted lists, a list"])[0]
    assert len(row.indices) == 3
    assert row.indices == sorted(set(row.indices))


def test_a_model_without_a_sparse_half_says_so(bert_folder: str) -> None:
    made = TwinVecEmbeddings(model=bert_folder, dtype="float32")
    with pytest.raises(ConfigurationError, match='no sparse half: pass sparse="bm25"'):
        made.sparse()
    made.embedder.close()
