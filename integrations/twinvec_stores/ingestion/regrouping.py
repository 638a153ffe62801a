"""Stored chunks whose vectors depend on their documents: these are put together again, for vectors of another model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from twinvec.errors import ConfigurationError
from twinvec_stores.ingestion.context import Contexts
from twinvec_stores.ingestion.embedding import embed
from twinvec_stores.ingestion.items import Item
from twinvec_stores.ingestion.spans import Span
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import Record, RecordBatch
from twinvec_stores.tokens import kept_tokens

if TYPE_CHECKING:
    from twinvec import BaseEmbedder

_TOGETHER = 256  # chunks that are embedded together, if a document has fewer


class _Whole(NamedTuple):
    """A document, and the records of all its chunks in order."""

    text: str
    records: list[Record]


def needs_document(record: Record) -> bool:
    """Return whether a record's vector depends on what is around it in its document."""
    return "chunk_context" in record.provenance


class Regrouping:
    """Embeds chunks with their documents.

    Attributes:
        incomplete: documents that could not be put together, as chunks of them are missing or half written.
    """

    def __init__(self, store: HybridStore, embedder: BaseEmbedder, token_pool: int | None = None) -> None:
        self._store, self._embedder, self._pool = store, embedder, token_pool
        self._contexts = functools.cache(functools.partial(_contexts, embedder))
        self.incomplete: set[str] = set()

    def embed(self, chunks: Sequence[Record]) -> Iterator[RecordBatch]:
        """Yield all records of these chunks' documents with vectors, some documents at a time.

        Raises:
            ConfigurationError: the model does not support what the chunks were made with.
        """
        for kind in sorted({chunk.provenance["chunk_context"] for chunk in chunks}):
            own = [chunk for chunk in chunks if chunk.provenance["chunk_context"] == kind]
            ready: list[_Whole] = []
            for name, count in {chunk.provenance["document"]: chunk.provenance["chunks"] for chunk in own}.items():
                whole = self._whole(name, count)
                if whole is None:
                    self.incomplete.add(name)
                    continue
                ready.append(whole)
                if sum(len(whole.records) for whole in ready) >= _TOGETHER:
                    yield self._embedded(ready, self._contexts(kind))
                    ready = []
            if ready:
                yield self._embedded(ready, self._contexts(kind))

    def _whole(self, name: str, count: int) -> _Whole | None:
        """Return a document, if all of its chunks are from one ingest of it."""
        records = self._store.get([f"{name}#{i}" for i in range(count)])
        origins = {
            (r.provenance.get("document"), r.provenance.get("hash"), r.provenance.get("chunks")) for r in records
        }
        if len(records) != count or len(origins) > 1 or (name, None, count) in origins:
            return None
        pieces = [(record.provenance["start"], record.text) for record in records]
        text = ""
        for start, piece in sorted([*pieces, *map(tuple, records[0].provenance.get("skipped", []))]):
            text += piece[len(text) - start :]
        return _Whole(text, records)

    def _embedded(self, documents: Sequence[_Whole], contexts: Contexts) -> RecordBatch:
        items = []
        for whole, cuts in zip(documents, contexts.tokens.cuts([whole.text for whole in documents]), strict=True):
            origins = [record.provenance for record in whole.records]
            item = Item(0, str(origins[0]["document"]), 0, text=whole.text)
            spans = [Span(origin["start"], origin["end"]) for origin in origins]
            item.spans, item.windows, item.beginning = contexts.divide(cuts, spans)
            if contexts.with_headings:
                item.contexts = [origin.get("context", "") for origin in origins]
            items.append(item)
        vectors = embed(items, self._embedder, self._pool)
        records = RecordBatch.of([record for whole in documents for record in whole.records])
        tokens = kept_tokens(vectors, self._pool)
        return replace(records, dense=vectors.dense, sparse=vectors.sparse, tokens=tokens)


def _contexts(embedder: BaseEmbedder, kind: Any) -> Contexts:
    try:
        return Contexts(embedder, kind)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"the store's chunks have the context {kind!r}: {error}. Ingest the documents into a new store"
        ) from None
