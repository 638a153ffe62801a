"""dumps and loads as far as they go, pickles by specification, copies that share the model, no secret anywhere."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumps, loads
from pydantic import SecretStr

from langchain_twinvec import HybridRetriever, TwinVecEmbeddings, TwinVecSparseEmbeddings, TwinVecVectorStore
from twinvec import Task
from twinvec.cache import VectorCache

pytestmark = pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
SECRET = "hf_do_not_show"


def revived(written: str, **options: Any) -> Any:
    return loads(
        written,
        allowed_objects=[TwinVecEmbeddings, TwinVecSparseEmbeddings],
        valid_namespaces=["langchain_twinvec"],
        **options,
    )


@pytest.fixture
def secretive(gte_folder: str) -> TwinVecEmbeddings:
    return TwinVecEmbeddings(model=gte_folder, dtype="float32", dim=32, token=SecretStr(SECRET))


def test_dumps_and_loads_give_the_same_embeddings(giga_folder: str, tmp_path: Path) -> None:
    given = TwinVecEmbeddings(
        model=Path(giga_folder), dtype="float32", sparse="bm25", task=Task("Найди похожее", symmetric=True),
        prompts={"query": "q: "}, cache=tmp_path / "cache", show_progress=False,
    )  # fmt: skip
    made = revived(dumps(given))
    assert made == given.model_copy(update={"embedder": made.embedder})
    assert made.embed_query("a") == given.embed_query("a")
    sparse = given.sparse().model_copy(update={"model": given.model})
    assert isinstance(sparse, TwinVecSparseEmbeddings)
    for embeddings in (given, made):
        embeddings.embedder.close()


def test_the_token_is_written_as_the_name_of_a_secret(secretive: TwinVecEmbeddings) -> None:
    written = dumps(secretive)
    assert SECRET not in written
    assert '"HF_TOKEN"' in written
    assert revived(written).token is None
    made = revived(written, secrets_map={"HF_TOKEN": SECRET})
    assert made.token is not None
    assert made.token.get_secret_value() == SECRET


def test_no_secret_is_shown_or_pickled(secretive: TwinVecEmbeddings) -> None:
    store = TwinVecVectorStore(secretive)
    shown = [f"{each!r} {each}" for each in (secretive, secretive.sparse(), store, store.as_retriever())]
    shown += [
        repr(secretive.model_dump()),
        repr(pickle.dumps(secretive)),
        repr(vars(pickle.loads(pickle.dumps(secretive)))),
    ]
    assert not [text for text in shown if SECRET in text]


def test_what_cannot_be_rebuilt_says_why(gte: TwinVecEmbeddings, gte_folder: str, tmp_path: Path) -> None:
    with_cache = TwinVecEmbeddings(model=gte_folder, dtype="float32", cache=VectorCache(tmp_path))
    shared = TwinVecEmbeddings(embedder=gte.embedder)
    retriever = TwinVecVectorStore(gte).as_retriever()
    for value, reason in (
        (shared, "cannot be rebuilt from JSON: it contains an object, embedder="),
        (gte.sparse(), "it contains an object, embedder="),
        (with_cache, "it contains an object, cache="),
        (retriever, "it contains an open store; create it again with store.as_retriever"),
        (TwinVecVectorStore(gte), "TwinVecVectorStore"),
    ):
        with pytest.raises(NotImplementedError, match=reason.replace("(", r"\(")):
            revived(dumps(value))


def test_a_pickle_gives_the_same_vectors(gte: TwinVecEmbeddings) -> None:
    for value in (gte, TwinVecEmbeddings(embedder=gte.embedder)):
        made = pickle.loads(pickle.dumps(value))
        assert made.embed_query("sort a list") == gte.embed_query("sort a list")
        made.embedder.close()
    sparse = pickle.loads(pickle.dumps(gte.sparse()))
    assert sparse.embed_query("sort a list") == gte.sparse().embed_query("sort a list")


def test_a_pickle_works_in_another_process(gte: TwinVecEmbeddings, tmp_path: Path) -> None:
    (tmp_path / "pickled").write_bytes(pickle.dumps(gte))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).embed_query('a b')[0])"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pickled")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(gte.embed_query("a b")[0], abs=1e-6)


def test_copies_share_the_embedder(gte: TwinVecEmbeddings) -> None:
    for value in (gte, gte.sparse()):
        copies = [copy.copy(value), copy.deepcopy(value), value.model_copy(), value.model_copy(deep=True)]
        assert all(each.embedder is gte.embedder for each in copies)
    store = TwinVecVectorStore.from_texts(["a"], gte)
    assert copy.deepcopy(store).index is store.index
    retriever = store.as_retriever(k=2)
    assert copy.deepcopy(retriever).vectorstore.index is store.index
    assert [each.page_content for each in copy.deepcopy(retriever).invoke("a")] == ["a"]


def test_a_store_on_disk_is_pickled_by_its_place(gte: TwinVecEmbeddings, tmp_path: Path) -> None:
    with TwinVecVectorStore.from_texts(["sort a list"], gte, path=tmp_path / "index", fusion="rrf") as store:
        made: HybridRetriever = pickle.loads(pickle.dumps(store.as_retriever(k=1)))
    assert [each.page_content for each in made.invoke("sort")] == ["sort a list"]
    assert isinstance(made.vectorstore, TwinVecVectorStore)
    assert isinstance(made.vectorstore.embeddings, TwinVecEmbeddings)
    assert made.vectorstore.index.embedder is made.vectorstore.embeddings.embedder
    made.vectorstore.close()


def test_a_store_in_memory_cannot_be_pickled(gte: TwinVecEmbeddings) -> None:
    with pytest.raises(TypeError, match="in memory cannot be pickled"):
        pickle.dumps(TwinVecVectorStore(gte))
