"""Questions about the manual pages of this machine, by rule, for ``chunk_context.py --pages``; needs groff.

"query" is a page's own description, its NAME section, which is left out of it: a short question about its subject.
"detail" is a sentence of its second half, which is left out, too: what it says is in no other place than around it
(the inverse cloze task of Lee, Chang and Toutanova, 2019). Pages are drawn by their hashes, at most three of a family.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PAGES = Path("/usr/share/man")
_LEAST, _MOST = 4000, 10_000  # characters
_OF_A_FAMILY = 3
_STYLE = re.compile(r".\x08|\x1b\[[0-9;]*m")
_NAME = re.compile(r"(.+?) [-–—‐]+ (.{15,})")
_SENTENCE = re.compile(r"(?<=[.\n]\s)[A-Z][a-z]*,?(?:\s(?!\s)[\w'’,()-]+){7,24}\.(?=\s)")


def sections(path: Path) -> dict[str, str]:
    """Return the texts of a page by their headings."""
    command = ["groff", "-K", "utf8", "-t", "-mandoc", "-Tutf8", "-P-cbou", "-rLL=200n"]
    raw = gzip.decompress(path.read_bytes())
    shown = subprocess.run(command, input=raw, capture_output=True, check=False)  # noqa: S603
    found: dict[str, list[str]] = {}
    heading = ""
    for line in _STYLE.sub("", shown.stdout.decode("utf-8", "replace")).splitlines()[1:-1]:
        if line and not line[0].isspace():
            heading = line.strip()
        elif heading:
            found.setdefault(heading, []).append(line.strip())
    return {heading: re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() for heading, lines in found.items()}


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def row_of(path: Path) -> dict[str, str] | None:
    """Return a page with its two questions, if it has them."""
    parts = sections(path)
    name = _NAME.fullmatch(" ".join(parts.pop("NAME", "").split()))
    text = "\n\n".join(f"# {heading}\n\n{body}" for heading, body in parts.items() if body)
    told = [match for match in _SENTENCE.finditer(text, len(text) // 2) if text.count(match[0]) == 1]
    if name is None or not told or not _LEAST < len(text) < _MOST:
        return None
    id = path.name.removesuffix(".gz")
    detail = told[_digest(id) % len(told)]
    return {
        "id": id,
        "title": name[1].split(",")[0],
        "text": text[: detail.start()] + text[detail.end() :].lstrip(" "),
        "query": name[2],
        "detail": " ".join(detail[0].split()),
    }


def family(name: str) -> str:
    """Return what the names of related pages begin with."""
    return re.split(r"[-_:.]", name)[0]


def rows(numbers: str, most: int, without: set[str]) -> Iterator[dict[str, str]]:
    """Yield the first so many pages of these sections of the manual, in the order of their names' hashes."""
    names = [path for number in numbers for path in PAGES.glob(f"man{number}/*.gz") if not path.is_symlink()]
    taken, seen = Counter(dict.fromkeys(without, _OF_A_FAMILY)), set[str]()
    for path in sorted(names, key=lambda path: _digest(path.name)):
        if sum(taken.values()) - _OF_A_FAMILY * len(without) == most:
            return
        if taken[family(path.name)] < _OF_A_FAMILY and (row := row_of(path)) is not None and row["query"] not in seen:
            taken[family(path.name)] += 1
            seen.add(row["query"])
            yield row


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sections", default="23", help="of the manual, a digit each")
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--without", type=Path, help="a file written before, of whose families none is taken")
    arguments = parser.parse_args()
    before = [] if arguments.without is None else arguments.without.read_text(encoding="utf-8").splitlines()
    without = {family(json.loads(line)["id"]) for line in before}
    found = list(rows(arguments.sections, arguments.pages, without))
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    print(f"{len(found)} pages, {sum(len(row['text']) for row in found):,} characters")


if __name__ == "__main__":
    main()
