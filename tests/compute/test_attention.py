"""Packed attention against a float64 softmax, one text, head and query at a time."""

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sliding_window_causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from twinvec.compute import attention
from twinvec.compute.attention import PREFIX, choose_attention
from twinvec.compute.packing import TokenBatch
from twinvec.errors import ConfigurationError
from twinvec.text.tokenizer import TokenizedText

Array = NDArray[np.float64]
RAGGED = (1, 5, 5, 5, 2, 9, 9, 1, 1, 6)


class Shape(NamedTuple):
    heads: int = 4
    kv_heads: int = 4
    dim: int = 8
    dim_v: int = 8


PLAIN = Shape()


class Inputs(NamedTuple):
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    packed: TokenBatch


def make_inputs(lengths: tuple[int, ...], shape: Shape = PLAIN, dtype: torch.dtype = torch.float64) -> Inputs:
    generator = torch.Generator().manual_seed(len(lengths))
    tokens = sum(lengths)

    def random(heads: int, dim: int) -> torch.Tensor:
        return (2 * torch.randn(1, heads, tokens, dim, generator=generator, dtype=torch.float64)).to(dtype)

    texts = [TokenizedText(np.zeros(n, dtype=np.int32), 0, n) for n in lengths]
    key, value = random(shape.kv_heads, shape.dim), random(shape.kv_heads, shape.dim_v)
    return Inputs(random(shape.heads, shape.dim), key, value, TokenBatch.pack(texts))


def softmax_attention(
    query: Array, key: Array, value: Array, ends: list[int], scale: float, visible: Callable[[int, int], bool]
) -> Array:
    """Arrays are [tokens, heads, dim]; ``visible(i, j)``: may the token at i of a text look at the one at j."""
    group = query.shape[1] // key.shape[1]
    out = np.zeros((*query.shape[:2], value.shape[2]))
    for start, end in zip([0, *ends], ends, strict=False):
        for head in range(query.shape[1]):
            for i in range(end - start):
                seen = [start + j for j in range(end - start) if visible(i, j)]
                scores = key[seen, head // group] @ query[start + i, head] * scale
                weights = np.exp(scores - scores.max())
                out[start + i, head] = weights @ value[seen, head // group] / weights.sum()
    return out


def visibility(causal: bool, window: int | None) -> Callable[[int, int], bool]:
    return lambda i, j: (not causal or j <= i) and (window is None or abs(i - j) < window)


def expected(inputs: Inputs, *, causal: bool, window: int | None, scaling: float | None) -> torch.Tensor:
    q, k, v = (x[0].transpose(0, 1).double().numpy() for x in inputs[:3])
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    ends = np.cumsum(inputs.packed.lengths).tolist()
    return torch.from_numpy(softmax_attention(q, k, v, ends, scale, visibility(causal, window)))[None]


def run(function: Callable[..., Any], inputs: Inputs, **options: Any) -> torch.Tensor:
    out, weights = function(torch.nn.Module(), *inputs[:3], None, packed=inputs.packed, **options)
    assert weights is None
    assert isinstance(out, torch.Tensor)
    return out


SHAPES = {
    "all heads": Shape(),
    "grouped heads": Shape(heads=6, kv_heads=2),
    "one key head": Shape(heads=4, kv_heads=1),
    "narrow values": Shape(dim_v=5),
    "wide values": Shape(heads=4, kv_heads=2, dim_v=12),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 5, 100])
@pytest.mark.parametrize("scaling", [None, 0.9])
def test_sdpa_is_the_softmax_of_each_text(
    shape: Shape, causal: bool, window: int | None, scaling: float | None
) -> None:
    inputs = make_inputs(RAGGED, shape)
    out = run(attention.sdpa, inputs, scaling=scaling, sliding_window=window, is_causal=causal)
    assert out.shape == (1, sum(RAGGED), shape.heads, shape.dim_v)
    wanted = expected(inputs, causal=causal, window=window, scaling=scaling)
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=8),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 8),
)
def test_any_mix_of_lengths_is_exact(lengths: list[int], causal: bool, window: int | None) -> None:
    inputs = make_inputs(tuple(lengths), Shape(heads=2, kv_heads=1, dim=4, dim_v=3))
    out = run(attention.sdpa, inputs, sliding_window=window, is_causal=causal)
    wanted = expected(inputs, causal=causal, window=window, scaling=None)
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("window", [2, 5, 9, 10])
def test_a_causal_window_is_as_wide_as_transformers_own(window: int) -> None:
    inputs = make_inputs((10, 4), Shape())
    allowed = sliding_window_causal_mask_function(window)
    index = torch.tensor(0)
    q, k, v = (x[0].transpose(0, 1).numpy() for x in inputs[:3])
    wanted = softmax_attention(q, k, v, [10, 14], 8**-0.5, lambda i, j: bool(allowed(0, 0, index + i, index + j)))
    out = run(attention.sdpa, inputs, sliding_window=window, is_causal=True)
    torch.testing.assert_close(out[0], torch.from_numpy(wanted), atol=1e-12, rtol=1e-10)


def test_texts_of_the_batch_never_see_each_other() -> None:
    inputs = make_inputs((3, 3, 4))
    before = run(attention.sdpa, inputs)
    for tensor in inputs[:3]:
        tensor[:, :, 3:6] = 1e3
    after = run(attention.sdpa, inputs)
    torch.testing.assert_close(after[:, :3], before[:, :3], atol=0, rtol=0)
    torch.testing.assert_close(after[:, 6:], before[:, 6:], atol=0, rtol=0)


@pytest.mark.parametrize("lengths", [(7,), (1,), (3, 3, 4)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2, 7])
def test_rows_of_no_text_are_seen_by_none(lengths: tuple[int, ...], causal: bool, window: int | None) -> None:
    """A batch is filled up with them to a size that products have a plan for."""
    inputs = make_inputs(lengths, Shape(heads=4, kv_heads=2))
    query, key, value = (torch.cat([x, torch.full_like(x[:, :, :1], 1e3).expand(-1, -1, 5, -1)], 2) for x in inputs[:3])
    out = run(attention.sdpa, Inputs(query, key, value, inputs.packed), sliding_window=window, is_causal=causal)
    assert out.shape[1] == sum(lengths) + 5
    assert out.isfinite().all()
    wanted = expected(inputs, causal=causal, window=window, scaling=None)
    torch.testing.assert_close(out[:, : sum(lengths)], wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("lengths", [(70, 3, 67), (67,), (68,), (66, 66)])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 40), (True, 40)])
@pytest.mark.parametrize("filled", [0, 5])
def test_lengths_that_kernels_are_slow_with(
    lengths: tuple[int, ...], causal: bool, window: int | None, filled: int
) -> None:
    """Keys that belong to no text are added to them."""
    inputs = make_inputs(lengths, Shape(heads=2, kv_heads=1, dim=4, dim_v=3))
    query, key, value = (
        torch.cat([x, torch.full_like(x[:, :, :1], 1e3).expand(-1, -1, filled, -1)], 2) for x in inputs[:3]
    )
    out = run(attention.sdpa, Inputs(query, key, value, inputs.packed), sliding_window=window, is_causal=causal)
    wanted = expected(inputs, causal=causal, window=window, scaling=None)
    torch.testing.assert_close(out[:, : sum(lengths)], wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_that_is_not_finite_spoils_no_other(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_has_amx", lambda: True)
    inputs = make_inputs((70, 67, 70), Shape(heads=2, kv_heads=2), dtype)
    before = run(attention.sdpa, inputs)
    for tensor in inputs[:3]:
        tensor[:, :, 70:137] = torch.nan
    after = run(attention.sdpa, inputs)
    assert torch.equal(after[:, :70], before[:, :70])
    assert torch.equal(after[:, 137:], before[:, 137:])


@pytest.mark.parametrize(("attribute", "argument", "causal"), [
    (None, None, False), (True, None, True), (False, None, False), (True, False, False), (False, True, True),
])  # fmt: skip
def test_the_argument_decides_causality_and_else_the_module(
    attribute: bool | None, argument: bool | None, causal: bool
) -> None:
    inputs = make_inputs((4, 3))
    module: Any = torch.nn.Module()
    if attribute is not None:
        module.is_causal = attribute
    out, _ = attention.sdpa(module, *inputs[:3], None, packed=inputs.packed, is_causal=argument)
    wanted = expected(inputs, causal=causal, window=None, scaling=None)
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    inputs = make_inputs(RAGGED, dtype=dtype)
    out = run(attention.sdpa, inputs)
    assert out.dtype == dtype
    wanted = expected(inputs, causal=False, window=None, scaling=None)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("lengths", [(1, 40, 40, 130), (40,), (5,)])
@pytest.mark.parametrize("shape", [Shape(), Shape(heads=6, kv_heads=2, dim_v=12)], ids=str)
def test_bfloat16_with_and_without_amx(
    amx: bool, lengths: tuple[int, ...], shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_has_amx", lambda: amx)
    inputs = make_inputs(lengths, shape, torch.bfloat16)
    inputs = inputs._replace(query=inputs.query / 4, key=inputs.key / 4)
    out = run(attention.sdpa, inputs)
    torch.testing.assert_close(
        out.double(), expected(inputs, causal=False, window=None, scaling=None), atol=3e-2, rtol=3e-2
    )


def flash_semantics(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, scale: float | None,
    window: tuple[int, int], causal: bool,
) -> torch.Tensor:  # fmt: skip
    """flash-attention's documented meaning: key j is seen from i where i - left <= j <= i + right; -1 is no bound."""
    left, right = window
    right = 0 if causal else right

    def visible(i: int, j: int) -> bool:
        return (left < 0 or j >= i - left) and (right < 0 or j <= i + right)

    assert q.shape[-1] == k.shape[-1] == v.shape[-1], "the kernels take one head width"
    assert q.shape[-1] % 8 == 0
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return torch.from_numpy(softmax_attention(q.numpy(), k.numpy(), v.numpy(), cu_seqlens[1:].tolist(), scale, visible))


def fake_varlen_attn(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
    max_q: int, max_k: int, *, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    assert cu_seq_q.dtype == torch.int32
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert enable_gqa or query.shape[1] == key.shape[1]
    return flash_semantics(query, key, value, cu_seq_q, scale, window_size, causal=False)


def fake_flash_attn(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int, max_seqlen_k: int, *, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:  # fmt: skip
    assert cu_seqlens_q.dtype == torch.int32
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
    return flash_semantics(q, k, v, cu_seqlens_q, softmax_scale, window_size, causal)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the two CUDA kernels, with their signatures and their documented meaning."""
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", fake_varlen_attn)
    module: Any = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = fake_flash_attn
    monkeypatch.setitem(sys.modules, "flash_attn", module)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("function", [attention.varlen, attention.flash])
@pytest.mark.parametrize("shape", [Shape(), Shape(heads=6, kv_heads=2), Shape(dim_v=5)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "scaling"), [(None, None), (1, None), (3, 0.9), (100, None)])
def test_the_cuda_functions_ask_their_kernels_for_the_same_attention(
    function: Callable[..., Any], shape: Shape, causal: bool, window: int | None, scaling: float | None
) -> None:
    inputs = make_inputs((1, 5, 5, 9), shape)
    options = {"scaling": scaling or shape.dim**-0.5, "sliding_window": window, "is_causal": causal}
    out = run(function, inputs, **options)
    wanted = expected(inputs, causal=causal, window=window, scaling=scaling)
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.usefixtures("kernels")
def test_varlen_of_torch_2_11_knows_no_grouped_heads_and_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_in_2_11(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
        max_q: int, max_k: int, *, return_aux: None = None, scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:  # fmt: skip
        return flash_semantics(query, key, value, cu_seq_q, scale, window_size, causal=False)

    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", as_in_2_11)
    monkeypatch.setattr(attention, "_varlen_parameters", attention._varlen_parameters.__wrapped__)
    inputs = make_inputs((1, 5, 5, 9), Shape(heads=6, kv_heads=2))
    wanted = expected(inputs, causal=False, window=None, scaling=None)
    torch.testing.assert_close(run(attention.varlen, inputs), wanted, atol=1e-12, rtol=1e-10)


def test_varlen_is_chosen_where_it_takes_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    device = torch.device("cuda")
    assert choose_attention(device, torch.bfloat16) == "varlen"
    assert choose_attention(device, torch.float32) == "sdpa"
    monkeypatch.setattr(attention, "_varlen_parameters", lambda: frozenset({"query", "is_causal"}))  # torch 2.10
    assert choose_attention(device, torch.bfloat16) == "sdpa"


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("function", [attention.varlen, attention.flash])
@pytest.mark.parametrize("scaling", [None, 0.5])
def test_heads_of_any_width_are_widened_to_what_the_kernels_take(
    function: Callable[..., Any], scaling: float | None
) -> None:
    inputs = make_inputs((3, 4), Shape(dim=12, dim_v=10))
    wanted = expected(inputs, causal=False, window=None, scaling=scaling)
    torch.testing.assert_close(run(function, inputs, scaling=scaling), wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("function", [attention.varlen, attention.flash])
def test_values_wider_than_queries_are_refused_by_the_cuda_functions(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="value heads"):
        run(function, make_inputs((2,), Shape(dim=8, dim_v=9)))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("shape", [Shape(dim=64, dim_v=64), Shape(8, 2, 64, 64), Shape(dim=96, dim_v=64)], ids=str)
def test_torch_varlen_computes_the_same_on_the_gpu(causal: bool, window: int | None, shape: Shape) -> None:
    inputs = make_inputs((1, 40, 40, 130), shape, torch.bfloat16)
    inputs = inputs._replace(query=inputs.query / 4, key=inputs.key / 4)
    device = torch.device("cuda")
    query, key, value = (x.to(device) for x in inputs[:3])
    moved = Inputs(query, key, value, inputs.packed.to(device))
    out = run(attention.varlen, moved, scaling=shape.dim**-0.5, sliding_window=window, is_causal=causal)
    wanted = expected(inputs, causal=causal, window=window, scaling=None)
    torch.testing.assert_close(out.cpu().double(), wanted, atol=3e-2, rtol=3e-2)


def test_transformers_finds_the_functions_and_no_mask_of_their_name() -> None:
    for name in ("sdpa", "varlen", "flash"):
        assert ALL_ATTENTION_FUNCTIONS[PREFIX + name] is getattr(attention, name)
        assert PREFIX + name not in ALL_MASK_ATTENTION_FUNCTIONS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_cpu_takes_sdpa(dtype: torch.dtype) -> None:
    assert choose_attention(torch.device("cpu"), dtype) == "sdpa"


@pytest.mark.parametrize(
    ("capability", "dtype", "has_flash", "chosen"),
    [
        pytest.param((9, 0), torch.bfloat16, False, "varlen", id="Hopper"),
        pytest.param((8, 0), torch.float16, True, "varlen", id="Ampere"),
        pytest.param((9, 0), torch.float32, True, "sdpa", id="fp32"),
        pytest.param((7, 5), torch.float16, False, "sdpa", id="Turing"),
        pytest.param((7, 5), torch.float16, True, "sdpa", id="Turing, which flash-attn 2 does not run on"),
    ],
)
def test_a_gpu_takes_the_fastest_that_runs_on_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, has_flash: bool, chosen: str
) -> None:
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
        if name == "flash_attn":
            return importlib.machinery.ModuleSpec(name, None) if has_flash else None
        return find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    # torch does not import the submodule by itself: it is available where it can be imported
    monkeypatch.delattr(torch.nn.attention, "varlen", raising=False)
    assert choose_attention(torch.device("cuda"), dtype) == chosen
