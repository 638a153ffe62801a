"""Embedding in parallel with a reader and a writer: several windows at once, cancellable, isolating single bad
texts."""

from __future__ import annotations

import asyncio
import re
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from twinvec.errors import TextError, TruncationWarning
from twinvec_stores.ingestion.items import Embedded, Item, Processed
from twinvec_stores.ingestion.spans import Span
from twinvec_stores.tokens import asking

if TYPE_CHECKING:
    from twinvec import BaseEmbedder, EmbeddingBatch


class EmbeddingThread:
    """A private event loop on which windows are embedded."""

    def __init__(self, embedder: BaseEmbedder, token_pool: int | None = None) -> None:
        """Prepare to embed for a store with this ``StoreConfig.token_pool``."""
        self._embedder, self._pool = embedder, token_pool
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._running: set[Future[Processed]] = set()
        self._thread = threading.Thread(target=self._run, name="twinvec-ingest-embed", daemon=True)

    def submit(self, items: Sequence[Item]) -> Future[Processed]:
        """Start embedding the rows that are to be written; those that cannot be embedded fail and get no vectors."""
        future: Future[Processed] = Future()
        if not any(item.pending for item in items):
            future.set_result(Processed(items, []))
            return future
        future = asyncio.run_coroutine_threadsafe(self._embed(items), self._loop.result())
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def cancel(self) -> None:
        """Cancel everything in flight."""
        for future in list(self._running):
            future.cancel()

    def __enter__(self) -> EmbeddingThread:
        self._thread.start()
        self._loop.result()
        return self

    def __exit__(self, *raised: object) -> None:
        self._loop.result().call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        # the report counts truncated texts; warning filters are global, so this one, for calls from here, simply stays
        warnings.filterwarnings("ignore", category=TruncationWarning, module=re.escape(__name__))
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._loop.set_result(asyncio.get_running_loop())
        await self._stop.wait()  # asyncio.run cancels whatever is still running

    async def _embed(self, items: Sequence[Item]) -> Processed:
        done: list[Embedded] = []
        left: list[Sequence[Item]] = [[item for item in items if item.pending]]
        while left:
            group = left.pop()
            try:
                batch = await self._vectors(group)
            except TextError as error:
                bad = _culprit(error, group)
                if bad is None:
                    raise
                # halve: if many texts are bad, not everything is retried for each of them
                rest = bad + 1 + (len(group) - bad) // 2
                left += [part for part in (group[rest:], group[bad + 1 : rest], group[:bad]) if part]
                continue
            done += _without_zeros(Embedded(group, batch))
        return Processed(items, done)

    async def _vectors(self, items: Sequence[Item]) -> EmbeddingBatch:
        texts, windows = _inputs(items)
        return _mixed(items, await self._embedder.aembed_documents(texts, **_keywords(windows, self._pool)))


def embed(items: Sequence[Item], embedder: BaseEmbedder, token_pool: int | None) -> EmbeddingBatch:
    """Return a row for each record of these documents."""
    texts, windows = _inputs(items)
    return _mixed(items, embedder.embed_documents(texts, **_keywords(windows, token_pool)))


def _keywords(windows: list[Sequence[Span]] | None, token_pool: int | None) -> dict[str, Any]:
    """Return what is asked beyond plain vectors."""
    return ({} if windows is None else {"spans": windows}) | asking(token_pool)


def _inputs(items: Sequence[Item]) -> tuple[list[str], list[Sequence[Span]] | None]:
    """Return the texts to embed and, for late chunking, the spans of each."""
    texts = [part for item in items for part in item.parts]
    if windows := [window.chunks for item in items for window in item.windows]:
        return texts, windows  # a run has them for all documents or for none
    texts += [item.text[item.beginning.start : item.beginning.end] for item in items if item.beginning is not None]
    return texts, None


def _mixed(items: Sequence[Item], batch: EmbeddingBatch) -> EmbeddingBatch:
    """Return the rows of chunks, each normalised after adding that of its document's beginning, which come last."""
    starts = np.cumsum([0, *(len(item.spans) for item in items)])
    chunks = batch[: starts[-1]]
    if chunks.dense is None or len(chunks) == len(batch):
        return chunks
    assert batch.dense is not None
    dense, beginnings = chunks.dense.copy(), iter(batch.dense[starts[-1] :])
    for item, start, end in zip(items, starts[:-1], starts[1:], strict=True):
        if item.beginning is not None:
            dense[start:end] += next(beginnings)
    dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    dense[~chunks.dense.any(axis=1)] = 0  # a chunk without a vector stays one
    return replace(chunks, dense=dense)


def _culprit(error: TextError, items: Sequence[Item]) -> int | None:
    """Fail the document that an error is about; return its position."""
    if error.position is None:
        return None
    owners = [(i, str(part)) for i, item in enumerate(items) for part in range(len(item.parts))]
    owners += [(i, "of its beginning") for i, item in enumerate(items) if item.beginning is not None]
    position, part = owners[error.position]
    item = items[position]
    kind = "window" if item.windows else "chunk"
    item.fail(f"{'the text' if len(item.parts) == 1 else f'{kind} {part}'} {error.reason}")
    return position


def _without_zeros(embedded: Embedded) -> list[Embedded]:
    """Fail documents that got a zero vector, which has no direction."""
    dense = embedded.batch.dense
    if dense is None or dense.any(axis=1).all():
        return [embedded]
    owners = np.repeat(np.arange(len(embedded.items)), [len(item.spans) for item in embedded.items])
    bad = set(owners[~dense.any(axis=1)].tolist())
    for i in bad:
        embedded.items[i].fail("the model returned a vector of zeros")
    kept = [item for i, item in enumerate(embedded.items) if i not in bad]
    return [Embedded(kept, embedded.batch[~np.isin(owners, list(bad))])] if kept else []
