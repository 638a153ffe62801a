"""The public contract, run against our own engines."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from qdrant_client import QdrantClient

from twinvec_stores import EmbeddedStore, Filter, HybridStore, MemoryStore, QdrantStore
from twinvec_stores.testing import StoreContract

SETTINGS = settings(max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))


class MemoryContract(StoreContract):
    persistent: ClassVar[bool] = False

    def make_store(self) -> HybridStore:
        return MemoryStore(self.config)


class EmbeddedContract(StoreContract):
    def make_store(self) -> HybridStore:
        if not hasattr(self, "folder"):
            self.folder = Path(tempfile.mkdtemp())
        return EmbeddedStore(self.folder / "s", self.config)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


class QdrantContract(StoreContract):
    def make_store(self) -> HybridStore:
        if not hasattr(self, "client"):
            self.client = QdrantClient(":memory:")
        return QdrantStore(client=self.client, collection="records", config=self.config)


TestMemory = MemoryContract.TestCase
TestEmbedded = EmbeddedContract.TestCase
TestQdrant = pytest.mark.filterwarnings("ignore:Local mode performs exact")(QdrantContract.TestCase)
TestMemory.settings = TestEmbedded.settings = TestQdrant.settings = SETTINGS


class Forgetful(MemoryStore):
    """A store that does not delete by filters."""

    def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> None:
        if ids is not None:
            super().delete(ids)


class ForgetfulContract(MemoryContract):
    def make_store(self) -> HybridStore:
        return Forgetful(self.config)


@pytest.mark.slow
def test_a_store_that_is_wrong_does_not_pass() -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(ForgetfulContract, settings=settings(SETTINGS, max_examples=100, database=None))
