"""RemoteEmbedder: the Embedder of a server, over HTTP.

Its calls run on one thread with an event loop, whoever makes them: callers of any thread and any event loop share its
connections, and sync and async methods are shells over the same futures, as the Embedder's are.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import numpy as np

from twinvec._version import __version__
from twinvec.base import BaseEmbedder
from twinvec.engine.calls import Checked, Wanted, check_texts
from twinvec.errors import ConfigurationError, DeadlineError, RemoteError, TextError, TextTooLongError, TwinVecError
from twinvec.options import EmbedderOptions
from twinvec.server.wire import (
    ERRORS,
    FINGERPRINT,
    PROTOCOL,
    task_from_json,
    unpack_batch,
    unpack_offsets,
)
from twinvec.settings import Settings
from twinvec.spec import ModelSpec
from twinvec.text.prompts import PromptTemplate, Role, Task
from twinvec.vectors import EmbeddingBatch, Int64, SparseBatch

# One request: enough to fill a device, little enough for progress, timeouts and the server's memory.
_TEXTS = 256
_CHARACTERS = 250_000
_IN_FLIGHT = 4  # requests of one call at the same time: the server always has the next one
_TERMS = 2**16  # sparse columns in one request
_REMEMBERED_TERMS = 2**18
_RETRIED = (429, 502, 503)
_LONGEST_WAIT = 30.0

_T = TypeVar("_T")
# tests put an application and a clock here
_TRANSPORT: httpx.AsyncBaseTransport | None = None
_sleep = asyncio.sleep


class RemoteEmbedder(BaseEmbedder):
    """Dense and sparse vectors of a model that ``twinvec serve`` holds elsewhere; the same interface as Embedder.

    ``spec`` and its fingerprint are those of the server's Embedder, so that a store made with one opens with the other.
    Texts travel in requests of a bounded size, a few at a time. Failed connections and an overloaded server are tried
    again. Calls raise what the Embedder's do, and RemoteError where no answer can be had. Thread safe, and safe in any
    number of event loops; cancelling a call cancels its requests, and the server's work. Pickles carry the address
    without its password, and no key; copies are the same object.

    Example:
        >>> embedder = RemoteEmbedder("http://127.0.0.1:8000")
        >>> embedder.embed_queries(["capital of France"]).dense.shape
        (1, 768)
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 4) -> None:
        """Connect, and learn what the server's model is.

        Args:
            url: of the server, for example "http://127.0.0.1:8000". "http://user:password@host" is for a proxy that
                asks for them, in place of a key.
            api_key: what the server asks for. Default: TWINVEC_API_KEY.
            timeout: seconds to wait for the answer to one request; a call of many texts makes several.
            retries: how often a request is sent again, after waiting, when the connection fails or the server is
                overloaded (status 429, 502 or 503; its Retry-After is honoured).

        Raises:
            RemoteError: no server answers there, it asks for another key, or it is not one of this version's.
            ConfigurationError: arguments that make no sense.
        """
        key = api_key if api_key is not None else Settings.from_env().api_key
        self._url, self._connect = _address(url, api_key, key, timeout)
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ConfigurationError(f"retries={retries!r} must be a whole number of at least 0")
        self._timeout, self._retries = timeout, retries
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
        return self._url

    def token_offsets(self, texts: Iterable[str]) -> list[Int64]:
        """See ``Embedder.token_offsets``."""
        checked = check_texts(texts)
        return self._wait(self._all_offsets(checked)) if checked else []

    def token_room(self, role: Role | str, task: Task | str | None = None) -> int:
        """See ``Embedder.token_room``."""
        prompt = self.prompt_for(role, task)
        return self.max_length - self._special_tokens - (len(self.token_offsets([prompt])[0]) if prompt else 0)

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
        return self._family

    def close(self, *, drain: bool = False) -> None:
        """Close the connections; the server stays. Later calls raise ConfigurationError.

        Args:
            drain: let pending calls of other threads finish first; else they raise ConfigurationError.
        """
        self._closed = True
        if self._finalizer.detach() is not None:
            self._line.close(drain=drain)

    def __reduce__(self) -> tuple[Any, ...]:
        return _connected, (self._url, {"timeout": self._timeout, "retries": self._retries})

    def __copy__(self) -> RemoteEmbedder:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteEmbedder:
        return self

    def __repr__(self) -> str:
        return f"RemoteEmbedder({self._url!r}, model={self.spec.model!r})"

    # --- what the server is

    def _learn(self, info: dict[str, Any]) -> None:
        try:
            protocol, version = info["protocol"], info["version"]
            if protocol == PROTOCOL:
                self.spec = ModelSpec(**info["spec"])
                self._prompts = PromptTemplate(**info["template"])
                task, prompts = task_from_json(info["task"]), dict(info["prompts"])
                self.options = EmbedderOptions(task=task, prompts=prompts or None)
                self._family = str(info["family"])
                self._special_tokens = int(info["special_tokens"])
                limits = info["limits"]
                self._max_texts = min(_TEXTS, int(limits["max_texts"]))
                self._max_characters = int(limits["max_characters"])
                # a character is six bytes of JSON at most; prompt and field names need room, too
                self._chunk_characters = min(_CHARACTERS, self._max_characters, int(limits["max_body_bytes"]) // 8)
                if self.spec.fingerprint == info["fingerprint"]:
                    return
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RemoteError(f"{self._url} is no TwinVec server that this version knows: {error!r}") from None
        raise RemoteError(
            f"{self._url} is TwinVec {version}, this is {__version__}, and they do not understand each other: install "
            "the same version on both sides"
        )

    # --- calls

    def _embed(self, role: Role, texts: Iterable[str], wanted: Wanted, show_progress: bool) -> EmbeddingBatch:
        call = self._check(role, texts, wanted)
        if not show_progress:
            return self._wait(self._batch(call, wanted.timeout))
        from tqdm.auto import tqdm

        with tqdm(total=len(call.texts), unit="text", desc=f"Embedding {role.value}s") as bar:
            return self._wait(self._batch(call, wanted.timeout, bar.update))

    async def _aembed(self, role: Role, texts: Iterable[str], wanted: Wanted) -> EmbeddingBatch:
        call = self._check(role, texts, wanted)
        try:
            return await asyncio.wrap_future(self._submit(self._batch(call, wanted.timeout)))
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
        self._line = _Line(self._connect())
        # a collected RemoteEmbedder ends its thread like a closed one
        self._finalizer = weakref.finalize(self, self._line.close_later)
        self._finalizer.atexit = False

    # --- on the thread of the line

    async def _batch(
        self, call: Checked, timeout: float | None, progress: Callable[[int], object] | None = None
    ) -> EmbeddingBatch:
        # the prompt that prompt_for shows is what travels, whatever the server would put there by now
        asked = {"role": call.role.value, "prompt": call.prompt, "dense": call.dense, "sparse": call.sparse}

        async def request(part: _Part) -> EmbeddingBatch:
            batch = await self._vectors("embed", {**asked, "texts": part.texts}, part, unpack_batch)
            self._check_shape(batch, call, part)
            if progress is not None:
                progress(len(part.texts))
            return batch

        try:
            return _stacked(await asyncio.wait_for(_in_turns(request, self._parts(call.texts)), timeout))
        except DeadlineError:  # the server's own, which is a TimeoutError, too
            raise
        except asyncio.TimeoutError:
            raise DeadlineError(f"{len(call.texts)} texts were not embedded within {timeout} s") from None

    def _check_shape(self, batch: EmbeddingBatch, call: Checked, part: _Part) -> None:
        width = None if batch.dense is None else batch.dense.shape[1]
        expected = (len(part.texts), self.dim if call.dense else None, call.sparse)
        if (len(batch), width, batch.sparse is not None) != expected:
            raise RemoteError(f"{self._url} answered other vectors than it was asked for")

    async def _all_offsets(self, texts: list[str]) -> list[Int64]:
        async def request(part: _Part) -> list[Int64]:
            return await self._vectors("offsets", {"texts": part.texts}, part, unpack_offsets)

        found = await _in_turns(request, self._parts(texts))
        return [offsets for part in found for offsets in part]

    def _token_texts(self, keys: list[int]) -> Mapping[int, str]:
        found = {key: self._terms[key] for key in keys if key in self._terms}
        missing = [key for key in keys if key not in found]
        for start in range(0, len(missing), _TERMS):
            part = missing[start : start + _TERMS]
            terms = self._wait(self._post("terms", {"keys": part})).json()["terms"]
            found.update(zip(part, terms, strict=True))
        # "#" and a number: a BM25 term that the server does not know yet
        known = {key: term for key, term in found.items() if not term.startswith("#")}
        self._terms = {**self._terms, **known} if len(self._terms) < _REMEMBERED_TERMS else known
        return found

    def _parts(self, texts: list[str]) -> Iterator[_Part]:
        """Yield what goes into one request each; a single empty part for no texts, which gives empty arrays."""
        start = characters = 0
        for i, text in enumerate(texts):
            if len(text) > self._max_characters:
                raise TextTooLongError(
                    f"has {len(text)} characters, {self._url} takes {self._max_characters}: split it", position=i
                )
            if i > start and (i - start == self._max_texts or characters + len(text) > self._chunk_characters):
                yield _Part(start, texts[start:i])
                start, characters = i, 0
            characters += len(text)
        yield _Part(start, texts[start:])

    async def _vectors(self, route: str, asked: dict[str, Any], part: _Part, unpack: Callable[[bytes], _T]) -> _T:
        try:
            response = await self._post(route, asked)
        except TextError as error:
            raise error.moved(part.start) from None
        if response.headers.get(FINGERPRINT) != self.spec.fingerprint:
            raise RemoteError(f"{self._url} has another model now: make a new RemoteEmbedder")
        try:
            return unpack(response.content)
        except ValueError as error:
            raise RemoteError(f"{self._url} answered no vectors: {error}") from None

    async def _get(self, route: str) -> dict[str, Any]:
        response = await self._ask("GET", route)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RemoteError(f"{self._url} is no TwinVec server: its /v1/twinvec/{route} is no JSON object")
        return answer

    async def _post(self, route: str, asked: dict[str, Any]) -> httpx.Response:
        return await self._ask("POST", route, json=asked)

    async def _ask(self, method: str, route: str, **content: Any) -> httpx.Response:
        for attempt in range(self._retries + 1):
            pause = min(0.25 * 2**attempt, 8) * random.uniform(0.5, 1)  # noqa: S311 - not to come back all at once
            try:
                response = await self._line.client.request(method, f"/v1/twinvec/{route}", **content)
            except (httpx.ReadTimeout, httpx.WriteTimeout):
                # to ask again would double the work of a server that is slow
                raise RemoteError(f"{self._url} did not answer within {self._timeout} s") from None
            except httpx.RequestError as error:
                failure: TwinVecError = RemoteError(
                    f"{self._url} cannot be reached: {str(error) or type(error).__name__}"
                )
            else:
                if response.status_code == httpx.codes.OK:
                    return response
                failure = self._error(response)
                if response.status_code not in _RETRIED:
                    raise failure
                pause = _retry_after(response) or pause
            if attempt == self._retries:
                raise failure
            await _sleep(pause)
        raise AssertionError("unreachable")

    def _error(self, response: httpx.Response) -> TwinVecError:
        """Return the server's error as what it was there."""
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return RemoteError(f"{self._url} asks for another API key: pass api_key= or set TWINVEC_API_KEY")
        try:
            error = response.json()["error"]
            kind = ERRORS[error["type"]]
            if issubclass(kind, TextError):
                return kind(error["reason"], position=error["position"])
            return kind(error["message"])
        except (ValueError, KeyError, TypeError):
            detail = response.text[:200].strip()
            return RemoteError(f"{self._url} answered with status {response.status_code}: {detail or 'nothing more'}")


@dataclass(frozen=True)
class _Part:
    """Texts of one request, and the position of the first of them in the caller's list."""

    start: int
    texts: list[str]


class _Line:
    """A thread with an event loop, on which one client has its connections."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.pid = os.getpid()
        self.client = client
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="twinvec-remote", daemon=True)
        self._thread.start()

    def close(self, *, drain: bool) -> None:
        """Finish what is pending (``drain``) or cancel it, and end the thread."""
        if self.pid != os.getpid():
            return
        asyncio.run_coroutine_threadsafe(self._finish(drain), self.loop).result()
        self.close_later()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def close_later(self) -> None:
        """End the thread without waiting for it: the collector may run anywhere."""
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
        await self.client.aclose()


def _address(
    url: str, api_key: str | None, key: str | None, timeout: float
) -> tuple[str, Callable[[], httpx.AsyncClient]]:
    """Return where the server is, without secrets, and what makes a client for it, with them."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ConfigurationError(f"timeout={timeout!r} must be a number of seconds greater than 0")
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigurationError(f"url: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ConfigurationError("url must begin with http:// or https:// and name a host")
    shown = str(address.copy_with(username=None, password=None, query=None, fragment=None)).rstrip("/")
    basic = (address.username, address.password) if address.userinfo else None
    if basic and api_key is not None:
        raise ConfigurationError("pass api_key= or a password in the url, not both: there is one header for them")
    headers = {"User-Agent": f"twinvec/{__version__}"}
    if key is not None and basic is None:
        if not key.isascii() or not key.isprintable():
            raise ConfigurationError("api_key cannot be sent in a header: it must be printable ASCII")
        headers["Authorization"] = f"Bearer {key}"

    def connect() -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=5)
        patience = httpx.Timeout(timeout, connect=min(timeout, 10), pool=None)
        return httpx.AsyncClient(
            base_url=shown, headers=headers, auth=basic, timeout=patience, limits=limits, transport=_TRANSPORT
        )

    return shown, connect


async def _in_turns(request: Callable[[_Part], Coroutine[Any, Any, _T]], parts: Iterator[_Part]) -> list[_T]:
    """Make the requests, a few at a time; return the answers in order. A failed one cancels the others."""
    answers: dict[int, _T] = {}
    numbered = enumerate(parts)

    async def work() -> None:
        for number, part in numbered:
            answers[number] = await request(part)

    workers = [asyncio.ensure_future(work()) for _ in range(_IN_FLIGHT)]
    try:
        await asyncio.gather(*workers)
    except BaseException:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        raise
    return [answers[number] for number in range(len(answers))]


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


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that a server wants to be left alone for."""
    seconds = response.headers.get("retry-after", "")
    return min(float(seconds), _LONGEST_WAIT) if seconds.isdecimal() else None


def _connected(url: str, options: dict[str, Any]) -> RemoteEmbedder:
    return RemoteEmbedder(url, **options)
