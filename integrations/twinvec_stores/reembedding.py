"""A new model for a store: its texts are embedded again beside it while it serves, and then it is switched."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from twinvec import BaseEmbedder
from twinvec.errors import ConfigurationError, StoreEngineError
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.embedded import models
from twinvec_stores.engines.embedded.store import EmbeddedStore, ModelStore
from twinvec_stores.ingestion.regrouping import Regrouping, needs_document
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import Record, RecordBatch
from twinvec_stores.tokens import kept_tokens
from twinvec_stores.transfer import delete_others, lacking_in

_PAGE = 256

Progress = Callable[[int], None]


def reembed(source: HybridStore, target: HybridStore, embedder: BaseEmbedder, progress: Progress | None = None) -> int:
    """Make a store hold the records of another one with a model's own vectors.

    Only what is missing or has another text, metadata or provenance is embedded; what the source lacks is deleted. So
    calling it again resumes it, and follows later changes.

    Args:
        source: remains unchanged; on any engine.
        target: a store for the embedder's vectors, on any engine.
        embedder: the model. Chunks remain the same, and so does their ``chunk_context``: headings are put before them
            again, and for ``"late"`` and ``"document"`` the documents are put together again from their chunks.
        progress: called with the number of records of the source that the target has so far.

    Returns:
        The number of records that were embedded.

    Raises:
        FingerprintMismatchError: the target is for another model.
        InvalidRecordError: the model returned a vector of zeros for a text.
        ConfigurationError: the model does not support the ``chunk_context`` of a chunk.
        StoreEngineError: chunks that are embedded with their documents are missing or half written. Everything else has
            been embedded.
    """
    target.config.check(StoreConfig.for_embedder(embedder), repr(target))
    seen = embedded = 0
    pool = target.config.token_pool
    regrouping = Regrouping(source, embedder, pool)
    for page, lacking in lacking_in(target, source.scroll_all(limit=_PAGE), _content):
        alone = [record for record in lacking if not needs_document(record)]
        batches = regrouping.embed([record for record in lacking if needs_document(record)])
        for batch in chain([_embedded(alone, embedder, pool)] if alone else [], batches):
            target.upsert(batch)
            embedded += len(batch)
        seen += len(page)
        if progress is not None:
            progress(seen)
    delete_others(source, target)
    target.flush()
    if regrouping.incomplete:
        names = ", ".join(map(repr, sorted(regrouping.incomplete)[:3]))
        raise StoreEngineError(
            f"{len(regrouping.incomplete)} documents could not be embedded with their context, as chunks of them are "
            f"missing or half written: {names}. Finish their ingest, or delete them, and run this again"
        )
    return embedded


def _embedded(records: list[Record], embedder: BaseEmbedder, token_pool: int | None) -> RecordBatch:
    texts = [f"{record.provenance.get('context', '')}{record.text}" for record in records]
    vectors = embedder.embed_documents(texts, multi=token_pool is not None)
    return RecordBatch(
        ids=[record.id for record in records],
        texts=[record.text for record in records],
        dense=vectors.dense,
        sparse=vectors.sparse,
        metadata=[record.metadata for record in records],
        provenance=[record.provenance for record in records],
        tokens=kept_tokens(vectors, token_pool),
    )


def _content(record: Record) -> tuple[object, ...]:
    return record.text, record.metadata, record.provenance


class Reembedding:
    """A store in a folder on its way to another model.

    The new vectors are kept in a folder within the store's, so that an interrupted ``run`` is resumed, and the old ones
    remain there, so that going back is a ``Reembedding`` to the model before.
    """

    def __init__(self, path: str | os.PathLike[str], embedder: BaseEmbedder) -> None:
        """Prepare to re-embed a store.

        Args:
            path: the store's folder.
            embedder: the new model.

        Raises:
            StoreNotFoundError: there is no store.
            ConfigurationError: it has this model's vectors.
        """
        self._root, self._embedder = Path(path).expanduser().resolve(), embedder
        with EmbeddedStore(self._root, read_only=True) as source:
            old = source.config
        pool = old.token_pool if embedder.multi_vectors is not None else None
        new = StoreConfig.for_embedder(embedder, fields=old.fields, quantization=old.quantization, token_pool=pool)
        if (old.fingerprint, old.document_prompt) == (new.fingerprint, new.document_prompt):
            raise ConfigurationError(f"{self._root} has the vectors of {new.model} already")
        self._config = new
        self._target = models.place(self._root, new.fingerprint, new.document_prompt)

    def open_target(self) -> EmbeddedStore:
        """Open the new vectors, as far as they are there."""
        self._target.parent.mkdir(exist_ok=True)
        return ModelStore(self._target, self._config)

    def run(self, progress: Progress | None = None) -> int:
        """Embed what the store has now; see ``reembed``. It may be read and written meanwhile, here and elsewhere."""
        with EmbeddedStore(self._root, read_only=True) as source, self.open_target() as target:
            embedded = reembed(source, target, self._embedder, progress)
            if source.info().has_graph and not target.info().has_graph:
                target.optimize()
            return embedded

    def switch(self, progress: Progress | None = None) -> int:
        """Embed what has changed since, and let the new vectors serve.

        Whoever opens the store from now on gets the new ones, whole. Stores opened before keep the old ones until they
        are opened again: they can search, but writing to them fails with StoreReadOnlyError. Writes that come while
        this runs wait for it, and fail likewise; those before it are in both.

        Returns:
            The number of records that were embedded.

        Raises:
            StoreLockedError: another process has the store open for writing.
        """
        with EmbeddedStore(self._root) as source, self.open_target() as target:
            embedded = reembed(source, target, self._embedder, progress)
            with source._folder.retiring():
                embedded += reembed(source, target, self._embedder)
                models.switch(self._root, self._target)
                target._folder.retired = False
        return embedded


def previous(path: str | os.PathLike[str]) -> EmbeddedStore:
    """Open the vectors that served before the last switch.

    Raises:
        ConfigurationError: there was none.
    """
    folder = models.before(Path(path).expanduser().resolve())
    if folder is None:
        raise ConfigurationError(f"{os.fspath(path)} was not re-embedded: there is nothing to go back to")
    return ModelStore(folder)
