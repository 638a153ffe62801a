"""ModelSpec: everything that decides a vector."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Literal

from twinvec.errors import ConfigurationError
from twinvec.text.bm25 import Bm25

SparseKeys = Literal["surface", "ids"]
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that decides a vector; hashable and picklable, contains no weights.

    Attributes:
        model: folder, hub id, or ``modelscope:owner/name``.
        revision: branch, tag or commit of a hub id; resolved to the commit once loaded.
        dtype: "auto" (bfloat16 on CUDA and on CPUs that multiply it natively, where it costs less than 0.0005 of
            cosine; otherwise float32), "float32", "bfloat16" or "float16".
        dim: number of dense dimensions; None for all. Fewer only if the model was trained for it (Matryoshka).
        max_length: tokens per text, prompt and special tokens included; None for the model's own limit.
        sparse: "auto" (the checkpoint's own head, if it has one), "head" (require it), a head file (``.safetensors`` or
            ``.pt`` with ``weight`` [1, hidden] and ``bias`` [1]), a SPLADE checkpoint, "bm25" or, for example,
            "bm25:german,k1=0.9" (see ``twinvec.text.bm25.Bm25``; stored with all its parameters), or None.
        sparse_keys: "surface": ids that decode to the same string share the lowest id; "ids": token ids. Not for BM25,
            which has its own ids.
        reproducible: run one text per forward pass, so that its vector is bitwise identical in any batch. Slower.
        quantization: "int8" stores the weights of linear layers in 8 bits, for models that do not fit otherwise. On a
            CPU their inputs are rounded to 8 bits as well, per token, which is faster and slightly less exact.
        trust_remote_code: run the checkpoint's own code; requires a folder, or a full commit as revision.
        digest: content digest of the loaded files, filled in by ``Embedder.spec``. If given, loading different content
            is an error.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    dim: int | None = None
    max_length: int | None = None
    sparse: str | None = "auto"
    sparse_keys: SparseKeys = "surface"
    reproducible: bool = False
    quantization: Literal["int8"] | None = None
    trust_remote_code: bool = False
    digest: str | None = None

    def __post_init__(self) -> None:
        for name in ("model", "sparse"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, os.fspath(value))
            if value == "":
                raise ConfigurationError(f"{name} must not be an empty string")
        if (bm25 := Bm25.parse(self.sparse)) is not None:
            object.__setattr__(self, "sparse", str(bm25))
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.sparse_keys not in ("surface", "ids"):
            raise ConfigurationError(f'sparse_keys={self.sparse_keys!r} is neither "surface" nor "ids"')
        if self.quantization not in (None, "int8"):
            raise ConfigurationError(f'quantization={self.quantization!r} is neither "int8" nor None')
        if bm25 is not None and self.sparse_keys != "surface":
            raise ConfigurationError(f"sparse_keys={self.sparse_keys!r}: BM25 counts words, not the model's tokens")
        for name in ("dim", "max_length"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{name}={value!r} must be a positive integer or None")

    @property
    def fingerprint(self) -> str:
        """Return 32 hex digits that name caches and collections.

        Once the digest is known, the location of the files does not matter: a moved folder, or a hub id and its local
        copy, have the same fingerprint.
        """
        return _fingerprint(self)


@functools.lru_cache(maxsize=256)  # a server sends it with every response
def _fingerprint(spec: ModelSpec) -> str:
    fields = asdict(spec)
    if spec.quantization is None:  # compatible with stores from before the option existed
        del fields["quantization"]
    if spec.digest is not None:
        del fields["model"], fields["revision"], fields["trust_remote_code"]
        if fields["sparse"] not in (None, "auto", "head") and Bm25.parse(spec.sparse) is None:
            fields["sparse"] = "file or checkpoint"  # the digest covers its content
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]
