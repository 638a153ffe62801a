"""RemoteEmbedder: the Embedder of a server, over HTTP.

Its calls run on one thread with an event loop, whoever makes them: callers of any thread and any event loop share its
connections, and sync and async methods are shells over the same futures, as the Embedder's are.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import os
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import numpy as np

from twinvec._version import __version__
from twinvec.base import BaseEmbedder, CheckedCall
from twinvec.errors import ConfigurationError, DeadlineError, RemoteError, TextError, TextTooLongError, TwinVecError
from twinvec.flows import Call
from twinvec.options import CallOptions, EmbedderOptions
from twinvec.server.transport import Address, Answer, Line, in_turns
from twinvec.server.wire import (
    ERRORS,
    FINGERPRINT,
    PROTOCOL,
    ServerInfo,
    check_batch,
    check_offsets,
    unpack_batch,
    unpack_offsets,
)
from twinvec.text.prompts import Role, Task
from twinvec.text.unicode import check_texts
from twinvec.tracing import trace_headers
from twinvec.vectors import EmbeddingBatch, Int64, SparseBatch

# One request: enough to fill a device, little enough for progress, timeouts and the server's memory.
_TEXTS = 256
_BODY_BYTES = 500_000
_ENVELOPE = 200  # bytes of a request beside its texts and its prompt
_IN_FLIGHT = 4  # requests of one call at the same time: the server always has the next one
_TERMS = 2**16  # sparse columns in one request
_REMEMBERED_TERMS = 2**18
# bytes of an answer that can be right
_LARGEST_INFO = 2**24
_LARGEST_TERM = 4096
_LARGEST_HEAD = 2**16

_T = TypeVar("_T")


class RemoteEmbedder(BaseEmbedder):
    """Dense and sparse vectors of a model that ``twinvec serve`` holds elsewhere; the same interface as Embedder.

    ``spec`` and its fingerprint are those of the server's Embedder, so that a store made with one opens with the other.
    Texts travel in requests of a bounded size, a few at a time. Failed connections and an overloaded server are tried
    again. Calls raise what the Embedder's do, and RemoteError where no answer can be had. Thread safe, and safe in any
    number of event loops; cancelling a call cancels its requests, and the server's work. Pickles carry the address
    without its password, and no key; copies are the same object.

    Examples:
        >>> embedder = RemoteEmbedder("http://127.0.0.1:8000")
        >>> embedder.embed_queries(["capital of France"]).dense.shape
        (1, 768)
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        from_data: bool = False,
    ) -> None:
        """Connect, and learn what the server's model is.

        Args:
            url: of the server, for example "http://127.0.0.1:8000". "http://user:password@host" is for a proxy that
                asks for them, in place of a key.
            api_key: what the server asks for; sent there and nowhere else. Default: TWINVEC_API_KEY, where TWINVEC_URL
                names this server or is not set.
            timeout: seconds for one request from its first byte to the answer's last, retries included; a call of many
                texts makes several requests.
            retries: how often a request is sent again, after waiting, when the connection fails or the server is
                overloaded (status 429, 502 or 503; its Retry-After is honoured). Where the connection broke after the
                request was sent, the server may compute it once more for each retry.
            from_data: ``url`` was read from a file or a message: TWINVEC_API_KEY is sent there only where TWINVEC_URL
                names it.

        Raises:
            RemoteError: no server answers there, it asks for another key, or it is not one of this version's.
            ConfigurationError: arguments that make no sense.
        """
        self._address = Address.parse(url, api_key, timeout, retries, from_data=from_data)
        self._closed = False
        self._terms: dict[int, str] = {}
        self._open_line()
        try:
            self._learn(self._wait(self._get("info")))
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Return where the server is, without secrets."""
        return self._address.shown

    def token_offsets(self, texts: Iterable[str]) -> list[Int64]:
        """See ``Embedder.token_offsets``."""
        checked = check_texts(texts)
        return self._wait(self._all_offsets(checked)) if checked else []

    def token_room(self, role: Role | str, task: Task | str | None = None) -> int:
        """See ``Embedder.token_room``."""
        prompt = self.prompt_for(role, task)
        return self.max_length - self._info.special_tokens - (len(self.token_offsets([prompt])[0]) if prompt else 0)

    def stats(self) -> dict[str, Any]:
        """Return the counters of the server's Embedder; see ``Embedder.stats``."""
        return self._wait(self._get("stats"))

    @property
    def healthy(self) -> bool:
        """Ask the server whether calls can be answered."""
        try:
            return bool(self.stats()["healthy"])
        except TwinVecError:
            return False

    @property
    def family(self) -> str:
        """Return the name of the checkpoint family."""
        return self._info.family

    def close(self, *, drain: bool = False) -> None:
        """Close the connections; the server stays. Later calls raise ConfigurationError.

        Args:
            drain: let pending calls of other threads finish first; else they raise ConfigurationError.
        """
        self._closed = True
        if self._finalizer.detach() is not None:
            self._line.close(drain=drain)

    def __reduce__(self) -> tuple[Any, ...]:
        address = self._address
        return _connected, (address.shown, {"timeout": address.timeout, "retries": address.retries})

    def __copy__(self) -> RemoteEmbedder:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteEmbedder:
        return self

    def __repr__(self) -> str:
        return f"RemoteEmbedder({self.url!r}, model={self.spec.model!r})"

    def _learn(self, info: dict[str, Any]) -> None:
        if info.get("protocol") != PROTOCOL and "version" in info:
            raise RemoteError(
                f"{self.url} is TwinVec {str(info['version'])[:40]}, this is {__version__}, and they do not understand "
                "each other: install the same version on both sides"
            )
        try:
            known = ServerInfo.parse(info)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise RemoteError(
                f"{self.url} is no TwinVec server that this version knows: {str(error)[:200]!r}"
            ) from None
        self._info = known
        self.spec, self._prompts = known.spec, known.template
        self.options = EmbedderOptions(task=known.task, prompts=known.prompts or None)
        self._max_texts = min(_TEXTS, known.max_texts)

    async def _compute(self, asked: CheckedCall, wanted: CallOptions) -> EmbeddingBatch:
        with _progress(asked, wanted.show_progress) as progress:
            return await self._on_line(functools.partial(self._batch, asked, wanted.timeout, progress))

    def _on_line(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> Call[_T]:
        return Call(lambda: self._wait(work()), lambda: self._await(work()))

    async def _await(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await asyncio.wrap_future(self._submit(work))
        except asyncio.CancelledError:
            self._check_open()
            raise

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = self._submit(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            self._check_open()
            raise
        except BaseException:
            future.cancel()
            raise

    def _submit(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        try:
            self._check_open()
            if self._line.pid != os.getpid():  # forked: the thread did not come along
                self._open_line()
            return asyncio.run_coroutine_threadsafe(work, self._line.loop)
        except BaseException:
            work.close()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigurationError("this RemoteEmbedder is closed; make a new one")

    def _open_line(self) -> None:
        self._line = Line(self._address)
        # a collected RemoteEmbedder ends its thread like a closed one
        self._finalizer = weakref.finalize(self, self._line.close_later)
        self._finalizer.atexit = False

    async def _batch(
        self, call: CheckedCall, timeout: float | None, progress: Callable[[int], object] | None = None
    ) -> EmbeddingBatch:
        # the prompt that prompt_for shows is what travels, whatever the server would put there by now
        asked = {"role": call.role.value, "prompt": call.prompt, "dense": call.dense, "sparse": call.sparse}
        dim = (self.dim or 0) if call.dense else None
        columns = (self._info.columns or 0) if call.sparse else None
        row = 4 * (dim or 0) + 8 * min(columns or 0, 2**15) + 16

        def unpack(data: bytes, part: _Part) -> EmbeddingBatch:
            batch = unpack_batch(data)
            check_batch(batch, rows=len(part.texts), dim=dim, columns=columns)
            return batch

        async def request(part: _Part) -> EmbeddingBatch:
            batch = await self._vectors("embed", asked, part, row * len(part.texts), unpack)
            if progress is not None:
                progress(len(part.texts))
            return batch

        try:
            parts = self._parts(call.texts, asked)
            return _stacked(await asyncio.wait_for(in_turns(request, parts, _IN_FLIGHT), timeout))
        except DeadlineError:  # the server's own, which is a TimeoutError, too
            raise
        except asyncio.TimeoutError:
            raise DeadlineError(f"{len(call.texts)} texts were not embedded within {timeout} s") from None

    async def _all_offsets(self, texts: list[str]) -> list[Int64]:
        def unpack(data: bytes, part: _Part) -> list[Int64]:
            found = unpack_offsets(data)
            check_offsets(found, part.texts)
            return found

        async def request(part: _Part) -> list[Int64]:
            tokens = sum(len(text.encode()) + 8 for text in part.texts)
            return await self._vectors("offsets", {}, part, 16 * tokens, unpack)

        found = await in_turns(request, self._parts(texts, {}), _IN_FLIGHT)
        return [offsets for part in found for offsets in part]

    def _token_texts(self, keys: list[int]) -> Mapping[int, str]:
        found = {key: self._terms[key] for key in keys if key in self._terms}
        missing = [key for key in keys if key not in found]
        for start in range(0, len(missing), _TERMS):
            part = missing[start : start + _TERMS]
            found.update(zip(part, self._wait(self._some_terms(part)), strict=True))
        # "#" and a number: a BM25 term that the server does not know yet
        known = {key: term for key, term in found.items() if not term.startswith("#")}
        self._terms = {**self._terms, **known} if len(self._terms) < _REMEMBERED_TERMS else known
        return found

    async def _some_terms(self, keys: list[int]) -> list[str]:
        body = json.dumps({"keys": keys}).encode()
        answer = await self._json_of("/v1/twinvec/terms", body, _LARGEST_TERM * len(keys) + _LARGEST_HEAD)
        terms = answer.get("terms")
        if not isinstance(terms, list) or len(terms) != len(keys) or not all(isinstance(t, str) for t in terms):
            raise RemoteError(f"{self.url} answered no terms of {len(keys)} columns")
        return terms

    def _parts(self, texts: list[str], asked: dict[str, Any]) -> Iterator[_Part]:
        """Yield what goes into one request each; a single empty part for no texts, which gives empty arrays."""
        room = self._info.max_body_bytes - len(_json(asked)) - _ENVELOPE
        chunk = min(_BODY_BYTES, room)
        part, size = _Part(0, [], []), 0
        for i, text in enumerate(texts):
            encoded = _json(text)
            if len(encoded) > room:
                reason = f"has {len(encoded)} bytes as JSON, {self.url} takes {max(room, 0)}: split it"
                raise TextTooLongError(reason, position=i)
            if part.texts and (len(part.texts) == self._max_texts or size + len(encoded) + 1 > chunk):
                yield part
                part, size = _Part(i, [], []), 0
            part.texts.append(text)
            part.encoded.append(encoded)
            size += len(encoded) + 1
        yield part

    async def _vectors(
        self, route: str, asked: dict[str, Any], part: _Part, largest: int, unpack: Callable[[bytes, _Part], _T]
    ) -> _T:
        fields = [b'"%s":%s' % (name.encode(), _json(value)) for name, value in asked.items()]
        body = b"{" + b",".join([*fields, b'"texts":[' + b",".join(part.encoded) + b"]"]) + b"}"
        try:
            answer = await self._ask(f"/v1/twinvec/{route}", largest + _LARGEST_HEAD, body)
        except TextError as error:
            raise error.moved(part.start) from None
        if answer.headers.get(FINGERPRINT) != self.spec.fingerprint:
            raise RemoteError(f"{self.url} has another model now: make a new RemoteEmbedder")
        try:
            return unpack(answer.content, part)
        except ValueError as error:
            raise RemoteError(f"{self.url} answered no vectors: {error}") from None

    async def _get(self, route: str) -> dict[str, Any]:
        return await self._json_of(f"/v1/twinvec/{route}", None, _LARGEST_INFO)

    def asking(self, path: str, asked: Any = None, *, largest: int = _LARGEST_INFO) -> Call[dict[str, Any]]:
        """Return the call of another route of this server, for the clients of what it serves beside its Embedder.

        Args:
            path: of the route.
            asked: the JSON of a POST request; None: a GET request.
            largest: bytes of an answer that can be right.

        Raises:
            RemoteError: there is no answer, or one that is no JSON object.
            TwinVecError: what went wrong there.
        """
        body = None if asked is None else _json(asked)
        return self._on_line(functools.partial(self._json_of, path, body, largest))

    async def _json_of(self, path: str, body: bytes | None, largest: int) -> dict[str, Any]:
        answer = _object(await self._ask(path, largest, body))
        if answer is None:
            raise RemoteError(f"{self.url} is no TwinVec server: its {path} is no JSON object")
        return answer

    async def _ask(self, path: str, largest: int, body: bytes | None = None) -> Answer:
        method, headers = ("GET", {}) if body is None else ("POST", {"Content-Type": "application/json"})
        return await self._line.ask(method, path, largest, self._error, content=body, headers=trace_headers() | headers)

    def _error(self, response: httpx.Response, content: bytes) -> TwinVecError:
        """Return the server's error as what it was there."""
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return RemoteError(
                f"{self.url} asks for another API key: pass api_key=, or set TWINVEC_API_KEY and TWINVEC_URL, without "
                "which it is not sent to an address that was read from data"
            )
        try:
            error = json.loads(content)["error"]
            kind = ERRORS[error["type"]]
            if issubclass(kind, TextError):
                position = error["position"]
                return kind(str(error["reason"]), position=None if position is None else int(position))
            return kind(str(error["message"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            detail = content[:200].decode(errors="replace").strip()
            return RemoteError(f"{self.url} answered with status {response.status_code}: {detail or 'nothing more'}")


@contextlib.contextmanager
def _progress(asked: CheckedCall, show: bool) -> Iterator[Callable[[int], object] | None]:
    if not show:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(total=len(asked.texts), unit="text", desc=f"Embedding {asked.role.value}s") as bar:
        yield bar.update


@dataclass(frozen=True)
class _Part:
    """Texts of one request, their JSON, and the position of the first of them in the caller's list."""

    start: int
    texts: list[str]
    encoded: list[bytes]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _object(answer: Answer) -> dict[str, Any] | None:
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _stacked(batches: list[EmbeddingBatch]) -> EmbeddingBatch:
    if len(batches) == 1:
        return batches[0]
    dense = [batch.dense for batch in batches if batch.dense is not None]
    sparse = [batch.sparse for batch in batches if batch.sparse is not None]
    return EmbeddingBatch(
        np.concatenate(dense) if dense else None,
        SparseBatch.stack(sparse) if sparse else None,
        np.concatenate([batch.token_counts for batch in batches]),
        np.concatenate([batch.truncated for batch in batches]),
    )


def _connected(url: str, options: dict[str, Any]) -> RemoteEmbedder:
    return RemoteEmbedder(url, **options)
