"""Recorded sizes of small batches: the same vectors as without them, whatever is left over in a size.

There is no CUDA graph on a CPU. Here a recording runs the forward pass again on its buffers, and a function that knows
nothing but ``cu_seqlens``, as the CUDA kernels, takes the place of torch's varlen attention.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import varlen

from reference.giga import build_giga_0826
from reference.gte import build_gte
from reference.sentence_layouts import build_bge_m3, build_qwen3_embedding
from twinvec import Embedder
from twinvec.compute.encoder import Encoder
from twinvec.compute.graphs import SIZES, TEXTS, Graphs, Outputs
from twinvec.compute.packing import TokenBatch
from twinvec.text.tokenizer import TokenizedText

BUILD: dict[str, Callable[[Path], Any]] = {
    "first token and head": build_gte,
    "positions behind the pad id": build_bge_m3,
    "last token": build_qwen3_embedding,
    "mean": build_giga_0826,
}


def attend_by_bounds(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, *_: Any,
    scale: float, window_size: tuple[int, int], **__: Any,
) -> torch.Tensor:  # fmt: skip
    """Attention of [tokens, heads, dim] as the kernel documents it; reads nothing but the bounds."""
    out = torch.full_like(query, torch.nan)
    group = query.shape[1] // key.shape[1]
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        q, k, v = (x[start:stop].transpose(0, 1).double() for x in (query, key, value))
        scores = q @ k.repeat_interleave(group, 0).mT * scale
        if window_size == (-1, 0):
            scores += torch.full(scores.shape[1:], -torch.inf, dtype=scores.dtype).triu(1)
        attended = scores.softmax(-1) @ v.repeat_interleave(group, 0)
        out[start:stop] = attended.transpose(0, 1).to(out.dtype)
    return out


class RepeatedGraphs(Graphs):
    replays = 0

    def _capture(self, batch: TokenBatch) -> tuple[Outputs, Callable[[], None]]:
        outputs = self._forward(batch)

        def replay() -> None:
            type(self).replays += 1
            for to, again in zip(outputs, self._forward(batch), strict=True):
                if to is not None and again is not None:
                    to.copy_(again)

        return outputs, replay


@pytest.fixture(scope="module", params=list(BUILD.values()), ids=list(BUILD))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("graphs") / "model"
    request.param(folder)
    with pytest.MonkeyPatch.context() as patch, Embedder(folder, dtype="float32", device="cpu") as embedder:
        patch.setattr(varlen, "varlen_attn", attend_by_bounds)
        encoder = embedder._core.model.encoder
        encoder.backbone.use_attention("varlen")
        graphs = RepeatedGraphs(encoder._forward, encoder.device, encoder.description.position_limit)
        with torch.inference_mode():
            graphs.record()
        yield encoder, graphs


def texts_of(lengths: list[int], seed: int = 0) -> list[TokenizedText]:
    rng = np.random.default_rng(seed)
    return [TokenizedText(rng.integers(5, 40, n).astype(np.int32), 0, n) for n in lengths]


def encode(encoder: Encoder, graphs: Graphs | None, texts: list[TokenizedText]) -> Any:
    encoder._graphs = graphs
    try:
        return encoder.start(texts)()
    finally:
        encoder._graphs = None


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=TEXTS), st.integers(0, 99))
def test_vectors_are_the_same_in_every_size(pair: Any, lengths: list[int], seed: int) -> None:
    encoder, graphs = pair
    texts = texts_of(lengths, seed)
    plain = encode(encoder, None, texts)
    before = RepeatedGraphs.replays
    recorded = encode(encoder, graphs, texts)
    assert RepeatedGraphs.replays == before + (sum(lengths) <= max(graphs._recordings))
    for one, other in zip(recorded, plain, strict=True):
        np.testing.assert_allclose(one.dense, other.dense, atol=2e-5)
        if other.sparse is not None:
            np.testing.assert_array_equal(one.sparse.indices, other.sparse.indices)
            np.testing.assert_allclose(one.sparse.values, other.sparse.values, atol=2e-5)


def test_a_batch_leaves_nothing_behind_for_the_next(pair: Any) -> None:
    encoder, graphs = pair
    short = texts_of([3])
    alone = encode(encoder, graphs, short)
    encode(encoder, graphs, texts_of([2] * 8))
    np.testing.assert_array_equal(encode(encoder, graphs, short)[0].dense, alone[0].dense)


@pytest.mark.parametrize("lengths", [[1] * (TEXTS + 1), [SIZES[-1] + 1], [SIZES[-1], 1]])
def test_what_fits_no_size_is_left_to_the_caller(pair: Any, lengths: list[int]) -> None:
    _, graphs = pair
    assert graphs.replay(TokenBatch.pack(texts_of(lengths))) is None


def test_no_size_is_longer_than_the_positions_of_a_model(pair: Any) -> None:
    encoder, _ = pair
    graphs = RepeatedGraphs(encoder._forward, encoder.device, position_limit=50)
    with torch.inference_mode():
        graphs.record()
    assert len(graphs) == 2
    assert graphs.replay(TokenBatch.pack(texts_of([40]))) is None
