"""Writing documents so that the next run can repair whatever a killed one leaves behind.

The head of a document (its only record, or chunk 0) carries the hash, which means that everything is there. While more
than one record changes, the head says instead that nothing is certain, and how many chunks there may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twinvec.vectors import EmbeddingBatch
from twinvec_stores.ingestion.items import Embedded, Item
from twinvec_stores.ingestion.seen import Seen
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import Record, RecordBatch
from twinvec_stores.tokens import kept_tokens

_PAGE = 1000


def write(embedded: Embedded, store: HybridStore) -> None:
    """Replace the records that the store has of these documents."""
    rows = _rows(embedded)
    heads = [row for row, (_, chunk) in enumerate(rows) if chunk == 0]
    unsure = [row for row in heads if max(len(rows[row][0].spans), rows[row][0].known_chunks) > 1]
    body = [row for row, (_, chunk) in enumerate(rows) if chunk > 0]
    for chosen, certain in ((unsure, False), (body, True)):
        _upsert(store, embedded.batch, rows, chosen, certain)
    _delete_stale(store, embedded.items)
    _upsert(store, embedded.batch, rows, heads, True)


def records(embedded: Embedded) -> RecordBatch:
    """Return the records of these documents, for a place where nothing is replaced."""
    rows = _rows(embedded)
    return _records(embedded.batch, rows, range(len(rows)), True, None)


def prune(store: HybridStore, seen: Seen) -> int:
    """Delete previously ingested documents that are not in the source; return how many."""
    for page, missing in _missing(store, seen):
        owners: dict[str, str] = {}
        for record in page:
            if (name := _document(record)) in missing:
                # together with all its chunks, so that none is ever left alone
                owners |= {f"{name}#{i}": name for i in range(record.provenance.get("chunks", 0))}
                owners[record.id] = name
        _delete(store, owners)
    return seen.missed()


def too_many(store: HybridStore, seen: Seen, share: float) -> str:
    """Return why nothing is to be deleted where more than this share of the documents would be; else nothing."""
    documents = 0
    for page, _ in _missing(store, seen):
        documents += sum(_document(record) != "" and not record.provenance.get("chunk") for record in page)
    if (missing := seen.missed()) <= share * documents:
        return ""
    return (
        f"{missing:,} of {documents:,} documents are not in the source, which is more than a share of {share:g}: if "
        f"that is meant, pass a greater prune_share (--prune-share)"
    )


def _missing(store: HybridStore, seen: Seen) -> Iterator[tuple[Sequence[Record], set[str]]]:
    """Yield all records in pages, each with the names of its documents that the source does not have."""
    for page in store.scroll_all(limit=_PAGE):
        yield page, seen.missing({_document(record) for record in page} - {""})


def _document(record: Record) -> str:
    """Return the name of the document that a record was ingested with; "" where it was not."""
    name = record.provenance.get("document") if "hash" in record.provenance else None
    return name if isinstance(name, str) else ""


def _rows(embedded: Embedded) -> list[tuple[Item, int]]:
    """Return the document and the chunk of each row, and note on the documents which were cut."""
    rows = [(item, chunk) for item in embedded.items for chunk in range(len(item.spans))]
    cut = embedded.batch.truncated
    for row, (item, _) in enumerate(rows):
        item.truncated |= bool(cut[row])
    return rows


def _upsert(
    store: HybridStore, batch: EmbeddingBatch, rows: Sequence[tuple[Item, int]], chosen: Sequence[int], certain: bool
) -> None:
    if chosen:
        store.upsert(_records(batch, rows, chosen, certain, store.config.token_pool))


def _records(
    batch: EmbeddingBatch, rows: Sequence[tuple[Item, int]], chosen: Sequence[int], certain: bool, pool: int | None
) -> RecordBatch:
    vectors = batch if len(chosen) == len(rows) else batch[chosen]
    items = [rows[row] for row in chosen]
    return RecordBatch(
        ids=[item.record_id(chunk) for item, chunk in items],
        texts=[item.text[item.spans[chunk].start : item.spans[chunk].end] for item, chunk in items],
        dense=vectors.dense,
        sparse=vectors.sparse,
        metadata=[item.metadata for item, _ in items],
        provenance=[_provenance(item, chunk, certain) for item, chunk in items],
        tokens=kept_tokens(vectors, pool),
    )


def _provenance(item: Item, chunk: int, certain: bool) -> dict[str, Any]:
    origin: dict[str, Any] = {"document": item.id, "hash": item.hash if certain else None}
    if item.chunked:
        chunks = len(item.spans) if certain else max(len(item.spans), item.known_chunks)
        origin |= {"chunk": chunk, "chunks": chunks, **item.spans[chunk]._asdict()}
        if item.contexts and item.contexts[chunk]:
            origin["context"] = item.contexts[chunk]
        if item.windows or item.beginning is not None:  # whoever embeds it again needs its document
            origin["chunk_context"] = "late" if item.windows else "document"
            if chunk == 0 and item.skipped:
                origin["skipped"] = item.skipped
    return origin


def _delete_stale(store: HybridStore, items: Sequence[Item]) -> None:
    owners = {id: str(item.id) for item in items for id in item.stale}
    for item in items:
        if item.chunked:
            surplus = range(len(item.spans), item.known_chunks)
            owners |= {item.record_id(chunk): str(item.id) for chunk in surplus}
    _delete(store, owners)


def _delete(store: HybridStore, owners: Mapping[str, str]) -> None:
    """Delete records that still belong to these documents: "a#1" may also be a document's own id."""
    found = store.get(list(owners)) if owners else []
    stale = [record.id for record in found if record.provenance.get("document") == owners[record.id]]
    if stale:
        store.delete(stale)
