"""Embedder: the main class. Texts in, dense and sparse vectors out; the method names say the role."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from twinvec.base import BaseEmbedder, CheckedCall
from twinvec.engine.bm25 import Bm25Job
from twinvec.engine.job import Job, Request, SpanJob
from twinvec.engine.waiting import Part, gather
from twinvec.errors import ConfigurationError
from twinvec.local import LocalModel
from twinvec.options import CallOptions, EmbedderKeywords, EmbedderOptions, read_options, takes_options
from twinvec.spec import ModelSpec
from twinvec.text.bm25 import Bm25
from twinvec.text.prompts import Role, Task
from twinvec.text.unicode import check_texts
from twinvec.tracing import trace_work
from twinvec.vectors import EmbeddingBatch, Int64, MultiVectors

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from twinvec.text.tokenizer import TextTokenizer

_INTERACTIVE = 64  # calls with more queries count as bulk work


class Embedder(LocalModel, BaseEmbedder):
    """Dense and sparse vectors of one model, with the prompts it was trained on.

    Thread safe; calls from several threads and tasks share the model. Pickles contain the specification, not the
    weights. Use it as a context manager, or call ``close``, to release the model early.

    Examples:
        >>> embedder = Embedder("Alibaba-NLP/gte-multilingual-base", dim=256)
        >>> docs = embedder.embed_documents(["Paris is the capital of France."])
        >>> docs.dense.shape, len(docs.sparse)
        ((1, 256), 1)
    """

    @takes_options
    def __init__(self, model: str | os.PathLike[str] | ModelSpec, **options: Unpack[EmbedderKeywords]) -> None:
        """Load a model.

        Args:
            model: folder, hub id ("owner/name"), "modelscope:owner/name", or a ModelSpec; with a ModelSpec, omit the
                options that are its fields.
            {options}

        Raises:
            CheckpointError: the model cannot be found, read or loaded.
            ConfigurationError: an option cannot be honoured.
        """
        from twinvec.engine.registry import lease_models

        spec, chosen = read_options(model, options)
        self._hold(lease_models(spec, chosen), chosen)
        self._bm25 = Bm25.parse(spec.sparse)
        description = self._core.model.description
        self._prompts = description.prompts.override(self.prompts) if self.prompts else description.prompts
        for role in Role:
            self._prompts.prefix(role, self.task)
        self.spec = self._resolved()

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return the tokenizer of the dense model."""
        return self._core.model.tokenizer

    def token_offsets(self, texts: Iterable[str]) -> list[Int64]:
        """Return the start and end of each text's tokens, in characters: int64 [tokens, 2] per text.

        Uses the dense model's tokenizer, without prompt and special tokens; nothing is truncated.

        Raises:
            InvalidTextError: a text is not valid Unicode.
        """
        return self._core.model.tokenizer.offsets(check_texts(texts))

    def token_room(self, role: Role | str, task: Task | str | None = None) -> int:
        """Return how many tokens of a text fit besides its prompt and the special tokens."""
        prompt = self.prompt_for(role, task)
        return self.max_length - self._core.model.tokenizer.overhead(prompt)

    @property
    def multi_vectors(self) -> MultiVectors | None:
        """Return how the model gives vectors of single tokens, if it does."""
        return self._core.model.description.multi

    def check_spans(self, *, dense: bool = True) -> None:
        """Check that ``spans`` of documents, late chunking, are defined for this model.

        Raises:
            ConfigurationError: it pools otherwise than by the mean of its tokens.
        """
        modes, output = self._core.model.description.pooling, self._core.model.encoder.backbone.output
        if dense and output == "pooled":
            modes = ("a layer of its own",)
        if dense and modes != ("mean",):
            raise ConfigurationError(
                f"spans (late chunking) are defined for models that pool the mean of their tokens; {self.spec.model} "
                f"pools by {', '.join(modes)}"
            )

    def check_elastic(self, dim: int) -> None:
        """Check that the first ``dim`` dims of a vector are a vector of this model (Matryoshka).

        Raises:
            ConfigurationError: the model has sparse vectors only, or was not trained for these dims.
        """
        from twinvec.engine.opening import check_dim

        check_dim(dim, self._core.model.description, self.spec.model)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.spec, self.options)

    def __repr__(self) -> str:
        encoder = self._core.model.encoder
        return (
            f"Embedder({self.spec.model!r}, family={self.family!r}, dim={self.dim}, sparse={self.spec.sparse!r}, "
            f"device='{encoder.device}', dtype={self.spec.dtype!r})"
        )

    def _token_texts(self, keys: list[int]) -> Mapping[int, str]:
        if self._bm25 is not None:
            return {key: self._bm25.term(key) for key in keys}
        tokenizer = self._leases[-1].core.model.tokenizer
        texts = tokenizer.token_texts if self.spec.sparse_keys == "surface" else tokenizer.tokens
        return {key: texts[key] for key in keys}

    def _parts(self, asked: CheckedCall, wanted: CallOptions) -> list[Part]:
        request, both = self._request(asked, wanted), self._both
        parts: list[Part] = []
        if (both or asked.dense) and asked.spans is not None:
            alone = request._replace(memo=False, cache=None)  # rows of spans are of no use to other calls
            parts.append(SpanJob(asked.texts, alone, self._core, spans=asked.spans))
        elif both or asked.dense or asked.multi:
            parts.append(Job(asked.texts, request, self._core))
        # BM25 and SPLADE models know no prompts, and the dense model's limit does not apply to them
        if asked.sparse and self._bm25 is not None:
            parts.append(Bm25Job(self._bm25, asked.role, asked.parts, urgent=request.urgent))
        elif asked.sparse and not both:
            lease = self._leases[1]
            own = request._replace(
                max_length=lease.spec.max_length or self.max_length,
                multi="",
                prompt="",
                dim=None,
                keys=self.spec.sparse_keys,
                fail_on_overflow=False,
            )
            parts.append(Job(asked.parts, own, lease.core))
        return parts

    def _request(self, asked: CheckedCall, wanted: CallOptions) -> Request:
        """Return what is asked of the dense model."""
        dim = wanted.dim or self.dim
        if wanted.dim is not None:
            self.check_elastic(wanted.dim)
        fail_on_overflow = wanted.fail_on_overflow
        if fail_on_overflow is None:
            fail_on_overflow = self.options.on_overflow == "error"
        length = self.max_length
        if wanted.multi is True and self.multi_vectors is not None:
            length = min(length, self.multi_vectors.lengths.get(asked.role.value, length))
        return Request(
            max_length=length,
            prompt=asked.prompt,
            dim=dim if asked.dense else None,
            keys=self.spec.sparse_keys if asked.sparse and self._both else None,
            normalize=wanted.normalize,
            urgent=asked.role is Role.QUERY and len(asked.texts) <= _INTERACTIVE,
            fail_on_overflow=fail_on_overflow,
            fail_on_overload=self.options.on_overload == "error",
            memo=self.options.memo_bytes > 0 and not asked.multi,
            cache=None if asked.multi else self.options.cache,
            multi=asked.role.value if wanted.multi is True else wanted.multi or "",
        )

    @property
    def _both(self) -> bool:
        """Return whether one pass of one model has both halves."""
        return self._bm25 is None and len(self._leases) == 1

    def _resolved(self) -> ModelSpec:
        spec = self._leases[0].spec
        if self._bm25 is not None:
            return replace(spec, sparse=str(self._bm25))
        if len(self._leases) == 1:
            return spec
        other = self._leases[1].spec
        return replace(spec, sparse=other.model, sparse_keys=other.sparse_keys, digest=f"{spec.digest}+{other.digest}")

    async def _compute(self, asked: CheckedCall, wanted: CallOptions) -> EmbeddingBatch:
        parts = self._parts(asked, wanted)
        title = f"Embedding {asked.role.value}s" if wanted.show_progress else None
        batch = await gather(parts, wanted.timeout, title)
        trace_work(parts[0].figures)
        return batch


def _rebuild(spec: ModelSpec, options: EmbedderOptions) -> Embedder:
    return Embedder(spec, **{field.name: getattr(options, field.name) for field in fields(options)})
