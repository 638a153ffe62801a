"""Texts: files that are one document each."""

from __future__ import annotations

import functools
import importlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twinvec.errors import ConfigurationError
from twinvec.text.unicode import lone_surrogate
from twinvec_stores.ingestion.readers import (
    BOM,
    DAMAGED,
    MAX_BYTES,
    NOT_UTF8,
    Reading,
    Row,
    fail,
    open_bytes,
    suffix_of,
)
from twinvec_stores.ingestion.reports import readable
from twinvec_stores.ingestion.rows import BadRowError, Document

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst", ".html", ".htm", ".pdf")
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_BLANK = re.compile(r"[ \t]*\n\s*\n")


def text_file(path: Path, reading: Reading) -> Iterator[Row]:
    """Yield the single row of a text."""
    yield text_row(path, path.name, path.stat().st_size)


def text_row(path: Path, id: str, end: int) -> Row:
    """Return the row of a text that has this id; it is read when it is loaded."""
    load: Callable[[], Any] = functools.partial(_read_text, path, id)
    if lone_surrogate(id):
        load = functools.partial(fail, "its name is not valid Unicode")
    return Row(readable(path), load, end)


def _read_text(path: Path, id: str) -> Document:
    try:
        with open_bytes(path) as (stream, _):
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise BadRowError(f"longer than {MAX_BYTES >> 20} MiB", id)
        text, metadata = _FORMS.get(suffix_of(path), _plain)(content)
        return Document(id, text, {"source": id, **metadata})
    except UnicodeDecodeError as error:
        raise BadRowError(f"byte {error.start} is {NOT_UTF8}", id) from None
    except DAMAGED as error:
        raise BadRowError(f"damaged or incomplete: {error}", id) from None
    except OSError as error:
        raise BadRowError(error.strerror or str(error), id) from None
    except (BadRowError, ConfigurationError) as error:
        raise BadRowError(str(error), id) from None


def _plain(content: bytes) -> tuple[str, Mapping[str, Any]]:
    return content.removeprefix(BOM).decode(), {}


def _markdown(content: bytes) -> tuple[str, Mapping[str, Any]]:
    return _without_front_matter(_plain(content)[0])


def _html(content: bytes) -> tuple[str, Mapping[str, Any]]:
    """Convert a page to Markdown, which preserves its headings; without scripts, styles and navigation."""
    try:
        bs4, markdownify = importlib.import_module("bs4"), importlib.import_module("markdownify")
    except ModuleNotFoundError:
        raise ConfigurationError("HTML files need Beautiful Soup: pip install 'twinvec[html]'") from None
    page = bs4.BeautifulSoup(content, "html.parser")
    title = page.title.get_text() if page.title is not None else ""
    for part in page(["head", "script", "style", "noscript", "template", "nav", "svg"]):
        part.decompose()
    try:
        text = markdownify.MarkdownConverter(heading_style="ATX", strip=["img"]).convert_soup(page)
    except RecursionError:
        raise BadRowError("its elements are nested too deeply") from None
    return _BLANK.sub("\n\n", text).strip() + "\n", {"title": " ".join(title.split())} if title.strip() else {}


def _pdf(content: bytes) -> tuple[str, Mapping[str, Any]]:
    """Return the text of a PDF's pages, separated by empty lines."""
    try:
        pypdf = importlib.import_module("pypdf")
    except ModuleNotFoundError:
        raise ConfigurationError("PDF files need pypdf: pip install 'twinvec[pdf]'") from None
    try:
        file = pypdf.PdfReader(io.BytesIO(content))
        pages = [page.extract_text() for page in file.pages]
        title = file.metadata.title if file.metadata is not None else None
    except Exception as error:  # a parser of arbitrary bytes may fail in any way
        raise BadRowError(f"cannot be read as PDF ({error})") from None
    if not any(page.strip() for page in pages):
        raise BadRowError("has no text: a scan needs OCR first")
    return "\n\n".join(pages), {"title": title} if title else {}


_FORMS: dict[str, Callable[[bytes], tuple[str, Mapping[str, Any]]]] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
}


def _without_front_matter(text: str) -> tuple[str, Mapping[str, Any]]:
    """Split YAML front matter, between two lines of three dashes, off the text; anything but a YAML object stays."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return text, {}
    if not match[1].strip():
        return text[match.end() :], {}
    import yaml

    try:
        front = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return text, {}
    if not isinstance(front, dict) or not all(isinstance(key, str) for key in front):
        return text, {}
    return text[match.end() :], front
