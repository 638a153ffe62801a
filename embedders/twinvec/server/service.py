"""What all routes share: limits, the fields of a request, the work itself, and errors on their way to a status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from twinvec.embedder import Embedder
from twinvec.engine.calls import Wanted
from twinvec.errors import ConfigurationError, OverloadedError, TextError, TwinVecError
from twinvec.server.wire import STATUS, task_from_json
from twinvec.text.prompts import Role, Task
from twinvec.text.unicode import lone_surrogate
from twinvec.vectors import EmbeddingBatch

logger = logging.getLogger("twinvec.server")

_RETRY_AFTER = {"Retry-After": "1"}
_ROWS_AT_ONCE = 16  # some milliseconds of JSON
_MISSING: Any = object()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for; more is refused.

    Attributes:
        max_requests: requests at the same time; further ones get status 429 and Retry-After. Each may hold
            ``max_body_bytes`` in memory.
        max_texts: texts of one request.
        max_characters: of all texts of one request together.
        max_body_bytes: of one request's JSON.
    """

    max_requests: int = 512
    max_texts: int = 2048
    max_characters: int = 4_000_000
    max_body_bytes: int = 32 * 2**20

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name}={value!r} must be a positive whole number")


@dataclass(eq=False)
class RefusedError(Exception):
    """A request that gets no vectors, and why.

    Attributes:
        status: of HTTP.
        message: what, where, and what to do.
        field: of the request's JSON, where one is to blame.
        kind: the error's class, by which RemoteEmbedder raises it again.
        headers: of the answer.
        position: of the text that is to blame, in the request's list.
        reason: the message without that position.
    """

    status: int
    message: str
    field: str | None = None
    kind: str = "ConfigurationError"
    headers: Mapping[str, str] | None = None
    position: int | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        self.reason = self.reason or self.message

    @classmethod
    def of(cls, error: Exception) -> RefusedError:
        """Return what an error means to a client."""
        if isinstance(error, RefusedError):
            return error
        if isinstance(error, TwinVecError):
            status = STATUS.get(type(error), 500)
            refusal = cls(status, str(error), None, type(error).__name__, _RETRY_AFTER if status == 429 else None)
            if isinstance(error, TextError):
                refusal.position, refusal.reason = error.position, error.reason
            return refusal
        logger.error("a request failed", exc_info=error)
        return cls(500, "the server failed, its log says why", None, "TwinVecError")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Service:
    """One Embedder behind all routes.

    Attributes:
        embedder: does the work.
        limits: of requests.
        name: of the model, as OpenAI's and TEI's routes know it: its hub id, or its folder's own name.
    """

    def __init__(self, embedder: Embedder, limits: Limits) -> None:
        self.embedder = embedder
        self.limits = limits
        model = embedder.spec.model
        self.name = Path(model).resolve().name if os.path.isdir(model) else model
        self._requests = 0

    def need_dense(self) -> None:
        """Refuse a request for dense vectors where there are none."""
        if self.embedder.dim is None:
            raise ConfigurationError(f"{self.name} has no dense half, only a sparse one")

    def dimensions(self, fields: Fields) -> int | None:
        """Take the field "dimensions", which OpenAI and TEI share.

        Raises:
            RefusedError: the model was not trained for so many.
        """
        from twinvec.engine.loading import check_dim  # needs torch, which has come with the model

        value: int | None = fields.take("dimensions", int, default=None)
        try:
            check_dim(value, self.embedder._view.description, self.name)
        except ConfigurationError as error:
            raise RefusedError(400, str(error), "dimensions") from None
        return value

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is answered.

        Raises:
            OverloadedError: there are too many.
        """
        if self._requests >= self.limits.max_requests:
            raise OverloadedError(f"{self._requests} requests are being answered, the limit: try again later")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def fields(self, request: Request) -> Fields:
        """Read a request's JSON.

        Raises:
            RefusedError: it is too large, or not a JSON object.
        """
        body, limit = bytearray(), self.limits.max_body_bytes
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise RefusedError(413, f"the request has more than {limit} bytes, the limit: send fewer texts at once")
        return Fields(bytes(body), self.limits)

    async def embed(self, request: Request, role: Role, texts: Texts, wanted: Wanted) -> EmbeddingBatch:
        """Embed texts, as long as the client waits for them.

        Raises:
            ClientGoneError: it has gone; the work is cancelled.
            RefusedError: see the errors of ``Embedder.embed_queries``; it calls the texts as the request does.
        """
        try:
            return await self._embed(request, role, texts.texts, wanted)
        except TwinVecError as error:
            refusal = RefusedError.of(error)
            if isinstance(error, TextError) and error.position is not None:
                refusal.message = f"{texts.field}[{error.position}] {error.reason}"
                refusal.field = texts.field
            raise refusal from error

    async def _embed(self, request: Request, role: Role, texts: list[str], wanted: Wanted) -> EmbeddingBatch:
        # not the public methods, whose warnings about cut texts would be for somebody at the server
        work = asyncio.ensure_future(self.embedder._aembed(role, texts, wanted))
        gone = asyncio.ensure_future(_disconnect(request))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise ClientGoneError
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.wait((work, gone))


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Texts(NamedTuple):
    """Texts, and the field they came in."""

    field: str
    texts: list[str]


class Fields:
    """The fields of a request's JSON object, each checked when it is taken; errors name it."""

    def __init__(self, body: bytes, limits: Limits) -> None:
        self._limits = limits
        self._taken: set[str] = set()
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:  # also bytes that are not Unicode
            raise RefusedError(400, f"the request is not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise RefusedError(400, f"the request must be a JSON object, not {_kind(data)}")
        self._data: dict[str, Any] = data

    def take(self, name: str, *kinds: type, default: Any = _MISSING) -> Any:
        """Return a field of one of these types; a missing one, and null, are the default."""
        self._taken.add(name)
        value = self._data.get(name)
        if value is None:
            if default is _MISSING:
                raise RefusedError(400, f"{name} is missing", name)
            return default
        # JSON's true is no number, though Python's is
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(_NAMES[kind] for kind in kinds)
            raise RefusedError(400, f"{name} must be {wanted}, not {_kind(value)}", name)
        if isinstance(value, str):
            self._check_string(name, value, name)
        return value

    def one_of(self, name: str, *choices: str, default: Any = _MISSING) -> Any:
        """Return a string that is one of the choices."""
        value = self.take(name, str, default=default)
        if value is not default and value not in choices:
            raise RefusedError(400, f"{name}={value!r} is not one of {', '.join(choices)}", name)
        return value

    def seconds(self, name: str) -> float | None:
        """Return a time, None where there is none."""
        value: float | None = self.take(name, int, float, default=None)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise RefusedError(400, f"{name}={value} must be a number greater than 0", name)
        return value

    def task(self, name: str) -> Task | str | None:
        """Return an instruction, a name of one, or an object with "instruction" and "symmetric"."""
        value = self.take(name, str, dict, default=None)
        try:
            return task_from_json(value)
        except (TypeError, ConfigurationError) as error:
            raise RefusedError(400, f"{name}: {error}", name) from None

    def texts(self, name: str) -> Texts:
        """Return the texts of a list, or the only one.

        Raises:
            RefusedError: more than the limits allow, or token ids.
            InvalidTextError: a text that is not valid Unicode.
        """
        value = self.take(name, str, list)
        texts = [value] if isinstance(value, str) else value
        for position, text in enumerate(texts):
            where = f"{name}[{position}]"
            if isinstance(text, str):
                self._check_string(where, text, name)
                continue
            hint = ""
            if isinstance(text, (int, list)) and not isinstance(text, bool):
                hint = (
                    ": token ids of another tokenizer mean nothing here, send text (in LangChain's OpenAIEmbeddings, "
                    "check_embedding_ctx_length=False)"
                )
            raise RefusedError(400, f"{where} must be a string, not {_kind(text)}{hint}", name)
        self._check_size(name, texts)
        return Texts(name, texts)

    def _check_size(self, name: str, texts: list[str]) -> None:
        limits = self._limits
        if len(texts) > limits.max_texts:
            message = f"batch size {len(texts)} > maximum allowed batch size {limits.max_texts}: send {name} in parts"
            raise RefusedError(413, message, name)
        characters = sum(map(len, texts))
        if characters > limits.max_characters:
            message = f"{name} has {characters} characters, the server takes {limits.max_characters}: send it in parts"
            raise RefusedError(413, message, name)

    def _check_string(self, where: str, value: str, name: str) -> None:
        limit = self._limits.max_characters
        if len(value) > limit:
            message = f"{where} has {len(value)} characters, the server takes {limit}: split it"
            raise RefusedError(413, message, name, "TextTooLongError")
        if reason := lone_surrogate(value):
            raise RefusedError(400, f"{where} has {reason}, which is not text", name, "InvalidTextError")

    def done(self) -> None:
        """Refuse fields that nobody has taken: a misspelled one would change vectors silently."""
        if unknown := sorted(self._data.keys() - self._taken):
            known = ", ".join(sorted(self._taken))
            raise RefusedError(400, f"{unknown[0]} is not a field of this request, which are {known}", unknown[0])


_NAMES: dict[type, str] = {
    str: "a string",
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


def _kind(value: Any) -> str:
    return "null" if value is None else _NAMES[type(value)]


async def json_response(before: str, rows: Iterator[Any], after: str) -> Response:
    """Return a JSON answer with many rows of numbers; other requests take turns with its writing."""
    parts = []
    for i, row in enumerate(rows):
        parts.append(json.dumps(row, separators=(",", ":")))
        if i % _ROWS_AT_ONCE == _ROWS_AT_ONCE - 1:
            await asyncio.sleep(0)
    return Response(before + ",".join(parts) + after, media_type="application/json")
