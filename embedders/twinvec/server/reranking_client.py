"""RemoteReranker: a Reranker served over HTTP."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from twinvec.errors import ConfigurationError, DeadlineError, RemoteError, TextError, TwinVecError
from twinvec.options import EmbedderOptions
from twinvec.scoring import BaseReranker, ScoreOptions, Scores
from twinvec.server.remote import Remote
from twinvec.server.transport import Address
from twinvec.server.wire import task_from_json
from twinvec.spec import ModelSpec
from twinvec.text.prompts import Task

_PAIRS = 256  # per request
_BODY_BYTES = 500_000
_ROUTE = "/v1/twinvec/rerankers"


class RemoteReranker(Remote, BaseReranker):
    """Relevance scores from a reranker held by ``twinvec serve --reranker``; the same interface as Reranker.

    Pairs are sent in bounded requests. Calls raise the same errors as Reranker, plus RemoteError when the server gives
    no usable response. Thread safe, and usable from any number of event loops. Pickles contain the address, and never
    the key.

    Examples:
        >>> reranker = RemoteReranker("http://127.0.0.1:8000")
        >>> reranker.rerank("capital of France?", ["Paris is the capital of France.", "Berlin"], top_n=1)[0].index
        0
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
    ) -> None:
        """Connect, and fetch the description of the reranker; see ``RemoteEmbedder`` for the other arguments.

        Args:
            url: the server's address.
            model: the reranker's name on the server; None: its first.
            api_key: the server's key.
            timeout: seconds per request.
            retries: how many times a request is repeated.

        Raises:
            RemoteError: no server responds at this address, or it serves no such reranker.
            ConfigurationError: invalid arguments.
        """
        super().__init__(Address.parse(url, api_key, timeout, retries, from_data=False))
        self._wanted, self._kept = model, {"timeout": timeout, "retries": retries}
        try:
            described = self.asking(_ROUTE).blocking()
            known = described["rerankers"]
            self._name = next(iter(known)) if model is None else model
            info, limits = known[self._name], described["limits"]
            self.spec, self._family = ModelSpec(**info["spec"]), str(info["family"])
            self.options = EmbedderOptions(task=task_from_json(info["task"]))
            self._max_pairs = max(min(_PAIRS, int(limits["max_texts"])), 1)
            self._max_bytes = min(_BODY_BYTES, int(limits["max_body_bytes"]) // 2)
            if self.spec.fingerprint != info["fingerprint"] or self.spec.max_length is None:
                raise ValueError("its spec is incomplete")
        except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
            self.close()
            raise RemoteError(f"{self.url} serves no reranker {model or ''}: {str(error)[:200]!r}") from None
        except TwinVecError as error:
            self.close()
            raise RemoteError(f"{self.url} serves no reranker: {str(error)[:200]}") from None

    @property
    def family(self) -> str:
        """Return the name of the checkpoint family."""
        return self._family

    def stats(self) -> dict[str, Any]:
        """Return the counters of the server's Reranker; see ``Embedder.stats``."""
        try:
            stats = self.asking(_ROUTE).blocking()["rerankers"][self._name]["stats"]
        except (KeyError, TypeError) as error:
            raise RemoteError(f"{self.url} does not serve {self._name} any more") from error
        return dict(stats)

    @property
    def healthy(self) -> bool:
        """Ask the server whether calls can be answered."""
        try:
            return bool(self.stats()["healthy"])
        except (TwinVecError, KeyError):
            return False

    def __reduce__(self) -> tuple[Any, ...]:
        return _connected, (self.url, {"model": self._wanted, **self._kept})

    def __repr__(self) -> str:
        return f"RemoteReranker({self.url!r}, model={self.spec.model!r})"

    async def _compute(self, pairs: Sequence[tuple[str, str]], options: ScoreOptions) -> Scores:
        from tqdm.auto import tqdm

        end = math.inf if options.timeout is None else time.monotonic() + options.timeout
        task = asdict(options.task) if isinstance(options.task, Task) else options.task
        asked = {"model": self._name, "task": task, "activation": options.activation, "windows": options.windows}
        values: list[float] = []
        truncated: list[bool] = []
        with tqdm(total=len(pairs), unit="pair", desc="Scoring pairs", disable=not options.show_progress) as bar:
            for part in self._parts(pairs):
                left = end - time.monotonic()
                if left <= 0:
                    raise DeadlineError(f"{len(pairs)} pairs were not scored within {options.timeout} s")
                limit = {} if math.isinf(left) else {"timeout": left}
                try:
                    answer = await self.asking("/v1/twinvec/score", {"pairs": part, **asked, **limit})
                except TextError as error:
                    raise error.moved(len(values)) from None
                values += _checked(answer.get("scores"), len(part), self.url, (int, float))
                truncated += _checked(answer.get("truncated"), len(part), self.url, (bool,))
                bar.update(len(part))
        return Scores(np.array(values, np.float32), np.array(truncated, np.bool_))

    def _parts(self, pairs: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
        part: list[tuple[str, str]] = []
        size = 0
        for position, pair in enumerate(pairs):
            length = len(json.dumps(pair, ensure_ascii=False).encode())
            if length > 2 * self._max_bytes:
                raise ConfigurationError(
                    f"pair {position} has {length} bytes as JSON, too many for {self.url}: split it"
                )
            if part and (len(part) == self._max_pairs or size + length > self._max_bytes):
                yield part
                part, size = [], 0
            part.append(pair)
            size += length + 1
        if part:
            yield part


def _checked(values: Any, n: int, url: str, kinds: tuple[type, ...]) -> list[Any]:
    numbers = isinstance(values, list) and len(values) == n and all(type(value) in kinds for value in values)
    with np.errstate(over="ignore"):
        valid = numbers and np.isfinite(np.array(values, np.float32)).all()
    if not valid:
        raise RemoteError(f"{url} did not return {n} valid scores")
    found: list[Any] = values
    return found


def _connected(url: str, options: dict[str, Any]) -> RemoteReranker:
    return RemoteReranker(url, **options)
