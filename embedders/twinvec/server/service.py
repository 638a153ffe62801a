"""What all routes share: the models, admission, and the work itself."""

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

_BM25_COLUMNS = 2**31 - 1
_A_MOMENT = 0.25  # seconds

_T = TypeVar("_T")


class Serving:
    """A server: its models, and what is going on.

    Attributes:
        models: by the name that clients know; the first answers where none is named.
        limits: of requests.
        metrics: of requests.
        draining: no more requests should come, the server is about to stop.
        restarting: a lost device is being started again.
    """

    def __init__(self, embedders: Mapping[str, Embedder], limits: Limits) -> None:
        if not embedders:
            raise ConfigurationError("there is no model to serve")
        self.limits = limits
        self.models = {name: Service(self, name, embedder) for name, embedder in embedders.items()}
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
        return all(service.embedder.healthy for service in self.models.values())

    def named(self, name: str | None) -> Service:
        """Return a model by its name, or the first.

        Raises:
            RefusedError: there is no such model.
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
        """Count a request from its whole body to its sent answer.

        Raises:
            OverloadedError: there are too many.
        """
        if self._at_work >= self.limits.max_requests:
            raise OverloadedError(f"{self._at_work} requests are being answered, the limit: try again later")
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1

    def check_healthy(self) -> None:
        """Refuse where a device is lost for good.

        Raises:
            DeviceLostError: it is.
        """
        if not (self.healthy or self.restarting):
            raise DeviceLostError("unhealthy: no device works any more, restart the server")


class Service:
    """One Embedder behind all routes.

    Attributes:
        serving: the server.
        name: of the model, as clients know it.
        embedder: does the work.
    """

    def __init__(self, serving: Serving, name: str, embedder: Embedder) -> None:
        self.serving, self.name, self.embedder = serving, name, embedder

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return the tokenizer of the dense model."""
        return self.embedder.tokenizer

    @property
    def truncates(self) -> bool:
        """Return whether texts that are too long are cut where a request does not say."""
        return bool(self.embedder.options.on_overflow == "truncate")

    @property
    def columns(self) -> int:
        """Return one more than the highest index that a sparse row can have; 0 without a sparse half."""
        if not self.embedder.has_sparse:
            return 0
        if self.embedder.needs_idf:
            return _BM25_COLUMNS
        return self.embedder._leases[-1].core.model.tokenizer.vocabulary_size

    @property
    def pooling(self) -> str:
        """Return the pooling as TEI names it."""
        return "+".join(self.embedder._core.model.description.pooling) if self.embedder.dim is not None else "splade"

    def public(self, message: str) -> str:
        """Return a message that shows the model's name where it had a path of this machine."""
        for path in (self.embedder.spec.model, self.embedder.spec.sparse):
            if path is not None and os.path.isabs(path):
                message = message.replace(path, public_name(path))
        return message

    def need_dense(self) -> None:
        """Refuse a request for dense vectors where there are none."""
        if self.embedder.dim is None:
            raise ConfigurationError(f"{self.name} has no dense half, only a sparse one")

    def check_dimensions(self, dimensions: int | None) -> int | None:
        """Return dimensions that the model can give.

        Raises:
            RefusedError: it was not trained for so many.
        """
        from twinvec.engine.opening import check_dim  # needs torch, which has come with the model

        try:
            check_dim(dimensions, self.embedder._core.model.description, self.name)
        except ConfigurationError as error:
            raise RefusedError(400, str(error), "dimensions") from None
        return dimensions

    def texts(self, field: str, given: str | Sequence[Any], *, foreign: bool = False) -> list[str]:
        """Return a request's texts: one, a list, or token ids of this model's tokenizer in their place.

        Args:
            field: its name.
            given: what is in it.
            foreign: clients of this route may send the ids of another tokenizer without knowing; only ids with this
                one's special tokens around them are taken.

        Raises:
            RefusedError: too many texts, none, or token ids that are none of this tokenizer.
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
        """Refuse a request without texts, or with more than the limit."""
        if count == 0:
            raise RefusedError(400, f"{field} cannot be empty: it must have at least one text", field)
        limit = self.serving.limits.max_texts
        if count > limit:
            message = f"batch size {count} > maximum allowed batch size {limit}: send {field} in parts"
            raise RefusedError(413, message, field)

    def _decoded(self, where: str, field: str, ids: Any, foreign: bool) -> str:
        if not isinstance(ids, list):
            raise RefusedError(400, f"{where} must be a string or a list of token ids, as the others are", field)
        tokenizer = self.tokenizer
        if not ids or max(ids) >= tokenizer.vocabulary_size:
            message = f"{where} must be token ids from 0 to {tokenizer.vocabulary_size - 1}, at least one"
            raise RefusedError(400, f"{message}{_HINT}", field)
        if foreign and not tokenizer.has_specials(ids):
            message = f"{where} has token ids without the special tokens of this model's tokenizer"
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
    ) -> EmbeddingBatch:
        """Embed the texts of a field.

        Raises:
            RefusedError: see the errors of ``Embedder.embed_queries``; it calls the texts as the request does.
        """
        wanted = CallOptions(task, prompt, dense, sparse, timeout, dim=dim, fail_on_overflow=fail_on_overflow)
        try:
            # not the public methods, whose warnings about cut texts would be for somebody at the server
            return await wait(self.embedder._embed(role, texts, wanted))
        except TwinVecError as error:
            raise RefusedError.of(error, field) from error


_HINT = (
    ": token ids of another tokenizer mean nothing here, send text (in LangChain's OpenAIEmbeddings, "
    "check_embedding_ctx_length=False)"
)


def public_name(model: str) -> str:
    """Return a model's name without a path of this machine: a hub id, or a folder's own name."""
    return Path(model).resolve().name if os.path.exists(model) or os.path.isabs(model) else model


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """Do work as long as the client waits for it; whether it still does is not asked of what takes a moment.

    Raises:
        ClientGoneError: it has gone; the work is cancelled.
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
