"""Readers: files as rows, one after the other, each parsed only when it is needed."""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

from twinvec.errors import ConfigurationError, IngestError
from twinvec.text.unicode import lone_surrogate
from twinvec_stores.config import FieldType
from twinvec_stores.ingestion.documents import BadRowError, Document
from twinvec_stores.ingestion.reports import readable

Kinds: TypeAlias = Mapping[str, FieldType]
_MAX_BYTES = 64 * 2**20  # of one line or text: a file without line ends must not fill the memory
_TEXT_SUFFIXES = (".txt", ".md", ".markdown")
_PARQUET_ROWS = 128
_BOM = b"\xef\xbb\xbf"
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_BOOLEANS = {"true": True, "false": False}


class Row(NamedTuple):
    """One row of a source.

    Attributes:
        where: what a person calls it: "corpus.jsonl, line 17".
        load: gives what ``Parser.parse`` takes, or raises BadRowError.
        end: how much of the source is read with this row, in its unit.
    """

    where: str
    load: Callable[[], Any]
    end: int


# lines


def _lines(path: Path) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield (number, line, bytes read so far); None stands for a line that is too long."""
    with path.open("rb") as stream:
        number = end = 0
        while line := stream.readline(_MAX_BYTES + 1):
            number += 1
            end += len(line)
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise IngestError(f"{path} is UTF-16: convert it to UTF-8")
            if len(line) <= _MAX_BYTES:
                yield number, line.removeprefix(_BOM) if number == 1 else line, end
                continue
            while line and not line.endswith(b"\n"):
                line = stream.readline(2**20)
                end += len(line)
            yield number, None, end


def _json_lines(path: Path, kinds: Kinds) -> Iterator[Row]:
    name = readable(path)
    for number, line, end in _lines(path):
        if line is None or line.strip():
            yield Row(f"{name}, line {number}", functools.partial(_parse_json, line), end)


def _parse_json(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise BadRowError(f"the line is longer than {_MAX_BYTES >> 20} MiB")
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise BadRowError(f"not a JSON object but a {type(row).__name__}")
    return row


# tables


def _table(path: Path, kinds: Kinds, *, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_BYTES))  # a limit of the whole process
    name, end = readable(path), 0

    def lines() -> Iterator[str]:
        nonlocal end
        for number, line, end in _lines(path):  # noqa: B007
            if line is None:
                raise IngestError(f"{path}, line {number}: longer than {_MAX_BYTES >> 20} MiB, this is no table")
            yield line.decode(errors="surrogateescape")

    rows = lines()
    first_line = next(rows, "")
    if delimiter == "," and "," not in first_line:  # spreadsheets of most of Europe write semicolons
        delimiter = max(";\t|", key=first_line.count) if any(c in first_line for c in ";\t|") else delimiter
    reader = csv.reader(itertools.chain([first_line], rows), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise IngestError(f"{path}: its header cannot be read ({error}; delimiter {delimiter!r})") from None
    named = [name for name in header if name]  # a column without a name has to be empty
    if not named or len(set(named)) < len(named) or lone_surrogate("".join(header)):
        raise IngestError(
            f"{path}: the first line must name the columns, each with a name of its own, in UTF-8 (delimiter "
            f"{delimiter!r})"
        )
    while True:
        first = reader.line_num + 1
        load: Callable[[], Any]
        try:
            cells = next(reader)
            load = functools.partial(_parse_cells, header, cells, kinds, reader.line_num - first)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"not readable as a table ({error})"
            if reader.line_num > first:
                reason += f": a quote is not closed, which took the lines {first} to {reader.line_num}"
            load = functools.partial(_fail, reason)
        else:
            if not cells:
                continue
        yield Row(f"{name}, line {first}", load, end)


def _parse_cells(header: list[str], cells: list[str], kinds: Kinds, more_lines: int) -> dict[str, Any]:
    if len(cells) != len(header):
        hint = f"; it took {more_lines + 1} lines: is a quote not closed?" if more_lines else ""
        raise BadRowError(f"{len(cells)} cells, the header has {len(header)}{hint}")
    if any(cell for name, cell in zip(header, cells, strict=True) if not name):
        raise BadRowError("a value in a column without a name: name it in the first line")
    if lone_surrogate("".join(cells)):
        raise BadRowError("not UTF-8")
    row = {name: _typed(cell, kinds.get(name)) for name, cell in zip(header, cells, strict=True) if name}
    return {name: value for name, value in row.items() if value is not None}


def _typed(cell: str, kind: FieldType | None) -> Any:
    """Return the value of a cell in a column that the store has declared; None for an empty one."""
    if kind in (None, "keyword", "text"):
        return cell
    if not cell or kind == "datetime":
        return cell or None
    convert = {"integer": int, "float": float}.get(kind, _BOOLEANS.__getitem__)
    try:
        return convert(cell.lower())
    except (ValueError, KeyError):
        return cell  # the store's own check says what is wrong with it


def _fail(reason: str) -> NoReturn:
    raise BadRowError(reason)


def _parquet(path: Path, kinds: Kinds) -> Iterator[Row]:
    pyarrow = require_pyarrow()
    size = path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            name, total, number = readable(path), file.metadata.num_rows, 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                rows = functools.cache(batch.to_pylist)
                for i in range(batch.num_rows):
                    number += 1
                    load = functools.partial(_parquet_row, batch, rows, i)
                    yield Row(f"{name}, row {number}", load, size * number // total)
    except pyarrow.ArrowException as error:
        raise IngestError(f"{path}: cannot be read as parquet ({error})") from error


def _parquet_row(batch: Any, rows: Callable[[], list[dict[str, Any]]], i: int) -> dict[str, Any]:
    try:
        try:
            row = rows()[i]
        except ValueError:  # one value spoils the whole batch
            row = batch.slice(i, 1).to_pylist()[0]
    except ValueError as error:
        raise BadRowError(f"a value cannot be read ({error})") from None
    return {name: value for name, value in row.items() if value is not None}


def require_pyarrow() -> Any:
    """Return the module.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError:
        raise ConfigurationError("parquet files need pyarrow: pip install 'twinvec[parquet]'") from None


# folders of texts


def read_folder(folder: Path, passed_over: Counter[str]) -> Iterator[Row]:
    """Yield the texts of a folder, and count what else is there.

    Raises:
        IngestError: there are files, but no text.
    """
    end, found = 0, False
    passed_over.clear()
    for path in walk(folder, passed_over):
        with contextlib.suppress(OSError):  # loading it says so
            end += path.stat().st_size
        found = True
        yield _text_row(path, path.relative_to(folder).as_posix(), end)
    if passed_over and not found:
        kinds = ", ".join(f"{n} {kind}" for kind, n in passed_over.most_common())
        raise IngestError(f"{folder}: none of its files is a text ({kinds}); known are {', '.join(_TEXT_SUFFIXES)}")


def walk(folder: Path, passed_over: Counter[str] | None = None) -> Iterator[Path]:
    """Yield text files by name, depth first; links to folders are not followed, so that it cannot run in circles.

    Pipes, sockets and devices, which would be waited for, and files of other kinds are counted in ``passed_over``.
    """
    levels = [iter([folder])]
    while levels:
        for path in levels[-1]:
            if path is not folder and path.name.startswith("."):
                continue
            if path.is_dir() and (path is folder or not path.is_symlink()):
                levels.append(iter(sorted(path.iterdir())))
                break
            if path.suffix.lower() in _TEXT_SUFFIXES and not path.is_dir() and (path.is_file() or not path.exists()):
                yield path
            elif passed_over is not None and not path.is_dir():
                passed_over[path.suffix.lower() or "without a suffix" if path.is_file() else "no regular file"] += 1
        else:
            levels.pop()


def _text_file(path: Path, kinds: Kinds) -> Iterator[Row]:
    yield _text_row(path, path.name, path.stat().st_size)


def _text_row(path: Path, id: str, end: int) -> Row:
    load: Callable[[], Any] = functools.partial(_read_text, path, id)
    if lone_surrogate(id):
        load = functools.partial(_fail, "no Unicode name")
    return Row(readable(path), load, end)


def _read_text(path: Path, id: str) -> Document:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise BadRowError(f"longer than {_MAX_BYTES >> 20} MiB", id)
        text, metadata = content.removeprefix(_BOM).decode(), {"source": id}
        if path.suffix.lower() in (".md", ".markdown"):
            text, front = _without_front_matter(text)
            metadata = {**front, **metadata}
        return Document(id, text, metadata)
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8 (byte {error.start})", id) from None
    except OSError as error:
        raise BadRowError(error.strerror or str(error), id) from None


def _without_front_matter(text: str) -> tuple[str, Mapping[str, Any]]:
    """Take the YAML between two lines of three dashes off the start of a text; anything but a YAML object stays."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return text, {}
    import yaml

    try:
        front = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return text, {}
    if not isinstance(front, dict) or not all(isinstance(key, str) for key in front):
        return text, {}
    return text[match.end() :], front


READERS: dict[str, Callable[[Path, Kinds], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": functools.partial(_table, delimiter=","),
    ".tsv": functools.partial(_table, delimiter="\t"),
    ".parquet": _parquet,
    **dict.fromkeys(_TEXT_SUFFIXES, _text_file),
}
