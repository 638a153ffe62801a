"""Options shared by several commands; model options use the descriptions of ``ModelSpec`` and ``EmbedderOptions``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from twinvec.options import option_docs


class Dtype(str, Enum):
    """Precisions that a model can run in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Overflow(str, Enum):
    """What to do with a text that exceeds the model's limit."""

    TRUNCATE = "truncate"
    ERROR = "error"


def meaning(name: str) -> str:
    """Return an option's description, as a sentence for the terminal."""
    text = option_docs().get(name, "").replace("``", "")
    return text[:1].upper() + text[1:]


def _option(name: str, metavar: str | None, *flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, metavar=metavar, help=meaning(name), **settings)


def _or_none(value: str) -> str | None:
    return None if value.lower() == "none" else value


Model = Annotated[str, typer.Argument(metavar="MODEL", help=meaning("model"), show_default=False)]
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
        metavar="STORE",
        help="A folder, or the URL of a Qdrant (http...) or Milvus server or of a PostgreSQL database.",
        show_default=False,
    ),
]
Collection = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Collection on the server. Default: twinvec.", show_default=False),
]

Rerank = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="A reranker (folder or hub id) that reorders the first results.",
        show_default=False,
    ),
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
        show_default=False,
    ),
]
Qrels = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Judgements for a .jsonl: TREC qrels or BEIR's .tsv.", show_default=False),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Count judged documents that are missing from a store as not found.")
]
