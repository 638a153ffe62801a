"""A new model for a store: its texts are embedded again beside it while it serves, and then it is switched."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import chain

from twinvec import BaseEmbedder
from twinvec.errors import ConfigurationError, StoreEngineError
from twinvec_stores.config import StoreConfig
from twinvec_stores.ingestion.regrouping import Regrouping, needs_document
from twinvec_stores.models import models_of
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import Record, RecordBatch
from twinvec_stores.tokens import asking, kept_tokens
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
    vectors = embedder.embed_documents(texts, **asking(token_pool))
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
    """A store in a folder or on a server on its way to another model.

    The new vectors are kept beside the old ones, in a folder within the store's, in tables of the same schema or in
    another collection, so that an interrupted ``run`` is resumed. The old ones remain, so that going back is a
    ``Reembedding`` to the model before. One process at a time re-embeds a store.
    """

    def __init__(
        self, location: str | os.PathLike[str], embedder: BaseEmbedder, *, collection: str | None = None
    ) -> None:
        """Prepare to re-embed a store.

        Args:
            location: the store's folder, or the address of its server.
            embedder: the new model.
            collection: see ``open_store``.

        Raises:
            StoreNotFoundError: there is no store.
            ConfigurationError: it has this model's vectors.
        """
        self._models, self._embedder = models_of(location, collection), embedder
        with self.open_source() as source:
            old = source.config
            pool = old.token_pool if embedder.multi_vectors is not None else None
            new = StoreConfig.for_embedder(embedder, fields=old.fields, quantization=old.quantization, token_pool=pool)
            if old.identity == new.identity:
                raise ConfigurationError(f"{source!r} has the vectors of {new.model} already")
        self._config = new

    def open_source(self) -> HybridStore:
        """Open the vectors that serve, to read them."""
        return self._models.open()

    def open_target(self) -> HybridStore:
        """Open the new vectors, as far as they are there."""
        return self._models.open_model(self._config)

    def run(self, progress: Progress | None = None) -> int:
        """Embed what the store has now; see ``reembed``. It may be read and written meanwhile, here and elsewhere."""
        with self.open_source() as source, self.open_target() as target:
            embedded = reembed(source, target, self._embedder, progress)
            if source.info().has_graph and not target.info().has_graph:
                target.optimize()
            return embedded

    def switch(self, progress: Progress | None = None) -> int:
        """Embed what has changed since, and let the new vectors serve.

        Whoever opens the store from now on gets the new ones, whole. Stores opened before keep the old ones until they
        are opened again: they can search, but writing to them fails with StoreReadOnlyError. Writes that come while
        this runs fail likewise, in a folder and in PostgreSQL after they have waited for it; those before it are in
        both.

        Returns:
            The number of records that were embedded.

        Raises:
            StoreLockedError: another process has the store's folder open for writing.
        """
        with self._models.open_to_write() as source, self.open_target() as target:
            embedded = reembed(source, target, self._embedder, progress)
            with self._models.switching(source, target):
                return embedded + reembed(source, target, self._embedder)


def previous(location: str | os.PathLike[str], *, collection: str | None = None) -> HybridStore:
    """Open the vectors that served before the last switch.

    Raises:
        ConfigurationError: there was none.
    """
    return models_of(location, collection).open_before()
