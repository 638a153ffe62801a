"""What routes share: a model, checks of requests, and the embedding itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from starlette.types import Receive

from twinvec.errors import ConfigurationError, TwinVecError
from twinvec.flows import wait
from twinvec.options import CallOptions
from twinvec.server.errors import ClientGoneError, RefusedError
from twinvec.server.interrupts import Interrupt
from twinvec.text.prompts import Role, Task
from twinvec.text.tokenizer import TextTokenizer
from twinvec.vectors import EmbeddingBatch
from twinvec.workers import in_thread

if TYPE_CHECKING:
    from twinvec.embedder import Embedder
    from twinvec.local import LocalModel
    from twinvec.server.serving import Serving

_BM25_COLUMNS = 2**31 - 1
_A_MOMENT = 0.25  # seconds

_T = TypeVar("_T")


class Service:
    """One model behind its routes.

    Attributes:
        serving: the server.
        name: the model's name for clients.
        model: the model.
    """

    def __init__(self, serving: Serving, name: str, model: LocalModel) -> None:
        self.serving, self.name, self.model = serving, name, model

    @property
    def kind(self) -> dict[str, Any]:
        """Return what the model is for, in TEI's terms."""
        return {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}

    @property
    def truncates(self) -> bool:
        """Return whether overlong texts are cut when a request does not say."""
        return bool(self.model.options.on_overflow == "truncate")

    def public(self, message: str) -> str:
        """Return a message with the model's local paths replaced by public names."""
        for path in (self.model.spec.model, self.model.spec.sparse):
            if path is not None and os.path.isabs(path):
                message = message.replace(path, public_name(path))
        return message

    def check_count(self, field: str, count: int) -> None:
        """Refuse a request without texts, or with too many."""
        if count == 0:
            raise RefusedError(400, f"{field} cannot be empty: it must have at least one text", field)
        limit = self.serving.limits.max_texts
        if count > limit:
            message = f"batch size {count} > maximum allowed batch size {limit}: send {field} in parts"
            raise RefusedError(413, message, field)


class EmbeddingService(Service):
    """One Embedder behind all routes that embed.

    Attributes:
        embedder: the embedder.
    """

    def __init__(self, serving: Serving, name: str, embedder: Embedder) -> None:
        super().__init__(serving, name, embedder)
        self.embedder = embedder

    @property
    def kind(self) -> dict[str, Any]:
        """Return what the model is for, in TEI's terms."""
        return {"embedding": {"pooling": self.pooling}}

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return the tokenizer of the dense model."""
        return self.embedder.tokenizer

    @property
    def columns(self) -> int:
        """Return the number of sparse columns; 0 without a sparse half."""
        if not self.embedder.has_sparse:
            return 0
        if self.embedder.needs_idf:
            return _BM25_COLUMNS
        return self.embedder._leases[-1].core.model.tokenizer.vocabulary_size

    @property
    def multi_dim(self) -> int | None:
        """Return the dimensions of the vectors of tokens; None without them."""
        return self.embedder._core.model.encoder.multi_dim

    @property
    def pooling(self) -> str:
        """Return the pooling under TEI's name for it."""
        return "+".join(self.embedder._core.model.description.pooling) if self.embedder.dim is not None else "splade"

    def need_dense(self) -> None:
        """Refuse a request for dense vectors if the model has none."""
        if self.embedder.dim is None:
            raise ConfigurationError(f"{self.name} has no dense half, only a sparse one")

    async def check_states(self, field: str, texts: list[str], prompt: str) -> None:
        """Refuse a request for the states of tokens if the model has none, or if they are too many for one response.

        Raises:
            ConfigurationError: it has none.
            RefusedError: see ``check_tokens``.
        """
        if self.embedder._core.model.encoder.backbone.output != "states":
            raise ConfigurationError(f"{self.name} gives no states of tokens")
        await self.check_tokens(field, texts, prompt, max(self.serving.limits.max_texts, self.embedder.max_length))

    async def check_tokens(self, field: str, texts: list[str], prompt: str, limit: int) -> None:
        """Refuse texts with more tokens together than a response may have rows; a single text always fits.

        Raises:
            RefusedError: they have.
        """
        if len(texts) > 1:
            encoded = await in_thread(self.tokenizer.encode, texts, prompt, self.embedder.max_length)
            tokens = sum(len(text.ids) for text in encoded)
            if tokens > limit:
                message = f"{field} have {tokens} tokens, and a response has at most {limit} rows: send them in parts"
                raise RefusedError(413, message, field)

    def check_dimensions(self, dimensions: int | None) -> int | None:
        """Check the number of dimensions.

        Raises:
            RefusedError: the model was not trained for it.
        """
        if dimensions is None:
            return None
        from twinvec.engine.opening import check_dim  # needs torch, which is loaded along with the model

        try:
            check_dim(dimensions, self.embedder._core.model.description, self.name)
        except ConfigurationError as error:
            raise RefusedError(400, str(error), "dimensions") from None
        return dimensions

    def texts(self, field: str, given: str | Sequence[Any], *, foreign: bool = False) -> list[str]:
        """Return a request's texts: one string, a list of strings, or token ids of this model's tokenizer.

        Args:
            field: the field's name.
            given: the field's value.
            foreign: clients of this route may unknowingly send ids of another tokenizer; only ids with this tokenizer's
                special tokens around them are accepted.

        Raises:
            RefusedError: too many texts, none, or token ids that do not belong to this tokenizer.
        """
        if isinstance(given, str):
            return [given]
        items: Sequence[Any] = [given] if given and all(isinstance(item, int) for item in given) else given
        self.check_count(field, len(items))
        return [
            item if isinstance(item, str) else self._decoded(f"{field}[{i}]", field, item, foreign)
            for i, item in enumerate(items)
        ]

    def _decoded(self, where: str, field: str, ids: Any, foreign: bool) -> str:
        if not isinstance(ids, list):
            raise RefusedError(400, f"{where} must be a string or a list of token ids, like the others", field)
        tokenizer = self.tokenizer
        if not ids or max(ids) >= tokenizer.vocabulary_size:
            message = f"{where} must be a non-empty list of token ids from 0 to {tokenizer.vocabulary_size - 1}"
            raise RefusedError(400, f"{message}{_HINT}", field)
        if foreign and not tokenizer.has_specials(ids):
            message = f"{where} has token ids without this model's special tokens"
            raise RefusedError(400, f"{message}{_HINT}", field)
        return tokenizer.decode(ids)

    async def embed(
        self,
        field: str,
        texts: list[str],
        role: Role,
        *,
        task: Task | str | None = None,
        prompt: str | None = None,
        dense: bool = True,
        sparse: bool | None = None,
        timeout: float | None = None,
        dim: int | None = None,
        fail_on_overflow: bool | None = None,
        normalize: bool = True,
        multi: bool | Literal["states"] = False,
    ) -> EmbeddingBatch:
        """Embed the texts of a field.

        Raises:
            RefusedError: see the errors of ``Embedder.embed_queries``; it refers to the texts as the request does.
        """
        wanted = CallOptions(
            task,
            prompt,
            dense,
            sparse,
            timeout,
            dim=dim,
            fail_on_overflow=fail_on_overflow,
            normalize=normalize,
            multi=multi,
        )
        try:
            # not the public methods: their warnings about cut texts would end up on the server
            return await wait(self.embedder._embed(role, texts, wanted))
        except TwinVecError as error:
            raise RefusedError.of(error, field) from error


_HINT = (
    ": ids of another tokenizer are meaningless here; send text (in LangChain's OpenAIEmbeddings, "
    "check_embedding_ctx_length=False)"
)


def find_name(name: str | None, models: Mapping[str, LocalModel], what: str) -> str:
    """Return the public name of the model that a request names, also by its folder; without a name, the first.

    Raises:
        RefusedError: no model has this name.
    """
    if name is not None and name in models:
        return name
    for known, model in models.items():
        if name in (None, model.spec.model):
            return known
    known = ", ".join(map(repr, models))
    raise RefusedError(404, f"there is no {what} {str(name)[:200]!r} here, only {known}", "model")


def public_name(model: str) -> str:
    """Return a model's name without local paths: a hub id, or the folder's own name."""
    return Path(model).resolve().name if os.path.exists(model) or os.path.isabs(model) else model


async def while_connected(receive: Receive, work: Awaitable[_T]) -> _T:
    """Do work while the client is connected; the connection is only checked if the work takes longer than a moment.

    Raises:
        ClientGoneError: the client disconnected; the work is cancelled.
    """
    loop = asyncio.get_running_loop()
    watches: list[asyncio.Task[None]] = []
    with Interrupt() as gone:
        later = loop.call_later(_A_MOMENT, lambda: watches.append(loop.create_task(_when_gone(receive, gone))))
        try:
            return await work
        finally:
            later.cancel()
            for watch in watches:
                watch.cancel()
    raise ClientGoneError


async def _when_gone(receive: Receive, interrupt: Interrupt) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    interrupt()
