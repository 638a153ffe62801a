"""8-bit linear layers against float64, and what they cost a real model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, LlamaConfig, LlamaModel

from twinvec.compute import quantization
from twinvec.compute.backbone import PackedTransformer
from twinvec.compute.fused import fuse
from twinvec.compute.packing import TokenBatch
from twinvec.compute.quantization import Int8Linear, quantize
from twinvec.errors import ConfigurationError
from twinvec.text.tokenizer import TokenizedText

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_linear(inputs: int, outputs: int, dtype: torch.dtype = torch.float32, *, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    linear.weight.copy_(random(outputs, inputs, seed=1))
    if bias:
        linear.bias.copy_(random(outputs, seed=2))
    return linear


def quantised_product(x: torch.Tensor, layer: Int8Linear) -> torch.Tensor:
    """The formula in float64, from the layer's own integers: those of the activations are rounded to even."""
    rows = x.double().reshape(-1, x.shape[-1]).numpy()
    scale = np.abs(rows).max(axis=1, keepdims=True).astype(np.float32) / np.float32(127)
    # the quotient is rounded as fp32, where it may fall on the middle between two integers
    integers = np.rint(rows.astype(np.float32) / np.where(scale == 0, np.float32(1), scale)).astype(np.float64)
    product = (integers @ layer.weight.numpy().astype(np.float64).T) * scale * layer.scale.numpy().astype(np.float64)
    if layer.bias is not None:
        product += layer.bias.double().numpy()
    return torch.from_numpy(product).view(*x.shape[:-1], layer.out_features)


def assert_rounded(found: torch.Tensor, wanted: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Only the roundings of fp32 and of the output lie between the two."""
    size = wanted.abs() + (0 if bias is None else bias.double().abs())
    kind = torch.finfo(found.dtype)
    step = kind.smallest_normal * kind.eps  # between two subnormal numbers
    error = (found.double() - wanted).abs() - size * (1e-6 + kind.eps) - max(step, 1e-12)
    assert error.numel() == 0 or error.max() <= 0


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
@example(rows=1, inputs=1, outputs=2, bias=True, dtype=torch.float32)
@example(rows=17, inputs=1, outputs=64, bias=False, dtype=torch.bfloat16)
@example(rows=3, inputs=3000, outputs=5, bias=True, dtype=torch.float32)
@example(rows=1100, inputs=24, outputs=9, bias=True, dtype=torch.float32)
def test_any_shape_is_the_formula(rows: int, inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> None:
    layer = Int8Linear(make_linear(inputs, outputs, dtype, bias=bias))
    x = random(rows, inputs, dtype=dtype)
    found = layer(x)
    assert found.dtype == dtype
    assert_rounded(found, quantised_product(x, layer), layer.bias)


def test_integers_that_the_cpu_multiplies_inexactly_take_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Int8Linear(make_linear(384, 40)), random(70, 384)
    integers = layer(x)
    monkeypatch.setattr(quantization, "_multiplies_exactly", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)
    torch.testing.assert_close(layer(x), integers, rtol=1e-6, atol=1e-6)


PROBE = """
import json, torch
from twinvec.compute.quantization import Int8Linear, _multiplies_exactly
linear = torch.nn.Linear(256, 32, bias=False)
torch.nn.init.ones_(linear.weight)
with torch.no_grad():
    print(json.dumps([_multiplies_exactly(), Int8Linear(linear)(torch.ones(40, 256)).unique().tolist()]))
"""


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_older_instruction_sets_give_the_same(instructions: str) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True)
    _, values = json.loads(done.stdout)
    assert values == [pytest.approx(256, rel=1e-6)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_error_is_within_half_a_step_of_each_number(dtype: torch.dtype) -> None:
    linear, x = make_linear(96, 50, dtype, bias=False), random(30, 96, dtype=dtype)
    layer = Int8Linear(linear)
    weight, rows = linear.weight.double(), x.double()
    half_w = weight.abs().amax(1) / 254 * (1 + 1e-5)
    half_x = rows.abs().amax(1, keepdim=True) / 254 * (1 + 1e-5)
    # |x w - x' w'| <= |x| dw + |w'| dx, summed over the inputs
    bound = rows.abs().sum(1, keepdim=True) * half_w + half_x * (weight.abs().sum(1) + 96 * half_w)
    wanted = rows @ weight.T
    rounding = torch.finfo(dtype).eps * (wanted.abs() + bound)
    assert ((layer(x).double() - wanted).abs() <= bound + rounding).all()
    assert (layer.weight * layer.scale[:, None] - weight).abs().sub(half_w[:, None]).max() <= 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scales_weights_and_state(dtype: torch.dtype) -> None:
    linear = make_linear(8, 4, dtype)
    linear.weight[1] = 0
    if dtype == torch.float32:
        linear.weight[2] = 190 * 2.0**-149  # the scale cannot be given more exactly than as 2**-149
    layer = Int8Linear(linear)
    largest = linear.weight.float().abs().amax(1)
    assert layer.scale[[0, 3]].tolist() == (largest[[0, 3]] / 127).tolist()
    assert layer.scale[1] == 1
    assert layer.weight.abs().amax(1)[[0, 3]].tolist() == [127, 127]
    assert not layer.weight[1].any()
    assert dtype != torch.float32 or layer.weight[2].tolist() == [127] * 8
    assert list(layer.parameters()) == []
    state = layer.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {
        "weight": torch.int8, "scale": torch.float32, "bias": dtype
    }  # fmt: skip
    moved = Int8Linear(make_linear(8, 4, dtype)).to("meta")
    assert {name: value.dtype for name, value in moved.state_dict().items()} == {k: v.dtype for k, v in state.items()}


@pytest.mark.parametrize("shape", [(6,), (0, 6), (1, 6), (2, 3, 6), (1, 0, 6), (2, 1, 3, 6)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    layer, x = Int8Linear(make_linear(6, 5)), random(*shape)
    assert layer(x).shape == (*shape[:-1], 5)
    assert torch.equal(layer(x).reshape(-1, 5), layer(x.reshape(-1, 6)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exact", [True, False])
def test_a_token_has_the_same_states_in_every_batch(
    dtype: torch.dtype, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exact:
        monkeypatch.setattr(quantization, "_multiplies_exactly", lambda: False)
    layer, x = Int8Linear(make_linear(64, 48, dtype)), random(1200, 64, dtype=dtype)
    together = layer(x)
    for start, stop in ((0, 1), (5, 12), (511, 514), (1000, 1200)):
        assert torch.equal(layer(x[start:stop]), together[start:stop])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exact", [True, False])
def test_zeros_give_the_bias_and_nothing_finite_comes_from_nan_or_infinity(
    dtype: torch.dtype, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exact:
        monkeypatch.setattr(quantization, "_multiplies_exactly", lambda: False)
    layer, x = Int8Linear(make_linear(16, 9, dtype)), random(7, 16, dtype=dtype)
    clean = layer(x)
    x[1] = 0
    x[2, 3] = NAN
    x[3, 15] = INF
    x[4, 0] = -INF
    x[5] = NAN
    found = layer(x)
    assert layer.bias is not None
    assert torch.equal(found[1], layer.bias)
    assert found[[2, 5]].isnan().all()
    assert not found[3:5].isfinite().any()
    assert torch.equal(found[[0, 6]], clean[[0, 6]])


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_weight_that_is_no_number_shows_in_its_channel_alone(value: float) -> None:
    linear = make_linear(16, 3)
    linear.weight[1, 5] = value
    found = Int8Linear(linear)(random(4, 16))
    assert found.isfinite().all(dim=0).tolist() == [True, False, True]
    assert not found[:, 1].isfinite().any()


def test_tiny_rows_stay_finite() -> None:
    layer = Int8Linear(make_linear(4, 3, bias=False))
    for size in (1e-45, 1e-38, 1e-31, 1e-20, 1e30):
        assert layer(torch.full((2, 4), size)).isfinite().all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_gpu_only_the_weights_are_integers(dtype: torch.dtype) -> None:
    layer, x = Int8Linear(make_linear(96, 50, dtype)), random(2, 15, 96, dtype=dtype)
    wanted = x.double() @ (layer.weight.double() * layer.scale.double()[:, None]).T
    assert layer.bias is not None
    wanted += layer.bias.double()
    found = layer.to("cuda")(x.cuda())
    assert found.dtype == dtype
    tolerance = 1e-2 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps  # TF32
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=tolerance, atol=10 * tolerance)


# --- models

SIZES: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip


def pack(lengths: tuple[int, ...]) -> TokenBatch:
    generator = np.random.default_rng(0)
    return TokenBatch.pack([TokenizedText(generator.integers(5, 90, n).astype(np.int32), 0, n) for n in lengths])


@pytest.mark.parametrize("joined", ["cpu", "cuda"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_fused_model_is_close_and_independent_of_the_batch(family: str, joined: str) -> None:
    torch.manual_seed(0)
    model: Any = BertModel(BertConfig(**SIZES)) if family == "bert" else LlamaModel(LlamaConfig(**SIZES))
    backbone = PackedTransformer(model.eval())
    backbone.use_attention("sdpa")
    batch = pack((3, 9, 9, 1, 20))
    wanted = backbone(batch)
    fuse(backbone.model, torch.device(joined), packed=True)
    linears = {name for name, module in backbone.named_modules() if type(module) is nn.Linear}
    weights = sum(m.weight.numel() for m in backbone.modules() if type(m) is nn.Linear)
    assert quantize(backbone) == weights
    assert {name for name, module in backbone.named_modules() if isinstance(module, Int8Linear)} == linears
    found = backbone(batch)
    assert torch.cosine_similarity(found, wanted).min() > 0.999
    alone = backbone(TokenBatch(batch.input_ids[:3], batch.position_ids[:3], torch.tensor([0, 3]), (3,), (0,)))
    torch.testing.assert_close(alone, found[:3], rtol=1e-5, atol=1e-5)


def test_embeddings_and_output_layers_tied_to_them_stay() -> None:
    model = BertForMaskedLM(BertConfig(**SIZES))
    embedding = model.get_input_embeddings()
    assert model.cls.predictions.decoder.weight is embedding.weight
    quantize(model)
    assert model.get_input_embeddings() is embedding
    assert type(model.cls.predictions.decoder) is nn.Linear
    assert isinstance(model.cls.predictions.transform.dense, Int8Linear)


def test_shared_layers_stay_shared_and_layers_of_other_classes_stay() -> None:
    shared = make_linear(8, 8)
    model = nn.ModuleDict(
        {"a": shared, "b": nn.Sequential(shared, nn.GELU()), "attention": nn.MultiheadAttention(4, 2)}
    )
    quantize(model)
    assert isinstance(model["a"], Int8Linear)
    assert model["b"].get_submodule("0") is model["a"]
    x = random(3, 1, 4)
    assert model["attention"](x, x, x)[0].shape == (3, 1, 4)


def test_a_model_that_is_mostly_not_linear_is_refused_and_left_alone() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(16, 4)
            self.experts = nn.Parameter(random(4, 16, 16))

    model = Experts()
    with pytest.raises(ConfigurationError, match=r"only 64 of the 1,088 weights.*experts"):
        quantize(model)
    assert type(model.router) is nn.Linear
    with pytest.raises(ConfigurationError, match="only 0 of the 0"):
        quantize(nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4)))


def faq_texts() -> list[str]:
    from twinvec_cli.collection import Collection, find_faq

    return list(Collection.read(find_faq()).documents.values())[:50]


def test_minilm_gives_nearly_the_same_vectors() -> None:
    from twinvec_cli.demo import find_model

    wanted, found = (vectors(find_model(), faq_texts(), int8=int8) for int8 in (False, True))
    cosines = (wanted * found).sum(dim=1)
    assert cosines.mean() > 0.99
    assert cosines.min() > 0.97


def vectors(folder: Path, texts: list[str], *, int8: bool) -> torch.Tensor:
    """Return unit vectors [texts, dim], by the library's own parts up to the mean of the states."""
    from tokenizers import Tokenizer
    from transformers import AutoModel

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(64)
    ids = [np.array(tokenizer.encode(text).ids, dtype=np.int32) for text in texts]
    backbone = PackedTransformer(AutoModel.from_pretrained(folder, dtype=torch.float32).eval())
    backbone.use_attention("sdpa")
    fuse(backbone.model, torch.device("cpu"), packed=True)
    if int8:
        quantize(backbone)
    batch = TokenBatch.pack([TokenizedText(row, 0, len(row)) for row in ids])
    means = [states.mean(dim=0) for states in backbone(batch).split(list(batch.lengths))]
    return nn.functional.normalize(torch.stack(means), dim=1)
