"""The checkpoint families, and the choice of one for a checkpoint."""

from __future__ import annotations

from twinvec.checkpoints.files import Checkpoint
from twinvec.errors import UnsupportedCheckpointError
from twinvec.families.base import Description, Family, Published, Supported
from twinvec.families.cross_encoders import CrossEncoder, GteReranker
from twinvec.families.giga import Giga
from twinvec.families.gte import Gte
from twinvec.families.multi_vector import MultiVectorEncoder
from twinvec.families.own_code import Remote
from twinvec.families.qwen3_bidirectional import GigaBidirectional
from twinvec.families.qwen3_reranker import Qwen3Reranker
from twinvec.families.sentence_transformers import TYPES, SentenceTransformers, Splade

FAMILIES: tuple[Family, ...] = (
    GteReranker(),
    CrossEncoder(),
    Qwen3Reranker(),
    Gte(),
    GigaBidirectional(),
    Giga(),
    SentenceTransformers(),
    MultiVectorEncoder(),
    Splade(),
    Remote(),
)


def find_family(checkpoint: Checkpoint) -> Family:
    """Return the family that supports a checkpoint.

    Raises:
        UnsupportedCheckpointError: no family does; says what is supported.
    """
    for family in FAMILIES:
        if family.matches(checkpoint):
            return family
    known = sorted({*TYPES, "new", "gte", "qwen3_bidirec", "deepseek_v3_bidirec", "gigarembed"})
    if checkpoint.model_type in TYPES:
        reason = "it has no modules.json with a Pooling module, so nothing says how to pool it"
    else:
        reason = f"model_type {checkpoint.model_type!r} is not one of {', '.join(known)}"
    raise UnsupportedCheckpointError(
        f"{checkpoint.name}: {reason}. `twinvec models` lists what is supported; a checkpoint that brings its own code "
        "(auto_map) can be run with trust_remote_code=True and a pinned revision."
    )


__all__ = ["FAMILIES", "Description", "Family", "Published", "Supported", "find_family"]
