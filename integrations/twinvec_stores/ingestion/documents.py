"""Documents: what the rows of a source become, checked before anything is embedded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from twinvec.errors import ConfigurationError, InvalidRecordError
from twinvec_stores.config import StoreConfig
from twinvec_stores.ingestion.rows import BadRowError, Document
from twinvec_stores.metadata import check_text, plain_id
from twinvec_stores.records import check_metadata

MAX_ID_BYTES = 1000  # leaves room for a chunk number
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class Parser:
    """Turns rows into documents.

    A row is a string, a Document (ours, LangChain's or LlamaIndex's), or a mapping: its ``text_field`` is the text; its
    ``id_field`` the id (a string or an integer; for the default "id", "_id" is accepted, too, as in BEIR, or none at
    all); everything else is metadata, with the object "metadata" merged in.
    """

    def __init__(
        self,
        text_field: str,
        id_field: str,
        metadata_fields: Sequence[str] | None,
        document_field: str | None,
        config: StoreConfig,
    ) -> None:
        if isinstance(metadata_fields, str):
            raise ConfigurationError(f"metadata_fields must be a list of names, not the string {metadata_fields!r}")
        self._text, self._id, self._document = text_field, id_field, document_field
        self._wanted = None if metadata_fields is None else frozenset(metadata_fields)
        self._config = config

    def parse(self, row: Any, table: str = "") -> Document:
        """Return the document of a row, in the form in which the store will take it.

        Args:
            row: a string, a Document or a mapping.
            table: the table within a folder that it is a row of: two may have the same ids, so that its path comes
                before the row's id; it is also the metadata "source", if the row has no such column.

        Raises:
            BadRowError: says what is wrong with the row.
        """
        try:
            document = self._read(row, table)
        except BadRowError as error:
            error.id = error.id and _within(table, error.id)
            raise
        name = _within(table, document.id or content_hash(document.text, document.metadata))
        own = {} if self._document is None else {self._document: name}
        return Document(name, document.text, {**document.metadata, **own})

    def _read(self, row: Any, table: str) -> Document:
        document = Document(None, row) if isinstance(row, str) else row
        document = self._of_mapping(row, table) if isinstance(row, Mapping) else _of_framework(document)
        if not isinstance(document, Document):
            raise BadRowError(f"a {type(row).__name__} is not a document: pass strings, dicts or Documents")
        id = _check_id(document.id)
        if not isinstance(document.text, str):
            raise BadRowError(f"the text must be a string, not {type(document.text).__name__}", id)
        if not document.text.strip():
            raise BadRowError("the text is empty", id)
        if id is not None and table:
            _check_id(_within(table, id))
        return Document(id, document.text, self._checked(id, document.text, document.metadata))

    def _of_mapping(self, row: Mapping[str, Any], table: str) -> Document:
        rest = dict(row)
        id = rest.pop(self._id, None)
        if id is None:
            id = rest.pop("_id", None) if self._id == "id" else None
        if id is None and self._id != "id":
            raise BadRowError(f"no field {self._id!r} for the id (its fields: {_names(row)}); see id_field")
        if self._text not in rest:
            raise BadRowError(f"no field {self._text!r} (its fields: {_names(row)}); see text_field", _check_id(id))
        text = rest.pop(self._text)
        if isinstance(nested := rest.get("metadata"), Mapping):
            del rest["metadata"]
            rest = {**nested, **rest}
        return Document(id, text, {"source": table, **rest} if table else rest)

    def _checked(self, id: str | None, text: str, metadata: Any) -> Mapping[str, Any]:
        """Return metadata in plain JSON types."""
        if self._wanted is not None and isinstance(metadata, Mapping):
            metadata = {key: value for key, value in metadata.items() if key in self._wanted}
        try:
            check_text(text, "the text")
            return check_metadata(metadata, self._config)
        except InvalidRecordError as error:
            raise BadRowError(error.reason, id) from None


def _of_framework(row: Any) -> Any:
    """Convert a Document of LangChain or LlamaIndex, recognised by its attributes, into ours; else return it as is."""
    metadata = getattr(row, "metadata", None)
    if isinstance(text := getattr(row, "page_content", None), str):
        return Document(row.id, text, metadata or {})
    if callable(getattr(row, "get_content", None)) and isinstance(id := getattr(row, "node_id", None), str):
        return Document(id, row.get_content(), metadata or {})
    return row


def content_hash(text: str, metadata: Mapping[str, Any], *recipe: Any) -> str:
    """Return 32 hex digits identifying a text, its metadata, and whatever else determines its records."""
    return blake2b(_CANONICAL.encode([text, metadata, *recipe]).encode(), digest_size=16).hexdigest()


def _within(table: str, id: str) -> str:
    return f"{table}/{id}" if table else id


def _check_id(id: Any) -> str | None:
    if id is None:
        return None
    try:
        return plain_id(id, "the id", MAX_ID_BYTES)
    except InvalidRecordError as error:
        raise BadRowError(error.reason) from None


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row))
