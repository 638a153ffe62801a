"""The texts of `twinvec embed`: from arguments, a file, or stdin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import typer

from twinvec.errors import ConfigurationError, InvalidTextError

_JSON_LINES = (".jsonl", ".ndjson")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TextSource:
    """Texts that are read on demand.

    Attributes:
        arguments: texts from the command line; used if there is no stream.
        name: the stream's name in messages.
        path: the file; None for stdin and arguments.
        field: the field of each JSON line that contains the text; None for plain lines.
    """

    arguments: Sequence[str] = ()
    name: str | None = None
    path: Path | None = None
    field: str | None = None

    @classmethod
    def choose(cls, texts: Sequence[str], path: Path | None, field: str | None) -> TextSource:
        """Determine where the texts come from, before any model is loaded.

        Raises:
            ConfigurationError: no source or two sources, or a field for something other than JSON lines.
            OSError: a file cannot be read.
        """
        if path is not None and texts:
            raise ConfigurationError("pass texts as arguments or with --input, not both")
        if list(texts) == ["-"] or path == Path("-"):
            return cls(name="stdin", field=field)
        if path is not None:
            with path.open("rb"):
                pass
            is_json = field is not None or path.suffix.lower() in _JSON_LINES
            return cls(name=str(path), path=path, field=(field or "text") if is_json else None)
        if not texts:
            raise ConfigurationError("no texts: pass them as arguments, with --input FILE, or - to read stdin")
        if field is not None:
            raise ConfigurationError("--field is for JSON lines: use it with --input FILE or -")
        return cls(arguments=tuple(texts))

    def __iter__(self) -> Iterator[str]:
        if self.name is None:
            yield from self.arguments
        elif self.path is None:
            yield from self._read(typer.get_binary_stream("stdin"))
        else:
            with self.path.open("rb") as stream:
                yield from self._read(stream)

    def count(self) -> int | None:
        """Return the number of texts; None for stdin."""
        if self.name is None:
            return len(self.arguments)
        if self.path is None or not self.path.is_file():
            return None
        with self.path.open("rb") as stream:
            return sum(1 for line in stream if self.field is None or line.strip())

    def _read(self, stream: BinaryIO) -> Iterator[str]:
        for number, raw in enumerate(stream, 1):
            line = raw.removeprefix(_BOM) if number == 1 else raw
            try:
                text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidTextError(
                    f"{self.name}, line {number}: not UTF-8 (byte {error.start}): convert the file"
                ) from None
            if self.field is None:
                yield text
            elif text.strip():
                yield self._field(text, number)

    def _field(self, line: str, number: int) -> str:
        where = f"{self.name}, line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidTextError(f"{where}: not JSON ({error}); --input expects one JSON object per line") from None
        if not isinstance(row, dict) or self.field not in row:
            found = f"its fields: {', '.join(row)}" if isinstance(row, dict) else "not an object"
            raise InvalidTextError(f"{where}: no field {self.field!r} ({found}); select another with --field")
        text = row[self.field]
        if not isinstance(text, str):
            raise InvalidTextError(f"{where}: the field {self.field!r} must be a string, not {type(text).__name__}")
        return text
