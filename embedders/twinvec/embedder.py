"""Embedder: the public object. Text in, dense and sparse vectors out; roles are in the method names."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from twinvec.errors import ConfigurationError, InvalidTextError, PromptError, TruncationWarning
from twinvec.prompts import Role, Task
from twinvec.settings import Settings
from twinvec.spec import ModelSpec, SparseKeys
from twinvec.vectors import EmbeddingBatch, Float32, SparseBatch

if TYPE_CHECKING:
    from tqdm import tqdm

    from twinvec.core import InferenceCore, Job

OnOverflow = Literal["truncate", "error"]


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
    ) -> None:
        """Load a model.

        Args:
            model: folder, hub id ("owner/name"), "modelscope:owner/name", or a ModelSpec that says all that
                decides a vector (then leave ``revision``, ``dtype``, ``dim``, ``max_length``, ``sparse``,
                ``sparse_keys``, ``reproducible`` and ``trust_remote_code`` out).
            revision: branch, tag or commit of a hub id.
            device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
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
        }
        self._core, self._sparse_core = self._load(spec, token)
        description = self._core.loaded.description
        self._prompts = description.prompts.override(prompts) if prompts else description.prompts
        for role in Role:
            self._prompts.prefix(role, task)
        self.spec = self._resolved(spec)

    def embed_documents(
        self,
        texts: Iterable[str],
        *,
        task: Task | str | None = None,
        prompt: str | None = None,
        dense: bool = True,
        sparse: bool | None = None,
        show_progress: bool = False,
    ) -> EmbeddingBatch:
        """Embed documents (passages).

        Args:
            texts: any number of strings; an empty text is embedded as the model's special tokens.
            task: only a symmetric task changes documents; see ``embed_queries``.
            prompt: put exactly this before every text instead of the model's prompt.
            dense: compute the dense half.
            sparse: compute the sparse half; None: where the model has one.
            show_progress: draw a progress bar on stderr.

        Returns:
            Rows in the order of ``texts``; equal texts are computed once.

        Raises:
            TypeError: ``texts`` is a string, or holds something else than strings (names the position).
            InvalidTextError: a text that is not valid Unicode.
            TextTooLongError: with ``on_overflow="error"``.
            PromptError: a task for a model that was not trained with instructions.
            OutOfMemoryError: a text that does not fit by itself.
        """
        return self._embed(Role.DOCUMENT, texts, task, prompt, dense, sparse, show_progress)

    def embed_queries(
        self,
        texts: Iterable[str],
        *,
        task: Task | str | None = None,
        prompt: str | None = None,
        dense: bool = True,
        sparse: bool | None = None,
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
            show_progress: see ``embed_documents``.

        Returns:
            See ``embed_documents``; so are the errors.
        """
        return self._embed(Role.QUERY, texts, task, prompt, dense, sparse, show_progress)

    async def aembed_documents(
        self,
        texts: Iterable[str],
        *,
        task: Task | str | None = None,
        prompt: str | None = None,
        dense: bool = True,
        sparse: bool | None = None,
    ) -> EmbeddingBatch:
        """Embed documents without blocking the event loop; cancelling the task stops the work."""
        return await self._aembed(Role.DOCUMENT, texts, task, prompt, dense, sparse)

    async def aembed_queries(
        self,
        texts: Iterable[str],
        *,
        task: Task | str | None = None,
        prompt: str | None = None,
        dense: bool = True,
        sparse: bool | None = None,
    ) -> EmbeddingBatch:
        """Embed queries without blocking the event loop; cancelling the task stops the work."""
        return await self._aembed(Role.QUERY, texts, task, prompt, dense, sparse)

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
            ConfigurationError: a weight other than 0 for a half that the model does not have.
        """
        for i, pair in enumerate(pairs):
            if isinstance(pair, str) or len(pair) != 2:
                raise TypeError(f"pairs[{i}] must be (query, document), not {pair!r:.60}")
        dense, sparse = dense_weight != 0, sparse_weight != 0
        for half, wanted, has in (("dense", dense, self.dim is not None), ("sparse", sparse, self.has_sparse)):
            if wanted and not has:
                raise ConfigurationError(f"this model has no {half} half: pass {half}_weight=0")
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

        Texts are decoded for ``sparse_keys="surface"``, and the vocabulary's own entries for ``"ids"``.
        """
        tokenizer = (self._sparse_core or self._core).loaded.tokenizer
        texts = tokenizer.token_texts if self.spec.sparse_keys == "surface" else tokenizer.tokens
        rows = []
        for row in sparse:
            heaviest = np.argsort(-row.values, kind="stable")
            rows.append({texts[row.indices[i]]: float(row.values[i]) for i in heaviest})
        return rows

    def prompt_for(self, role: Role | str, task: Task | str | None = None) -> str:
        """Return the exact prefix that ``embed_queries`` or ``embed_documents`` will use."""
        return self._prompts.prefix(role, task if task is not None else self._options["task"])

    def stats(self) -> dict[str, Any]:
        """Return counters and choices.

        Keys: ``forwards`` (passes), ``texts`` (rows that went through one), ``tokens``, ``truncated``,
        ``out_of_memory`` (recoveries), ``token_budget``, ``device``, ``dtype``, ``attention`` ("varlen", "flash",
        "sdpa" or "padded"), ``device_memory`` (bytes held on a CUDA device). A second, sparse model adds to the
        counters.
        """
        cores = [core for core in (self._core, self._sparse_core) if core is not None]
        encoder = self._core.loaded.encoder
        return {
            "forwards": sum(c.loaded.encoder.forwards for c in cores),
            "texts": sum(c.loaded.encoder.texts for c in cores),
            "tokens": sum(c.loaded.encoder.tokens for c in cores),
            "truncated": self._core.truncated,
            "out_of_memory": sum(c.loaded.encoder.out_of_memory for c in cores),
            "token_budget": encoder.token_budget,
            "device": str(encoder.device),
            "dtype": str(encoder.dtype).removeprefix("torch."),
            "attention": encoder.attention,
            "device_memory": sum(c.loaded.encoder.memory() for c in cores),
        }

    @property
    def dim(self) -> int | None:
        """Return the dense dimensions, None for a model that is only sparse."""
        return self.spec.dim

    @property
    def max_length(self) -> int:
        """Return the tokens per text, prompt and specials included."""
        return self._core.loaded.tokenizer.max_length

    @property
    def has_sparse(self) -> bool:
        """Return whether there is a sparse half."""
        return self.spec.sparse is not None

    @property
    def family(self) -> str:
        """Return the name of the checkpoint family."""
        return self._core.loaded.description.family

    def close(self) -> None:
        """Release the model; later calls raise ConfigurationError."""
        for core in (self._core, self._sparse_core):
            if core is not None:
                core.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.spec, self._options)

    def __repr__(self) -> str:
        encoder = self._core.loaded.encoder
        return (
            f"Embedder({self.spec.model!r}, family={self.family!r}, dim={self.dim}, sparse={self.spec.sparse!r}, "
            f"device='{encoder.device}', dtype={self.spec.dtype!r})"
        )

    def _load(self, spec: ModelSpec, token: str | None) -> tuple[InferenceCore, InferenceCore | None]:
        from twinvec.core import InferenceCore
        from twinvec.loading import Source, load, names_other_checkpoint

        settings = Settings.from_env()
        options = self._options
        device = options["device"] if options["device"] != "auto" else settings.device
        source = Source(
            cache_dir=options["cache_dir"] or settings.cache_dir,
            token=token,
            offline=settings.offline if options["offline"] is None else options["offline"],
        )
        budget = options["token_budget"] or settings.token_budget
        if not names_other_checkpoint(spec.sparse):
            return InferenceCore(load(spec, device, source, budget)), None
        if spec.sparse == "bm25":
            raise ConfigurationError(
                'sparse="bm25" is computed from a store\'s statistics and is not part of Embedder yet'
            )
        main = load(replace(spec, sparse=None, digest=None), device, source, budget)
        other = load(
            ModelSpec(
                model=str(spec.sparse), dtype=spec.dtype, sparse="head", sparse_keys=spec.sparse_keys,
                reproducible=spec.reproducible,
            ),
            device, source, budget,
        )  # fmt: skip
        return InferenceCore(main), InferenceCore(other)

    def _resolved(self, asked: ModelSpec) -> ModelSpec:
        spec = self._core.loaded.spec
        if self._sparse_core is None:
            return spec
        digest = f"{spec.digest}+{self._sparse_core.loaded.spec.digest}"
        if asked.digest not in (None, digest):
            raise ConfigurationError(
                f"the content of {spec.model} or {asked.sparse} has changed since the spec was made"
            )
        return replace(spec, sparse=asked.sparse, digest=digest)

    def _jobs(
        self,
        role: Role,
        texts: Iterable[str],
        task: Task | str | None,
        prompt: str | None,
        dense: bool,
        sparse: bool | None,
    ) -> list[tuple[InferenceCore, Job]]:
        from twinvec.core import Job

        checked = check_texts(texts)
        if sparse is None:
            sparse = self.has_sparse
        if sparse and not self.has_sparse:
            raise ConfigurationError(
                f"{self.spec.model} has no sparse half: pass sparse= a head file or a SPLADE checkpoint to Embedder"
            )
        if dense and self.dim is None:
            dense = False
        if not (dense or sparse):
            raise ConfigurationError("dense=False and sparse=False leave nothing to compute")
        if prompt is not None and task is not None:
            raise PromptError("pass task= or prompt=, not both")
        prefix = prompt if prompt is not None else self.prompt_for(role, task)
        check_texts([prefix], "prompt")
        fail = self._options["on_overflow"] == "error"
        if self._sparse_core is None:
            return [(self._core, Job(checked, prefix, dense, sparse, fail))]
        jobs = [(self._core, Job(checked, prefix, True, False, fail))] if dense else []
        return jobs + ([(self._sparse_core, Job(checked, "", False, True))] if sparse else [])

    def _embed(
        self, role: Role, texts: Iterable[str], task: Task | str | None, prompt: str | None, dense: bool,
        sparse: bool | None, show_progress: bool,
    ) -> EmbeddingBatch:  # fmt: skip
        jobs = self._jobs(role, texts, task, prompt, dense, sparse)
        bar = _show_progress(jobs, f"Embedding {role.value}s") if show_progress else None
        futures = _submit(jobs)
        try:
            batch = _merge([future.result() for future in futures])
        except BaseException:
            _cancel(jobs, futures)
            raise
        finally:
            if bar is not None:
                bar.close()
        self._warn(batch)
        return batch

    async def _aembed(
        self, role: Role, texts: Iterable[str], task: Task | str | None, prompt: str | None, dense: bool,
        sparse: bool | None,
    ) -> EmbeddingBatch:  # fmt: skip
        jobs = self._jobs(role, texts, task, prompt, dense, sparse)
        futures = _submit(jobs)
        try:
            batch = _merge(list(await asyncio.gather(*map(asyncio.wrap_future, futures))))
        except BaseException:
            _cancel(jobs, futures)
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


def check_texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Return the texts as a list.

    Raises:
        TypeError: a single string, or an item that is no string.
        InvalidTextError: a lone surrogate.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{name} must be a list of strings, not one {type(texts).__name__}: pass [{name}]")
    checked = list(texts)
    for position, text in enumerate(checked):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{position}] must be a string, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidTextError(
                f"{name}[{position}] has a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), "
                "which is not text: decode the source as UTF-8, or clean it with "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            ) from None
    return checked


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


def _show_progress(jobs: list[tuple[InferenceCore, Job]], title: str) -> tqdm[NoReturn]:
    """Draw a bar that counts a text when all models have it."""
    from tqdm.auto import tqdm

    bar = tqdm(total=len(jobs[0][1].texts), unit="text", desc=title)
    finished, lock = [0] * len(jobs), threading.Lock()

    def advance(number: int, texts: int) -> None:
        with lock:
            finished[number] += texts
            bar.update(min(finished) - bar.n)

    for number, (_, job) in enumerate(jobs):
        job.on_progress = functools.partial(advance, number)
    return bar


def _submit(jobs: list[tuple[InferenceCore, Job]]) -> list[Future[EmbeddingBatch]]:
    return [core.submit(job) for core, job in jobs]


def _cancel(jobs: list[tuple[InferenceCore, Job]], futures: list[Future[EmbeddingBatch]]) -> None:
    for (_, job), future in zip(jobs, futures, strict=True):
        job.cancelled.set()
        future.cancel()


def _merge(batches: list[EmbeddingBatch]) -> EmbeddingBatch:
    """Lay the halves of a dense and a sparse model side by side; counts are the dense model's."""
    if len(batches) == 1:
        return batches[0]
    return replace(batches[0], sparse=batches[1].sparse)
