"""embed_dataset: columns of vectors for a Ray Dataset."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from twinvec import Embedder
from twinvec.errors import ConfigurationError, TruncationWarning
from twinvec.options import EmbedderOptions
from twinvec.text.prompts import Role, Task
from twinvec_ray.models import Model
from twinvec_ray.workers import Workers, check_room, nodes
from twinvec_stores.arrow import require_pyarrow, vector_columns

if TYPE_CHECKING:
    import ray.data

    from twinvec import BaseEmbedder, ModelSpec

_COLUMNS = ("dense", "sparse_indices", "sparse_values", "token_counts", "truncated")


def embed_dataset(
    dataset: ray.data.Dataset,
    model: str | ModelSpec | BaseEmbedder,
    text_column: str = "text",
    role: Role | str = "document",
    *,
    task: Task | str | None = None,
    workers: Workers | None = None,
    embedder_options: EmbedderOptions | None = None,
    batch_size: int = 256,
) -> ray.data.Dataset:
    """Add columns with the vectors of a text column; lazy, as all of Ray Data.

    The columns are ``dense`` (fixed-size lists of float32), ``sparse_indices`` and ``sparse_values`` (lists of int32
    and float32, if the model has a sparse half), ``token_counts`` (int32) and ``truncated`` (bool). Within a worker
    texts are packed to the token budget without padding; Ray Data holds blocks back while workers are busy, and does
    again what a lost worker had.

    Args:
        dataset: rows with a text each.
        model: see ``twinvec_ray.ingest``. By name, a worker loads it once to identify its files, which all others must
            have, too.
        text_column: the texts; nulls are errors.
        role: "document" or "query".
        task: what the texts are for, see ``Embedder.embed_queries``.
        workers: how many, and what each of them takes.
        embedder_options: for a model by name: device, prompts, on_overflow ...
        batch_size: rows embedded together.

    Raises:
        ConfigurationError: a column is missing or taken; the cluster has no room for the workers and for reading.
        CheckpointError: the model cannot be loaded. Errors of texts come from Ray Data when the dataset is consumed.
    """
    from ray.data import ActorPoolStrategy

    workers, chosen = workers or Workers(), Role(role)
    check_room(workers, nodes(), reading=True)
    described = Model.of(model, embedder_options, workers)
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None:
        _check_columns(schema.names, text_column)
    if described.spec is not None and described.spec.digest is None:
        resolve = ray.remote(_resolve).options(**workers.remote_options())
        try:
            described = replace(described, spec=ray.get(resolve.remote(described)))
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
    return dataset.map_batches(
        _Embed,
        fn_constructor_args=(described, text_column, chosen, task),
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ActorPoolStrategy(size=workers.count),
        **workers.remote_options(),
    )


class _Embed:
    """What each worker does with a batch."""

    def __init__(self, model: Model, column: str, role: Role, task: Task | str | None) -> None:
        self._embedder, self._column = model.load(), column
        embedder = self._embedder
        self._embed = embedder.embed_queries if role is Role.QUERY else embedder.embed_documents
        self._task = task
        warnings.filterwarnings("ignore", category=TruncationWarning)  # a column tells of it

    def __call__(self, table: Any) -> Any:
        _check_columns(table.column_names, self._column)
        pyarrow = require_pyarrow()
        batch = self._embed(table[self._column].to_pylist(), task=self._task)
        columns = vector_columns(batch)
        columns |= {name: pyarrow.array(getattr(batch, name)) for name in ("token_counts", "truncated")}
        for name, column in columns.items():
            table = table.append_column(name, column)
        return table


def _resolve(model: Model) -> ModelSpec:
    embedder = model.load()
    assert isinstance(embedder, Embedder)
    assert model.spec is not None
    return embedder.spec


def _check_columns(names: list[str], text_column: str) -> None:
    if text_column not in names:
        raise ConfigurationError(f"the dataset has no column {text_column!r} (its columns: {', '.join(names)})")
    if taken := [name for name in _COLUMNS if name in names]:
        raise ConfigurationError(f"the dataset has columns {', '.join(taken)} already: rename them")
