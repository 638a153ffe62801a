"""ingest: documents of files, folders and iterables into a store; resumable, and only what has changed."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from twinvec.errors import TruncationWarning
from twinvec.workers import in_thread
from twinvec_stores.ingestion.chunking import ChunkContext
from twinvec_stores.ingestion.pipeline import OnError, Options, Run
from twinvec_stores.ingestion.reports import IngestReport
from twinvec_stores.protocol import HybridStore

if TYPE_CHECKING:
    from twinvec import BaseEmbedder


def ingest(
    source: str | PathLike[str] | Iterable[Any],
    embedder: BaseEmbedder,
    store: HybridStore,
    *,
    text_field: str = "text",
    id_field: str = "id",
    metadata_fields: Sequence[str] | None = None,
    document_field: str | None = None,
    delimiter: str | None = None,
    chunk_tokens: int | None = None,
    overlap_tokens: int = 0,
    chunk_context: ChunkContext | None = None,
    prune: bool = False,
    on_error: OnError = "skip",
    batch_size: int = 256,
    show_progress: bool = False,
) -> IngestReport:
    """Put documents into a store; those that it has already, unchanged, are skipped.

    Embedding overlaps with reading and writing, and memory stays bounded however large the source is. A run that was
    killed is resumed by the same call: the source is read again, and what the store has of it is skipped.

    Args:
        source: a file (.jsonl, .ndjson, .csv, .tsv with a header, .parquet, .txt, .md, .markdown, .rst, .html, .htm,
            .pdf; all but .parquet also with .gz behind); a folder, whose texts (all from .txt on, in all folders below
            it that are not hidden; links to folders are not followed) have their relative path as id; a list of Path
            objects; or any iterable of Documents (LangChain's and LlamaIndex's, too, as their loaders give them), dicts
            and strings. The YAML front matter of Markdown and the titles of pages are metadata; HTML becomes Markdown
            (``twinvec[html]``), PDF its text (``twinvec[pdf]``).
        embedder: the model, an Embedder or a RemoteEmbedder.
        store: made for that model. One ingest into it at a time.
        text_field: field of each row that is embedded.
        id_field: field with the id, a string or an integer; for "id" also "_id". A row without either has an id
            made of its content: then a changed text is a new document.
        metadata_fields: fields to keep; None: all others. An object "metadata" is merged into them. CSV cells
            become the type that the store declares for their column, and strings elsewhere.
        document_field: metadata field that gets the document's id on all its chunks, to filter or delete by.
        delimiter: one character between the cells of tables; None: seen from their first line.
        chunk_tokens: split texts into chunks of at most so many tokens of their own; records get the ids ``id#0``,
            ``id#1`` ... None: one record a document, cut at the model's limit. 200 to 500 suit most questions.
        overlap_tokens: how many tokens a chunk repeats, at most, from the one before. A tenth of ``chunk_tokens``
            keeps sentences together that a cut would part.
        chunk_context: "headings" puts the document's title (metadata) and the Markdown headings that a chunk is under
            before it when it is embedded, at most 64 tokens: a chunk keeps its subject. The stored text is without
            them, the provenance has them as "context". None: nothing.
        prune: delete the documents, ingested at any time, that the source does not have. Nothing is deleted where a
            row could not be read.
        on_error: "skip" reports bad rows and continues; "stop" raises at the first one, with all before it stored.
        batch_size: records embedded and written at once. More fill a big device better; less lose less in a kill.
        show_progress: draw a bar with rate and remaining time on stderr.

    Returns:
        Counts and failures.

    Raises:
        IngestError: a source that cannot be read; a bad row with ``on_error="stop"``; another ingest into the same
            store. What is stored stays, and the same call resumes from there.
        ConfigurationError: arguments that contradict each other.
        FingerprintMismatchError: the store holds another model's vectors.
        StoreError: the store failed.
    """
    options = Options(
        text_field=text_field,
        id_field=id_field,
        metadata_fields=metadata_fields,
        document_field=document_field,
        delimiter=delimiter,
        chunk_tokens=chunk_tokens,
        overlap_tokens=overlap_tokens,
        chunk_context=chunk_context,
        prune=prune,
        on_error=on_error,
        batch_size=batch_size,
        show_progress=show_progress,
    )
    return _warned(Run(source, embedder, store, options).run())


async def aingest(
    source: str | PathLike[str] | Iterable[Any],
    embedder: BaseEmbedder,
    store: HybridStore,
    *,
    text_field: str = "text",
    id_field: str = "id",
    metadata_fields: Sequence[str] | None = None,
    document_field: str | None = None,
    delimiter: str | None = None,
    chunk_tokens: int | None = None,
    overlap_tokens: int = 0,
    chunk_context: ChunkContext | None = None,
    prune: bool = False,
    on_error: OnError = "skip",
    batch_size: int = 256,
    show_progress: bool = False,
) -> IngestReport:
    """Ingest on threads, see ``ingest``; cancelling the task stops the run, which the next one resumes."""
    options = Options(
        text_field=text_field,
        id_field=id_field,
        metadata_fields=metadata_fields,
        document_field=document_field,
        delimiter=delimiter,
        chunk_tokens=chunk_tokens,
        overlap_tokens=overlap_tokens,
        chunk_context=chunk_context,
        prune=prune,
        on_error=on_error,
        batch_size=batch_size,
        show_progress=show_progress,
    )
    run = await in_thread(Run, source, embedder, store, options)
    work = asyncio.ensure_future(in_thread(run.run))
    try:
        return _warned(await asyncio.shield(work))
    except asyncio.CancelledError:
        run.cancel()
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # seen
        raise


def _warned(report: IngestReport) -> IngestReport:
    if report.truncated:
        warnings.warn(
            f"{report.truncated} documents were cut at the model's limit; pass chunk_tokens to keep all of their text",
            TruncationWarning,
            stacklevel=3,
        )
    return report
