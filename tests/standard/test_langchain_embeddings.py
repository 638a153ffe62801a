"""LangChain's own suites for embeddings, as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_twinvec import TwinVecEmbeddings
from reference.gte import build_gte


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_gte(tmp_path_factory.mktemp("gte"), seed=42)


class _Params:
    @pytest.fixture(autouse=True)
    def _given(self, folder: Path) -> None:
        self.folder = folder

    @property
    def embeddings_class(self) -> type[TwinVecEmbeddings]:
        return TwinVecEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": str(self.folder)}


class TestUnit(_Params, EmbeddingsUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"TWINVEC_DEVICE": "cpu"}, self.embedding_model_params, {"model": str(self.folder)}


class TestIntegration(_Params, EmbeddingsIntegrationTests):
    pass
