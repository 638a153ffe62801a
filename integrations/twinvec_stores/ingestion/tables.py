"""Tables: CSV in its common dialects, TSV, parquet."""

from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twinvec.errors import IngestError
from twinvec.text.unicode import lone_surrogate
from twinvec_stores.arrow import require_pyarrow
from twinvec_stores.ingestion.readers import (
    MAX_BYTES,
    NOT_UTF8,
    Kinds,
    Reading,
    Row,
    fail,
    read_lines,
    suffix_of,
)
from twinvec_stores.ingestion.reports import readable
from twinvec_stores.ingestion.rows import BadRowError

if TYPE_CHECKING:
    from twinvec_stores.config import FieldType

_PARQUET_ROWS = 128
_UNREADABLE = (ValueError, OverflowError)  # the second for times that Python has no datetime for
_SEEN = 200  # lines examined for quotes around the cells of a TSV file
_DELIMITERS = ",;\t|"
_BOOLEANS = {"true": True, "false": False}


def table(path: Path, reading: Reading) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file; the first line contains the column names.

    Raises:
        IngestError: it does not, or a line cannot be part of a table.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_BYTES))  # this limit is global to the process
    name, end = readable(path), 0

    def lines() -> Iterator[str]:
        nonlocal end
        for number, line, end in read_lines(path):  # noqa: B007
            if line is None:
                raise IngestError(f"{path}, line {number}: longer than {MAX_BYTES >> 20} MiB, so this is not a table")
            yield line.decode(errors="surrogateescape")

    rows = lines()
    is_tsv = suffix_of(path) == ".tsv"
    seen = list(itertools.islice(rows, _SEEN if is_tsv else 1))
    delimiter = reading.delimiter or ("\t" if is_tsv else _delimiter("".join(seen), reading.text_field))
    quoting = _quoting(seen, delimiter) if is_tsv else csv.QUOTE_MINIMAL
    reader = csv.reader(itertools.chain(seen, rows), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise IngestError(f"{path}: its header cannot be read ({error}; delimiter {delimiter!r})") from None
    named = [name for name in header if name]  # a column without a name must be empty
    if not named or len(set(named)) < len(named) or lone_surrogate("".join(header)):
        raise IngestError(
            f"{path}: the first line must name the columns, each with a distinct name, in UTF-8 (delimiter "
            f"{delimiter!r})"
        )
    reading.check_columns(path, named)
    while True:
        first = reader.line_num + 1
        load: Callable[[], Any]
        try:
            cells = next(reader)
            load = functools.partial(_parse_cells, header, cells, reading.kinds, reader.line_num - first)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"not readable as a table ({error})"
            if reader.line_num > first:
                reason += f": a quote is not closed, which swallowed lines {first} to {reader.line_num}"
            elif reader.line_num == first and str(error) == "unexpected end of data":
                reason += ": a quote is not closed"
            load = functools.partial(fail, reason)
        else:
            if not cells:
                continue
        yield Row(f"{name}, line {first}", load, end)


def _delimiter(header: str, text_field: str) -> str:
    """Return what separates the column of texts from others, if that can be seen; spreadsheets often use semicolons."""
    for delimiter in _DELIMITERS:
        cells = header.rstrip("\r\n").split(delimiter)
        if len(cells) > 1 and text_field in [cell.strip('"') for cell in cells]:
            return delimiter
    return "," if "," in header else max(_DELIMITERS, key=header.count)


def _quoting(lines: list[str], delimiter: str) -> Literal[0, 3]:
    """Return whether quotes are ordinary characters, as in true TSV, or enclose cells, as written by spreadsheets."""
    cells = [cell for line in lines for cell in line.rstrip("\r\n").split(delimiter) if cell.startswith('"')]
    closed = all(len(cell) > 1 and cell.endswith('"') and '"' not in cell[1:-1].replace('""', "") for cell in cells)
    return csv.QUOTE_MINIMAL if closed else csv.QUOTE_NONE


def _parse_cells(header: list[str], cells: list[str], kinds: Kinds, more_lines: int) -> dict[str, Any]:
    if len(cells) != len(header):
        hint = f"; it took {more_lines + 1} lines: is a quote not closed?" if more_lines else ""
        raise BadRowError(f"{len(cells)} cells, the header has {len(header)}{hint}")
    if any(cell for name, cell in zip(header, cells, strict=True) if not name):
        raise BadRowError("a value in a column without a name: name it in the first line")
    if lone_surrogate("".join(cells)):
        raise BadRowError(NOT_UTF8)
    row = {name: _typed(cell, kinds.get(name)) for name, cell in zip(header, cells, strict=True) if name}
    return {name: value for name, value in row.items() if value is not None}


def _typed(cell: str, kind: FieldType | None) -> Any:
    """Return the value of a cell in a column that the store has declared; None if it is empty."""
    if kind in (None, "keyword", "text"):
        return cell
    if not cell or kind == "datetime":
        return cell or None
    convert = {"integer": int, "float": float}.get(kind, _BOOLEANS.__getitem__)
    try:
        return convert(cell.lower())
    except (ValueError, KeyError):
        return cell  # the store's own check reports what is wrong


def parquet(path: Path, reading: Reading) -> Iterator[Row]:
    """Yield the rows of a parquet file, without nulls."""
    pyarrow = require_pyarrow()
    size = path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            reading.check_columns(path, file.schema_arrow.names)
            name, total = readable(path), file.metadata.num_rows
            for number, load in enumerate(loaders(file.iter_batches(batch_size=_PARQUET_ROWS)), 1):
                yield Row(f"{name}, row {number}", load, size * number // total)
    except pyarrow.ArrowException as error:
        raise IngestError(f"{path}: cannot be read as parquet ({error})") from error


def loaders(batches: Iterable[Any]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Yield what returns each row of pyarrow's batches, without nulls, or raises BadRowError."""
    for batch in batches:
        rows = functools.cache(batch.to_pylist)
        for i in range(batch.num_rows):
            yield functools.partial(_arrow_row, batch, rows, i)


def _arrow_row(batch: Any, rows: Callable[[], list[dict[str, Any]]], i: int) -> dict[str, Any]:
    try:
        try:
            row = rows()[i]
        except _UNREADABLE:  # a single value makes the whole batch fail
            row = batch.slice(i, 1).to_pylist()[0]
    except _UNREADABLE as error:
        raise BadRowError(f"a value cannot be read ({error})") from None
    return {name: value for name, value in row.items() if value is not None}
