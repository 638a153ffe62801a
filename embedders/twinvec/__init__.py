"""TwinVec: dense and sparse text embeddings from one forward pass, and rerankers on the same engine.

Importing this package loads neither torch nor transformers; both are imported with the first model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twinvec._version import __version__
from twinvec.base import BaseEmbedder
from twinvec.embedder import Embedder
from twinvec.errors import TruncationWarning, TwinVecError
from twinvec.maxsim import MaxSim
from twinvec.options import EmbedderOptions
from twinvec.reranker import Reranker
from twinvec.scoring import BaseReranker, Ranked
from twinvec.spec import ModelSpec
from twinvec.text.prompts import TASKS, Role, Task
from twinvec.vectors import EmbeddingBatch, MultiBatch, SparseBatch, SparseVector

if TYPE_CHECKING:
    from twinvec.server.client import RemoteEmbedder
    from twinvec.server.reranking_client import RemoteReranker

__all__ = [
    "TASKS",
    "BaseEmbedder",
    "BaseReranker",
    "Embedder",
    "EmbedderOptions",
    "EmbeddingBatch",
    "MaxSim",
    "ModelSpec",
    "MultiBatch",
    "Ranked",
    "RemoteEmbedder",
    "RemoteReranker",
    "Reranker",
    "Role",
    "SparseBatch",
    "SparseVector",
    "Task",
    "TruncationWarning",
    "TwinVecError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "RemoteEmbedder":  # on demand: importing its HTTP client takes 0.1 s
        from twinvec.server.client import RemoteEmbedder

        return RemoteEmbedder
    if name == "RemoteReranker":
        from twinvec.server.reranking_client import RemoteReranker

        return RemoteReranker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
