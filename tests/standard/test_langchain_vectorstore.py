"""LangChain's own suite for vector stores, sync and async, as it is, on the embedded and the memory store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from langchain_twinvec import TwinVecEmbeddings, TwinVecVectorStore
from reference.gte import build_gte


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> TwinVecEmbeddings:
    return TwinVecEmbeddings(model=str(build_gte(tmp_path_factory.mktemp("gte"), seed=44)))


class TestMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, embeddings: TwinVecEmbeddings) -> Iterator[TwinVecVectorStore]:
        with TwinVecVectorStore(embeddings) as store:
            yield store


class TestEmbedded(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, embeddings: TwinVecEmbeddings, tmp_path: Path) -> Iterator[TwinVecVectorStore]:
        with TwinVecVectorStore(embeddings, path=tmp_path / "index") as store:
            yield store
