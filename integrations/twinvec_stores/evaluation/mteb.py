"""MtebEncoder: an embedder as mteb's benchmarks call it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from twinvec import BaseEmbedder, Role, Task
from twinvec.errors import ConfigurationError, PromptError
from twinvec.vectors import Float32
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.memory import MemoryStore
from twinvec_stores.evaluation.evaluate import plain_options
from twinvec_stores.filters.conditions import HasId
from twinvec_stores.search.explain import Result
from twinvec_stores.search.index import HybridIndex
from twinvec_stores.search.options import SearchKeywords

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.model_meta import ModelMeta
    from typing_extensions import Unpack

_BATCH = 4096  # documents that are embedded and stored together


class MtebEncoder:
    """Runs mteb's tasks with an embedder: ``mteb.evaluate(MtebEncoder(embedder), tasks)``.

    Retrieval and reranking go through mteb's search protocol, so that sparse and hybrid searches are measured as well;
    classification, clustering and similarity take dense vectors. A text's role is mteb's prompt type; texts of tasks
    that have none are queries, as the cards of models with prompts say. The instruction of a task is mteb's own, where
    the model was trained with instructions.

    Examples:
        >>> task = mteb.get_task("RuBQRetrieval")
        >>> mteb.evaluate(MtebEncoder(embedder, mode="sparse"), task)
    """

    def __init__(
        self,
        embedder: BaseEmbedder,
        *,
        tasks: Mapping[str, Task | str] | None = None,
        **search: Unpack[SearchKeywords],
    ) -> None:
        """Wrap an embedder.

        Args:
            embedder: the model; it stays open.
            tasks: instructions by the name of an mteb task, or of its type, in place of mteb's own.
            search: how retrieval searches, keywords of ``HybridIndex.search``: mode, fusion, rerank ...

        Raises:
            ConfigurationError: ``k``, which is the task's.
        """
        if {"k", "group_by", "filter"} & set(search):
            raise ConfigurationError("k, group_by and filter are the task's affair, not the search's")
        self._embedder, self._tasks, self._search = embedder, dict(tasks or {}), search
        self._index: HybridIndex | None = None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Return what mteb writes beside the results."""
        from mteb.models.model_meta import ModelMeta

        spec, name = self._embedder.spec, PurePath(self._embedder.spec.model)
        meta: ModelMeta = ModelMeta.create_empty(
            {
                "name": spec.model if len(name.parts) == 2 and not name.is_absolute() else f"twinvec/{name.name}",
                "revision": spec.revision or spec.digest or "local",
                "embed_dim": self._embedder.dim,
                "max_tokens": self._embedder.max_length,
                "similarity_fn_name": "cosine",
                "experiment_kwargs": plain_options(self._search) or None,
            }
        )
        return meta

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: TaskMetadata, prompt_type: Any = None, **_: Any
    ) -> Float32:
        """Return dense vectors, float32 [texts, dim], of mteb's batches."""
        texts = [_text(row) for batch in inputs for row in batch["text"]]
        role = Role.DOCUMENT if prompt_type is not None and prompt_type.value == "document" else Role.QUERY
        embed = self._embedder.embed_documents if role is Role.DOCUMENT else self._embedder.embed_queries
        found = embed(texts, task=self._task(task_metadata, symmetric=prompt_type is None), sparse=False).dense
        assert found is not None
        return found

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float32:
        """Return the cosines of all pairs."""
        one, other = (np.atleast_2d(np.asarray(rows, np.float32)) for rows in (embeddings1, embeddings2))
        cosines: Float32 = one @ other.T
        return cosines

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float32:
        """Return the cosine of each pair."""
        one, other = (np.atleast_2d(np.asarray(rows, np.float32)) for rows in (embeddings1, embeddings2))
        cosines: Float32 = np.einsum("ij,ij->i", one, other)
        return cosines

    def index(self, corpus: Iterable[Mapping[str, Any]], *, task_metadata: TaskMetadata, **_: Any) -> None:
        """Embed and keep a corpus, in memory, in place of the one before."""
        task = self._task(task_metadata)
        self._index = HybridIndex(
            self._embedder, MemoryStore(StoreConfig.for_embedder(self._embedder, task=task)), task=task
        )
        rows: list[tuple[str, str]] = []
        for row in corpus:
            rows.append((row["id"], f"{row.get('title') or ''} {_text(row['text'])}".strip()))
            if len(rows) == _BATCH:
                self._add(rows)
        self._add(rows)

    def _add(self, rows: list[tuple[str, str]]) -> None:
        assert self._index is not None
        self._index.add([text for _, text in rows], ids=[id for id, _ in rows])
        rows.clear()

    def search(
        self,
        queries: Sequence[Mapping[str, Any]],
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Return query id -> document id -> score, of the corpus or, query by query, of what ``top_ranked`` names."""
        if self._index is None:
            raise ConfigurationError("search needs index first")
        asked = {
            row["id"]: f"{_text(row['text'])} {row['instruction']}" if row.get("instruction") else _text(row["text"])
            for row in queries
        }
        options: SearchKeywords = {**self._search, "k": top_k}
        if options.get("rerank") is not None:
            options.setdefault("rerank_k", top_k)
        if top_ranked is None:
            results = self._index.search_many(list(asked.values()), **options)
        else:
            results = []
            for id, text in asked.items():
                options["filter"] = HasId(top_ranked[id])
                results.append(self._index.search(text, **options))
        return {id: _falling(found) for id, found in zip(asked, results, strict=True)}

    def _task(self, metadata: TaskMetadata, *, symmetric: bool = False) -> Task | str | None:
        """Return the instruction of a task; None: the embedder's own."""
        own = self._tasks.get(metadata.name, self._tasks.get(metadata.type))
        if own is not None:
            return own
        prompt = metadata.prompt.get("query") if isinstance(metadata.prompt, dict) else metadata.prompt
        if not prompt:
            return None
        task = Task(prompt, symmetric=symmetric)
        try:
            self._embedder.prompt_for(Role.QUERY, task)
        except PromptError:  # the model was not trained with instructions
            return None
        return task


def _falling(results: Sequence[Result]) -> dict[str, float]:
    """Return scores without ties, which mteb would order by its own rule: each at least one float32 step lower."""
    scores: dict[str, float] = {}
    least = np.float32(np.inf)
    for result in results:
        least = min(np.float32(result.score), np.nextafter(least, np.float32(-np.inf)))
        scores[result.record.id] = float(least)
    return scores


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise ConfigurationError(f"mteb gives a {type(given).__name__} in place of a text: TwinVec embeds texts alone")
    return given
