"""BaseEmbedder: the interface shared by Embedder (in this process) and RemoteEmbedder (on a server)."""

from __future__ import annotations

import sys
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from twinvec.closing import Closing
from twinvec.errors import ConfigurationError, DoublePromptWarning, PromptError, TruncationWarning
from twinvec.flows import awaiting, blocking
from twinvec.options import CallOptions, EmbedderOptions
from twinvec.spec import ModelSpec
from twinvec.text.bm25 import Bm25
from twinvec.text.prompts import PromptTemplate, Role, Task
from twinvec.text.unicode import check_texts
from twinvec.tracing import traced_embedding
from twinvec.vectors import EmbeddingBatch, Float32, Int64, MultiVectors, Spans, SparseBatch


class CheckedCall(NamedTuple):
    """A validated call: ``prompt`` goes before each text; ``dense`` and ``sparse`` are the halves to compute.

    With ``spans``, the rows are those of these parts of each text.
    """

    role: Role
    texts: list[str]
    prompt: str
    dense: bool
    sparse: bool
    multi: bool = False
    spans: Sequence[Spans] | None = None

    @property
    def parts(self) -> list[str]:
        """Return what each row is of."""
        if self.spans is None:
            return self.texts
        return [text[start:end] for text, own in zip(self.texts, self.spans, strict=True) for start, end in own]


class BaseEmbedder(Closing):
    """Dense and sparse vectors of one model: the interface of ``Embedder`` and ``RemoteEmbedder``.

    Wherever an Embedder is accepted, either of them will do.

    Attributes:
        spec: everything that decides a vector; ``spec.fingerprint`` names stores and caches.
        options: everything else, except the token. For a remote model: its task and prompts.
    """

    spec: ModelSpec
    options: EmbedderOptions
    _prompts: PromptTemplate
    _closed: bool

    @blocking
    async def embed_documents(
        self,
        texts: Iterable[str],
        *,
        task: Task | str | None = None,
        prompt: str | None = None,
        dense: bool = True,
        sparse: bool | None = None,
        timeout: float | None = None,
        show_progress: bool = False,
        multi: bool = False,
        spans: Sequence[Spans] | None = None,
    ) -> EmbeddingBatch:
        """Embed documents (passages).

        Args:
            texts: any number of strings; an empty text is embedded as the model's special tokens alone.
            task: only a symmetric task changes documents; see ``embed_queries``.
            prompt: put exactly this text before every text instead of the model's prompt.
            dense: compute the dense half. With ``dense=False`` and ``sparse="bm25"`` no forward pass runs, nothing is
                truncated, and ``token_counts`` counts terms.
            sparse: compute the sparse half; None: if the model has one.
            timeout: seconds to wait before the work is cancelled and DeadlineError is raised. None: no limit.
            show_progress: draw a progress bar on stderr.
            multi: compute a vector of each token as well, in the same pass, for late interaction; see ``MaxSim``. These
                vectors are kept in no memo and no cache.
            spans: (start, end) of parts of each text, in characters. The rows are those of the parts, in order, each
                pooled from its own tokens after one pass over the whole text (late chunking). BM25 and a second, sparse
                model see each part by itself. Nothing is truncated; only models with mean pooling support it.

        Returns:
            Rows in the order of ``texts``; equal texts are computed only once.

        Raises:
            TypeError: ``texts`` is a string, or contains something other than strings (the message names the position).
            InvalidTextError: a text is not valid Unicode.
            TextTooLongError: with ``on_overflow="error"``, or with ``spans``.
            ConfigurationError: ``spans`` are invalid, or the model cannot pool them.
            PromptError: a task was given, but the model was not trained with instructions.
            OutOfMemoryError: a text does not fit on the device even by itself.
            OverloadedError: the queue is full, with ``on_overload="error"``.
            DeadlineError: the timeout has passed.
            DeviceLostError: no working device is left.
        """
        wanted = CallOptions(task, prompt, dense, sparse, timeout, show_progress, multi=multi, spans=spans)
        return self._warned(await self._embed(Role.DOCUMENT, texts, wanted))

    aembed_documents = awaiting(embed_documents)

    @blocking
    async def embed_queries(
        self,
        texts: Iterable[str],
        *,
        task: Task | str | None = None,
        prompt: str | None = None,
        dense: bool = True,
        sparse: bool | None = None,
        timeout: float | None = None,
        show_progress: bool = False,
        multi: bool = False,
    ) -> EmbeddingBatch:
        """Embed queries.

        Args:
            texts: see ``embed_documents``.
            task: a Task; a name from ``TASKS`` or from the checkpoint's prompts; or an instruction such as "Given a
                question, find a paragraph with the answer". None: the Embedder's task, or else the model's default.
            prompt: see ``embed_documents``.
            dense: see ``embed_documents``.
            sparse: see ``embed_documents``.
            timeout: see ``embed_documents``.
            show_progress: see ``embed_documents``.
            multi: see ``embed_documents``.

        Returns:
            See ``embed_documents``, also for the errors.
        """
        wanted = CallOptions(task, prompt, dense, sparse, timeout, show_progress, multi=multi)
        return self._warned(await self._embed(Role.QUERY, texts, wanted))

    aembed_queries = awaiting(embed_queries)

    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        dense_weight: float = 1.0,
        sparse_weight: float = 0.3,
        task: Task | str | None = None,
    ) -> Float32:
        """Score (query, document) pairs: dense_weight * cosine + sparse_weight * (dot product of sparse weights).

        This is ``compute_scores`` of the GTE multilingual reference script. The default weights are those of the model
        card's example; the script itself defaults to 0.1 for the sparse weight and cuts texts at 1,024 tokens, while
        here the model's own limit applies (pass ``max_length=1024`` to the Embedder for the same).

        Returns:
            float32 [pairs].

        Raises:
            ConfigurationError: a nonzero weight for a half that the model does not have, or for BM25.
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

        Keys are decoded texts for ``sparse_keys="surface"`` and vocabulary entries for ``"ids"``. For BM25 they are
        stemmed words; a process remembers recent ones and shows others as "#" followed by the id.
        """
        texts = self._token_texts(np.unique(sparse.indices).tolist())
        rows = []
        for row in sparse:
            heaviest = np.argsort(-row.values, kind="stable")
            rows.append({texts[int(row.indices[i])]: float(row.values[i]) for i in heaviest})
        return rows

    def prompt_for(self, role: Role | str, task: Task | str | None = None) -> str:
        """Return the exact prefix that ``embed_queries`` or ``embed_documents`` puts before texts."""
        return self._prompts.prefix(role, task if task is not None else self.task)

    @abstractmethod
    def token_offsets(self, texts: Iterable[str]) -> list[Int64]:
        """Return the start and end of each text's tokens, in characters: int64 [tokens, 2] per text.

        Uses the dense model's tokenizer, without prompt and special tokens; nothing is truncated.

        Raises:
            InvalidTextError: a text is not valid Unicode.
        """

    @abstractmethod
    def token_room(self, role: Role | str, task: Task | str | None = None) -> int:
        """Return how many tokens of a text fit besides its prompt and the special tokens."""

    def check_spans(self, *, dense: bool = True) -> None:
        """Check that ``spans`` of documents, late chunking, are defined for this model.

        Raises:
            ConfigurationError: it says why not.
        """
        raise ConfigurationError(f"spans (late chunking) need an Embedder, which {type(self).__name__} is not")

    def check_elastic(self, dim: int) -> None:
        """Check that the first ``dim`` dims of a vector are a vector of this model (Matryoshka).

        Raises:
            ConfigurationError: it says why not.
        """
        raise ConfigurationError(f"the first {dim} dims need an Embedder, which {type(self).__name__} is not")

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Return the model's counters and settings; see ``Embedder.stats``."""

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """Return whether calls can be answered."""

    @property
    def dim(self) -> int | None:
        """Return the number of dense dimensions; None for a sparse-only model."""
        return self.spec.dim

    @property
    def max_length(self) -> int:
        """Return the maximum number of tokens per text, prompt and special tokens included."""
        assert self.spec.max_length is not None
        return self.spec.max_length

    @property
    def has_sparse(self) -> bool:
        """Return whether the model has a sparse half."""
        return self.spec.sparse is not None

    @property
    def multi_vectors(self) -> MultiVectors | None:
        """Return how the model gives vectors of single tokens, if it does."""
        return None

    @property
    def needs_idf(self) -> bool:
        """Return whether stores must multiply the sparse weights of queries by their idf: True for BM25."""
        return Bm25.parse(self.spec.sparse) is not None

    @property
    def prompts(self) -> Mapping[str, str]:
        """Return the prompts that override those of the checkpoint."""
        return dict(self.options.prompts or {})

    @property
    def task(self) -> Task | str | None:
        """Return the default task."""
        return self.options.task

    @property
    @abstractmethod
    def family(self) -> str:
        """Return the name of the checkpoint family."""

    @abstractmethod
    def close(self, *, drain: bool = False) -> None:
        """Release this object's resources; later calls raise ConfigurationError.

        Args:
            drain: let pending calls of other threads finish first.
        """

    async def _embed(self, role: Role, texts: Iterable[str], wanted: CallOptions) -> EmbeddingBatch:
        asked = self._check(role, texts, wanted)
        with traced_embedding(self.spec, asked) as answered:
            return answered(await self._compute(asked, wanted))

    @abstractmethod
    async def _compute(self, asked: CheckedCall, wanted: CallOptions) -> EmbeddingBatch: ...

    @abstractmethod
    def _token_texts(self, keys: list[int]) -> Mapping[int, str]: ...

    def _check(self, role: Role, texts: Iterable[str], wanted: CallOptions) -> CheckedCall:
        if self._closed:
            raise ConfigurationError(f"this {type(self).__name__} is closed; create a new one")
        checked = check_texts(texts)
        dense = wanted.dense and self.dim is not None
        sparse = self.has_sparse if wanted.sparse is None else wanted.sparse
        if sparse and not self.has_sparse:
            raise ConfigurationError(
                f'{self.spec.model} has no sparse half: create the Embedder with sparse="bm25", a head file or a '
                "SPLADE checkpoint"
            )
        if wanted.multi is True and self.multi_vectors is None:
            raise ConfigurationError(
                f"{self.spec.model} gives no vectors of tokens here: multi=True needs an Embedder of bge-m3 with its "
                "colbert_linear.pt, or of a sentence-transformers MultiVectorEncoder"
            )
        if not (dense or sparse or wanted.multi):
            only = " (this model gives vectors of tokens only: multi=True)" if self.multi_vectors is not None else ""
            raise ConfigurationError(f"dense=False and sparse=False leave nothing to compute{only}")
        if wanted.prompt is not None and wanted.task is not None:
            raise PromptError("pass task= or prompt=, not both")
        prompt = wanted.prompt if wanted.prompt is not None else self.prompt_for(role, wanted.task)
        check_texts([prompt], "prompt")
        if wanted.prompt is None:
            self._warn_of_double_prompts(checked, prompt)
        if wanted.spans is not None:
            self.check_spans(dense=dense)
            _check_spans(checked, wanted.spans)
            if wanted.multi:
                raise ConfigurationError("pass multi= or spans=, not both")
        return CheckedCall(role, checked, prompt, dense, sparse, wanted.multi is not False, wanted.spans)

    def _warn_of_double_prompts(self, texts: list[str], prompt: str) -> None:
        double = [position for position, text in enumerate(texts) if self._prompts.begins(text, prompt)]
        if double:
            warnings.warn(
                f"{len(double)} of {len(texts)} texts already begin with a prompt, and the model's is added before it "
                f"(first: texts[{double[0]}], {texts[double[0]][:80]!r}). Pass texts without prompts, or pass "
                'prompt="" with texts that already have one.',
                DoublePromptWarning,
                stacklevel=level_of_caller(),
            )

    def _warned(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        cut = np.flatnonzero(batch.truncated)
        if len(cut):
            warnings.warn(
                f"{len(cut)} of {len(batch)} texts were cut at {self.max_length} tokens (first: texts[{cut[0]}]); see "
                'EmbeddingBatch.truncated. Split them, raise max_length, or pass on_overflow="error".',
                TruncationWarning,
                stacklevel=level_of_caller(),
            )
        return batch


def _check_spans(texts: Sequence[str], spans: Sequence[Spans]) -> None:
    if len(spans) != len(texts):
        raise ConfigurationError(f"spans are of {len(spans)} texts, but there are {len(texts)}")
    for i, (text, own) in enumerate(zip(texts, spans, strict=True)):
        if not own or not all(0 <= start < end <= len(text) for start, end in own):
            raise ConfigurationError(f"spans[{i}] must be pairs 0 <= start < end <= {len(text)}, not {own!r:.80}")


def level_of_caller(*packages: str) -> int:
    """Return the ``stacklevel`` of the first caller outside this package and some others."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("twinvec", *packages):
        level, frame = level + 1, frame.f_back
    return level
