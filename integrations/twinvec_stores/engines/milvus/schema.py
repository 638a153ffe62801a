"""The collection of a store: its columns and indexes.

The configuration is a property of the collection. Vectors, texts and metadata are in columns of their own; ``facts``
(see there) answers filters, ``low_0`` and ``high_0`` ranges on the first declared field, ``keys`` document frequencies.
"""

from __future__ import annotations

import re
from typing import Any

from pymilvus import DataType, MilvusClient

from twinvec.errors import ConfigurationError
from twinvec_stores.config import StoreConfig
from twinvec_stores.engines.milvus.expressions import number_columns
from twinvec_stores.engines.milvus.facts import FACT_LENGTH
from twinvec_stores.engines.milvus.rows import DENSE, MAX_ELEMENTS, MAX_TEXT, SPARSE
from twinvec_stores.metadata import MAX_ID_BYTES

PROPERTY, SERVING = "twinvec", "twinvec_serving"  # of a collection, as JSON: its configuration; see engines/serving.py
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_MAX_DIM = 32_768
_GRAPH = {"M": 16, "efConstruction": 200}


def check_name(collection: str) -> str:
    """Return the name of a collection.

    Raises:
        ConfigurationError: a server does not take it.
    """
    if not _NAME.fullmatch(collection):
        raise ConfigurationError(
            f"collection={collection!r:.80}: Milvus takes letters, digits and _, at most 255, no digit first"
        )
    return collection


def columns(config: StoreConfig) -> Any:
    """Return the schema of the collection.

    Raises:
        ConfigurationError: a server cannot have such a store.
    """
    if config.quantization is not None:
        raise ConfigurationError(
            "Milvus stores have no quantization, as its smaller graphs keep full vectors beside them or score without "
            "them: leave it out (--quantization none)"
        )
    if config.token_pool is not None:
        raise ConfigurationError(
            "Milvus stores keep no vectors of tokens (token_pool): a string has at most 64 KB there"
        )
    if config.dim is not None and not 1 < config.dim <= _MAX_DIM:
        raise ConfigurationError(f"Milvus takes vectors of 2 to {_MAX_DIM} dimensions, not {config.dim}")
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("point", DataType.VARCHAR, is_primary=True, max_length=36)
    schema.add_field("id", DataType.VARCHAR, max_length=MAX_ID_BYTES)
    schema.add_field("text", DataType.VARCHAR, max_length=MAX_TEXT)
    schema.add_field("metadata", DataType.JSON)
    schema.add_field("provenance", DataType.JSON)
    schema.add_field("checksum", DataType.INT64)
    array = {"datatype": DataType.ARRAY, "max_capacity": MAX_ELEMENTS}
    schema.add_field("facts", element_type=DataType.VARCHAR, max_length=FACT_LENGTH, **array)
    for field, pair in number_columns(config).items():
        for column in pair:
            kind = DataType.DOUBLE if config.fields[field] == "float" else DataType.INT64
            schema.add_field(column, kind, nullable=True)
    if config.dim is not None:
        schema.add_field(DENSE, DataType.FLOAT_VECTOR, dim=config.dim)
    if config.sparse:
        schema.add_field(SPARSE, DataType.SPARSE_FLOAT_VECTOR)
    if config.idf:
        schema.add_field("keys", element_type=DataType.INT64, **array)
    return schema


def indexes(config: StoreConfig, *, of_arrays: bool) -> dict[str, Any]:
    """Return the indexes of the columns: HNSW, inverted with exact inner products, and inverted for filters."""
    wanted: dict[str, dict[str, Any]] = {}
    if config.dim is not None:
        wanted[DENSE] = {"index_type": "HNSW", "metric_type": "IP", "params": _GRAPH}
    if config.sparse:
        wanted[SPARSE] = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP"}
    filtered = [column for pair in number_columns(config).values() for column in pair]
    filtered += ["facts", *(["keys"] if config.idf else [])] if of_arrays else []
    wanted |= {column: {"index_type": "INVERTED"} for column in filtered}
    made = {}
    for column, parameters in wanted.items():
        made[column] = MilvusClient.prepare_index_params()
        made[column].add_index(column, index_name=column, **parameters)
    return made
