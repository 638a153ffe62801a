"""RemoteIndex: an index served over HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from twinvec import SparseBatch, Task
from twinvec.errors import ConfigurationError, RemoteError, StoreError, TwinVecError
from twinvec.vectors import Float32
from twinvec_stores.config import StoreConfig
from twinvec_stores.filters.as_json import filter_to_json
from twinvec_stores.filters.conditions import Filter
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import Record
from twinvec_stores.search.explain import Explanation, Result
from twinvec_stores.search.fusion import Fusion
from twinvec_stores.search.index import HybridIndex
from twinvec_stores.search.options import SearchOptions

if TYPE_CHECKING:
    from twinvec import RemoteEmbedder

_QUERIES = 64  # per request
_STORED = ("fetch_k", "min_dense")  # options for which the store has its own defaults
_LARGEST = 2**28  # bytes of the largest plausible response


class RemoteIndex(HybridIndex):
    """The index behind ``twinvec serve --store``: the same searches with the same results, read-only.

    Each search is one request with the queries; the results come back ready. The stores and retrievers of both
    frameworks accept it through ``TwinVecVectorStore.from_index``.

    Examples:
        >>> with RemoteIndex("http://127.0.0.1:8000") as index:
        ...     index.search("capital of France", k=3)[0].record.text
        'Paris is the capital of France.'
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 4) -> None:
        """Connect, and fetch the description of the server's index; see ``RemoteEmbedder`` for the arguments.

        Raises:
            RemoteError: no server responds at this address, or it serves no store.
        """
        from twinvec import RemoteEmbedder
        from twinvec.server.wire import task_from_json

        self._remote: RemoteEmbedder = RemoteEmbedder(url, api_key=api_key, timeout=timeout, retries=retries)
        try:
            info = self._remote.asking("/v1/search/info").blocking()
            config, task = StoreConfig.from_dict(info["config"], self._remote.url), task_from_json(info["task"])
            super().__init__(self._remote, _Elsewhere(self._remote.url, config), task=task)
        except (ConfigurationError, KeyError, TypeError) as error:
            self._remote.close()
            raise RemoteError(
                f"{self._remote.url} serves no store that this version understands: {str(error)[:200]}"
            ) from None
        except TwinVecError:
            self._remote.close()
            raise

    def scoped(self, filter: Filter) -> HybridIndex:
        """Raise StoreError: who may see what is decided by a server's keys, not by its clients."""
        raise StoreError(
            f"{self._remote.url} can only be searched as a whole: pass filter=, or scope the index that it serves"
        )

    def add(self, *args: Any, **kwargs: Any) -> list[str]:
        """Raise StoreError: a server's index is read-only."""
        raise _refusal(self._remote.url)

    async def aadd(self, *args: Any, **kwargs: Any) -> list[str]:
        """See ``add``."""
        raise _refusal(self._remote.url)

    def close(self) -> None:
        """Close the connections."""
        self._remote.close()

    async def _found(
        self, queries: Sequence[str], task: Task | str | None, options: SearchOptions
    ) -> list[list[Result]]:
        if isinstance(queries, str):
            raise TypeError("search_many needs a list of queries; use search for one")
        options.parts(self.store.config)
        task = self.task if task is None else task
        asked = {"task": asdict(task) if isinstance(task, Task) else task, **self._json(options)}
        found: list[list[Result]] = []
        for start in range(0, len(queries), _QUERIES):
            part = list(queries[start : start + _QUERIES])
            found += await self._results({"query": part, **asked}, len(part), options)
        return found

    async def _found_by_vectors(
        self, dense: Float32 | None, sparse: SparseBatch | None, texts: Sequence[str] | None, options: SearchOptions
    ) -> list[list[Result]]:
        options.parts(self.store.config, dense=dense is not None, sparse=sparse is not None)
        asked, found = self._json(options), []
        n = len(dense) if dense is not None else len(sparse) if sparse is not None else 0
        for start in range(0, n, _QUERIES):
            part: dict[str, Any] = {}
            if dense is not None:
                part["dense"] = [row.tolist() for row in dense[start : start + _QUERIES]]
            if sparse is not None:
                rows = [sparse[i] for i in range(start, min(start + _QUERIES, len(sparse)))]
                part["sparse"] = [{"indices": r.indices.tolist(), "values": r.values.tolist()} for r in rows]
            found += await self._results({**part, **asked}, min(_QUERIES, n - start), options)
        return found

    def _json(self, options: SearchOptions) -> dict[str, Any]:
        from twinvec import RemoteReranker

        plain = SearchOptions()
        given = {field.name: getattr(options, field.name) for field in fields(options)}
        given = {name: value for name, value in given.items() if value != getattr(plain, name) or name in _STORED}
        assert isinstance(options.fusion, Fusion)
        if options.rerank is not None:
            if not isinstance(options.rerank, RemoteReranker) or options.rerank.url != self._remote.url:
                raise ConfigurationError(
                    "rerank: a server uses its own reranker: pass RemoteReranker(url) of the same server, or pass the "
                    "texts it finds to Reranker.rerank"
                )
            given["rerank"] = True
        if options.filter is not None:
            given["filter"] = filter_to_json(options.filter)
        return {**given, "fusion": asdict(options.fusion)}

    async def _results(self, asked: dict[str, Any], n: int, options: SearchOptions) -> list[list[Result]]:
        answer = await self._remote.asking("/v1/search", asked, largest=_LARGEST)
        most = options.k * options.group_size
        try:
            found = [[_result(each) for each in results] for results in answer["results"]]
            if len(found) != n or any(len(results) > most for results in found):
                raise ValueError(f"{len(found)} lists for {n} queries, or one with more than {most} results")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RemoteError(f"{self._remote.url} returned invalid results: {error!r:.100}") from None
        return found


class _Elsewhere(HybridStore):
    """A server's store: its contents are known, everything else is refused."""

    def __init__(self, url: str, config: StoreConfig) -> None:
        self.config = config
        self._url = url

    def close(self) -> None:
        pass

    async def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise _refusal(self._url)

    _upsert = _delete = _delete_where = _get = _count = _scroll = _search = _refuse
    _document_frequencies = _info = _flush = _optimize = _configure = _refuse

    def __repr__(self) -> str:
        return f"the store of {self._url}"


def _refusal(url: str) -> StoreError:
    return StoreError(f"the store of {url} can only be searched from here: read and write it directly")


def _result(data: Mapping[str, Any]) -> Result:
    record = Record(
        _checked(data["id"], str),
        _checked(data["text"], str),
        _checked(data["metadata"], dict),
        _checked(data.get("provenance", {}), dict),
    )
    why, context, fused = data.get("explanation"), data.get("context"), data.get("fused_score")
    return Result(
        record,
        _number(data["score"]),
        None if why is None else _explanation(why),
        None if context is None else _checked(context, str),
        None if fused is None else _number(fused),
    )


def _explanation(data: Mapping[str, Any]) -> Explanation:
    scores, ranks = (
        {f"{stage}_{what}": data[f"{stage}_{what}"] for stage in ("dense", "sparse", "rerank")}
        for what in ("score", "rank")
    )
    facts: dict[str, Any] = {name: None if value is None else _number(value) for name, value in scores.items()}
    facts |= {name: None if value is None else _checked(value, int) for name, value in ranks.items()}
    terms = tuple((_checked(term, str), _number(a), _number(b)) for term, a, b in data["terms"])
    return Explanation(**facts, terms=terms)


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is not a {kind.__name__}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{value!r:.40} is not a finite number")
    return float(value)
