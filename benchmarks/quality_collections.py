"""Build held-back retrieval collections in Russian, Chinese and English from documentation that Debian ships.

    python build.py --debs debs --out out            (add --download to fetch the packages with apt-get first)

Three families per language, in BEIR layout (corpus.jsonl, queries.jsonl, qrels/test.tsv):

- help-LANG: title or one-line description of a LibreOffice or GNOME help page -> the page without it
- manual-LANG: heading or question of a Debian manual or FAQ -> the text of that section without it
- index-LANG: an entry of LibreOffice's own help index -> all places its authors listed under it (heading and text)

The literal text of a query is removed from its documents (not for index-LANG, where it is an annotation outside the
page); ``--keep-literals`` removes only the heading itself. Documents end at a paragraph near 1000 characters (400 in
Chinese), the usual size of a RAG chunk. The same files give the same collections, byte for byte.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import random
import re
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

LANGUAGES = ("ru", "zh", "en")
SCRIPTS = {"ru": r"[а-яё]", "zh": r"[\u3400-\u9fff]", "en": r"[a-z]"}
LETTERS = re.compile(r"[^\W\d_]", re.IGNORECASE)
DOCUMENT_CHARACTERS = {"ru": 1000, "en": 1000, "zh": 400}
SHORTEST_DOCUMENT = {"ru": 40, "en": 40, "zh": 20}
QUERIES_PER_COLLECTION = 800
MOST_RELEVANT = {"help": 3, "manual": 3, "index": 5}


@dataclass(frozen=True)
class Block:
    """One paragraph; ``level`` 1 to 6 for a heading, 0 otherwise."""

    level: int
    text: str


@dataclass(frozen=True)
class Entry:
    """One document with the queries that it answers."""

    queries: tuple[str, ...]
    blocks: tuple[Block, ...]
    source: str
    path: str


Reader = Callable[[str, bytes], Iterable[Entry]]


@dataclass(frozen=True)
class Source:
    """The members of one Debian package that one reader understands."""

    package: str
    pattern: str
    reader: Reader
    licence: str


# --- text out of markup -------------------------------------------------------------------------------------------

_SKIPPED_TAGS = {"script", "style", "head", "nav", "header", "footer", "aside", "button"}
_SKIPPED_CLASSES = {
    *("toc", "navheader", "navfooter", "headerlink", "section-number", "sphinxsidebar", "related", "relatedtopics"),
    *("toctree-wrapper", "footnotes", "MAC", "noteicon", "legalnotice", "MetaInfo", "howtogetheader"),
}
_BLOCK_TAGS = {
    *("p", "div", "li", "dt", "dd", "td", "th", "tr", "table", "ul", "ol", "dl"),
    *("pre", "section", "br", "blockquote", "hr"),
}
_NUMBERING = re.compile(
    r"^((chapter|appendix|глава|приложение|часть)\s+)?([0-9]+|[A-Z])(\.[0-9]+)*\.\s+|^(第|附录)\s*\w+\s*[章部分.]*\s+",
    re.IGNORECASE,
)


class _Blocks(HTMLParser):
    """Collects the blocks of an HTML page, without navigation and tables of contents."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self.keywords: list[tuple[int, str]] = []  # with the number of blocks before them
        self._buffer: list[str] = []
        self._level = 0
        self._skipping: tuple[str, int] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Enter an element."""
        values = dict(attrs)
        if self._skipping:
            name, depth = self._skipping
            self._skipping = (name, depth + (tag == name))
        elif tag in _SKIPPED_TAGS or _SKIPPED_CLASSES & set((values.get("class") or "").split()):
            self._skipping = (tag, 1)
        elif tag == "meta" and values.get("itemprop") == "keywords":
            self.flush()
            self.keywords.append((len(self.blocks), values.get("content") or ""))
        elif re.fullmatch("h[1-6]", tag):
            self.flush()
            self._level = int(tag[1])
        elif tag in _BLOCK_TAGS and not self._level:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        if self._skipping:
            name, depth = self._skipping
            depth -= tag == name
            self._skipping = (name, depth) if depth else None
        elif re.fullmatch("h[1-6]", tag) or (tag in _BLOCK_TAGS and not self._level):
            self.flush()

    def handle_data(self, data: str) -> None:
        """Take text."""
        if not self._skipping:
            self._buffer.append(data)

    def flush(self) -> None:
        """End the current block."""
        text = clean("".join(self._buffer))
        if text:
            self.blocks.append(Block(self._level, _NUMBERING.sub("", text) if self._level else text))
        self._buffer, self._level = [], 0


def clean(text: str) -> str:
    """Return ``text`` with single spaces and without marks that only the layout needs."""
    return re.sub(r"\s+", " ", re.sub("[\u200b\u00ad¶]", "", html.unescape(text))).strip()


def parse(data: bytes) -> _Blocks:
    """Parse one HTML page."""
    parser = _Blocks()
    parser.feed(data.decode("utf-8", "replace"))
    parser.close()
    parser.flush()
    return parser


# --- readers ------------------------------------------------------------------------------------------------------


def office_page(path: str, data: bytes) -> Iterator[Entry]:
    """Yield a LibreOffice help page: its title, its text."""
    blocks = parse(data).blocks
    first = next((i for i, block in enumerate(blocks) if block.level), None)
    if first is not None:
        yield Entry((blocks[first].text,), tuple(blocks[first + 1 :]), "libreoffice-help", path)


def office_index(path: str, data: bytes) -> Iterator[Entry]:
    """Yield the parts of a LibreOffice help page that its authors' index entries stand before, with these entries."""
    parser = parse(data)
    starts = sorted({0, *(position for position, _ in parser.keywords)})
    for start, end in zip(starts, [*starts[1:], len(parser.blocks)], strict=True):
        words = [clean(re.sub(r"\s*[,;，、；]\s*", " ", word)) for at, word in parser.keywords if at == start]
        queries = tuple(w for w in words if not re.search(r"\b(see|см|参阅|请参阅|另请参阅)\b", w, re.IGNORECASE))
        blocks = tuple(parser.blocks[start:end])
        if blocks:
            yield Entry(queries, blocks, "libreoffice-help", path)


def gnome_page(path: str, data: bytes) -> Iterator[Entry]:
    """Yield a GNOME help page: its title and its one-line description, its text."""
    space = "{http://projectmallard.org/1.0/}"
    root = ElementTree.fromstring(data)  # noqa: S314 - a file of a signed package
    found = [root.find(f"{space}title"), root.find(f"{space}info/{space}desc")]
    queries = [clean("".join(node.itertext())) for node in found if node is not None]
    for information in root.iter(f"{space}info"):
        information.clear()
    wanted = {f"{space}{tag}" for tag in ("p", "title", "screen")}
    texts = [clean("".join(node.itertext())) for node in root.iter() if node.tag in wanted]
    yield Entry(tuple(filter(None, queries)), tuple(Block(0, t) for t in texts if t), "gnome-help", path)


def sections(source: str) -> Reader:
    """Return a reader that yields each heading of a page with the text up to the next heading."""

    def read(path: str, data: bytes) -> Iterator[Entry]:
        heading, body = "", list[Block]()
        for block in [*parse(data).blocks, Block(6, "")]:
            if not block.level:
                body.append(block)
                continue
            if heading:
                yield Entry((heading,), tuple(body), source, path)
            heading, body = block.text, []

    return read


def _manual(package: str, pattern: str, licence: str) -> Source:
    return Source(package, pattern, sections(re.sub(r"-(ru|zh-cn|en|amd64)$", "", package)), licence)


def sources(family: str, language: str) -> list[Source]:
    """Return where a collection comes from."""
    suffix = {"ru": "ru", "zh": "zh-cn", "en": "en-us"}[language]
    if family != "manual":
        reader = office_page if family == "help" else office_index
        office = Source(f"libreoffice-help-{suffix}", r"/help/[\w-]+/text/.*\.html$", reader, "MPL-2.0")
        gnome_folder = {"ru": "ru", "zh": "zh_CN", "en": "C"}[language]
        gnome = Source("gnome-user-docs", rf"/help/{gnome_folder}/.*\.page$", gnome_page, "CC-BY-SA-3.0")
        return [office, gnome] if family == "help" else [office]
    short = suffix.removesuffix("-us")
    found = [
        _manual("debian-faq" + ("" if language == "en" else f"-{short}"), r"/FAQ/.*\.html$", "verbatim/copyleft"),
        _manual("installation-guide-amd64", rf"/{short.replace('-cn', '_CN')}/[a-z0-9]+\.html$", "GPL-2"),
    ]
    if language != "ru":
        found.append(_manual(f"debian-reference-{short}", r"/debian-reference/.*\.html$", "GPL-2+"))
        found.append(_manual(f"debian-edu-doc-{short}", r"bullseye-manual\.html$", "GPL-2+"))
    if language != "zh":
        found.append(_manual("developers-reference" + ("-ru" if language == "ru" else ""), r"\.html$", "GPL-2+"))
        found.append(_manual(f"aptitude-doc-{short}", r"/html/.*\.html$", "GPL-2+"))
    return found


# --- packages -----------------------------------------------------------------------------------------------------


def download(packages: Iterable[str], folder: Path) -> None:
    """Fetch what is missing of ``packages`` into ``folder`` from the Debian mirror that apt is set up for."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [package for package in packages if not list(folder.glob(f"{package}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", *missing], cwd=folder, check=True)  # noqa: S603, S607


def members(deb: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a Debian package whose path matches, in order of their path."""
    data, offset = deb.read_bytes(), 8
    while offset < len(data):
        name, size = data[offset : offset + 16].decode().strip(" /"), int(data[offset + 48 : offset + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(data[offset + 60 : offset + 60 + size])) as archive:
                wanted = [m for m in archive.getmembers() if m.isfile() and re.search(pattern, m.name)]
                for member in sorted(wanted, key=lambda m: m.name):
                    handle = archive.extractfile(member)
                    assert handle is not None
                    yield member.name.removeprefix("."), handle.read()
        offset += 60 + size + size % 2


def read(family: str, language: str, folder: Path) -> Iterator[Entry]:
    """Yield the entries of a collection's packages."""
    for source in sources(family, language):
        (deb,) = folder.glob(f"{source.package}_*.deb")
        for path, data in members(deb, source.pattern):
            yield from source.reader(path, data)


# --- from entries to a collection ---------------------------------------------------------------------------------


def share(text: str, language: str) -> float:
    """Return which part of the letters of ``text`` belongs to the language's script."""
    letters = LETTERS.findall(text)
    return len(re.findall(SCRIPTS[language], text, re.IGNORECASE)) / max(len(letters), 1)


def is_query(text: str, language: str) -> bool:
    """Say whether a heading can stand as a query: some words long, in the language."""
    if language == "zh":
        return 4 <= len(re.findall(SCRIPTS["zh"], text)) <= 60 and share(text, language) >= 0.5
    return 2 <= len(re.findall(r"\w+", text)) <= 30 and len(text) >= 8 and share(text, language) >= 0.6


def document_text(entry: Entry, language: str, literals: str) -> str:
    """Return the text to index: no untranslated paragraphs, no literal query unless kept, cut to the chunk size."""
    headings = {normal(query) for query in entry.queries} if literals != "all" else set()
    kept: list[str] = []
    for block in entry.blocks:
        foreign = language != "en" and len(LETTERS.findall(block.text)) > 20 and share(block.text, language) < 0.2
        text = block.text
        for query in entry.queries if literals == "none" else ():
            pattern = r"\s*".join(re.escape(word) for word in query.rstrip("?？.。:： ").split())
            text = clean(re.sub(pattern, " ", text, flags=re.IGNORECASE))
        if foreign or normal(block.text) in headings or not re.search(r"\w", text):
            continue
        kept.append(text)
        if sum(map(len, kept)) >= DOCUMENT_CHARACTERS[language]:
            break
    return "\n".join(kept)[: DOCUMENT_CHARACTERS[language] * 3 // 2]


def normal(text: str) -> str:
    """Return the form under which two queries count as equal."""
    return " ".join(re.findall(r"\w+", text.casefold()))


@dataclass
class Collection:
    """Documents by id, and queries with the ids of all their documents."""

    documents: dict[str, tuple[str, Entry]]
    queries: list[tuple[str, Entry, tuple[str, ...]]]


def collect(family: str, language: str, entries: Iterable[Entry], literals: str) -> Collection:
    """De-duplicate documents and queries, drop what is too short or ambiguous, sample the queries."""
    documents: dict[str, tuple[str, Entry]] = {}
    ids: dict[str, str] = {}
    asked: dict[str, tuple[str, Entry]] = {}
    relevant: defaultdict[str, set[str]] = defaultdict(set)
    for entry in entries:
        usable = [query for query in entry.queries if is_query(query, language)]
        removed = "all" if family == "index" else literals
        text = document_text(replace(entry, queries=tuple(usable)), language, removed)
        if len(text) < SHORTEST_DOCUMENT[language] or share(text, language) < 0.5:
            continue
        identifier = ids.setdefault(text, f"{family}-{language}-{len(ids):05d}")
        documents.setdefault(identifier, (text, entry))
        for query in usable:
            asked.setdefault(normal(query), (query, entry))
            relevant[normal(query)].add(identifier)
    keys = sorted(key for key in asked if len(relevant[key]) <= MOST_RELEVANT[family])
    random.Random(0).shuffle(keys)
    chosen = sorted(keys[:QUERIES_PER_COLLECTION])
    return Collection(documents, [(*asked[key], tuple(sorted(relevant[key]))) for key in chosen])


def write(collection: Collection, folder: Path) -> None:
    """Write BEIR's three files."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as out:
        for identifier, (text, entry) in collection.documents.items():
            row = {"_id": identifier, "title": "", "text": text, "metadata": {"source": entry.source}}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as out:
        for number, (text, entry, _) in enumerate(collection.queries):
            row = {"_id": f"q{number:04d}", "text": text, "metadata": {"source": entry.source}}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    lines = [f"q{n:04d}\t{document}\t1" for n, (_, _, found) in enumerate(collection.queries) for document in found]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")


def main() -> None:
    """Build all collections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debs", type=Path, default=Path("debs"))
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--keep-literals", action="store_true", help="remove only the heading itself")
    options = parser.parse_args()
    wanted = [(family, language) for family in MOST_RELEVANT for language in LANGUAGES]
    used = {source.package: source for pair in wanted for source in sources(*pair)}
    if options.download:
        download(used, options.debs)
    for family, language in wanted:
        entries = read(family, language, options.debs)
        collection = collect(family, language, entries, "heading" if options.keep_literals else "none")
        write(collection, options.out / f"{family}-{language}")
        print(f"{family}-{language}: {len(collection.documents)} documents, {len(collection.queries)} queries")
    origin = {p: {"file": next(options.debs.glob(f"{p}_*.deb")).name, "licence": s.licence} for p, s in used.items()}
    (options.out / "sources.json").write_text(json.dumps(origin, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
