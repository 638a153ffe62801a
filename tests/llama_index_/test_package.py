"""The package as a whole: what importing it costs, and what it says when something is missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest

import llama_index_twinvec
from llama_index_twinvec import TwinVecEmbedding, TwinVecSparseEmbedding, TwinVecVectorStore
from twinvec.errors import StoreEngineError


def test_importing_it_loads_neither_torch_nor_another_integration() -> None:
    code = """
import sys
from typing import Any
import llama_index_twinvec
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "transformers", "qdrant_client", "qdrant_edge", "langchain_core"}, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_without_llamaindex_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert llama_index_twinvec.__file__ is not None
    spec = importlib.util.spec_from_file_location("another_name", llama_index_twinvec.__file__)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setitem(sys.modules, "llama_index.core", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'twinvec\[llama-index\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("kind", [TwinVecEmbedding, TwinVecSparseEmbedding])
def test_every_option_is_described(kind: type[TwinVecEmbedding]) -> None:
    properties = kind.model_json_schema()["properties"]
    own = set(properties) - {"class_name", "callback_manager"}
    assert all(properties[name].get("description") for name in own)
    assert {"model_name", "task", "dim", "device", "sparse", "embed_batch_size"} <= set(properties)


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection:UserWarning")
def test_a_server_that_is_not_there_is_a_typed_error_without_the_key(embedding: TwinVecEmbedding) -> None:
    options: Any = {"api_key": "a-secret-key", "timeout": 5, "client_options": {"check_compatibility": False}}
    with pytest.raises(StoreEngineError) as error:
        TwinVecVectorStore(embedding, url="http://localhost:9", collection="kb", **options)
    assert "collection kb" in str(error.value)
    assert "a-secret-key" not in str(error.value)
