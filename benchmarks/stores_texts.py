"""Real vectors for benchmarks/stores.py: paragraphs of installed packages' docstrings, MiniLM and SPLADE-tiny."""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from benchmarks.splade import splade_folder
from benchmarks.stores_data import QUERIES, Part
from rich.console import Console

from twinvec.vectors import SparseBatch

if TYPE_CHECKING:
    from twinvec import Embedder

CACHE = Path(__file__).resolve().parent / ".cache/stores-real"
_PART = 2000  # documents in one file: an interrupted run goes on where it stopped
_QUERY_FILES = 40  # one Python file in so many gives queries, the others documents
_NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def real(n: int, console: Console) -> tuple[Iterator[Part], Part]:
    """Return n documents and the queries; embeds what is not in the cache yet."""
    CACHE.mkdir(parents=True, exist_ok=True)
    queries = CACHE / "queries.npz"
    paths = [CACHE / f"documents-{i:03d}.npz" for i in range(-(-n // _PART))]
    if not queries.exists():
        _embed(_take(_sentences(), QUERIES), queries)
    if missing := [path for path in paths if not path.exists()]:
        console.log(f"embedding {len(missing) * _PART} paragraphs; they stay in {CACHE}")
        known = {text for path in paths if path.exists() for text in _read(path).texts}
        texts = (text for text in _paragraphs() if text not in known)
        for path in missing:
            _embed(_take(texts, _PART), path)
            console.log(f"  {path.name}")
    return (_read(path, n - i * _PART) for i, path in enumerate(paths)), _read(queries)


def _read(path: Path, most: int = _PART) -> Part:
    with np.load(path) as file:
        texts = file["texts"].tobytes().decode().split("\n")
        sparse = SparseBatch(file["indptr"], file["indices"], file["values"])
        return Part(texts[:most], file["dense"][:most], sparse[:most])


def _embed(texts: list[str], path: Path) -> None:
    embed = _embedder().embed_queries if path.stem == "queries" else _embedder().embed_documents
    batch = embed(texts)
    assert batch.dense is not None
    assert batch.sparse is not None
    temporary = path.with_suffix(".new.npz")
    np.savez(
        temporary,
        texts=np.frombuffer("\n".join(texts).encode(), np.uint8),
        dense=batch.dense,
        indptr=batch.sparse.indptr,
        indices=batch.sparse.indices,
        values=batch.sparse.values,
    )
    temporary.replace(path)


@functools.cache
def _embedder() -> Embedder:
    from twinvec import Embedder, TruncationWarning
    from twinvec_cli.demo import find_model

    warnings.simplefilter("ignore", TruncationWarning)
    return Embedder(find_model(), sparse=splade_folder(), memo_bytes=0)


def _take(texts: Iterator[str], n: int) -> list[str]:
    taken = [text for _, text in zip(range(n), texts, strict=False)]
    if len(taken) < n:
        raise SystemExit("the installed packages have too few docstrings: choose smaller --sizes, or install more")
    return taken


def _paragraphs() -> Iterator[str]:
    """Yield distinct paragraphs of 40 to 1200 characters."""
    seen = set()
    for docstring in itertools.chain.from_iterable(_docstrings(queries=False)):
        for paragraph in re.split(r"\n\s*\n", docstring):
            text = " ".join(paragraph.split())
            if 40 <= len(text) <= 1200 and text not in seen:
                seen.add(text)
                yield text


def _sentences() -> Iterator[str]:
    """Yield distinct first sentences of 20 to 200 characters, one of a file."""
    seen = set()
    for docstrings in _docstrings(queries=True):
        for docstring in docstrings:
            text = " ".join(re.split(r"(?<=\w)\.\s|\n\s*\n", docstring, maxsplit=1)[0].split())
            if 20 <= len(text) <= 200 and text not in seen:
                seen.add(text)
                yield text
                break


def _docstrings(*, queries: bool) -> Iterator[list[str]]:
    """Yield each file's docstrings, of the standard library and the installed packages, in a fixed random order."""
    roots = sorted({Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")})
    keys = {
        path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()
        for root in roots
        for path in root.rglob("*.py")
    }
    for path, key in sorted(keys.items(), key=lambda item: item[1]):
        if (key[-1] % _QUERY_FILES == 0) != queries:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other people's escape sequences
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError, OSError):
            continue
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, _NODES))
        yield [text.encode(errors="ignore").decode() for text in found if text]
