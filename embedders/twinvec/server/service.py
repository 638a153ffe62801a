"""What all routes share: the models, admission control, and the embedding itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from starlette.requests import Request

from twinvec.errors import ConfigurationError, DeviceLostError, OverloadedError, TwinVecError
from twinvec.flows import wait
from twinvec.options import CallOptions
from twinvec.server.errors import ClientGoneError, RefusedError
from twinvec.server.limits import Limits
from twinvec.server.metrics import RequestMetrics
from twinvec.text.prompts import Role, Task
from twinvec.text.tokenizer import TextTokenizer
from twinvec.vectors import EmbeddingBatch

if TYPE_CHECKING:
    from twinvec.embedder import Embedder
    from twinvec.local import LocalModel

_BM25_COLUMNS = 2**31 - 1
_A_MOMENT = 0.25  # seconds

_T = TypeVar("_T")


class Serving:
    """A server: its models and its state.

    Attributes:
        models: embedders by the names that clients use; the first is the default.
        held: all models by name, those of an extension included.
        limits: request limits.
        metrics: request metrics.
        draining: the server is about to stop and wants no more requests.
        restarting: a lost device is being restarted.
    """

    def __init__(
        self, embedders: Mapping[str, Embedder], limits: Limits, others: Mapping[str, LocalModel] | None = None
    ) -> None:
        if not embedders:
            raise ConfigurationError("there is no model to serve")
        self.limits = limits
        self.models = {name: Service(self, name, embedder) for name, embedder in embedders.items()}
        self.held: Mapping[str, LocalModel] = {**(others or {}), **embedders}
        self.metrics = RequestMetrics()
        self.draining = self.restarting = False
        self._at_work = 0
        self.metrics.at_work.set_function(lambda: self._at_work)

    @property
    def first(self) -> Service:
        """Return the model for requests that name none."""
        return next(iter(self.models.values()))

    @property
    def healthy(self) -> bool:
        """Return whether every model can answer."""
        return all(model.healthy for model in self.held.values())

    def named(self, name: str | None) -> Service:
        """Return a model by its name; without a name, the first.

        Raises:
            RefusedError: no model has this name.
        """
        if name is None:
            return self.first
        if name in self.models:
            return self.models[name]
        for service in self.models.values():
            if name == service.embedder.spec.model:
                return service
        known = ", ".join(map(repr, self.models))
        raise RefusedError(404, f"there is no model {name[:200]!r} here, only {known}", "model")

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request from its complete body to its sent response.

        Raises:
            OverloadedError: too many requests are in progress.
        """
        if self._at_work >= self.limits.max_requests:
            raise OverloadedError(f"{self._at_work} requests are in progress, which is the limit: try again later")
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1

    def check_healthy(self) -> None:
        """Fail if a device is lost for good.

        Raises:
            DeviceLostError: no device works any more.
        """
        if not (self.healthy or self.restarting):
            raise DeviceLostError("unhealthy: no device works any more, restart the server")


class Service:
    """One Embedder behind all routes.

    Attributes:
        serving: the server.
        name: the model's name for clients.
        embedder: the embedder.
    """

    def __init__(self, serving: Serving, name: str, embedder: Embedder) -> None:
        self.serving, self.name, self.embedder = serving, name, embedder

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return the tokenizer of the dense model."""
        return self.embedder.tokenizer

    @property
    def truncates(self) -> bool:
        """Return whether overlong texts are cut when a request does not say."""
        return bool(self.embedder.options.on_overflow == "truncate")

    @property
    def columns(self) -> int:
        """Return the number of sparse columns; 0 without a sparse half."""
        if not self.embedder.has_sparse:
            return 0
        if self.embedder.needs_idf:
            return _BM25_COLUMNS
        return self.embedder._leases[-1].core.model.tokenizer.vocabulary_size

    @property
    def pooling(self) -> str:
        """Return the pooling under TEI's name for it."""
        return "+".join(self.embedder._core.model.description.pooling) if self.embedder.dim is not None else "splade"

    def public(self, message: str) -> str:
        """Return a message with the model's local path replaced by its public name."""
        for path in (self.embedder.spec.model, self.embedder.spec.sparse):
            if path is not None and os.path.isabs(path):
                message = message.replace(path, public_name(path))
        return message

    def need_dense(self) -> None:
        """Refuse a request for dense vectors if the model has none."""
        if self.embedder.dim is None:
            raise ConfigurationError(f"{self.name} has no dense half, only a sparse one")

    def check_dimensions(self, dimensions: int | None) -> int | None:
        """Check the number of dimensions.

        Raises:
            RefusedError: the model was not trained for it.
        """
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

    def check_count(self, field: str, count: int) -> None:
        """Refuse a request without texts, or with too many."""
        if count == 0:
            raise RefusedError(400, f"{field} cannot be empty: it must have at least one text", field)
        limit = self.serving.limits.max_texts
        if count > limit:
            message = f"batch size {count} > maximum allowed batch size {limit}: send {field} in parts"
            raise RefusedError(413, message, field)

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
    ) -> EmbeddingBatch:
        """Embed the texts of a field.

        Raises:
            RefusedError: see the errors of ``Embedder.embed_queries``; it refers to the texts as the request does.
        """
        wanted = CallOptions(
            task, prompt, dense, sparse, timeout, dim=dim, fail_on_overflow=fail_on_overflow, normalize=normalize
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


def public_name(model: str) -> str:
    """Return a model's name without local paths: a hub id, or the folder's own name."""
    return Path(model).resolve().name if os.path.exists(model) or os.path.isabs(model) else model


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """Do work while the client is connected; the connection is only checked if the work takes longer than a moment.

    Raises:
        ClientGoneError: the client disconnected; the work is cancelled.
    """
    watches: list[asyncio.Future[None]] = []
    with anyio.CancelScope() as scope:
        later = asyncio.get_running_loop().call_later(
            _A_MOMENT, lambda: watches.append(asyncio.ensure_future(_cancel_when_gone(request, scope)))
        )
        try:
            return await work
        finally:
            later.cancel()
            for watch in watches:
                watch.cancel()
    raise ClientGoneError


async def _cancel_when_gone(request: Request, scope: anyio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
