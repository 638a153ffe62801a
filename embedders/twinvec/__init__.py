"""TwinVec: dense and sparse text embeddings from one forward pass.

Importing this package imports neither torch nor transformers; they come with the first model.
"""

from twinvec._version import __version__
from twinvec.embedder import Embedder
from twinvec.errors import TruncationWarning, TwinVecError
from twinvec.prompts import TASKS, Role, Task
from twinvec.spec import ModelSpec
from twinvec.vectors import EmbeddingBatch, SparseBatch, SparseVector

__all__ = [
    "TASKS",
    "Embedder",
    "EmbeddingBatch",
    "ModelSpec",
    "Role",
    "SparseBatch",
    "SparseVector",
    "Task",
    "TruncationWarning",
    "TwinVecError",
    "__version__",
]
