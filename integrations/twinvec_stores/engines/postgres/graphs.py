"""What a store's graph has of each vector: the vector itself, or something smaller whose best are ranked again."""

from __future__ import annotations

from dataclasses import dataclass

from twinvec_stores.config import StoreConfig

_MAX_DIM, _MAX_HALF_DIM = 2_000, 4_000  # of a graph; bits may be as many as a vector has dimensions
_OVERSAMPLING_HALF, _OVERSAMPLING_FIRST_DIM, _OVERSAMPLING_BINARY = 2, 4, 8


@dataclass(frozen=True)
class Graph:
    """SQL with names that a ``Schema`` knows.

    Attributes:
        value: what the graph has of a ``{vector}``.
        operators: the operator class.
        distance: the operator that it answers.
        oversampling: candidates for each record wanted, to be ranked by the full vectors.
    """

    value: str
    operators: str = "{full_ops}"
    distance: str = "{ip}"
    oversampling: int = 1


def graph_of(config: StoreConfig) -> Graph | None:
    """Return the graph that a store can have, if any."""
    if config.dim is None:
        return None
    if config.quantization == "binary":
        bits = f"{{binary_quantize}}({{vector}})::bit({config.dim})"
        return Graph(bits, "{bit_ops}", "{hamming}", _OVERSAMPLING_BINARY)
    if config.first_dim is None:
        dim, value, oversampling = config.dim, "{vector}", 1
    else:
        dim, oversampling = config.first_dim, _OVERSAMPLING_FIRST_DIM
        value = f"{{l2_normalize}}({{subvector}}({{vector}}, 1, {dim}))::{{full}}({dim})"
    if dim <= _MAX_DIM:
        return Graph(value, oversampling=oversampling)
    if dim <= _MAX_HALF_DIM:
        return Graph(f"{value}::{{half}}({dim})", "{half_ops}", oversampling=max(oversampling, _OVERSAMPLING_HALF))
    return None
