"""Exporting stores to files and copying them between engines, for a new schema, other settings, or a cluster.

An export is a file, or a folder of parquet files (``shards``). The file consists of JSON lines: a header with the
StoreConfig, one line per record (vectors as base64 of little-endian arrays, so that they are restored bit for bit), and
a last line with the number of records and the SHA-256 of all lines before it. An export is read and checked to its end
before any of its records is imported.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from twinvec.errors import StoreMismatchError
from twinvec.vectors import SparseVector
from twinvec_stores.checking import undamaged
from twinvec_stores.config import StoreConfig
from twinvec_stores.protocol import HybridStore
from twinvec_stores.records import Record, RecordBatch, checksum
from twinvec_stores.shards import FORMAT, ShardFolder

_PAGE = 512

Progress = Callable[[int], None]


def copy_store(
    source: HybridStore, target: HybridStore, progress: Progress | None = None, *, prune: bool = False
) -> int:
    """Write every record of a store, with its vectors, into another one; nothing is embedded again.

    Records that the target already has are not written again, so an interrupted copy is resumed by calling this once
    more, and so is one whose source has changed. ``compare_stores`` tells whether both then agree.

    Args:
        source: remains unchanged.
        target: a store for the same model; records with the same ids are replaced.
        progress: called with the number of records of the source that the target has so far.
        prune: delete what the target has and the source lacks.

    Returns:
        The number of records in the source.

    Raises:
        FingerprintMismatchError: the target contains another model's vectors.
        StoreEngineError: a record is damaged; those before it have been written.
    """
    target.config.check(_without_settings(source.config), repr(target))
    n = 0
    pages = ([undamaged(r) for r in page] for page in source.scroll_all(limit=_PAGE, with_vectors=True))
    for page, lacking in lacking_in(target, pages, _content, with_vectors=True):
        if lacking:
            target.upsert(RecordBatch.of(lacking))
        n += len(page)
        if progress is not None:
            progress(n)
    if prune:
        delete_others(source, target)
    target.flush()
    return n


def lacking_in(
    target: HybridStore,
    pages: Iterable[list[Record]],
    content: Callable[[Record], object],
    *,
    with_vectors: bool = False,
) -> Iterator[tuple[list[Record], list[Record]]]:
    """Yield each page, and those of its records that a store does not have with the same content."""
    filled = target.count() > 0
    for page in pages:
        found = target.get([record.id for record in page], with_vectors=with_vectors) if filled else []
        known = {record.id: content(record) for record in found}
        yield page, [record for record in page if known.get(record.id) != content(record)]


def _content(record: Record) -> int:
    """Return what distinguishes the contents of records that were read with their vectors."""
    return checksum(record) if record.checksum is None else record.checksum


def delete_others(source: HybridStore, target: HybridStore) -> int:
    """Delete the records of the target whose ids the source does not have; return how many."""
    n = 0
    for page in target.scroll_all(limit=_PAGE):
        ids = [record.id for record in page]
        kept = {record.id for record in source.get(ids)}
        if others := [id for id in ids if id not in kept]:
            target.delete(others)
            n += len(others)
    return n


def export_store(store: HybridStore, path: str | os.PathLike[str], progress: Progress | None = None) -> int:
    """Write a store to a file, completely or not at all; a name that ends in ``.gz`` is compressed.

    Returns:
        The number of records.

    Raises:
        StoreEngineError: a record is damaged; nothing is written.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.new")
    n = 0
    try:
        with _open(temporary, "wt", compress=final.suffix == ".gz") as file:
            digest = hashlib.sha256()

            def write(row: dict[str, Any]) -> None:
                line = json.dumps(row) + "\n"
                digest.update(line.encode())
                file.write(line)

            write({"format": FORMAT, "config": store.config.to_dict()})
            for page in store.scroll_all(limit=_PAGE, with_vectors=True):
                for record in page:
                    write(_to_json(undamaged(record)))
                n += len(page)
                if progress is not None:
                    progress(n)
            file.write(json.dumps({"records": n, "sha256": digest.hexdigest()}) + "\n")
        temporary.replace(final)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return n


def read_export(path: str | os.PathLike[str]) -> tuple[StoreConfig, Iterator[Record]]:
    """Open an export: its configuration, and an iterator over its records.

    Args:
        path: an exported file, or a folder of parquet files that ``twinvec_ray`` has written, or its URL.

    Raises:
        StoreMismatchError: not an export; during iteration, damaged or incomplete.
    """
    name = os.fspath(path)
    if "://" in name or os.path.isdir(name):
        return ShardFolder(name).read()
    lines = _lines(Path(path))
    first = next(lines, "")
    header = _parse(first, name, 1)
    if header.get("format") != FORMAT:
        raise StoreMismatchError(f"{name} was not written by `twinvec store export`")
    return StoreConfig.from_dict(header.get("config"), name), _records(lines, name, hashlib.sha256(first.encode()))


def import_store(path: str | os.PathLike[str], store: HybridStore, progress: Progress | None = None) -> int:
    """Write the records of an export into a store, replacing those with the same ids.

    Args:
        path: see ``read_export``.
        store: a store for the same model.
        progress: called with the number of records written so far.

    Returns:
        The number of records.

    Raises:
        FingerprintMismatchError: the store contains another model's vectors.
        StoreMismatchError: the file is damaged; nothing of it is stored.
    """
    for _ in read_export(path)[1]:
        pass  # to its end, and its digest
    config, records = read_export(path)
    store.config.check(_without_settings(config), repr(store))
    return _write(store, records, progress)


def _write(store: HybridStore, records: Iterator[Record], progress: Progress | None) -> int:
    n = 0
    while page := list(islice(records, _PAGE)):
        store.upsert(RecordBatch.of(page))
        n += len(page)
        if progress is not None:
            progress(n)
    store.flush()
    return n


def _without_settings(config: StoreConfig) -> StoreConfig:
    return StoreConfig.from_dict({**config.to_dict(), "fields": {}, "quantization": None}, "the source")


def _open(path: Path, mode: Literal["rt", "wt"], *, compress: bool) -> TextIO:
    if compress:
        return gzip.open(path, mode, encoding="utf-8", compresslevel=3, newline="\n")
    return open(path, mode, encoding="utf-8", newline="\n")


def _lines(path: Path) -> Iterator[str]:
    try:
        with _open(path, "rt", compress=path.suffix == ".gz") as file:
            yield from file
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error) as error:
        raise StoreMismatchError(f"{path} is damaged or incomplete: {error}") from None


def _records(lines: Iterator[str], name: str, digest: Any) -> Iterator[Record]:
    n = 0
    for number, line in enumerate(lines, 2):
        row = _parse(line, name, number)
        if set(row) == {"records", "sha256"}:
            if row["records"] != n:
                raise StoreMismatchError(f"{name} contains {n} records instead of {row['records']}: export it again")
            if row["sha256"] != digest.hexdigest() or next(lines, None) is not None:
                raise StoreMismatchError(
                    f"{name} is damaged: its content differs from what was written; export it again"
                )
            return
        digest.update(line.encode())
        try:
            yield _from_json(row)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreMismatchError(f"{name}, line {number}: not a record ({error!r})") from None
        n += 1
    raise StoreMismatchError(f"{name} ends after {n} records: export it again")


def _parse(line: str, name: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StoreMismatchError(
            f"{name}, line {number}: not JSON ({error}): the file is damaged or incomplete"
        ) from None
    if not isinstance(row, dict):
        raise StoreMismatchError(f"{name}, line {number}: not an object")
    return row


def _to_json(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id, "text": record.text, "metadata": record.metadata}
    if record.provenance:
        row["provenance"] = record.provenance
    if record.dense is not None:
        row["dense"] = _encode(record.dense, "<f4")
    if record.sparse is not None:
        row["sparse"] = [_encode(record.sparse.indices, "<i4"), _encode(record.sparse.values, "<f4")]
    if record.tokens is not None:
        row["tokens"] = base64.b64encode(record.tokens).decode("ascii")
    return row


def _from_json(row: dict[str, Any]) -> Record:
    sparse = row.get("sparse")
    return Record(
        id=row["id"],
        text=row["text"],
        metadata=row["metadata"],
        provenance=row.get("provenance", {}),
        dense=_decode(row["dense"], "<f4").astype(np.float32) if "dense" in row else None,
        sparse=SparseVector(_decode(sparse[0], "<i4").astype(np.int32), _decode(sparse[1], "<f4").astype(np.float32))
        if sparse is not None
        else None,
        tokens=base64.b64decode(row["tokens"], validate=True) if "tokens" in row else None,
    )


def _encode(array: Any, dtype: str) -> str:
    return base64.b64encode(array.astype(dtype).tobytes()).decode("ascii")


def _decode(text: str, dtype: str) -> Any:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=dtype)
