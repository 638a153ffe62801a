"""Records in a folder of parquet files, written by many processes at once, and imported into any store.

Besides the files there is a manifest: the header that a file of ``transfer`` has, and of each file the number of
records and the SHA-256. It is written last; a folder without one is not an export, and files that it does not list are
not part of it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from twinvec.errors import ConfigurationError, StoreMismatchError
from twinvec.vectors import SparseBatch
from twinvec_stores.arrow import require_pyarrow, vector_columns
from twinvec_stores.config import StoreConfig
from twinvec_stores.records import Record, RecordBatch, check_batch

FORMAT = "twinvec-store"
MANIFEST = "twinvec-store.json"
_AGAIN = "write it again"


@dataclass(frozen=True)
class Shard:
    """One file: its name, the number of its records, and the SHA-256 of its bytes."""

    name: str
    records: int
    sha256: str


class ShardFolder:
    """A folder of shards, here or behind any URL that fsspec knows."""

    def __init__(self, where: str | os.PathLike[str]) -> None:
        """Look nothing up yet.

        Raises:
            ConfigurationError: pyarrow, or what fsspec needs for this kind of URL, is not installed.
        """
        require_pyarrow()
        self.where = os.fspath(where)
        try:
            self._fs, self._root = importlib.import_module("fsspec").core.url_to_fs(self.where)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"{self.where}: {error}") from None

    @property
    def complete(self) -> bool:
        """Return whether there is a manifest."""
        return bool(self._fs.isfile(self._path(MANIFEST)))

    def config(self) -> StoreConfig:
        """Return what the manifest says of the vectors.

        Raises:
            StoreMismatchError: it is damaged.
        """
        return StoreConfig.from_dict(self._manifest().get("config"), self.where)

    def write(self, name: str, batches: Sequence[RecordBatch], config: StoreConfig) -> Shard:
        """Write records to a file, completely or not at all, replacing it.

        Raises:
            InvalidRecordError: a record is invalid; nothing is written.
        """
        pyarrow = require_pyarrow()
        table = pyarrow.concat_tables([_table(check_batch(batch, config)) for batch in batches])
        header = json.dumps({"format": FORMAT, "config": config.to_dict()})
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(
            table.replace_schema_metadata({FORMAT: header}), sink, compression="zstd", use_dictionary=False
        )
        content = sink.getvalue().to_pybytes()
        self._put(name, content)
        return Shard(name, table.num_rows, hashlib.sha256(content).hexdigest())

    def find(self, name: str) -> tuple[Shard, list[Mapping[str, Any]]] | None:
        """Return a file that is there, and the provenance of its records; None if it is not there, or damaged."""
        pyarrow = require_pyarrow()
        try:
            content = self._fs.cat_file(self._path(name))
            column = pyarrow.parquet.read_table(pyarrow.BufferReader(content), columns=["provenance"])["provenance"]
        except (FileNotFoundError, pyarrow.ArrowException):
            return None
        shard = Shard(name, len(column), hashlib.sha256(content).hexdigest())
        return shard, [json.loads(text) for text in column.to_pylist()]

    def finish(self, shards: Sequence[Shard], config: StoreConfig) -> None:
        """Write the manifest."""
        manifest = {"format": FORMAT, "config": config.to_dict(), "shards": [asdict(shard) for shard in shards]}
        self._put(MANIFEST, json.dumps(manifest, indent=1).encode())

    def read(self) -> tuple[StoreConfig, Iterator[Record]]:
        """Return the configuration, and an iterator over the records.

        Raises:
            StoreMismatchError: not an export; during iteration, damaged or incomplete.
        """
        manifest = self._manifest()
        try:
            shards = [Shard(**entry) for entry in manifest["shards"]]
            if any("/" in shard.name for shard in shards):
                raise ValueError("a file elsewhere")
        except (KeyError, TypeError, ValueError) as error:
            raise StoreMismatchError(f"{self.where}: its manifest is damaged ({error!r}): {_AGAIN}") from None
        return StoreConfig.from_dict(manifest.get("config"), self.where), self._records(shards)

    def _records(self, shards: Sequence[Shard]) -> Iterator[Record]:
        pyarrow = require_pyarrow()
        for shard in shards:
            try:
                content = self._fs.cat_file(self._path(shard.name))
            except FileNotFoundError:
                raise StoreMismatchError(f"{self.where} lacks {shard.name}: {_AGAIN}") from None
            if hashlib.sha256(content).hexdigest() != shard.sha256:
                raise StoreMismatchError(f"{self.where}: {shard.name} differs from what was written: {_AGAIN}")
            yield from _batch(pyarrow.parquet.read_table(pyarrow.BufferReader(content)))

    def _manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads(self._fs.cat_file(self._path(MANIFEST)))
        except FileNotFoundError:
            raise StoreMismatchError(f"{self.where} has no {MANIFEST}: it is no export, or was not finished") from None
        except ValueError as error:
            raise StoreMismatchError(f"{self.where}: its manifest is damaged ({error}): {_AGAIN}") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise StoreMismatchError(f"{self.where}: {MANIFEST} was not written by TwinVec")
        return manifest

    def _put(self, name: str, content: bytes) -> None:
        self._fs.makedirs(self._root, exist_ok=True)
        temporary = self._path(f".{os.urandom(8).hex()}.new")
        self._fs.pipe_file(temporary, content)
        self._fs.mv(temporary, self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _table(batch: RecordBatch) -> Any:
    pyarrow = require_pyarrow()
    objects = {
        name: pyarrow.array([json.dumps(row) for row in getattr(batch, name)], pyarrow.string())
        for name in ("metadata", "provenance")
    }
    rows = {name: pyarrow.array(getattr(batch, name), pyarrow.string()) for name in ("ids", "texts")}
    tokens = {} if batch.tokens is None else {"tokens": pyarrow.array(batch.tokens, pyarrow.binary())}
    return pyarrow.table({"id": rows["ids"], "text": rows["texts"], **objects, **vector_columns(batch), **tokens})


def _batch(table: Any) -> RecordBatch:
    table = table.combine_chunks()
    columns = {name: table[name].chunk(0) if len(table) else [] for name in table.column_names}
    rows = {name: table[name].to_pylist() for name in ("id", "text", "metadata", "provenance")}
    dense = sparse = None
    if "dense" in columns and len(table):
        dense = columns["dense"].flatten().to_numpy().reshape(len(table), -1)
    if "sparse_indices" in columns and len(table):
        indices, values = (columns[f"sparse_{name}"] for name in ("indices", "values"))
        offsets = indices.offsets.to_numpy().astype(np.int64)
        sparse = SparseBatch(offsets - offsets[0], indices.flatten().to_numpy(), values.flatten().to_numpy())
    objects = {name: [json.loads(text) for text in rows[name]] for name in ("metadata", "provenance")}
    tokens = table["tokens"].to_pylist() if "tokens" in columns else None
    return RecordBatch(rows["id"], rows["text"], dense, sparse, objects["metadata"], objects["provenance"], tokens)
