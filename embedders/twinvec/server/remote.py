"""Remote: what all clients of a server share, its address, its connections and its answers.

All calls run on one thread with an event loop, so that callers on any thread or event loop share its connections. Sync
and async methods are thin shells over the same futures.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import json
import os
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httpx

from twinvec.errors import ConfigurationError, RemoteError, TextError, TwinVecError
from twinvec.flows import Call
from twinvec.server.transport import Address, Answer, Line
from twinvec.server.wire import ERRORS
from twinvec.tracing import trace_headers

LARGEST_JSON = 2**24  # bytes of the largest plausible response that describes something

_T = TypeVar("_T")


class Remote:
    """A server at an address."""

    _closed: bool

    def __init__(self, address: Address) -> None:
        """Prepare; nothing is sent yet."""
        self._address = address
        self._closed = False
        self._open_line()

    @property
    def url(self) -> str:
        """Return the server's address, without secrets."""
        return self._address.shown

    def close(self, *, drain: bool = False) -> None:
        """Close the connections; the server keeps running. Later calls raise ConfigurationError.

        Args:
            drain: let pending calls of other threads finish first; otherwise they raise ConfigurationError.
        """
        self._closed = True
        if self._finalizer.detach() is not None:
            self._line.close(drain=drain)

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
            if self._line.pid != os.getpid():  # forked: the child does not have the thread
                self._open_line()
            return asyncio.run_coroutine_threadsafe(work, self._line.loop)
        except BaseException:
            work.close()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigurationError(f"this {type(self).__name__} is closed; create a new one")

    def _open_line(self) -> None:
        self._line = Line(self._address)
        # garbage collection ends the thread just as close() does
        self._finalizer = weakref.finalize(self, self._line.close_later)
        self._finalizer.atexit = False

    def asking(self, path: str, asked: Any = None, *, largest: int = LARGEST_JSON) -> Call[dict[str, Any]]:
        """Return the call of another route of this server, of whatever it serves.

        Args:
            path: the route's path.
            asked: JSON of a POST request; None sends a GET request.
            largest: the largest plausible response, in bytes.

        Raises:
            RemoteError: no response, or one that is not a JSON object.
            TwinVecError: the error reported by the server.
        """
        body = None if asked is None else to_json(asked)
        return self._on_line(functools.partial(self._json_of, path, body, largest))

    async def _json_of(self, path: str, body: bytes | None, largest: int) -> dict[str, Any]:
        answer = _object(await self._ask(path, largest, body))
        if answer is None:
            raise RemoteError(f"{self.url} is not a TwinVec server: {path} did not return a JSON object")
        return answer

    async def _ask(self, path: str, largest: int, body: bytes | None = None) -> Answer:
        method, headers = ("GET", {}) if body is None else ("POST", {"Content-Type": "application/json"})
        return await self._line.ask(method, path, largest, self._error, content=body, headers=trace_headers() | headers)

    def _error(self, response: httpx.Response, content: bytes) -> TwinVecError:
        """Return the server's error as an instance of its original class."""
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return RemoteError(
                f"{self.url} rejected the API key: pass api_key=, or set both TWINVEC_API_KEY and TWINVEC_URL (without "
                "TWINVEC_URL the key is not sent to an address that comes from data)"
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


def to_json(value: Any) -> bytes:
    """Return the JSON of a request, or of a part of it."""
    return json.dumps(value, ensure_ascii=False).encode()


def _object(answer: Answer) -> dict[str, Any] | None:
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
