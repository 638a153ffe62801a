"""Options shared by several commands; model options use the descriptions of ``ModelSpec`` and ``EmbedderOptions``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from twinvec.options import OnOverflow as Overflow
from twinvec.options import option_docs

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def meaning(name: str) -> str:
    """Return an option's description, as a sentence for the terminal."""
    text = option_docs().get(name, "").replace("``", "")
    return text[:1].upper() + text[1:]


def _option(name: str, metavar: str | None, *flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, metavar=metavar, help=meaning(name), **settings)


def _or_none(value: str) -> str | None:
    return None if value.lower() == "none" else value


Model = Annotated[str, typer.Argument(metavar="MODEL", help=meaning("model"))]
Revision = Annotated[str | None, _option("revision", "REF")]
Device = Annotated[str, _option("device", "NAME")]
Precision = Annotated[Dtype, _option("dtype", "NAME")]
Dim = Annotated[int | None, _option("dim", "N")]
MaxLength = Annotated[int | None, _option("max_length", "N")]
OnOverflow = Annotated[Overflow, _option("on_overflow", "HOW")]
Sparse = Annotated[str | None, _option("sparse", "SOURCE", callback=_or_none)]
TaskText = Annotated[str | None, _option("task", "TEXT")]
TrustRemoteCode = Annotated[bool, _option("trust_remote_code", None, "--trust-remote-code")]

Store = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="A folder, or the URL of a Qdrant (http...) or Milvus server or of a PostgreSQL database."
    ),
]
Collection = Annotated[str | None, typer.Option(metavar="NAME", help="Collection on the server. Default: twinvec.")]

Rerank = Annotated[
    str | None, typer.Option(metavar="MODEL", help="A reranker (folder or hub id) that reorders the first results.")
]

# options of `twinvec eval` and `twinvec tune`
Queries = Annotated[
    Path,
    typer.Option(
        "--queries",
        "-q",
        metavar="PATH",
        help="Questions: a BEIR folder, .jsonl, .csv, .tsv, or .json (LlamaIndex EmbeddingQAFinetuneDataset, LangSmith "
        "examples).",
    ),
]
Qrels = Annotated[Path | None, typer.Option(metavar="FILE", help="Judgements for a .jsonl: TREC qrels or BEIR's .tsv.")]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Count judged documents that are missing from a store as not found.")
]
