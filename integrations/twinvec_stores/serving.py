"""Hybrid search as routes of a server: ``run(embedder, extension=search_extension(index))``."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Annotated, Any, cast

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from twinvec import BaseReranker, SparseBatch
from twinvec.errors import FilterError, InvalidRecordError, StoreError, TwinVecError
from twinvec.server.answers import Json, rows_of_json
from twinvec.server.body import TaskBody, task_of
from twinvec.server.errors import RefusedError
from twinvec.server.operations import Extension, Operation
from twinvec.server.service import Service, public_name
from twinvec.server.wire import task_to_json
from twinvec.vectors import Float32
from twinvec_stores.filters.as_json import parse_filter
from twinvec_stores.search.explain import Result
from twinvec_stores.search.fusion import Fusion, Method
from twinvec_stores.search.index import HybridIndex
from twinvec_stores.search.options import Mode, SearchKeywords

logger = logging.getLogger("twinvec.server")

Key = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Candidates = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class FusionBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """See ``twinvec_stores.Fusion``."""

    method: Method = "relative"
    dense_weight: float | None = None
    sparse_weight: float | None = None
    rrf_k: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 60


class SparseRow(msgspec.Struct, forbid_unknown_fields=True):
    """A sparse vector."""

    indices: list[Key]
    values: list[float]


class SearchBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One or more queries, or their vectors, plus the fields of ``twinvec_stores.SearchOptions``."""

    query: str | list[str] | None = None
    dense: list[list[float]] | None = None
    sparse: list[SparseRow] | None = None
    task: str | TaskBody | None = None
    k: Limit = 10
    mode: Mode | None = None
    fusion: Method | FusionBody | msgspec.UnsetType = msgspec.UNSET
    fetch_k: Candidates | msgspec.UnsetType | None = msgspec.UNSET
    dense_k: Candidates | None = None
    sparse_k: Candidates | None = None
    filter: dict[str, Any] | None = None
    score_threshold: float | None = None
    min_dense: float | msgspec.UnsetType | None = msgspec.UNSET
    min_sparse: float | None = None
    group_by: str | None = None
    group_size: Limit = 1
    expand: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    mmr: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    rerank: bool = False
    rerank_k: Candidates | msgspec.UnsetType = msgspec.UNSET
    min_rerank: float | None = None
    explain: bool = False
    exact: bool = False

    def options(self) -> SearchKeywords:
        """Return the search options, as ``HybridIndex`` takes them.

        Raises:
            ConfigurationError, FilterError: the fusion or the filter is invalid.
        """
        known = [name for name in self.__struct_fields__ if name in SearchKeywords.__annotations__ and name != "rerank"]
        given: dict[str, Any] = {name: getattr(self, name) for name in known}
        given = {name: value for name, value in given.items() if value is not msgspec.UNSET}  # leave these to the store
        if isinstance(self.fusion, FusionBody):
            given["fusion"] = Fusion(**msgspec.structs.asdict(self.fusion))
        if self.filter is not None:
            given["filter"] = parse_filter(self.filter)
        return cast("SearchKeywords", given)


class Why(msgspec.Struct):
    """See ``twinvec_stores.Explanation``; terms are (term, weight in the query, weight in the record)."""

    dense_score: float | None
    sparse_score: float | None
    dense_rank: int | None
    sparse_rank: int | None
    rerank_score: float | None
    rerank_rank: int | None
    terms: list[tuple[str, float, float]]


class FoundRecord(msgspec.Struct, kw_only=True):
    """See ``twinvec_stores.Result``."""

    id: str
    score: float
    text: str
    metadata: dict[str, Any]
    provenance: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    explanation: Why | msgspec.UnsetType = msgspec.UNSET
    context: str | msgspec.UnsetType = msgspec.UNSET
    fused_score: float | msgspec.UnsetType = msgspec.UNSET


class SearchAnswer(msgspec.Struct):
    """The best records of each query, best first."""

    results: list[list[FoundRecord]]


def search_extension(index: HybridIndex, reranker: BaseReranker | None = None) -> Extension:
    """Return the routes ``POST /v1/search`` and ``GET /v1/search/info`` over an index, which the caller closes.

    Args:
        index: the index to search.
        reranker: reorders the results of searches with ``rerank: true``; without it they are refused.
    """
    routes = _Routes(index, reranker)
    return Extension(
        operations=(
            Operation("/v1/search", routes.search, SearchBody, SearchAnswer),
            Operation("/v1/search/info", routes.info, result=dict[str, Any]),
        )
    )


class _Routes:
    def __init__(self, index: HybridIndex, reranker: BaseReranker | None) -> None:
        self._index, self._reranker = index, reranker

    async def search(self, service: Service, asked: SearchBody) -> Response:
        """Search for records by meaning and by words.

        ``query`` is a text or a list of texts; alternatively, ``dense``, ``sparse`` or both contain query vectors. The
        response has one list per query.
        """
        try:
            found = await self._found(service, asked)
        except InvalidRecordError as error:  # the vector of a query
            raise RefusedError(400, str(error)) from None
        except StoreError as error:
            if isinstance(error, FilterError):
                raise
            logger.error("the store failed: %s", error)
            raise RefusedError(500, "the store failed; see the server's log", kind="StoreError") from None
        except TwinVecError as error:
            raise RefusedError.of(error, "query") from error
        rows = ([result.to_dict() for result in results] for results in found)
        return await rows_of_json(rows, b'{"results":[', b"]}")

    async def info(self, service: Service, request: Request) -> Response:
        """Return what a ``RemoteIndex`` needs to know about the index."""
        config = self._index.store.config
        public = replace(config, model=public_name(config.model), recipe={})
        return Json({"config": public.to_dict(), "task": task_to_json(self._index.task)})

    async def _found(self, service: Service, asked: SearchBody) -> list[list[Result]]:
        options = asked.options()
        if asked.rerank:
            if self._reranker is None:
                raise RefusedError(400, "rerank: this server has no reranker (twinvec serve --reranker)", "rerank")
            options["rerank"] = self._reranker
        if asked.query is None:
            if asked.dense is None and asked.sparse is None:
                raise RefusedError(400, "query is missing: send a text, or dense and sparse vectors instead", "query")
            dense, sparse = _dense(service, asked.dense), _sparse(service, asked.sparse)
            return await self._index.asearch_vectors(dense, sparse, **options)
        if asked.dense is not None or asked.sparse is not None:
            raise RefusedError(400, "send either query, or dense and sparse vectors, not both", "query")
        queries = [asked.query] if isinstance(asked.query, str) else asked.query
        service.check_count("query", len(queries))
        return await self._index.asearch_many(queries, task=task_of(asked.task), **options)


def _dense(service: Service, rows: list[list[float]] | None) -> Float32 | None:
    if rows is None:
        return None
    service.check_count("dense", len(rows))
    if len({len(row) for row in rows}) > 1:
        raise RefusedError(400, "dense must be rows of equal length", "dense")
    with np.errstate(over="ignore"):  # infinity is rejected later, when the vectors are checked
        return np.asarray(rows, np.float32)


def _sparse(service: Service, rows: list[SparseRow] | None) -> SparseBatch | None:
    if rows is None:
        return None
    service.check_count("sparse", len(rows))
    for position, row in enumerate(rows):
        if not len(set(row.indices)) == len(row.indices) == len(row.values):
            message = f"sparse[{position}] must have unique indices, and as many values"
            raise RefusedError(400, message, "sparse")
    try:
        with np.errstate(over="ignore"):
            return SparseBatch.from_dicts([dict(zip(row.indices, row.values, strict=True)) for row in rows])
    except ValueError as error:
        raise RefusedError(400, f"sparse: {error}", "sparse") from None
