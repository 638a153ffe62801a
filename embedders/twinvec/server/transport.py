"""HTTP transport of RemoteEmbedder: one thread with an event loop, deadlines, retries, and bounded responses."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx

from twinvec._version import __version__
from twinvec.errors import ConfigurationError, DeadlineError, RemoteError, TwinVecError
from twinvec.settings import Settings

_RETRIED = (429, 502, 503)
_LONGEST_WAIT = 30.0
_ERROR_BYTES = 65_536  # of an error response
_Failure = Callable[[httpx.Response, bytes], TwinVecError]

# tests replace these with an application and a clock
_TRANSPORT: httpx.AsyncBaseTransport | None = None
_sleep = asyncio.sleep


@dataclass(frozen=True)
class Address:
    """A server's address, and how to talk to it.

    Attributes:
        shown: the URL without secrets.
        timeout: seconds per request, retries included.
        retries: see ``RemoteEmbedder``.
    """

    shown: str
    timeout: float
    retries: int
    _headers: dict[str, str] = field(repr=False)
    _basic: tuple[str, str] | None = field(repr=False)

    @classmethod
    def parse(cls, url: str, api_key: str | None, timeout: float, retries: int, *, from_data: bool) -> Address:
        """Check the arguments of ``RemoteEmbedder``.

        Raises:
            ConfigurationError: invalid arguments.
        """
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
            raise ConfigurationError(f"timeout={timeout!r} must be a number of seconds greater than 0")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ConfigurationError(f"retries={retries!r} must be an integer of at least 0")
        address = _url(url)
        basic = (address.username, address.password) if address.userinfo else None
        if basic and api_key is not None:
            raise ConfigurationError("pass api_key= or a password in the url, not both: they use the same header")
        key = api_key if api_key is not None else _key_from_settings(address, from_data)
        headers = {"User-Agent": f"twinvec/{__version__}", "Accept-Encoding": "identity"}
        if key is not None and basic is None:
            if not key.isascii() or not key.isprintable():
                raise ConfigurationError("api_key cannot be sent in a header: it must be printable ASCII")
            headers["Authorization"] = f"Bearer {key}"
        shown = str(address.copy_with(username=None, password=None, query=None, fragment=None)).rstrip("/")
        return cls(shown, timeout, retries, headers, basic)

    def client(self) -> httpx.AsyncClient:
        """Return a client for this address."""
        return httpx.AsyncClient(
            base_url=self.shown,
            headers=self._headers,
            auth=self._basic,
            timeout=httpx.Timeout(self.timeout, connect=min(self.timeout, 10), pool=None),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=5),
            transport=_TRANSPORT,
        )


def _url(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigurationError(f"url: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ConfigurationError("url must begin with http:// or https:// and name a host")
    return address


def _key_from_settings(address: httpx.URL, from_data: bool) -> str | None:
    """Return TWINVEC_API_KEY if it is meant for an address.

    With TWINVEC_URL set, the key is for that address only; otherwise for addresses named by the program, not those read
    from data.
    """
    settings = Settings.from_env()
    if settings.url is None:
        return None if from_data else settings.api_key
    meant = _url(settings.url)
    same = (meant.scheme, meant.host, meant.port) == (address.scheme, address.host, address.port)
    return settings.api_key if same else None


@dataclass(frozen=True)
class Answer:
    """A response with status 200."""

    headers: httpx.Headers
    content: bytes


class Line:
    """A thread with an event loop, on which one client keeps its connections for all callers."""

    def __init__(self, address: Address) -> None:
        self.pid = os.getpid()
        self.address = address
        self.loop = asyncio.new_event_loop()
        self._client = address.client()
        self._thread = threading.Thread(target=self._run, name="twinvec-remote", daemon=True)
        self._thread.start()

    async def ask(
        self,
        method: str,
        path: str,
        largest: int,
        failure: Callable[[httpx.Response, bytes], TwinVecError],
        **body: Any,
    ) -> Answer:
        """Send a request, with retries, within the address's timeout.

        Args:
            method: HTTP method.
            path: path below the address.
            largest: the largest plausible response, in bytes.
            failure: makes the error for a response other than 200.
            body: the request's content, as httpx takes it.

        Raises:
            RemoteError: there is no response, or one that is too large.
            TwinVecError: the error from ``failure``.
        """
        try:
            return await asyncio.wait_for(self._ask(method, path, largest, failure, body), self.address.timeout)
        except DeadlineError:  # raised by the server; also a TimeoutError
            raise
        except asyncio.TimeoutError:
            # repeating the request would double the work of a slow server
            raise RemoteError(f"{self.address.shown} did not respond within {self.address.timeout} s") from None

    async def _ask(self, method: str, path: str, largest: int, failure: _Failure, body: dict[str, Any]) -> Answer:
        for attempt in range(self.address.retries + 1):
            pause = min(0.25 * 2**attempt, 8) * random.uniform(0.5, 1)  # noqa: S311 - not to come back all at once
            try:
                async with self._client.stream(method, path, **body) as response:
                    right = response.status_code == httpx.codes.OK
                    content = await self._read(response, largest if right else _ERROR_BYTES, cut=not right)
            except (httpx.ReadTimeout, httpx.WriteTimeout):
                raise asyncio.TimeoutError from None
            except httpx.RequestError as error:
                reason = str(error) or type(error).__name__
                failed: TwinVecError = RemoteError(f"{self.address.shown} cannot be reached: {reason}")
            else:
                if right:
                    return Answer(response.headers, content)
                failed = failure(response, content)
                if response.status_code not in _RETRIED:
                    raise failed
                pause = _retry_after(response) or pause
            if attempt == self.address.retries:
                raise failed
            await _sleep(pause)
        raise AssertionError("unreachable")

    async def _read(self, response: httpx.Response, largest: int, *, cut: bool) -> bytes:
        """Read a response's content; a compressed one was not requested, and could unpack to any size."""
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise RemoteError(f"{self.address.shown} sent a compressed response, which was not requested")
        parts, size = [], 0
        async for part in response.aiter_bytes():
            parts.append(part)
            size += len(part)
            if size > largest:
                if cut:
                    break
                raise RemoteError(
                    f"{self.address.shown} sent more than {largest} bytes, the largest plausible response"
                )
        return b"".join(parts)

    def close(self, *, drain: bool) -> None:
        """Finish pending requests (``drain``) or cancel them, and end the thread."""
        if self.pid != os.getpid():
            return
        asyncio.run_coroutine_threadsafe(self._finish(drain), self.loop).result()
        self.close_later()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def close_later(self) -> None:
        """End the thread without waiting for it, since the garbage collector may run anywhere."""
        if self.pid == os.getpid():
            self.loop.call_soon_threadsafe(self.loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self._finish(False))
        finally:
            self.loop.close()

    async def _finish(self, drain: bool) -> None:
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in () if drain else pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._client.aclose()


async def in_turns(work: Callable[[Any], Coroutine[Any, Any, Any]], parts: Any, at_once: int) -> list[Any]:
    """Work on parts, a few at a time; return the results in order. A failure cancels the rest."""
    results: dict[int, Any] = {}
    numbered = enumerate(parts)

    async def take() -> None:
        for number, part in numbered:
            results[number] = await work(part)

    workers = [asyncio.ensure_future(take()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    except BaseException:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        raise
    return [results[number] for number in range(len(results))]


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that a server asks clients to wait."""
    seconds = response.headers.get("retry-after", "")
    return min(float(seconds), _LONGEST_WAIT) if seconds.isascii() and seconds.isdecimal() else None
