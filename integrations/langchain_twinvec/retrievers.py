"""HybridRetriever: LangChain's retriever interface over a TwinVecVectorStore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForRetrieverRun,
    CallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.retrievers import LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import ConfigDict, SkipValidation, model_validator
from typing_extensions import Self

from langchain_twinvec.base import not_serialized
from langchain_twinvec.peers import SEARCH, refuse_names_of_peers
from langchain_twinvec.searching import SearchableStore
from twinvec import BaseReranker, Task
from twinvec.flows import Call, awaiting, block, blocking, call, together, wait
from twinvec.overriding import changed_alone, overridden
from twinvec.workers import in_thread
from twinvec_stores import Fusion
from twinvec_stores.search.fusion import Method
from twinvec_stores.search.options import Mode

if TYPE_CHECKING:
    from langchain_twinvec.filters import FilterForm
else:
    FilterForm = Any  # filters validate themselves, and pydantic does not support their recursive type

_CALL = ("k", "fetch_k", "dense_k", "sparse_k", "mode", "fusion", "filter", "score_threshold", "min_dense",
         "min_sparse", "group_by", "group_size", "expand", "task", "mmr", "explain", "scores", "exact",
         "rerank", "rerank_k", "min_rerank")  # fmt: skip
_DIVERSE = [name for name in vars(SearchableStore) if "max_marginal" in name]
_SEARCHES = [name for name in vars(SearchableStore) if "search" in name or "relevance" in name]
_DEFAULT_MMR = 0.5


class HybridRetriever(VectorStoreRetriever):
    """Finds documents in a TwinVecVectorStore; ``batch`` and ``abatch`` use one forward pass for all queries.

    The fields can also be passed to ``invoke``, ``batch`` and their async twins, and made configurable. LangChain's
    ``search_kwargs`` are moved into the fields, ``lambda_mult`` as ``mmr``.

    Attributes:
        vectorstore: the store to search.
        k: documents per query.
        fetch_k: candidates of each half, and for ``mmr``; None: max(100, 10 * k).
        dense_k: candidates of the dense half, if different; may be less than k.
        sparse_k: the same for the sparse half.
        mode: "hybrid", "dense" or "sparse"; None: the store's default.
        fusion: a Fusion with its weights, or the name of a method; None: the store's default.
        filter: a dict such as ``{"year": {"$gte": 2020}}``, or a filter of ``twinvec_stores``.
        score_threshold: only return documents with at least this score; with
            ``search_type="similarity_score_threshold"``, with at least this relevance from 0 to 1.
        min_dense: only return documents with at least this cosine: "I do not know" if there are none.
        min_sparse: only return documents with at least this sparse score; without common terms it is 0.
        group_by: "document": k counts documents instead of chunks; or a metadata field: k counts its values.
        group_size: maximum number of chunks per group.
        expand: add this many chunks on each side to the text of a chunk found.
        task: task of the queries, instead of the embeddings' own.
        mmr: weight of relevance versus diversity, from 0 to 1; None: no diversity.
        explain: explain in ``document.metadata["_twinvec"]`` why each document was found; see ``TwinVecVectorStore``.
        scores: put the score into ``document.metadata["_twinvec"]["score"]``.
        exact: compare with every dense vector instead of using a graph.
        rerank: a ``twinvec.Reranker`` that reorders the first ``rerank_k`` documents; see ``SearchOptions``.
        rerank_k: number of documents to rerank; None: 50.
        min_rerank: only return documents with at least this reranker score.
        search_type: LangChain's "similarity", "mmr" (equivalent to ``mmr=0.5``) or "similarity_score_threshold".
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    vectorstore: SearchableStore
    k: int = 4
    fetch_k: int | None = None
    dense_k: int | None = None
    sparse_k: int | None = None
    mode: Mode | None = None
    fusion: SkipValidation[Fusion | Method | None] = None
    filter: FilterForm = None
    score_threshold: float | None = None
    min_dense: float | None = None
    min_sparse: float | None = None
    group_by: str | None = None
    group_size: int | None = None
    expand: int | None = None
    task: Task | str | None = None
    mmr: float | None = None
    explain: bool = False
    scores: bool = False
    exact: bool = False
    rerank: SkipValidation[BaseReranker | None] = None
    rerank_k: int | None = None
    min_rerank: float | None = None

    @model_validator(mode="before")
    @classmethod
    def validate_search_type(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Validate ``search_type`` and move ``search_kwargs`` into the fields; replaces the base class's validator."""
        if not isinstance(store := values.get("vectorstore"), SearchableStore):
            raise ValueError(f"vectorstore must be a TwinVecVectorStore, not {type(store).__name__}")
        kind = values.get("search_type", "similarity")
        if kind not in cls.allowed_search_types:
            raise ValueError(f"search_type={kind!r} is not one of {', '.join(cls.allowed_search_types)}")
        given = _renamed(values.get("search_kwargs") or {})
        refuse_names_of_peers(given, SEARCH)
        if unknown := sorted(set(given) - set(_CALL)):
            raise ValueError(f"search_kwargs: {unknown[0]!r} is not one of {', '.join(_CALL)}, lambda_mult")
        values = {**values, **given, "search_kwargs": {}}
        threshold = values.get("score_threshold")
        if kind == "similarity_score_threshold" and (threshold is None or not 0 <= threshold <= 1):
            raise ValueError(f"search_type={kind!r} needs score_threshold from 0 to 1, not {threshold!r}")
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        arguments, _ = self._arguments({})
        self.vectorstore.check_arguments(**arguments)
        return self

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Search for all inputs with one forward pass; each is a separate run for callbacks and traces.

        Args:
            inputs: queries.
            config: one for all, or one per input; ``max_concurrency`` has no effect.
            return_exceptions: return errors in place of the results of the queries that caused them.
            kwargs: fields of the retriever, for this call.
        """
        if inputs and self._extended("invoke", "_get_relevant_documents"):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return block(self._batch(inputs, config, return_exceptions, kwargs))

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """See ``batch``."""
        if inputs and self._extended("ainvoke", "_aget_relevant_documents", "_get_relevant_documents"):
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return await wait(self._batch(inputs, config, return_exceptions, kwargs))

    async def _batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None,
        return_exceptions: bool,
        given: Mapping[str, Any],
    ) -> list[list[Document]]:
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        runs = await together([self._started(text, each, given) for text, each in zip(inputs, configs, strict=True)])
        try:
            outputs: list[Any] = await call(self._find, self._afind, inputs, given)
        except BaseException as error:
            if not (return_exceptions and isinstance(error, Exception)):
                await together([call(run.on_retriever_error, run.on_retriever_error, error) for run in runs])
                raise
            outputs = await together([call(self._find_or_error, self._afind_or_error, text, given) for text in inputs])
        ends = [
            run.on_retriever_error if isinstance(output, Exception) else run.on_retriever_end
            for run, output in zip(runs, outputs, strict=True)
        ]
        await together([call(end, end, output) for end, output in zip(ends, outputs, strict=True)])
        return outputs

    def _started(self, query: str, config: RunnableConfig, given: Mapping[str, Any]) -> Call[Any]:
        """Return the call that starts a run, for callbacks and traces, as ``BaseRetriever.invoke`` does."""
        callbacks: dict[str, Any] = {
            "inheritable_callbacks": config.get("callbacks"),
            "local_callbacks": None,
            "inheritable_tags": config.get("tags"),
            "local_tags": self.tags,
            "inheritable_metadata": {**(config.get("metadata") or {}), **self._get_ls_params(**given)},
            "local_metadata": self.metadata,
        }
        run: dict[str, Any] = {"name": config.get("run_name") or self.get_name(), "run_id": config.get("run_id")}
        return Call(
            lambda: CallbackManager.configure(**callbacks).on_retriever_start(None, query, **run),
            lambda: AsyncCallbackManager.configure(**callbacks).on_retriever_start(None, query, **run),
        )

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Return the output of ``dumps``: that a retriever cannot be rebuilt, and why."""
        return not_serialized(self, "it contains an open store; create it again with store.as_retriever(...)")

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return block(self._search(query, kwargs))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        if not changed_alone(self, "_get_relevant_documents", "_aget_relevant_documents"):
            return await wait(self._search(query, kwargs))
        told = {"run_manager": run_manager.get_sync()} if self._new_arg_supported else {}
        arguments = kwargs if self._expects_other_args else {}
        return await in_thread(self._get_relevant_documents, query, **told, **arguments)

    @blocking
    async def _find(self, queries: Sequence[str], given: Mapping[str, Any]) -> list[list[Document]]:
        """Search for all queries with one forward pass; for stores whose searches are not overridden."""
        store, (arguments, threshold) = self.vectorstore, self._arguments(given)
        if threshold is not None:
            found = await call(store.relevant_many, store.arelevant_many, queries, threshold, **arguments)
        else:
            found = await call(store.similarity_search_many, store.asimilarity_search_many, queries, **arguments)
        return [[document for document, _ in each] for each in found]

    _afind = awaiting(_find)

    @blocking
    async def _find_or_error(self, query: str, given: Mapping[str, Any]) -> list[Document] | Exception:
        try:
            return (await call(self._find, self._afind, [query], given))[0]
        except Exception as error:
            return error

    _afind_or_error = awaiting(_find_or_error)

    async def _search(self, query: str, given: Mapping[str, Any]) -> list[Document]:
        """Search through the store's methods that LangChain's retriever calls."""
        store, (arguments, threshold) = self.vectorstore, self._arguments(given)
        if threshold is not None:
            scored = await call(
                store.similarity_search_with_relevance_scores,
                store.asimilarity_search_with_relevance_scores,
                query,
                **arguments,
                score_threshold=threshold,
            )
            return [document for document, _ in scored]
        if self.search_type == "mmr" and overridden(store, SearchableStore, *_DIVERSE):
            arguments["lambda_mult"] = arguments.pop("mmr")
            return await call(
                store.max_marginal_relevance_search, store.amax_marginal_relevance_search, query, **arguments
            )
        return await call(store.similarity_search, store.asimilarity_search, query, **arguments)

    def _extended(self, *methods: str) -> bool:
        """Return whether a subclass of this class or of the store influences the results."""
        return overridden(self, HybridRetriever, *methods) or overridden(self.vectorstore, SearchableStore, *_SEARCHES)

    def _arguments(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], float | None]:
        """Return the store's arguments, and the required relevance."""
        arguments = {name: getattr(self, name) for name in _CALL} | _renamed(self.search_kwargs) | _renamed(given)
        if self.search_type == "mmr" and arguments["mmr"] is None:
            arguments["mmr"] = _DEFAULT_MMR
        by_relevance = self.search_type == "similarity_score_threshold"
        threshold = arguments.pop("score_threshold") if by_relevance else None
        # a store that overrides a search need not know options that are at their defaults
        return {name: value for name, value in arguments.items() if value is not None and value is not False}, threshold

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        model = self.vectorstore.index.embedder.spec.model
        return {**super()._get_ls_params(**kwargs), "ls_embedding_model": model}


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with LangChain's ``lambda_mult`` under our name."""
    return {"mmr" if name == "lambda_mult" else name: value for name, value in given.items()}
