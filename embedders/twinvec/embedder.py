"""Embedder: the public object. Text in, dense and sparse vectors out; roles are in the method names."""

from __future__ import annotations

import asyncio
import functools
import os
import time
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from twinvec.bm25 import Bm25
from twinvec.calls import (
    Bm25Job,
    Half,
    Wanted,
    cancel,
    check_texts,
    close_later,
    merge,
    open_views,
    show_progress_of,
)
from twinvec.errors import ConfigurationError, DeadlineError, PromptError, TruncationWarning
from twinvec.prompts import Role, Task
from twinvec.spec import ModelSpec, SparseKeys
from twinvec.vectors import EmbeddingBatch, Float32, Int64, SparseBatch

if TYPE_CHECKING:
    from twinvec.jobs import Cache

OnOverflow = Literal["truncate", "error"]
_INTERACTIVE = 64  # queries of one call that go before bulk work; more of them are bulk work


class Embedder:
    """Dense and sparse vectors of one model, with the prompts it was trained on.

    Thread safe; calls from several threads and tasks share the model. Pickling carries the specification, not the
    weights. Use as a context manager, or call ``close``, to release the model early.

    Example:
        >>> embedder = Embedder("Alibaba-NLP/gte-multilingual-base", dim=256)
        >>> docs = embedder.embed_documents(["Paris is the capital of France."])
        >>> docs.dense.shape, len(docs.sparse)
        ((1, 256), 1)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelSpec,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        dim: int | None = None,
        max_length: int | None = None,
        sparse: str | os.PathLike[str] | None = "auto",
        sparse_keys: SparseKeys = "surface",
        reproducible: bool = False,
        task: Task | str | None = None,
        prompts: Mapping[str, str] | None = None,
        on_overflow: OnOverflow = "truncate",
        trust_remote_code: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | None = None,
        offline: bool | None = None,
        token_budget: int | None = None,
        on_overload: Literal["wait", "error"] = "wait",
        memo_bytes: int = 64 * 2**20,
        cache: Cache | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: folder, hub id ("owner/name"), "modelscope:owner/name", or a ModelSpec that says all that
                decides a vector (then leave ``revision``, ``dtype``, ``dim``, ``max_length``, ``sparse``,
                ``sparse_keys``, ``reproducible`` and ``trust_remote_code`` out).
            revision: branch, tag or commit of a hub id.
            device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1"; several ("cuda:0,cuda:1") share one
                queue.
            dtype: see ``ModelSpec``.
            dim: see ``ModelSpec``.
            max_length: see ``ModelSpec``.
            sparse: see ``ModelSpec``.
            sparse_keys: see ``ModelSpec``.
            reproducible: see ``ModelSpec``.
            task: default task of every call; see ``embed_queries``.
            prompts: prompts by name laid over the checkpoint's, as sentence-transformers' ``prompts``: for
                example ``{"query": "query: ", "document": "passage: "}`` for E5 models.
            on_overflow: "truncate" cuts the tail of longer texts and warns once per call; "error" raises.
            trust_remote_code: see ``ModelSpec``.
            cache_dir: where hub downloads are kept.
            token: the hub's access token; never stored, logged or pickled.
            offline: never ask the hub. Default: TWINVEC_OFFLINE.
            token_budget: tokens per forward pass. Default: TWINVEC_TOKEN_BUDGET, else chosen by device.
            on_overload: when very many texts are pending, "wait" queues the call, "error" raises.
            memo_bytes: recent rows are kept in so much memory, so that asking for the dense and then for the sparse
                half of the same texts is one forward pass; 0 switches that off.
            cache: a ``twinvec.cache.VectorCache`` that keeps vectors on disk.

        Raises:
            CheckpointError: the model cannot be found, read or loaded.
            ConfigurationError: an argument that cannot be honoured.
        """
        spec = _make_spec(
            model,
            revision=revision,
            dtype=dtype,
            dim=dim,
            max_length=max_length,
            sparse=os.fspath(sparse) if sparse is not None else None,
            sparse_keys=sparse_keys,
            reproducible=reproducible,
            trust_remote_code=trust_remote_code,
        )
        if on_overflow not in ("truncate", "error"):
            raise ConfigurationError(f'on_overflow={on_overflow!r} is neither "truncate" nor "error"')
        if on_overload not in ("wait", "error"):
            raise ConfigurationError(f'on_overload={on_overload!r} is neither "wait" nor "error"')
        if memo_bytes < 0:
            raise ConfigurationError(f"memo_bytes={memo_bytes} must not be negative")
        if token_budget is not None and token_budget < 1:
            raise ConfigurationError(f"token_budget={token_budget} must be at least 1")
        self._options: dict[str, Any] = {
            "device": device,
            "task": task,
            "prompts": dict(prompts) if prompts is not None else None,
            "on_overflow": on_overflow,
            "cache_dir": os.fspath(cache_dir) if cache_dir is not None else None,
            "offline": offline,
            "token_budget": token_budget,
            "on_overload": on_overload,
            "memo_bytes": memo_bytes,
            "cache": cache,
        }
        self._views = open_views(spec, self._options, token)
        self._view = self._views[0]
        self._bm25 = Bm25.parse(spec.sparse)
        self._closed = False
        # a collected Embedder gives its share back like a closed one
        self._finalizer = weakref.finalize(self, close_later, self._views)
        self._finalizer.atexit = False
        description = self._view.description
        self._prompts = description.prompts.override(prompts) if prompts else description.prompts
        for role in Role:
            self._prompts.prefix(role, task)
        self.spec = self._resolved()

    def embed_documents(
        self,
        texts: Iterable[str],
        *,
        task: Task | str | None = None,
        prompt: str | None = None,
        dense: bool = True,
        sparse: bool | None = None,
        timeout: float | None = None,
        show_progress: bool = False,
    ) -> EmbeddingBatch:
        """Embed documents (passages).

        Args:
            texts: any number of strings; an empty text is embedded as the model's special tokens.
            task: only a symmetric task changes documents; see ``embed_queries``.
            prompt: put exactly this before every text instead of the model's prompt.
            dense: compute the dense half. Without it, ``sparse="bm25"`` needs no forward pass, cuts nothing, and
                ``token_counts`` are terms.
            sparse: compute the sparse half; None: where the model has one.
            timeout: seconds to wait; then the work is cancelled and DeadlineError raised. None: no limit.
            show_progress: draw a progress bar on stderr.

        Returns:
            Rows in the order of ``texts``; equal texts are computed once.

        Raises:
            TypeError: ``texts`` is a string, or holds something else than strings (names the position).
            InvalidTextError: a text that is not valid Unicode.
            TextTooLongError: with ``on_overflow="error"``.
            PromptError: a task for a model that was not trained with instructions.
            OutOfMemoryError: a text that does not fit by itself.
            OverloadedError: the queue is full, with ``on_overload="error"``.
            DeadlineError: the timeout has passed.
            DeviceLostError: no device works any more.
        """
        return self._embed(Role.DOCUMENT, texts, Wanted(task, prompt, dense, sparse, timeout), show_progress)

    def embed_queries(
        self,
        texts: Iterable[str],
        *,
        task: Task | str | None = None,
        prompt: str | None = None,
        dense: bool = True,
        sparse: bool | None = None,
        timeout: float | None = None,
        show_progress: bool = False,
    ) -> EmbeddingBatch:
        """Embed queries.

        Args:
            texts: see ``embed_documents``.
            task: a Task; a name from ``TASKS`` or from the checkpoint's prompts; or an instruction such as
                "Given a question, find a paragraph with the answer". None: the Embedder's task, else the model's
                own default.
            prompt: see ``embed_documents``.
            dense: see ``embed_documents``.
            sparse: see ``embed_documents``.
            timeout: see ``embed_documents``.
            show_progress: see ``embed_documents``.

        Returns:
            See ``embed_documents``; so are the errors.
        """
        return self._embed(Role.QUERY, texts, Wanted(task, prompt, dense, sparse, timeout), show_progress)

    async def aembed_documents(
        self,
        texts: Iterable[str],
        *,
        task: Task | str | None = None,
        prompt: str | None = None,
        dense: bool = True,
        sparse: bool | None = None,
        timeout: float | None = None,
    ) -> EmbeddingBatch:
        """Embed documents without blocking the event loop; cancelling the task stops the work."""
        return await self._aembed(Role.DOCUMENT, texts, Wanted(task, prompt, dense, sparse, timeout))

    async def aembed_queries(
        self,
        texts: Iterable[str],
        *,
        task: Task | str | None = None,
        prompt: str | None = None,
        dense: bool = True,
        sparse: bool | None = None,
        timeout: float | None = None,
    ) -> EmbeddingBatch:
        """Embed queries without blocking the event loop; cancelling the task stops the work."""
        return await self._aembed(Role.QUERY, texts, Wanted(task, prompt, dense, sparse, timeout))

    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        dense_weight: float = 1.0,
        sparse_weight: float = 0.3,
        task: Task | str | None = None,
    ) -> Float32:
        """Score (query, document) pairs: dense_weight * cosine + sparse_weight * common weights.

        Formula and default weights: ``compute_scores`` of the GTE multilingual reference script.

        Returns:
            float32 [pairs].

        Raises:
            ConfigurationError: a weight other than 0 for a half that the model does not have, or for BM25.
        """
        for i, pair in enumerate(pairs):
            if isinstance(pair, str) or len(pair) != 2:
                raise TypeError(f"pairs[{i}] must be (query, document), not {pair!r:.60}")
        dense, sparse = dense_weight != 0, sparse_weight != 0
        for half, wanted, has in (("dense", dense, self.dim is not None), ("sparse", sparse, self.has_sparse)):
            if wanted and not has:
                raise ConfigurationError(f"this model has no {half} half: pass {half}_weight=0")
        if sparse and self.needs_idf:
            raise ConfigurationError("BM25 scores need the idf of a store's documents: pass sparse_weight=0")
        queries = self.embed_queries([q for q, _ in pairs], task=task, dense=dense, sparse=sparse)
        documents = self.embed_documents([d for _, d in pairs], task=task, dense=dense, sparse=sparse)
        scores = np.zeros(len(pairs), dtype=np.float32)
        if queries.dense is not None and documents.dense is not None:
            scores += dense_weight * np.einsum("ij,ij->i", queries.dense, documents.dense)
        if queries.sparse is not None and documents.sparse is not None:
            scores += sparse_weight * queries.sparse.pairwise_similarity(documents.sparse)
        return scores

    def token_weights(self, sparse: SparseBatch) -> list[dict[str, float]]:
        """Return each sparse row as ``{token text: weight}``, heaviest first.

        Texts are decoded for ``sparse_keys="surface"``, and the vocabulary's own entries for ``"ids"``. BM25's are
        stemmed words, of which a process remembers those that it met lately; others are "#" and the id.
        """
        tokenizer = self._views[-1].core.model.tokenizer
        texts = tokenizer.token_texts if self.spec.sparse_keys == "surface" else tokenizer.tokens
        text_of = texts.__getitem__ if self._bm25 is None else self._bm25.term
        rows = []
        for row in sparse:
            heaviest = np.argsort(-row.values, kind="stable")
            rows.append({text_of(int(row.indices[i])): float(row.values[i]) for i in heaviest})
        return rows

    def prompt_for(self, role: Role | str, task: Task | str | None = None) -> str:
        """Return the exact prefix that ``embed_queries`` or ``embed_documents`` will use."""
        return self._prompts.prefix(role, task if task is not None else self._options["task"])

    def token_offsets(self, texts: Iterable[str]) -> list[Int64]:
        """Return where the tokens of each text start and end in it, in characters: int64 [tokens, 2] per text.

        Of the dense model's tokenizer; without prompt and special tokens, and nothing is cut.

        Raises:
            InvalidTextError: a text that is not valid Unicode.
        """
        return self._view.core.model.tokenizer.offsets(check_texts(texts))

    def token_room(self, role: Role | str, task: Task | str | None = None) -> int:
        """Return how many tokens of a text fit beside its prompt and the special tokens."""
        prompt = self.prompt_for(role, task)
        return self.max_length - self._view.core.model.tokenizer.overhead(prompt)

    def stats(self) -> dict[str, Any]:
        """Return counters and choices of the model, which all its users in the process share.

        Counters: ``forwards`` (passes), ``texts`` (rows that went through one), ``tokens``, ``truncated``,
        ``out_of_memory`` (recoveries), ``failures`` (batches that raised), ``memo_hits``, ``memo_misses``,
        ``cache_hits``, ``cache_misses``, ``queue_wait_seconds`` (sum over texts), ``forward_seconds``. Gauges:
        ``queued`` (texts waiting), ``batch_fill`` (mean share of the token budget), ``token_budget``, ``healthy``,
        ``device_memory`` (bytes held on CUDA devices). Choices: ``device``, ``dtype``, ``attention`` ("varlen",
        "flash", "sdpa" or "padded"). A second, sparse model adds to the counters.
        """
        cores = [view.core for view in self._views]
        encoders = [encoder for core in cores for encoder in core.model.encoders]
        first = cores[0].model.encoder
        return {
            "forwards": sum(e.forwards for e in encoders),
            "texts": sum(e.texts for e in encoders),
            "tokens": sum(e.tokens for e in encoders),
            "truncated": cores[0].truncated,
            "out_of_memory": sum(e.out_of_memory for e in encoders),
            "failures": sum(c.failures for c in cores),
            "memo_hits": sum(c.memo.hits for c in cores),
            "memo_misses": sum(c.memo.misses for c in cores),
            "cache_hits": sum(c.cache_hits for c in cores),
            "cache_misses": sum(c.cache_misses for c in cores),
            "queue_wait_seconds": sum(c.queue_seconds for c in cores),
            "forward_seconds": sum(c.forward_seconds for c in cores),
            "queued": sum(c.queued for c in cores),
            "batch_fill": cores[0].batch_fill,
            "token_budget": first.token_budget,
            "healthy": self.healthy,
            "device": ",".join(str(e.device) for e in cores[0].model.encoders),
            "dtype": str(first.dtype).removeprefix("torch."),
            "attention": first.attention,
            "device_memory": sum(e.memory() for e in encoders),
        }

    @property
    def healthy(self) -> bool:
        """Return whether calls can be answered: not closed, and a device works."""
        return not self._closed and all(view.core.healthy for view in self._views)

    def restart(self) -> None:
        """Build the model again after ``DeviceLostError``, for all its users."""
        for view in self._views:
            view.core.restart()

    @property
    def dim(self) -> int | None:
        """Return the dense dimensions, None for a model that is only sparse."""
        return self.spec.dim

    @property
    def max_length(self) -> int:
        """Return the tokens per text, prompt and specials included."""
        assert self.spec.max_length is not None
        return self.spec.max_length

    @property
    def has_sparse(self) -> bool:
        """Return whether there is a sparse half."""
        return self.spec.sparse is not None

    @property
    def needs_idf(self) -> bool:
        """Return whether a store must multiply the sparse weights of queries with its idf: True for BM25."""
        return self._bm25 is not None

    @property
    def prompts(self) -> Mapping[str, str]:
        """Return the prompts that were laid over the checkpoint's."""
        return dict(self._options["prompts"] or {})

    @property
    def task(self) -> Task | str | None:
        """Return the default task."""
        task: Task | str | None = self._options["task"]
        return task

    @property
    def family(self) -> str:
        """Return the name of the checkpoint family."""
        return self._view.description.family

    def close(self, *, drain: bool = False) -> None:
        """Give the model back; its last user frees it. Later calls raise ConfigurationError.

        Args:
            drain: let pending calls of other threads finish first; else they raise ConfigurationError.
        """
        self._closed = True
        if self._finalizer.detach() is not None:
            for view in self._views:
                view.close(drain=drain)

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.spec, self._options)

    def __repr__(self) -> str:
        encoder = self._view.core.model.encoder
        return (
            f"Embedder({self.spec.model!r}, family={self.family!r}, dim={self.dim}, sparse={self.spec.sparse!r}, "
            f"device='{encoder.device}', dtype={self.spec.dtype!r})"
        )

    def _halves(self, role: Role, texts: Iterable[str], wanted: Wanted) -> list[Half]:
        from twinvec.jobs import Request

        if self._closed:
            raise ConfigurationError("this Embedder is closed; make a new one")
        checked = check_texts(texts)
        dense = wanted.dense and self.dim is not None
        sparse = self.has_sparse if wanted.sparse is None else wanted.sparse
        if sparse and not self.has_sparse:
            raise ConfigurationError(
                f'{self.spec.model} has no sparse half: make the Embedder with sparse="bm25", a head file or a SPLADE '
                "checkpoint"
            )
        if not (dense or sparse):
            raise ConfigurationError("dense=False and sparse=False leave nothing to compute")
        if wanted.prompt is not None and wanted.task is not None:
            raise PromptError("pass task= or prompt=, not both")
        prefix = wanted.prompt if wanted.prompt is not None else self.prompt_for(role, wanted.task)
        check_texts([prefix], "prompt")
        urgent = role is Role.QUERY and len(checked) <= _INTERACTIVE
        request = functools.partial(
            Request,
            urgent=urgent,
            fail_on_overflow=self._options["on_overflow"] == "error",
            fail_on_overload=self._options["on_overload"] == "error",
            memo=self._options["memo_bytes"] > 0,
            cache=self._options["cache"],
        )
        dim, keys = (self.dim if dense else None), (self.spec.sparse_keys if sparse else None)
        if self._bm25 is None and len(self._views) == 1:
            return [self._view.half(checked, request, prompt=prefix, dim=dim, keys=keys)]
        halves = [self._view.half(checked, request, prompt=prefix, dim=dim, keys=None)] if dense else []
        # neither BM25 nor a SPLADE model knows prompts, and the dense model's limit is not theirs
        if sparse and self._bm25 is not None:
            job = Bm25Job(self._bm25, role, checked, urgent=urgent)
            halves.append(Half(job, job.start))
        elif sparse:
            request = functools.partial(request, fail_on_overflow=False)
            halves.append(self._views[1].half(checked, request, prompt="", dim=None, keys=keys))
        return halves

    def _resolved(self) -> ModelSpec:
        spec = self._view.spec
        if self._bm25 is not None:
            return replace(spec, sparse=str(self._bm25))
        if len(self._views) == 1:
            return spec
        other = self._views[1].spec
        return replace(spec, sparse=other.model, sparse_keys=other.sparse_keys, digest=f"{spec.digest}+{other.digest}")

    def _embed(self, role: Role, texts: Iterable[str], wanted: Wanted, show_progress: bool) -> EmbeddingBatch:
        halves = self._halves(role, texts, wanted)
        jobs = [half.job for half in halves]
        bar = show_progress_of(jobs, f"Embedding {role.value}s") if show_progress else None
        deadline = None if wanted.timeout is None else time.monotonic() + wanted.timeout
        futures = []
        try:
            futures = [half.start() for half in halves]
            left = [None if deadline is None else deadline - time.monotonic() for _ in futures]
            batch = merge([future.result(wait) for future, wait in zip(futures, left, strict=True)])
        except (TimeoutError, FutureTimeoutError):
            cancel(jobs)
            raise DeadlineError(f"{len(jobs[0])} texts were not embedded within {wanted.timeout} s") from None
        except BaseException:
            cancel(jobs)
            raise
        finally:
            if bar is not None:
                bar.close()
        self._warn(batch)
        return batch

    async def _aembed(self, role: Role, texts: Iterable[str], wanted: Wanted) -> EmbeddingBatch:
        halves = self._halves(role, texts, wanted)
        jobs = [half.job for half in halves]
        futures: list[asyncio.Future[EmbeddingBatch]] = []
        try:
            futures += [asyncio.wrap_future(half.start()) for half in halves]
            _, pending = await asyncio.wait(futures, timeout=wanted.timeout, return_when=asyncio.FIRST_EXCEPTION)
            failed = [future for future in futures if future.done() and future.exception() is not None]
            if pending and not failed:
                raise DeadlineError(f"{len(jobs[0])} texts were not embedded within {wanted.timeout} s")
            batch = merge([future.result() for future in failed or futures])
        except BaseException:
            cancel(jobs)
            for future in futures:  # the loop would report an error that came in this moment as never retrieved
                if future.done() and not future.cancelled():
                    future.exception()
            raise
        self._warn(batch)
        return batch

    def _warn(self, batch: EmbeddingBatch) -> None:
        cut = np.flatnonzero(batch.truncated)
        if len(cut):
            warnings.warn(
                f"{len(cut)} of {len(batch)} texts were cut at {self.max_length} tokens (first: texts[{cut[0]}]); see "
                'EmbeddingBatch.truncated. Split them, raise max_length, or pass on_overflow="error".',
                TruncationWarning,
                stacklevel=4,
            )


def _make_spec(model: str | os.PathLike[str] | ModelSpec, **fields: Any) -> ModelSpec:
    if not isinstance(model, ModelSpec):
        return ModelSpec(model=os.fspath(model), **fields)
    defaults = ModelSpec(model="-")
    if given := [name for name, value in fields.items() if value != getattr(defaults, name)]:
        raise ConfigurationError(
            f"{', '.join(given)}: already said by the ModelSpec; change it with dataclasses.replace"
        )
    return model


def _rebuild(spec: ModelSpec, options: dict[str, Any]) -> Embedder:
    return Embedder(spec, **options)
