"""LlamaIndex's readers as sources of ``ingest``."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from llama_index.core import SimpleDirectoryReader
from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import Document

from twinvec.overriding import overridden


def documents_of(source: Any) -> Any:
    """Return a reader's documents, lazily if it supports that; return any other source as is."""
    if isinstance(source, SimpleDirectoryReader):
        return _of_folder(source)
    if isinstance(source, BaseReader):
        return source.lazy_load_data() if overridden(source, BaseReader, "lazy_load_data") else source.load_data()
    return source


def _of_folder(reader: SimpleDirectoryReader) -> Iterable[Document]:
    """Yield documents with ids from their files: LlamaIndex's random ids would make all of them new in every run."""
    named = copy.copy(reader)
    named.filename_as_id = True
    return (document for documents in named.iter_data() for document in documents)
