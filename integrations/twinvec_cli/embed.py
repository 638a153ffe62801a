"""`twinvec embed`: texts in, vectors out."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinvec.errors import TextError, TruncationWarning
from twinvec.text.prompts import Role
from twinvec_cli.console import note, warn
from twinvec_cli.options import (
    Device,
    Dim,
    MaxLength,
    Model,
    OnOverflow,
    Precision,
    Revision,
    Sparse,
    TaskText,
    TrustRemoteCode,
)
from twinvec_cli.reading import TextSource
from twinvec_cli.writing import Writer, check_output, open_writer

if TYPE_CHECKING:
    from twinvec import Embedder, EmbeddingBatch

# One call of the Embedder: enough texts to sort by length and fill a device, few enough to hold in memory and show
# progress.
_CHUNK_TEXTS = 512
_CHUNK_CHARACTERS = 500_000


_TEXTS = "Texts; a single - reads stdin."
_INPUT = "One text per line, or .jsonl with one object per line. - is stdin."
_FIELD = "Field of each JSON object that contains the text. Default: text."
_OUTPUT = "FILE.jsonl or FILE.npz instead of JSON lines on stdout; written completely or not at all."
_PROMPT = "Put exactly this before each text instead of the model's prompt."


def embed(
    model: Model,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help=_TEXTS)] = None,
    input: Annotated[Path | None, typer.Option("--input", "-i", metavar="FILE", help=_INPUT)] = None,
    field: Annotated[str | None, typer.Option(metavar="NAME", help=_FIELD)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help=_OUTPUT)] = None,
    with_text: Annotated[bool, typer.Option("--with-text", help="Repeat each text in its JSON line.")] = False,
    role: Annotated[Role, typer.Option(metavar="ROLE", help="query or document.")] = Role.DOCUMENT,
    task: TaskText = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help=_PROMPT)] = None,
    dim: Dim = None,
    max_length: MaxLength = None,
    on_overflow: OnOverflow = "truncate",
    sparse: Sparse = "auto",
    device: Device = "auto",
    dtype: Precision = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Embed texts: one JSON object per text, with "index", "dense", "sparse" {token id: weight}, "tokens", "truncated".

    Texts are used as they are: an empty line is an empty text, and nothing is stripped.

    Examples:

    [bold]twinvec embed Alibaba-NLP/gte-multilingual-base "What is TwinVec?" --role query[/bold]

    [bold]twinvec embed ./model --input passages.jsonl --field body --output vectors.npz[/bold]

    [bold]cut -f2 table.tsv | twinvec embed BAAI/bge-m3 - --sparse none > vectors.jsonl[/bold]
    """
    source = TextSource.choose(texts or (), input, field)
    check_output(output)
    note(f"Loading {model} ...")
    from twinvec import Embedder

    with (
        Embedder(
            model, revision=revision, device=device, dtype=dtype, dim=dim, max_length=max_length, sparse=sparse,
            task=task, on_overflow=on_overflow, trust_remote_code=trust_remote_code,
        ) as embedder,
        open_writer(output, with_text=with_text) as writer,
    ):  # fmt: skip
        _embed(embedder, source, writer, role, prompt)


def _embed(embedder: Embedder, source: TextSource, writer: Writer, role: Role, prompt: str | None) -> None:
    from tqdm import tqdm

    call = embedder.embed_queries if role is Role.QUERY else embedder.embed_documents
    start = cut = 0
    first_cut: int | None = None
    hidden = None if sys.stderr.isatty() else True
    with (
        tqdm(total=source.count(), unit="text", desc="Embedding", delay=1, disable=hidden, leave=False) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", TruncationWarning)  # a single line at the end covers all chunks
        for chunk in _chunks(source):
            try:
                batch: EmbeddingBatch = call(chunk, prompt=prompt)
            except TextError as error:
                raise error.moved(start) from error
            writer.write(start, chunk, batch)
            if first_cut is None and batch.truncated.any():
                first_cut = start + int(batch.truncated.argmax())
            cut += int(batch.truncated.sum())
            start += len(chunk)
            bar.update(len(chunk))
    if cut:
        warn(f"{cut} of {start} texts were cut at {embedder.max_length} tokens (first: index {first_cut})")


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of texts; a single empty list if there are none, so that empty arrays have the right width."""
    chunk: list[str] = []
    characters = 0
    any_yet = False
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == _CHUNK_TEXTS or characters >= _CHUNK_CHARACTERS:
            yield chunk
            any_yet = True
            chunk, characters = [], 0
    if chunk or not any_yet:
        yield chunk
