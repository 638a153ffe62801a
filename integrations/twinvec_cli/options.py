"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Dtype(str, Enum):
    """Precisions that a model can run in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder, hub id (owner/name) or modelscope:owner/name.", show_default=False),
]
Revision = Annotated[
    str | None, typer.Option(metavar="REF", help="Branch, tag or commit of a hub id.", show_default=False)
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run the checkpoint's own code; a hub id needs a full commit as --revision."
    ),
]

Store = Annotated[
    str,
    typer.Argument(metavar="STORE", help="A folder, or the url of a Qdrant server (http...).", show_default=False),
]
Collection = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Collection on the server. Default: twinvec.", show_default=False),
]
