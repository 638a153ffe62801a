"""Files: what reads each kind, alone or within a folder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from twinvec.errors import ConfigurationError, IngestError
from twinvec_stores.arrow import require_pyarrow
from twinvec_stores.ingestion.readers import NoTextColumnError, Reading, Row, fail, json_lines, suffix_of
from twinvec_stores.ingestion.reports import readable
from twinvec_stores.ingestion.tables import parquet, table
from twinvec_stores.ingestion.texts import TEXT_SUFFIXES, text_file, text_row

READERS: dict[str, Callable[[Path, Reading], Iterator[Row]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".csv": table,
    ".tsv": table,
    ".parquet": parquet,
    **dict.fromkeys(TEXT_SUFFIXES, text_file),
}


def is_readable(path: Path) -> bool:
    """Return whether files of this name can be read."""
    return suffix_of(path) in READERS and not (suffix_of(path) == ".parquet" and path.suffix.lower() == ".gz")


def reader_of(path: Path, reading: Reading) -> Callable[[Path], Iterator[Row]]:
    """Return what reads a file of this name.

    Raises:
        IngestError: nothing does.
        ConfigurationError: parquet without pyarrow.
    """
    if not is_readable(path):
        raise IngestError(
            f"{path}: unknown kind of file; supported are folders and {', '.join(READERS)}, also with .gz"
        )
    suffix = suffix_of(path)
    if suffix == ".parquet":
        require_pyarrow()
    return lambda file: READERS[suffix](file, reading)


def id_within(name: str) -> str | None:
    """Return the id of the document that a file of a folder is; None for a table, which has many."""
    return name if suffix_of(Path(name)) in TEXT_SUFFIXES else None


def rows_within(path: Path, name: str, reading: Reading, size: int) -> Iterator[Row]:
    """Yield the rows of a file of a folder: a text is one document, and each row of a table is.

    A table that cannot be read, or not to its end, is one bad row: other files go on.

    Args:
        path: the file.
        name: its path within the folder.
        reading: how tables are read.
        size: its bytes.

    Raises:
        NoTextColumnError: it is a table of something else.
    """
    if (id := id_within(name)) is not None:
        yield text_row(path, id, size)
        return
    try:
        for row in reader_of(path, reading)(path):
            yield row._replace(table=name)
    except NoTextColumnError:
        raise
    except (IngestError, ConfigurationError, OSError) as error:
        yield Row(readable(path), functools.partial(fail, str(error).replace(str(path), name)), size)
