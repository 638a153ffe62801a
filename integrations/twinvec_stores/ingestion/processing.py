"""What happens to rows between reading and counting them: compared, split, embedded, here or by other processes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from twinvec.errors import ConfigurationError
from twinvec_stores.config import StoreConfig
from twinvec_stores.ingestion.chunking import Chunker
from twinvec_stores.ingestion.embedding import EmbeddingThread
from twinvec_stores.ingestion.items import Item, Processed
from twinvec_stores.ingestion.windows import compare, divide
from twinvec_stores.protocol import HybridStore

if TYPE_CHECKING:
    from twinvec import BaseEmbedder
    from twinvec_stores.ingestion.options import Options


class Pending(Protocol):
    """What becomes of a window."""

    def result(self) -> Processed:
        """Wait for it."""


class Processor(AbstractContextManager[Any], Protocol):
    """Processes pages of rows in parallel with the reader.

    Attributes:
        ahead: how many results may be waiting for the one that is being written.
        page: how many times ``batch_size`` rows make a page.
    """

    ahead: int
    page: int

    @property
    def config(self) -> StoreConfig:
        """Return what the vectors are that it makes."""

    def submit(self, items: Sequence[Item]) -> Sequence[Pending]:
        """Start processing consecutive rows; the results are in their order."""

    def status(self) -> str:
        """Return what to add to the progress bar."""

    def cancel(self) -> None:
        """Cancel everything in flight, from any thread."""


class LocalProcessor:
    """Compares and splits in the caller's thread, and embeds in this process."""

    ahead: int = 2
    page: int = 1

    def __init__(
        self, embedder: BaseEmbedder, store: HybridStore | None, options: Options, token_pool: int | None = None
    ) -> None:
        """Prepare to process.

        Args:
            embedder: the model.
            store: what the rows are compared with; None: they have been compared.
            options: of the ingest.
            token_pool: the target's ``StoreConfig.token_pool``.

        Raises:
            ConfigurationError: the model or the target does not support the chunks.
        """
        if token_pool is not None and options.chunk_context == "late":
            raise ConfigurationError('the store keeps vectors of tokens, which chunk_context="late" does not give')
        self._config = StoreConfig.for_embedder(embedder)
        self._store, self._batch_size = store, options.batch_size
        self._chunker = (
            None
            if options.chunk_tokens is None
            else Chunker(embedder, options.chunk_tokens, options.overlap_tokens, options.chunk_context)
        )
        self._embedding = EmbeddingThread(embedder, token_pool)

    @property
    def config(self) -> StoreConfig:
        """Return what the vectors are that it makes."""
        return self._config

    def submit(self, items: Sequence[Item]) -> Sequence[Future[Processed]]:
        """Compare and split rows, and start embedding them."""
        if self._store is not None:
            compare(items, self._store)
        return [self._embedding.submit(window) for window in divide(items, self._chunker, self._batch_size)]

    def status(self) -> str:
        """Return nothing: the bar says it all."""
        return ""

    def cancel(self) -> None:
        """Cancel everything in flight."""
        self._embedding.cancel()

    def __enter__(self) -> LocalProcessor:
        self._embedding.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._embedding.__exit__(*raised)
