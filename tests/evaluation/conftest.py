"""The model of these tests; those of mteb run where there is one, as it needs Python 3.11."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from reference.gte import build_gte
from twinvec import Embedder

collect_ignore = [] if find_spec("mteb") else ["test_mteb.py"]


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    with Embedder(build_gte(tmp_path_factory.mktemp("gte"), dtype="float32"), dtype="float32") as embedder:
        yield embedder
