"""SearchOptions: how to search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict

from twinvec import BaseReranker
from twinvec.errors import ConfigurationError, StoreMismatchError
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.conditions import Filter
from twinvec_stores.filters.fields import parse_field
from twinvec_stores.protocol import MAX_LIMIT, check_limit
from twinvec_stores.search.fusion import Fusion, Method

Mode = Literal["hybrid", "dense", "sparse"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search.

    Attributes:
        k: results per query.
        mode: "hybrid", "dense" or "sparse"; None: hybrid if the store has both halves.
        fusion: how "hybrid" merges them: a Fusion, or a method's name with its default weights.
        fetch_k: candidates of each half, and for ``mmr``; None: max(100, 10 * k).
        dense_k: candidates of the dense half, if different from ``fetch_k``; may be less than k.
        sparse_k: the same for the sparse half.
        filter: only return matching records.
        score_threshold: only return results with at least this score.
        min_dense: only return records with at least this cosine, whichever half found them: "I do not know" if there
            are none. It also drops records that a sparse query finds by their words, if their cosine is lower.
        min_sparse: the same for the sparse score; a record without common terms has 0.
        group_by: "document": k counts documents instead of chunks; or a metadata field: k counts its values. A record
            without a document or value forms its own group.
        group_size: maximum number of records per group; groups are ordered by their best record.
        rerank: a Reranker or a RemoteReranker, which reads the query and the stored text of the first ``rerank_k``
            candidates and reorders them; no others are returned.
        rerank_k: number of candidates to rerank; with ``group_by`` use more, since groups are formed from them.
        min_rerank: only return records with at least this reranker score.
        expand: fill ``Result.context`` of chunks with their text and this many chunks on each side.
        mmr: None, or the weight of relevance versus diversity, from 0 to 1 (maximal marginal relevance by dense
            vectors; 0.5 is common).
        explain: fill ``Result.explanation``.
        exact: compare with every dense vector instead of using a graph.
    """

    k: int = 10
    mode: Mode | None = None
    fusion: Fusion | Method = field(default_factory=Fusion)
    fetch_k: int | None = None
    dense_k: int | None = None
    sparse_k: int | None = None
    filter: Filter | None = None
    score_threshold: float | None = None
    min_dense: float | None = None
    min_sparse: float | None = None
    group_by: str | None = None
    group_size: int = 1
    rerank: BaseReranker | None = None
    rerank_k: int = 50
    min_rerank: float | None = None
    expand: int = 0
    mmr: float | None = None
    explain: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        for name in ("k", "dense_k", "sparse_k", "fetch_k"):
            if (limit := getattr(self, name)) is not None or name == "k":
                check_limit(limit, name=name)
        if self.fetch_k is not None and self.fetch_k < self.k:
            raise ConfigurationError(f"fetch_k={self.fetch_k} is less than k={self.k}")
        for name in ("score_threshold", "min_dense", "min_sparse", "min_rerank"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
            ):
                raise ConfigurationError(f"{name}={value!r} must be a finite number")
        check_limit(self.group_size, name="group_size")
        if isinstance(self.expand, bool) or not isinstance(self.expand, int) or self.expand < 0:
            raise ConfigurationError(f"expand={self.expand!r} must be an integer number of chunks")
        if self.group_by is not None:
            parse_field(self.group_by)
            if self.mmr is not None:
                raise ConfigurationError("group_by and mmr both select candidates: use only one of them")
        elif self.group_size != 1:
            raise ConfigurationError("group_size needs group_by")
        self._check_rerank()
        if self.mode not in (None, "hybrid", "dense", "sparse"):
            raise ConfigurationError(f'mode={self.mode!r} is not one of "hybrid", "dense", "sparse"')
        if self.mmr is not None and not 0 <= self.mmr <= 1:
            raise ConfigurationError(f"mmr={self.mmr!r} must be a number from 0 to 1")
        if not isinstance(self.fusion, Fusion):
            object.__setattr__(self, "fusion", Fusion(self.fusion))

    def _check_rerank(self) -> None:
        check_limit(self.rerank_k)
        if self.rerank is None:
            if self.min_rerank is not None:
                raise ConfigurationError("min_rerank needs rerank")
            return
        if not isinstance(self.rerank, BaseReranker):
            raise ConfigurationError(f"rerank must be a twinvec.Reranker, not {type(self.rerank).__name__}")
        if self.rerank_k < self.k:
            raise ConfigurationError(f"rerank_k={self.rerank_k} is less than k={self.k}")
        if self.mmr is not None:
            raise ConfigurationError("rerank and mmr both reorder the candidates: use only one of them")

    @property
    def candidates(self) -> int:
        """Return the default number of candidates of each half."""
        if self.fetch_k is not None:
            return self.fetch_k
        return max(100, min(10 * self.k, MAX_LIMIT), self.rerank_k if self.rerank is not None else 0)

    @property
    def halves(self) -> tuple[int, int]:
        """Return the number of candidates of the dense and the sparse half."""
        dense = self.candidates if self.dense_k is None else self.dense_k
        return dense, self.candidates if self.sparse_k is None else self.sparse_k

    def parts(self, config: StoreConfig, *, dense: bool = True, sparse: bool = True) -> tuple[bool, bool]:
        """Return whether to query the dense and the sparse half.

        Args:
            config: the store's configuration.
            dense: whether there is a dense query.
            sparse: whether there is a sparse query.

        Raises:
            ConfigurationError: the mode needs a half that is missing.
        """
        dense, sparse = dense and config.dim is not None, sparse and config.sparse
        wanted = (self.mode in ("hybrid", "dense"), self.mode in ("hybrid", "sparse"))
        if self.mode is None:
            wanted = (dense, sparse)
        for half, has, needs in (("dense", dense, wanted[0]), ("sparse", sparse, wanted[1])):
            if needs and not has:
                raise ConfigurationError(f"mode={self.mode!r} needs {half} vectors in the store and in the query")
        for name, asked in (("min_dense", wanted[0]), ("min_sparse", wanted[1])):
            if getattr(self, name) is not None and not asked:
                raise ConfigurationError(f"{name} is for searches that use this half")
        if not any(wanted):
            raise ConfigurationError("neither a dense nor a sparse query fits this store")
        if self.mmr is not None and config.dim is None:
            raise ConfigurationError("mmr compares dense vectors, and this store has none")
        return wanted


_KEPT = ("fusion", "fetch_k", "min_dense", "rerank_k")


def to_stored(options: SearchKeywords) -> dict[str, Any]:
    """Return options in the form a store keeps them, as JSON types.

    Raises:
        ConfigurationError: options that a store does not keep, or invalid values.
    """
    if unknown := sorted(set(options) - set(_KEPT)):
        raise ConfigurationError(f"a store keeps {', '.join(_KEPT)} of a search, not {', '.join(unknown)}")
    given: SearchKeywords = {"k": 1, **options}
    checked = SearchOptions(**given)
    kept = {name: getattr(checked, name) for name in options}
    return {name: asdict(value) if isinstance(value, Fusion) else value for name, value in kept.items()}


def with_stored(options: SearchKeywords, search: Mapping[str, Any], *, dense: bool) -> SearchOptions:
    """Return the search options: those requested, and for the rest the store's own.

    Args:
        options: the options requested.
        search: ``StoreConfig.search``.
        dense: whether the dense half can be queried.

    Raises:
        ConfigurationError: the options are invalid.
        StoreMismatchError: the store's own are invalid.
    """
    if not search:
        return SearchOptions(**options)
    try:
        fusion = Fusion(**search["fusion"]) if "fusion" in search else Fusion()
        stored = SearchOptions(**{"k": 1, **search, "fusion": fusion})
    except (TypeError, ConfigurationError) as error:
        raise StoreMismatchError(f"the store's own search options are damaged: {error}; set them again") from None
    merged: SearchKeywords = {"fusion": fusion}
    if stored.fetch_k is not None:
        merged["fetch_k"] = max(stored.fetch_k, options.get("k", 0))
    if stored.min_dense is not None and dense and options.get("mode") != "sparse":
        merged["min_dense"] = stored.min_dense
    if "rerank_k" in search and options.get("rerank") is not None:
        merged["rerank_k"] = max(stored.rerank_k, options.get("k", 0))
    merged.update(options)
    return SearchOptions(**merged)


class SearchKeywords(TypedDict, total=False):
    """The fields of ``SearchOptions`` as keyword arguments, so that type checkers detect wrong ones."""

    k: int
    mode: Mode | None
    fusion: Fusion | Method
    fetch_k: int | None
    dense_k: int | None
    sparse_k: int | None
    filter: Filter | None
    score_threshold: float | None
    min_dense: float | None
    min_sparse: float | None
    group_by: str | None
    group_size: int
    rerank: BaseReranker | None
    rerank_k: int
    min_rerank: float | None
    expand: int
    mmr: float | None
    explain: bool
    exact: bool
