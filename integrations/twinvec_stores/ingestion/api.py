"""ingest: documents from files, folders and iterables into a store; resumable and incremental."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from twinvec.base import level_of_caller
from twinvec.errors import TruncationWarning
from twinvec.flows import Call, awaiting, blocking, on_thread
from twinvec.workers import in_thread
from twinvec_stores.ingestion.context import ChunkContext
from twinvec_stores.ingestion.options import OnError, Options
from twinvec_stores.ingestion.pipeline import Run
from twinvec_stores.ingestion.processing import LocalProcessor
from twinvec_stores.ingestion.reports import IngestReport
from twinvec_stores.protocol import HybridStore

if TYPE_CHECKING:
    from twinvec import BaseEmbedder


@blocking
async def ingest(
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
    prune_share: float = 0.5,
    on_error: OnError = "skip",
    batch_size: int = 256,
    show_progress: bool = False,
) -> IngestReport:
    """Put documents into a store, skipping those it already has unchanged.

    Embedding overlaps with reading and writing, and memory stays bounded however large the source is. To resume an
    interrupted run, repeat the call: the source is read again, and whatever the store already has is skipped.

    Args:
        source: a file (.jsonl, .ndjson, .csv, .tsv with a header, .parquet, .txt, .md, .markdown, .rst, .html, .htm,
            .pdf; all except .parquet may be compressed as .gz); a folder, in which each of these files is read (in all
            subfolders that are not hidden, without following links to folders): a text has its relative path as id, a
            row of a table its own id after that path, as in "prices.csv/17", and tables without the text column are
            passed over; the URL of either (``s3://``, ``gs://``, ``https://`` and anything else fsspec supports,
            ``twinvec[remote]``); a list of Path objects and URLs; or any iterable of Documents (including those of
            LangChain and LlamaIndex, as returned by their loaders), dicts and strings. YAML front matter in Markdown
            and the titles of pages become metadata; HTML is converted to Markdown (``twinvec[html]``), PDF to text
            (``twinvec[pdf]``).
        embedder: the model, an Embedder or a RemoteEmbedder.
        store: a store for that model. Run only one ingest into it at a time.
        text_field: the field that is embedded.
        id_field: the field with the id, a string or an integer; for "id", "_id" is accepted, too. A row without either
            gets an id derived from its content, so that a changed text is a new document.
        metadata_fields: fields to keep; None: all others. An object "metadata" is merged into them. CSV cells are
            converted to the type that the store declares for their column, and are strings otherwise.
        document_field: metadata field that receives the document's id on all its chunks, for filters and deletion.
        delimiter: the character between the cells of a table; None: detected from the first line.
        chunk_tokens: split texts into chunks of at most this many tokens of their own; records get the ids ``id#0``,
            ``id#1`` ... None: one record per document, cut at the model's limit. 200 to 500 suit most questions.
        overlap_tokens: maximum number of tokens that a chunk repeats from the previous one. A tenth of ``chunk_tokens``
            keeps sentences together that a cut would split.
        chunk_context: "headings" embeds each chunk preceded by the document's title (from metadata) and the Markdown
            headings above it, at most 64 tokens, so that the chunk keeps its subject. The stored text does not include
            them; the provenance has them as "context". "document" does that, too, and mixes each chunk's dense vector
            with that of its document's beginning, as much as the model takes: it is the normalised sum of both, so that
            questions about a page's subject find it as well as questions about a detail. "late" passes the whole
            document through the model, in overlapping windows if it is longer than the model's limit, and pools each
            chunk's vector from its own tokens; only for models with mean pooling. None: each chunk is embedded by
            itself.
        prune: delete documents, whenever they were ingested, that are not in the source. Nothing is deleted if a row
            could not be read, or a folder could not be listed; the report says so.
        prune_share: nothing is deleted either if more than this share of the documents would be, as with a folder that
            is not mounted, or the wrong one. 1 allows everything.
        on_error: "skip" reports bad rows and continues; "stop" raises at the first one, after storing everything before
            it.
        batch_size: records embedded and written together. Larger batches fill a big device better; smaller ones lose
            less when killed.
        show_progress: draw a progress bar with rate and remaining time on stderr.

    Returns:
        Counts and failures.

    Raises:
        IngestError: the source cannot be read; a bad row with ``on_error="stop"``; another ingest into the same store
            is running. Everything stored so far remains, and the same call resumes from there.
        ConfigurationError: arguments that contradict each other.
        FingerprintMismatchError: the store contains another model's vectors.
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
        prune_share=prune_share,
        on_error=on_error,
        batch_size=batch_size,
        show_progress=show_progress,
    )
    run = await on_thread(_run, source, embedder, store, options)
    report = await Call(run.run, functools.partial(_cancellable, run))
    warned(report)
    return report


aingest = awaiting(ingest)


async def _cancellable(run: Run) -> IngestReport:
    """Run on a thread; a run whose task is cancelled ends before the cancellation goes on."""
    work = asyncio.ensure_future(in_thread(run.run))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        run.cancel()
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # retrieved
        raise


def _run(source: Any, embedder: BaseEmbedder, store: HybridStore, options: Options) -> Run:
    return Run(source, store, options, LocalProcessor(embedder, store, options, store.config.token_pool))


def warned(report: IngestReport) -> None:
    """Warn of documents that were cut, once for all of them."""
    if report.truncated:
        warnings.warn(
            f"{report.truncated} documents were cut at the model's limit; pass chunk_tokens to keep their whole text",
            TruncationWarning,
            stacklevel=level_of_caller("twinvec_stores", "twinvec_ray"),
        )
