"""Vectors as columns of Apache Arrow."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from twinvec.errors import ConfigurationError

if TYPE_CHECKING:
    from twinvec.vectors import EmbeddingBatch
    from twinvec_stores.records import RecordBatch


def vector_columns(batch: EmbeddingBatch | RecordBatch) -> dict[str, Any]:
    """Return vectors as columns of arrow.

    These are ``dense`` (fixed_size_list<float32>[dim]), ``sparse_indices`` (list<int32>) and ``sparse_values``
    (list<float32>), as far as there are such vectors.
    """
    pyarrow = require_pyarrow()
    columns = {}
    if batch.dense is not None:
        values = pyarrow.array(np.ascontiguousarray(batch.dense, dtype=np.float32).ravel())
        columns["dense"] = pyarrow.FixedSizeListArray.from_arrays(values, batch.dense.shape[1])
    if batch.sparse is not None:
        offsets = pyarrow.array(batch.sparse.indptr.astype(np.int32))
        for name in ("indices", "values"):
            values = pyarrow.array(getattr(batch.sparse, name))
            columns[f"sparse_{name}"] = pyarrow.ListArray.from_arrays(offsets, values)
    return columns


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
