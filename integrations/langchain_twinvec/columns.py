"""Texts, metadata and ids as columns, as in LangChain's stores: checked, in batches, and as documents."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document

from twinvec.errors import ConfigurationError, InvalidRecordError

AT_ONCE = 4096  # documents embedded before they are written


def in_batches(
    texts: Iterable[str],
    metadatas: Sequence[Mapping[str, Any] | None] | None,
    ids: Sequence[str | None] | None,
    size: int,
) -> Iterator[dict[str, Any]]:
    """Yield arguments for ``HybridIndex.add``."""
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings, not one string: pass [text]")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigurationError(f"batch_size={size!r} must be an integer of at least 1")
    rows = list(texts)
    for name, column in (("metadatas", metadatas), ("ids", ids)):
        if column is not None and len(column) != len(rows):
            raise InvalidRecordError(f"{len(rows)} texts but {len(column)} {name}")
    names = [str(uuid.uuid4()) if id is None else id for id in ids or [None] * len(rows)]
    data = [each or {} for each in metadatas or [None] * len(rows)]
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        yield {"texts": rows[part], "ids": names[part], "metadata": data[part]}


def as_documents(
    texts: Iterable[str], metadatas: Sequence[Mapping[str, Any] | None] | None, ids: Sequence[str | None] | None
) -> list[Document]:
    """Return columns as documents."""
    rows = [row for batch in in_batches(texts, metadatas, ids, AT_ONCE) for row in zip(*batch.values(), strict=True)]
    return [Document(id=id, page_content=text, metadata=dict(metadata)) for text, id, metadata in rows]


def as_columns(
    documents: Sequence[Document], ids: Sequence[str | None] | None = None, batch_size: int = AT_ONCE
) -> dict[str, Any]:
    """Return the arguments of ``_add`` for documents."""
    for position, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TypeError(
                f"documents[{position}] is a {type(document).__name__}, not a Document: use add_texts for texts"
            )
    return {
        "texts": [document.page_content for document in documents],
        "metadatas": [document.metadata for document in documents],
        "ids": [document.id for document in documents] if ids is None else ids,
        "batch_size": batch_size,
    }
