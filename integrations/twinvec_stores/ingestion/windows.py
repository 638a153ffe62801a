"""From rows to pages, and from pages to windows: the state of each document, its chunks, and how to group them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from twinvec_stores.ingestion.chunking import Chunker
from twinvec_stores.ingestion.documents import Parser, content_hash
from twinvec_stores.ingestion.items import Item
from twinvec_stores.ingestion.rows import BadRowError
from twinvec_stores.ingestion.seen import Seen
from twinvec_stores.ingestion.spans import Span
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import Record

if TYPE_CHECKING:
    from twinvec_stores.ingestion.readers import Row
    from twinvec_stores.ingestion.sources import Source

_CHARACTERS = 250_000  # per window; a longer document gets a window of its own


class Reader:
    """Reads a source."""

    def __init__(
        self,
        source: Source,
        parser: Parser,
        seen: Seen,
        *,
        chunked: bool,
        recipe: Sequence[Any],
        batch_size: int,
        page: int,
        stop: bool,
    ) -> None:
        """Prepare to read.

        Args:
            source: the source.
            parser: turns rows into documents.
            seen: the documents seen so far.
            chunked: whether texts will be split.
            recipe: whatever determines records besides text and metadata.
            batch_size: records per window.
            page: windows per page.
            stop: read nothing after a bad row.
        """
        self._source, self._parser, self._seen = source, parser, seen
        self._chunked, self._recipe, self._stop = chunked, recipe, stop
        self._rows, self._characters = batch_size * page, _CHARACTERS * page

    def pages(self) -> Generator[list[Item], None, None]:
        """Yield consecutive rows in pages of a limited number of rows and characters, or of one document."""
        page: list[Item] = []
        characters = 0
        rows = self._source.rows()
        try:
            for number, row in enumerate(rows):
                page.append(self._load(number, row))
                characters += len(page[-1].text)
                stopped = self._stop and page[-1].outcome == "failed"
                if len(page) == self._rows or characters >= self._characters or stopped:
                    yield page
                    page, characters = [], 0
                if stopped:
                    return
            if page:
                yield page
        finally:
            rows.close()

    def _load(self, number: int, row: Row) -> Item:
        item = Item(number, row.where, row.end, chunked=self._chunked)
        try:
            document = self._parser.parse(row.load(), row.table)
        except BadRowError as error:
            item.id = error.id
            if error.id is not None:
                self._seen.mention(error.id)
            item.fail(str(error))
            return item
        assert document.id is not None
        item.id, item.text, item.metadata = document.id, document.text, document.metadata
        if (taken := self._seen.claim(document.id, row.where)) is not None:
            item.fail(f"the id {document.id!r} was read before: {taken}")
            return item
        item.hash = content_hash(item.text, item.metadata, *self._recipe)
        return item


def divide(items: Sequence[Item], chunker: Chunker | None, batch_size: int) -> Iterator[list[Item]]:
    """Split the texts that are to be written; yield windows of a limited number of records and characters."""
    _split([item for item in items if item.pending], chunker)
    window: list[Item] = []
    records = characters = 0
    for item in items:
        size, length = len(item.spans), sum(span.end - span.start for span in item.spans)
        if records and (records + size > batch_size or characters + length > _CHARACTERS):
            yield window
            window, records, characters = [], 0, 0
        window.append(item)
        records, characters = records + size, characters + length
    if window:
        yield window


def _split(items: Sequence[Item], chunker: Chunker | None) -> None:
    if chunker is None:
        for item in items:
            item.spans = [Span(0, len(item.text))]
        return
    divided = chunker.divide([item.text for item in items])
    for item, (item.spans, item.windows, item.beginning) in zip(items, divided, strict=True):
        item.contexts = chunker.headings(item.text, item.metadata, item.spans)


def compare(items: Sequence[Item], store: HybridStore) -> None:
    """Look up what the store has of each document: the head of its records, which is written last, tells."""
    read = [item for item in items if item.outcome != "failed"]
    heads = [id for item in read for id in (str(item.id), f"{item.id}#0")]
    found = {record.id: record for record in store.get(heads)} if heads else {}
    for item in read:
        whole, first = found.get(str(item.id)), found.get(f"{item.id}#0")
        own, other = (first, whole) if item.chunked else (whole, first)
        owner = None if own is None else own.provenance.get("document")
        if own is not None and isinstance(owner, str) and owner != item.id:
            item.fail(f"its record {own.id!r} is a part of another document, {owner!r}")
            continue
        if other is not None and other.provenance.get("document") == item.id:
            item.stale = [other.id] if item.chunked else [f"{item.id}#{i}" for i in range(_chunks(other))]
        if own is not None:
            item.known_chunks = _chunks(own)
        if own is not None and own.provenance.get("hash") == item.hash and not item.stale:
            item.outcome = "unchanged"
        elif own is not None or item.stale:
            item.outcome = "changed"


def _chunks(head: Record) -> int:
    return int(head.provenance.get("chunks", 1))
