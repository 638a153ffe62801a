"""JoinedEmbedder: dense vectors from someone else's model, combined with one of our sparse halves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from twinvec.base import BaseEmbedder, CheckedCall
from twinvec.errors import ConfigurationError
from twinvec.flows import call, on_thread, together
from twinvec.options import CallOptions, EmbedderOptions
from twinvec.overriding import overridden
from twinvec.spec import ModelSpec
from twinvec.text.bm25 import Bm25
from twinvec.text.prompts import PromptTemplate, Role, Task
from twinvec.vectors import EmbeddingBatch, Float32, Int64, SparseBatch

_AT_ONCE = 16  # concurrent queries of one async call
_PROBE = "dimension"


class DenseSource(ABC):
    """A source of dense vectors: a framework's embeddings object, or an API.

    Attributes:
        name: its class and model; part of a store's fingerprint.
        prompts: the prompts it adds by itself, as far as we know.
    """

    name: str
    prompts = PromptTemplate()

    @abstractmethod
    def documents(self, texts: list[str], task: Task | str | None) -> Sequence[Sequence[float]]:
        """Return one row per document."""

    @abstractmethod
    async def adocuments(self, texts: list[str], task: Task | str | None) -> Sequence[Sequence[float]]:
        """See ``documents``."""

    @abstractmethod
    def query(self, text: str, task: Task | str | None) -> Sequence[float]:
        """Return the row of a query."""

    @abstractmethod
    async def aquery(self, text: str, task: Task | str | None) -> Sequence[float]:
        """See ``query``."""


def half_of(sparse: Any, base: type, methods: Iterable[str]) -> BaseEmbedder:
    """Return the embedder of a framework's sparse model, which a store calls itself.

    Raises:
        ConfigurationError: a subclass of ``base`` overrides one of the model's methods, which would not be heard.
    """
    if overridden(sparse, base, *methods):
        raise ConfigurationError(
            f"sparse=: {type(sparse).__name__} overrides how texts are embedded, which a store would not hear: it "
            "takes keys and weights from the Embedder itself"
        )
    embedder: BaseEmbedder = sparse.embedder
    return embedder


class JoinedEmbedder(BaseEmbedder):
    """Two halves of different origin as one embedder: dense rows from a ``DenseSource``, sparse rows from ours.

    Dense rows are normalised whatever the source returns. The halves of a text are computed one after the other.
    """

    def __init__(
        self, source: DenseSource, sparse: BaseEmbedder | str | None, *, task: Task | str | None = None
    ) -> None:
        """Combine both halves; the source is asked for one vector to learn its dimension.

        Args:
            source: source of the dense half.
            sparse: an embedder with a sparse half; "bm25" or a longer form of it, see ``ModelSpec``; None for no sparse
                half.
            task: default task of every call, for a source that supports tasks.

        Raises:
            ConfigurationError: ``sparse`` has no sparse half.
        """
        self._source, self._sparse = source, sparse if isinstance(sparse, BaseEmbedder) else None
        self._bm25 = Bm25.parse(sparse.spec.sparse if isinstance(sparse, BaseEmbedder) else sparse)
        if self._sparse is not None and not self._sparse.has_sparse:
            raise ConfigurationError(f"{self._sparse.spec.model} has no sparse half")
        if sparse is not None and self._sparse is None and self._bm25 is None:
            raise ConfigurationError(f'sparse={sparse!r} is neither "bm25" nor an embedder with a sparse half')
        if self._bm25 is not None:
            self._bm25.prepare()
        self._prompts, self._closed = source.prompts, False
        self.options = EmbedderOptions(task=task)
        half = None if self._sparse is None else self._sparse.spec
        self.spec = ModelSpec(
            model=source.name,
            dim=len(source.query(_PROBE, task)),
            sparse=str(self._bm25) if self._bm25 else f"of {half.fingerprint}" if half is not None else None,
        )

    def token_offsets(self, texts: Iterable[str]) -> list[Int64]:
        """See ``Embedder.token_offsets``; uses the sparse half's model."""
        return self._tokenizing().token_offsets(texts)

    def token_room(self, role: Role | str, task: Task | str | None = None) -> int:
        """See ``Embedder.token_room``; uses the sparse half's model."""
        return self._tokenizing().token_room(role)

    def stats(self) -> dict[str, Any]:
        """Return the counters of the sparse half's model."""
        return {} if self._sparse is None else self._sparse.stats()

    @property
    def healthy(self) -> bool:
        """Return whether the sparse half's model is healthy."""
        return not self._closed and (self._sparse is None or self._sparse.healthy)

    @property
    def family(self) -> str:
        """Return "joined": it belongs to no family."""
        return "joined"

    def close(self, *, drain: bool = False) -> None:
        """Accept no more calls; both halves stay open."""
        self._closed = True

    def _tokenizing(self) -> BaseEmbedder:
        if self._sparse is None:
            raise ConfigurationError(f"{self.spec.model} gives no access to its tokenizer: split texts by characters")
        return self._sparse

    def _token_texts(self, keys: list[int]) -> Mapping[int, str]:
        if self._bm25 is not None:
            return {key: self._bm25.term(key) for key in keys}
        assert self._sparse is not None
        return self._sparse._token_texts(keys)

    async def _compute(self, asked: CheckedCall, wanted: CallOptions) -> EmbeddingBatch:
        if not wanted.normalize or wanted.prompt is not None or wanted.timeout is not None:
            raise ConfigurationError(f"{self.spec.model} supports neither prompt= nor timeout=")
        n, dense, sparse = len(asked.texts), None, None
        if asked.dense:
            task = wanted.task if wanted.task is not None else self.task
            dense = self._normalised(await self._rows(asked.role, asked.texts, task) if n else [], n)
        if asked.sparse:
            sparse = await self._sparse_half(asked.role, asked.texts)
        return EmbeddingBatch(dense, sparse, np.zeros(n, np.int32), np.zeros(n, np.bool_))

    async def _rows(self, role: Role, texts: list[str], task: Task | str | None) -> Sequence[Sequence[float]]:
        source = self._source
        if role is Role.DOCUMENT:
            return await call(source.documents, source.adocuments, texts, task)
        rows: list[Sequence[float]] = []
        for start in range(0, len(texts), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            rows += await together([call(source.query, source.aquery, text, task) for text in some])
        return rows

    def _normalised(self, rows: Sequence[Sequence[float]], n: int) -> Float32:
        dims = {len(row) for row in rows}
        if len(rows) != n or dims - {self.dim}:
            raise ConfigurationError(
                f"{self.spec.model} returned {len(rows)} vectors of {sorted(dims)} dimensions for {n} texts; {n} of "
                f"{self.dim} were expected"
            )
        dense = np.asarray(rows, np.float32).reshape(n, self.dim or 0)
        unit: Float32 = dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-12)
        return unit

    async def _sparse_half(self, role: Role, texts: list[str]) -> SparseBatch:
        if self._bm25 is not None:
            return (await on_thread(self._bm25.weigh, role, texts))[0]
        assert self._sparse is not None
        model = self._sparse
        methods = (
            (model.embed_queries, model.aembed_queries)
            if role is Role.QUERY
            else (model.embed_documents, model.aembed_documents)
        )
        sparse = (await call(*methods, texts, dense=False)).sparse
        assert sparse is not None
        return sparse
