"""Rows of files, each parsed only when needed; and JSON lines."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

from twinvec.errors import IngestError
from twinvec_stores.ingestion.reports import readable
from twinvec_stores.ingestion.rows import BadRowError

if TYPE_CHECKING:
    from twinvec_stores.config import FieldType

Kinds: TypeAlias = "Mapping[str, FieldType]"
MAX_BYTES = 64 * 2**20  # per line or text: a file without line breaks must not fill the memory
BOM = b"\xef\xbb\xbf"
_URL = re.compile(r"[a-z][a-z0-9+.-]+://\S+")
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


class Reading(NamedTuple):
    """How tables are read.

    Attributes:
        kinds: types of columns.
        delimiter: character between cells; None: detected from the file.
        text_field: the column with the text.
    """

    kinds: Kinds
    delimiter: str | None = None
    text_field: str = "text"

    def check_columns(self, path: Path | str, names: Sequence[str]) -> None:
        """Check that a table has texts.

        Raises:
            NoTextColumnError: none of its rows can be a document.
        """
        if self.text_field not in names:
            raise NoTextColumnError(
                f"{path}: no column {self.text_field!r} (its columns: {', '.join(names)}); see text_field"
            )


class NoTextColumnError(IngestError):
    """A table without the column that is embedded."""


class Row(NamedTuple):
    """One row of a source.

    Attributes:
        where: its name for people: "corpus.jsonl, line 17".
        load: returns what ``Parser.parse`` takes, or raises BadRowError.
        end: how much of the source has been read with this row, in its unit.
        table: the table within a folder that it is a row of.
    """

    where: str
    load: Callable[[], Any]
    end: int
    table: str = ""


def is_url(source: object) -> bool:
    """Return whether it names a file or folder elsewhere."""
    return isinstance(source, str) and _URL.fullmatch(source) is not None


def suffix_of(path: Path) -> str:
    """Return the lower-case suffix that determines a file's kind; for ``a.csv.gz`` it is ``.csv``."""
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return plain.suffix.lower()


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file for reading, decompressing .gz; also return the file object that tells how far it was read."""
    with path.open("rb") as raw:
        if path.suffix.lower() == ".gz":
            with gzip.open(raw) as stream:
                yield stream, raw  # type: ignore[misc]
        else:
            yield raw, raw


NOT_UTF8 = "not UTF-8: convert the file from its own encoding (iconv -f WINDOWS-1252 -t UTF-8)"


def fail(reason: str, id: str | None = None) -> NoReturn:
    """Raise BadRowError; used as the loader of a bad row."""
    raise BadRowError(reason, id)


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield (number, line, bytes read so far); None stands for a line that is too long."""
    with open_bytes(path) as (stream, raw):
        number = 0
        while line := _next_line(stream, path):
            number, end = number + 1, raw.tell()
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise IngestError(f"{path} is UTF-16: convert it to UTF-8")
            if len(line) <= MAX_BYTES:
                yield number, line.removeprefix(BOM) if number == 1 else line, end
                continue
            while line and not line.endswith(b"\n"):
                line = stream.readline(2**20)
            yield number, None, raw.tell()


def _next_line(stream: IO[bytes], path: Path) -> bytes:
    try:
        return stream.readline(MAX_BYTES + 1)
    except DAMAGED as error:
        raise IngestError(f"{path} is damaged or incomplete: {error}") from None


def json_lines(path: Path, reading: Reading) -> Iterator[Row]:
    """Yield the rows of a file with one object per line."""
    name = readable(path)
    for number, line, end in read_lines(path):
        if line is None or line.strip():
            yield Row(f"{name}, line {number}", functools.partial(_parse_json, line), end)


def _parse_json(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise BadRowError(f"the line is longer than {MAX_BYTES >> 20} MiB")
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadRowError(f"byte {error.start} is {NOT_UTF8}") from None
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise BadRowError(f"not a JSON object but a {type(row).__name__}")
    return row
