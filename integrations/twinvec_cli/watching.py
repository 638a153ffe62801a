"""`twinvec ingest --watch`: once more whenever something in folders has changed."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from twinvec.errors import ConfigurationError, IngestError
from twinvec_cli.console import note
from twinvec_stores.ingestion.files import is_readable
from twinvec_stores.ingestion.readers import is_url

_LOOK = 500  # milliseconds between two looks


def rounds(sources: Sequence[str], location: str) -> Iterator[None]:
    """Yield at once, and then whenever files have changed, until Ctrl-C; what changes meanwhile is not missed.

    Args:
        sources: folders.
        location: the store's, which may be a folder within them.

    Raises:
        ConfigurationError: a source that is no folder here, or watchfiles is missing.
    """
    folders = [Path(source).expanduser() for source in sources]
    for source, folder in zip(sources, folders, strict=True):
        if is_url(source) or not folder.is_dir():
            raise ConfigurationError(f"--watch is for folders, which {source} is not")
    try:
        watchfiles: Any = importlib.import_module("watchfiles")
    except ModuleNotFoundError:
        raise ConfigurationError("--watch needs watchfiles: pip install 'twinvec[watch]'") from None
    store = Path(location).expanduser().resolve()

    def concerns(change: object, name: str) -> bool:
        path = Path(name)
        # what has no suffix may be a folder that was renamed
        return (not path.suffix or is_readable(path)) and not path.resolve().is_relative_to(store)

    looks = watchfiles.watch(*folders, watch_filter=concerns, rust_timeout=_LOOK, yield_on_timeout=True)
    first = True
    for changes in looks:  # the first is over at once, and from then on nothing is missed
        if first or changes:
            yield
            note("Waiting for changes; Ctrl-C ends it.")
        first = False


@contextlib.contextmanager
def going_on(watch: bool) -> Iterator[None]:
    """Say why a round failed and wait for the next one, where there is one."""
    try:
        yield
    except IngestError as error:
        if not watch:
            raise
        typer.echo(str(error), err=True)
