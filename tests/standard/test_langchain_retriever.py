"""LangChain's own suite for retrievers, as it is, on the embedded and the memory store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_tests.integration_tests import RetrieversIntegrationTests

from langchain_twinvec import HybridRetriever, TwinVecEmbeddings, TwinVecVectorStore
from reference.gte import build_gte


@pytest.fixture(scope="module", params=["memory", "embedded"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwinVecVectorStore]:
    embeddings = TwinVecEmbeddings(model=str(build_gte(tmp_path_factory.mktemp("gte"), seed=43)))
    path = tmp_path_factory.mktemp("stores") / "index" if request.param == "embedded" else None
    texts = ["sort a list", "open a file", "the capital of Russia", "print a line", "nothing of this"]
    with TwinVecVectorStore.from_texts(texts, embeddings, path=path) as made:
        yield made


class TestHybridRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _given(self, store: TwinVecVectorStore) -> None:
        self.store = store

    @property
    def retriever_constructor(self) -> type[HybridRetriever]:
        return HybridRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"vectorstore": self.store}

    @property
    def retriever_query_example(self) -> str:
        return "how do I sort a list?"
