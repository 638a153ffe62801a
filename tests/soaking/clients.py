"""Embedders of all kinds, one call of one of them, and what each call must get."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reference.giga import build_giga_0826
from reference.gte import build_gte
from soaking.chaos import InjectedError, PoisonError
from soaking.texts import kind_of
from twinvec import Embedder, EmbeddingBatch, Role, SparseBatch
from twinvec.cache import VectorCache
from twinvec.errors import (
    ConfigurationError,
    DeadlineError,
    DeviceLostError,
    NonFiniteError,
    OutOfMemoryError,
    OverloadedError,
)
from twinvec.vectors import Float32

FP32, BF16 = 1e-4, 0.05  # greatest difference of a number from that of its text alone
COSINE = 0.9995  # least cosine of a row and that of its text alone, in any precision


class WrongError(Exception):
    """A check has failed.

    Attributes:
        check: its name.
    """

    def __init__(self, check: str, message: str) -> None:
        super().__init__(message)
        self.check = check


@dataclass
class Client:
    """An Embedder, the options it was made with, and what its texts must give.

    Attributes:
        losing: whether its devices are lost now and then.
        truth: role -> what each text has alone, without memo, cache or company.
    """

    name: str
    folder: Path
    options: dict[str, Any]
    losing: bool = False
    truth: dict[Role, EmbeddingBatch] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        return BF16 if self.options.get("dtype") == "bfloat16" else FP32

    def open(self, **others: Any) -> Embedder:
        return Embedder(self.folder, **{"dtype": "float32", "memo_bytes": 0, **self.options, **others})

    def compute_truth(self, texts: list[str]) -> None:
        with self.open(cache=None, memo_bytes=0, device="cpu", reproducible=True) as embedder:
            for role, embed in ((Role.QUERY, embedder.embed_queries), (Role.DOCUMENT, embedder.embed_documents)):
                self.truth[role] = embed(texts)

    def check_dense(self, found: Float32, expected: Float32, check: str = "dense") -> None:
        """Compare rows with their texts' own; what is stored has length 1 as well."""
        difference = float(np.abs(found - expected).max(initial=0))
        cosine = float(np.einsum("ij,ij->i", found, expected).min(initial=1))
        if not (difference <= self.tolerance and cosine >= COSINE):
            raise WrongError(check, f"a row differs by {difference:.2g}, cosine {cosine:.6f}")

    def check_sparse(self, found: SparseBatch, expected: SparseBatch, check: str = "sparse") -> None:
        for row, (mine, own) in enumerate(zip(found.to_dicts(), expected.to_dicts(), strict=True)):
            for key in mine.keys() | own.keys():
                difference = abs(mine.get(key, 0.0) - own.get(key, 0.0))
                if not difference <= self.tolerance * max(1.0, own.get(key, 0.0)):
                    raise WrongError(check, f"row {row}, key {key}: differs by {difference:.2g}")


@dataclass(eq=False)
class Call:
    """One call and the errors that it must expect."""

    client: Client
    role: Role
    rows: list[int]
    dense: bool = True
    sparse: bool = True
    timeout: float | None = None
    cancelled: bool = False
    closing: bool = False
    started: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        kinds = dict(Counter(kind_of(row) for row in self.rows))
        halves = " ".join(name for name in ("dense", "sparse") if getattr(self, name))
        flags = " ".join(name for name in ("cancelled", "closing") if getattr(self, name))
        return f"{self.client.name} {self.role.value} {kinds} {halves} timeout={self.timeout} {flags}"

    def expects(self, error: BaseException) -> bool:
        """Return whether the error is this call's own."""
        kinds = {kind_of(row) for row in self.rows}
        return (
            isinstance(error, InjectedError)
            or (isinstance(error, PoisonError) and "error" in kinds)
            or (isinstance(error, NonFiniteError) and "nan" in kinds)
            or (isinstance(error, OutOfMemoryError) and "huge" in kinds)
            or (isinstance(error, DeadlineError) and self.timeout is not None)
            or (isinstance(error, OverloadedError) and self.client.options.get("on_overload") == "error")
            or (isinstance(error, DeviceLostError) and self.client.losing)
            or (isinstance(error, ConfigurationError) and self.closing and "closed" in str(error))
            or (isinstance(error, asyncio.CancelledError) and self.cancelled)
        )

    def verify(self, batch: EmbeddingBatch) -> None:
        """Compare every row with its text's own."""
        expected = self.client.truth[self.role][self.rows]
        if (batch.dense is not None, batch.sparse is not None) != (self.dense, self.sparse):
            raise WrongError("halves", "not the halves that were asked for")
        if batch.dense is not None and expected.dense is not None:
            self.client.check_dense(batch.dense, expected.dense)
        if batch.sparse is not None and expected.sparse is not None:
            self.client.check_sparse(batch.sparse, expected.sparse)
        words = not self.dense and self.client.options.get("sparse") == "bm25"  # no model has counted tokens
        for name in () if words else ("token_counts", "truncated"):
            if not np.array_equal(getattr(batch, name), getattr(expected, name)):
                raise WrongError("tokens", f"{name}: {getattr(batch, name)}, not {getattr(expected, name)}")


def make_clients(folder: Path) -> tuple[list[Client], Client]:
    """Build checkpoints; return Embedders that all callers share, and one for a caller alone."""
    gte, giga = build_gte(folder / "gte"), build_giga_0826(folder / "giga")
    lossy, private = build_gte(folder / "lossy", seed=7), build_gte(folder / "private", seed=8)
    e5 = {"query": "query: ", "document": "passage: "}
    cache = VectorCache(folder / "cache")  # of three Embedders, which want other halves, dims and prompts
    shared = [
        Client("gte", gte, {}),
        Client("gte 32 dims, ids, memo", gte, {"dim": 32, "sparse_keys": "ids", "memo_bytes": 50_000}),
        Client("gte prompts, overload error", gte, {"prompts": e5, "on_overload": "error"}),
        Client("gte 24 tokens", gte, {"max_length": 24, "sparse": None}),
        Client("gte prompts, 48 dims, cache", gte, {"prompts": e5, "dim": 48, "cache": cache}),
        Client("gte cache", gte, {"cache": cache}),
        Client("gte bm25, cache", gte, {"sparse": "bm25", "cache": cache}),
        Client("gte int8", gte, {"quantization": "int8"}),
        Client("gte bf16", gte, {"dtype": "bfloat16"}),
        Client("giga", giga, {}),
        Client("giga task, memo, bm25", giga, {"task": "Find the topic", "memo_bytes": 20_000, "sparse": "bm25"}),
        Client("gte, 2 replicas", lossy, {"device": "cpu,cpu"}, losing=True),
    ]
    return shared, Client("gte, own", private, {})
