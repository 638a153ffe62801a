"""Packed linear layers against float64, alone and in the models that hold them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from twinvec.compute import linear
from twinvec.compute.linear import PackedInt8Linear, PackedLinear, linear_in_use, pack, product
from twinvec.compute.quantization import Int8Linear, quantize

ACTIVATIONS: dict[str, Any] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # of the largest result


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.inference_mode():
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_linear(inputs: int, outputs: int, dtype: torch.dtype = torch.float32, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    layer.weight.copy_(random(outputs, inputs, seed=1))
    if bias:
        layer.bias.copy_(random(outputs, seed=2))
    return layer


def wanted_of(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())


def assert_close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    if wanted.numel():
        assert (found.double() - wanted).abs().max() <= CLOSE[dtype] * wanted.abs().max()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 300),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    dtype=st.sampled_from(list(CLOSE)),
    activation=st.sampled_from(list(ACTIVATIONS)),
)
@example(rows=129, inputs=384, outputs=1536, bias=True, dtype=torch.float32, activation="gelu")
@example(rows=128, inputs=1, outputs=2, bias=False, dtype=torch.bfloat16, activation="silu")
def test_any_shape_is_the_formula(
    rows: int, inputs: int, outputs: int, bias: bool, dtype: torch.dtype, activation: Any
) -> None:
    plain = make_linear(inputs, outputs, dtype, bias=bias)
    layer, x = PackedLinear(plain), random(rows, inputs, dtype=dtype)
    wanted = wanted_of(plain, x)
    assert_close(layer(x), wanted, dtype)
    assert_close(
        product(layer, x, None if activation == "none" else activation), ACTIVATIONS[activation](wanted), dtype
    )
    other = random(rows, outputs, dtype=dtype, seed=3)
    assert_close(product(layer, x, plus=other), wanted + other.double(), dtype)
    assert_close(product(layer, x, times=other), wanted * other.double(), dtype)


@pytest.mark.parametrize("kind", ["plain", "packed", "int8", "packed int8"])
def test_every_kind_of_layer_has_the_same_product(kind: str) -> None:
    plain = make_linear(48, 40)
    layer: nn.Module = plain
    if "int8" in kind:
        int8 = Int8Linear(plain)
        layer = PackedInt8Linear(int8) if kind == "packed int8" else int8
    elif kind == "packed":
        layer = PackedLinear(plain)
    x, other = random(150, 48), random(150, 40, seed=3)
    before = x.clone(), other.clone()
    wanted, close = wanted_of(plain, x), 2e-6 if "int8" not in kind else 0.02
    for found, right in (
        (product(layer, x), wanted),
        (product(layer, x, "gelu"), F.gelu(wanted)),
        (product(layer, x, plus=other), wanted + other),
        (product(layer, x, times=other), wanted * other),
    ):
        assert (found - right).abs().max() <= close * right.abs().max()
    assert torch.equal(x, before[0])
    assert torch.equal(other, before[1])


@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 3, 6), (1, 0, 6), (1, 260, 6)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    layer, x = PackedLinear(make_linear(6, 5)), random(*shape)
    assert layer(x).shape == (*shape[:-1], 5)
    assert torch.equal(layer(x).reshape(-1, 5), layer(x.reshape(-1, 6)))


def test_strided_rows_are_read_as_they_lie() -> None:
    plain = make_linear(16, 8)
    x = random(32, 20)[:, 3:19]
    assert_close(PackedLinear(plain)(x), wanted_of(plain, x), torch.float32)


@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
def test_few_plans_serve_all_numbers_of_rows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps a plan for each: about 0.7 MB, and 2 ms for whoever comes first."""
    layer, sizes = PackedLinear(make_linear(16, 8, dtype)), set()
    real = torch.ops.mkldnn._linear_pointwise

    def note(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        sizes.add(len(x))
        return real(x, *arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", note)
    for rows in range(1, 1400, 3):
        layer(random(rows, 16, dtype=dtype))
    assert len(sizes) <= 20
    assert max(sizes) == 1024, "a whole batch is one product"


@pytest.mark.parametrize(("width", "most"), [(384, 512), (768, 256), (1024, 192), (8192, 128)])
def test_slices_of_wide_rows_are_shorter(width: int, most: int) -> None:
    parts = list(linear.slices(1000, width))
    assert [row for part in parts for row in range(part.start, min(part.stop, 1000))] == list(range(1000))
    assert {part.stop - part.start for part in parts} == {most}


def test_batches_that_are_filled_beforehand_are_not_filled_again() -> None:
    for rows in range(1, 700):
        filled = linear.filled_rows(rows)
        assert rows <= filled < rows + 64
        assert linear.filled_rows(filled) == filled


# --- int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_the_formula_to_the_last_digits(dtype: torch.dtype, bias: bool) -> None:
    layer = Int8Linear(make_linear(96, 50, dtype, bias=bias))
    x = random(300, 96, dtype=dtype)
    inverse = 127 / x.float().abs().amax(1, keepdim=True)
    integers = (x.float() * inverse).round()  # to even, of the product as fp32 has it
    wanted = (integers.double() @ layer.weight.double().T) / inverse.double() * layer.scale.double()
    if bias:
        assert layer.bias is not None
        wanted += layer.bias.double()
    found = PackedInt8Linear(layer)(x)
    assert found.dtype == dtype
    assert (found.double() - wanted).abs().max() <= wanted.abs().max() * (1e-6 + torch.finfo(dtype).eps)


def test_int8_largest_numbers_are_not_cut_off() -> None:
    plain = make_linear(512, 32, bias=False)
    nn.init.ones_(plain.weight)
    packed = PackedInt8Linear(Int8Linear(plain))
    for sign in (1, -1):
        torch.testing.assert_close(packed(torch.full((40, 512), float(sign))), torch.full((40, 32), sign * 512.0))


def test_int8_token_has_the_same_states_in_every_batch() -> None:
    layer, x = PackedInt8Linear(Int8Linear(make_linear(64, 48))), random(1200, 64)
    together = layer(x)
    for start, stop in ((0, 1), (5, 12), (127, 130), (1000, 1200)):
        assert torch.equal(layer(x[start:stop]), together[start:stop])


def test_int8_zeros_give_the_bias_and_nothing_finite_comes_from_nan_or_infinity() -> None:
    layer, x = PackedInt8Linear(Int8Linear(make_linear(16, 9))), random(7, 16)
    clean = layer(x)
    x[1] = 0
    x[2, 3], x[3, 15], x[4, 0] = torch.nan, torch.inf, -torch.inf
    x[5] = torch.nan
    found = layer(x)
    assert layer.bias is not None
    assert torch.equal(found[1], layer.bias)
    assert found[[2, 5]].isnan().all()
    assert not found[3:5].isfinite().any()
    assert torch.equal(found[[0, 6]], clean[[0, 6]])
    for size in (1e-45, 1e-38, 1e-31, 1e-20, 1e30):
        assert layer(torch.full((2, 16), size)).isfinite().all()


# --- models


def model_of(dtype: torch.dtype = torch.float32) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(vocab_size=90, max_position_embeddings=64, **sizes)).eval().to(dtype)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
def test_a_packed_model_is_the_same_model_and_keeps_no_second_copy(dtype: torch.dtype, int8: bool) -> None:
    model, ids = model_of(dtype), torch.arange(2, 42)[None]
    if int8:
        quantize(model)
    wanted = model(ids).logits
    names = {name for name, m in model.named_modules() if type(m) in (nn.Linear, Int8Linear)}
    pack(model)
    kind = PackedInt8Linear if int8 else PackedLinear
    decoder = "cls.predictions.decoder"
    assert {name for name, m in model.named_modules() if type(m) is kind} == names - {decoder}
    # tied to the embedding: packing it would keep a second copy
    assert model.get_submodule(decoder).weight is model.get_input_embeddings().weight
    kept = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.ndim > 1]
    assert not [name for name in kept if "embeddings" not in name and name != f"{decoder}.weight"]
    torch.testing.assert_close(model(ids).logits, wanted, rtol=0, atol=5e-2 if dtype == torch.bfloat16 else 1e-5)
    assert linear_in_use(model) == ("packed int8" if int8 else "packed")


def test_shared_layers_stay_shared_and_other_classes_stay() -> None:
    shared = make_linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "attention": nn.MultiheadAttention(4, 2)})
    pack(model)
    assert isinstance(model["a"], PackedLinear)
    assert model["b"].get_submodule("0") is model["a"]
    x = random(3, 1, 4)
    assert model["attention"](x, x, x)[0].shape == (3, 1, 4)


@pytest.mark.parametrize("what", ["missing", "refuses", "wrong", "nan"])
@pytest.mark.parametrize("int8", [False, True])
def test_what_onednn_cannot_do_stays_with_torch(what: str, int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace, name = (torch.ops.onednn, "qlinear_pointwise") if int8 else (torch.ops.mkldnn, "_linear_pointwise")
    real = getattr(namespace, name)

    def broken(*arguments: Any) -> torch.Tensor:
        if what == "missing":
            raise AttributeError(name)
        if what == "refuses":
            raise RuntimeError("could not create a primitive")
        out = real(*arguments)
        out[0, 0] = torch.nan if what == "nan" else 2 * out[0, 0] + 9
        return out  # type: ignore[no-any-return]

    model, ids = model_of(), torch.arange(2, 42)[None]
    if int8:
        quantize(model)
    wanted = model(ids).logits
    monkeypatch.setattr(namespace, name, broken)
    pack(model)
    assert linear_in_use(model) == ("int8" if int8 else "torch")
    assert torch.equal(model(ids).logits, wanted)


def test_other_dtypes_stay() -> None:
    model = model_of(torch.float16)
    pack(model)
    assert linear_in_use(model) == "torch"
