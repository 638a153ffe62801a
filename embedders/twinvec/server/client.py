"""RemoteEmbedder: an Embedder served over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from twinvec._version import __version__
from twinvec.base import BaseEmbedder, CheckedCall
from twinvec.errors import DeadlineError, RemoteError, TextError, TextTooLongError, TwinVecError
from twinvec.options import CallOptions, EmbedderOptions
from twinvec.server.remote import Remote, to_json
from twinvec.server.transport import Address, in_turns
from twinvec.server.wire import (
    FINGERPRINT,
    PROTOCOL,
    ServerInfo,
    check_batch,
    check_offsets,
    multi_limit,
    unpack_batch,
    unpack_offsets,
)
from twinvec.text.prompts import Role, Task
from twinvec.text.unicode import check_texts
from twinvec.vectors import EmbeddingBatch, Int64, MultiBatch, MultiVectors, SparseBatch

# One request: enough to fill a device, small enough for progress reports, timeouts and the server's memory.
_TEXTS = 256
_BODY_BYTES = 500_000
_ENVELOPE = 200  # bytes of a request besides its texts and prompt
_IN_FLIGHT = 4  # concurrent requests per call, so that the server never runs dry
_TERMS = 2**16  # sparse columns per request
_REMEMBERED_TERMS = 2**18
# the largest plausible responses, in bytes
_LARGEST_TERM = 4096
_LARGEST_HEAD = 2**16

_T = TypeVar("_T")


class RemoteEmbedder(Remote, BaseEmbedder):
    """Dense and sparse vectors from a model held by ``twinvec serve``; the same interface as Embedder.

    ``spec`` and its fingerprint are those of the server's Embedder, so a store created with one opens with the other.
    Texts are sent in bounded requests, a few at a time. Failed connections and overloaded servers are retried. Calls
    raise the same errors as Embedder, plus RemoteError when the server gives no usable response. Thread safe, and
    usable from any number of event loops; cancelling a call cancels its requests and the work on the server. Pickles
    contain the address without its password, and never the key; copies return the same object.

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
        """Connect, and fetch the description of the server's model.

        Args:
            url: the server's address, for example "http://127.0.0.1:8000". "http://user:password@host" is for a proxy
                that requires basic authentication, instead of a key.
            api_key: the server's key; sent to this address only. Default: TWINVEC_API_KEY, provided that TWINVEC_URL is
                this address or unset.
            timeout: seconds per request, from its first byte to the last byte of the response, retries included; a call
                with many texts makes several requests.
            retries: how many times a request is repeated, with back-off, after a connection failure or when the server
                is overloaded (status 429, 502 or 503; its Retry-After is honoured). If the connection broke after the
                request was sent, each retry may make the server compute it again.
            from_data: ``url`` comes from a file or a message: TWINVEC_API_KEY is sent only if TWINVEC_URL is that
                address.

        Raises:
            RemoteError: no server responds at this address, it requires another key, or it runs an incompatible
                version.
            ConfigurationError: invalid arguments.
        """
        super().__init__(Address.parse(url, api_key, timeout, retries, from_data=from_data))
        self._terms: dict[int, str] = {}
        try:
            self._learn(self.asking("/v1/twinvec/info").blocking())
        except BaseException:
            self.close()
            raise

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
        return self.asking("/v1/twinvec/stats").blocking()

    @property
    def healthy(self) -> bool:
        """Ask the server whether calls can be answered."""
        try:
            return bool(self.stats()["healthy"])
        except TwinVecError:
            return False

    @property
    def multi_vectors(self) -> MultiVectors | None:
        """Return how the model gives vectors of single tokens, if it does."""
        return self._info.multi

    @property
    def family(self) -> str:
        """Return the name of the checkpoint family."""
        return self._info.family

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
                f"{self.url} runs TwinVec {str(info['version'])[:40]}, which is incompatible with {__version__} here: "
                "install the same version on both sides"
            )
        try:
            known = ServerInfo.parse(info)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise RemoteError(
                f"{self.url} is not a TwinVec server that this version understands: {str(error)[:200]!r}"
            ) from None
        self._info = known
        self.spec, self._prompts = known.spec, known.template
        self.options = EmbedderOptions(task=known.task, prompts=known.prompts or None)
        self._max_texts = min(_TEXTS, known.max_texts)

    async def _compute(self, asked: CheckedCall, wanted: CallOptions) -> EmbeddingBatch:
        with _progress(asked, wanted.show_progress) as progress:
            return await self._on_line(functools.partial(self._batch, asked, wanted.timeout, progress))

    async def _batch(
        self, call: CheckedCall, timeout: float | None, progress: Callable[[int], object] | None = None
    ) -> EmbeddingBatch:
        # send the prompt that prompt_for shows, even if the server would choose another one by now
        asked = {"role": call.role.value, "prompt": call.prompt, "dense": call.dense, "sparse": call.sparse}
        dim = (self.dim or 0) if call.dense else None
        columns = (self._info.columns or 0) if call.sparse else None
        multi_dim = (self._info.multi_dim or 0) if call.multi else None
        row = 4 * (dim or 0) + 8 * min(columns or 0, 2**15) + 24
        most = None
        if multi_dim is not None:
            asked["multi"] = True
            most = multi_limit(multi_dim, self.max_length)

        def unpack(data: bytes, part: _Part) -> EmbeddingBatch:
            batch = unpack_batch(data)
            check_batch(batch, rows=len(part.texts), dim=dim, columns=columns, multi_dim=multi_dim)
            return batch

        async def request(part: _Part) -> EmbeddingBatch:
            largest = row * len(part.texts) + 4 * (multi_dim or 0) * (most or 0)
            batch = await self._vectors("embed", asked, part, largest, unpack)
            if progress is not None:
                progress(len(part.texts))
            return batch

        try:
            parts = self._parts(call.texts, asked, most)
            return _stacked(await asyncio.wait_for(in_turns(request, parts, _IN_FLIGHT), timeout))
        except DeadlineError:  # raised by the server; also a TimeoutError
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
        # "#" and a number: a BM25 term that the server has not seen yet
        known = {key: term for key, term in found.items() if not term.startswith("#")}
        self._terms = {**self._terms, **known} if len(self._terms) < _REMEMBERED_TERMS else known
        return found

    async def _some_terms(self, keys: list[int]) -> list[str]:
        body = to_json({"keys": keys})
        answer = await self._json_of("/v1/twinvec/terms", body, _LARGEST_TERM * len(keys) + _LARGEST_HEAD)
        terms = answer.get("terms")
        if not isinstance(terms, list) or len(terms) != len(keys) or not all(isinstance(t, str) for t in terms):
            raise RemoteError(f"{self.url} did not return the terms of {len(keys)} columns")
        return terms

    def _parts(self, texts: list[str], asked: dict[str, Any], most_tokens: int | None = None) -> Iterator[_Part]:
        """Yield the parts of a call, one per request; no texts give a single empty part, which yields empty arrays."""
        rest = len(to_json(asked))
        room = self._info.max_body_bytes - rest - _ENVELOPE
        chunk = min(_BODY_BYTES, room)
        part, size, tokens = _Part(0, [], []), 0, 0
        for i, text in enumerate(texts):
            encoded = to_json(text)
            # at most a token for each byte
            own = min(len(encoded) + rest + self._info.special_tokens, self.max_length)
            if len(encoded) > room:
                reason = f"has {len(encoded)} bytes as JSON, {self.url} accepts {max(room, 0)}: split it"
                raise TextTooLongError(reason, position=i)
            full = len(part.texts) == self._max_texts or size + len(encoded) + 1 > chunk
            if part.texts and (full or (most_tokens is not None and tokens + own > most_tokens)):
                yield part
                part, size, tokens = _Part(i, [], []), 0, 0
            part.texts.append(text)
            part.encoded.append(encoded)
            size += len(encoded) + 1
            tokens += own
        yield part

    async def _vectors(
        self, route: str, asked: dict[str, Any], part: _Part, largest: int, unpack: Callable[[bytes, _Part], _T]
    ) -> _T:
        fields = [b'"%s":%s' % (name.encode(), to_json(value)) for name, value in asked.items()]
        body = b"{" + b",".join([*fields, b'"texts":[' + b",".join(part.encoded) + b"]"]) + b"}"
        try:
            answer = await self._ask(f"/v1/twinvec/{route}", largest + _LARGEST_HEAD, body)
        except TextError as error:
            raise error.moved(part.start) from None
        if answer.headers.get(FINGERPRINT) != self.spec.fingerprint:
            raise RemoteError(f"{self.url} serves a different model now: create a new RemoteEmbedder")
        try:
            return unpack(answer.content, part)
        except ValueError as error:
            raise RemoteError(f"{self.url} returned invalid vectors: {error}") from None


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
    """The texts of one request, their JSON, and the position of the first one in the caller's list."""

    start: int
    texts: list[str]
    encoded: list[bytes]


def _stacked(batches: list[EmbeddingBatch]) -> EmbeddingBatch:
    if len(batches) == 1:
        return batches[0]
    dense = [batch.dense for batch in batches if batch.dense is not None]
    sparse = [batch.sparse for batch in batches if batch.sparse is not None]
    multi = [rows for batch in batches if batch.multi is not None for rows in batch.multi]
    return EmbeddingBatch(
        np.concatenate(dense) if dense else None,
        SparseBatch.stack(sparse) if sparse else None,
        np.concatenate([batch.token_counts for batch in batches]),
        np.concatenate([batch.truncated for batch in batches]),
        MultiBatch.stack(multi) if multi else None,
    )


def _connected(url: str, options: dict[str, Any]) -> RemoteEmbedder:
    return RemoteEmbedder(url, **options)
