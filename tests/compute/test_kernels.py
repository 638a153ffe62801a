"""The steps between matrix products, in Triton and in plain torch, against float64 formulas.

Where there is no GPU, Triton's interpreter runs its kernels; with one they are compiled and run there.
"""

import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import twinvec.compute
from twinvec.compute import kernels
from twinvec.compute.kernels import Activation, Norm

ACTIVATIONS: tuple[Activation, ...] = ("gelu", "gelu_tanh", "silu")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAN = float("nan")
few = settings(max_examples=8, deadline=None)


class Steps(NamedTuple):
    name: str
    device: torch.device
    gate: Callable[[torch.Tensor, Activation], torch.Tensor]
    rotate_: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
    add_norm: Callable[[torch.Tensor, torch.Tensor, Norm, bool], torch.Tensor]


def load_triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the module's code under a fresh name: whether ``triton.jit`` compiles is settled there."""
    language: Any = pytest.importorskip("triton.language")
    if not torch.cuda.is_available():
        from triton.runtime.interpreter import InterpretedFunction

        monkeypatch.setenv("TRITON_INTERPRET", "1")
        # imported before, perhaps by torch, it was made for the compiler
        monkeypatch.setattr(language, "sum", InterpretedFunction(language.sum.fn))
    spec = importlib.util.find_spec("twinvec.compute.triton")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return module


@pytest.fixture(scope="module")
def triton_module() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield load_triton(monkeypatch)


@pytest.fixture(scope="module", params=["torch", "triton"])
def steps(request: pytest.FixtureRequest) -> Steps:
    if request.param == "torch":
        return Steps(
            "torch", torch.device("cpu"), kernels.gate, kernels.rotate_,
            lambda x, residual, norm, keep_sum: kernels.add_norm(x, residual, norm, keep_sum=keep_sum),
        )  # fmt: skip
    module = request.getfixturevalue("triton_module")

    def add_norm(x: torch.Tensor, residual: torch.Tensor, norm: Norm, keep_sum: bool) -> torch.Tensor:
        normed: torch.Tensor = module.add_norm(
            x, residual, norm.weight, norm.bias, norm.eps, centred=norm.centred, keep_sum=keep_sum
        )
        return normed

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Steps("triton", device, module.gate, module.rotate_, add_norm)


def random(steps: Steps, *shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(steps.device, dtype)


def among_nans(x: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy in the middle of NaNs: whatever is read beside it shows."""
    memory = x.new_full((x.numel() + 512,), NAN)
    copy = memory[256 : 256 + x.numel()].view(x.shape)
    return copy.copy_(x)


def exact(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to("cpu", torch.float64, copy=True)


def assert_near(steps: Steps, found: torch.Tensor, wanted: torch.Tensor, size: torch.Tensor) -> None:
    """Allow roundings of numbers as large as ``size``: one at the end for Triton, one per step for torch."""
    roundings = 32 if found.dtype == torch.float32 else 1 if steps.name == "triton" else 4
    limits = torch.finfo(found.dtype)
    assert found.isfinite().all()
    error = (exact(found) - wanted).abs() - roundings * limits.eps * size - limits.tiny
    assert error.numel() == 0 or error.max() <= 0


# --- gate


def activated(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    if activation == "gelu_tanh":
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return x / (1 + torch.exp(-x))


def check_gate(steps: Steps, rows: int, width: int, activation: Activation, dtype: torch.dtype) -> None:
    joined = among_nans(random(steps, rows, 2 * width, dtype=dtype))
    before = exact(joined)
    found = steps.gate(joined, activation)
    assert found.shape == (rows, width)
    assert found.dtype == dtype
    assert torch.equal(exact(joined), before), "the projections are the caller's"
    gate, up = before.chunk(2, dim=1)
    # far out on the left, the activation is the small rest of a difference from one
    assert_near(steps, found, activated(gate, activation) * up, gate.abs() * up.abs())


@few
@given(rows=st.integers(1, 3), width=st.integers(1, 130), data=st.data())
@example(rows=2, width=1025, data=None)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate_is_the_formula(
    steps: Steps, activation: Activation, dtype: torch.dtype, rows: int, width: int, data: Any
) -> None:
    check_gate(steps, rows, width, activation, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gate_takes_rows_that_lie_apart(steps: Steps, activation: Activation) -> None:
    wide = torch.full((3, 100), NAN, device=steps.device)
    joined = wide[:, 10:84]
    joined.copy_(random(steps, 3, 74, dtype=torch.float32))
    found = steps.gate(joined, activation)
    gate, up = exact(joined).chunk(2, dim=1)
    assert_near(steps, found, activated(gate, activation) * up, gate.abs() * up.abs())


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # 1 / (1 + inf), in the interpreter's numpy
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gate_of_large_numbers_zeros_and_nothing(steps: Steps, activation: Activation) -> None:
    values = torch.tensor([[-300.0, -90.0, 0.0, 90.0, 300.0, 2.0, 2.0, 2.0, 2.0, 2.0]], device=steps.device)
    assert steps.gate(values, activation).tolist() == [[0.0, 0.0, 0.0, 180.0, 600.0]]
    assert steps.gate(values.new_empty(0, 10), activation).shape == (0, 5)


# --- rotation


def check_rotate(steps: Steps, tokens: int, heads: int, half: int, wider: int, dtype: torch.dtype) -> None:
    """Rotate the first heads of a joined projection, as ``fused`` does; the others must stay."""
    others = 2
    joined = random(steps, tokens, (heads + others) * 2 * half, dtype=dtype).unflatten(-1, (heads + others, 2 * half))
    joined[:, heads:] = NAN
    angle = random(steps, tokens, half, dtype=torch.float32)
    tables = torch.full((2, tokens, half + wider), NAN, device=steps.device, dtype=dtype)
    tables[0, :, :half], tables[1, :, :half] = angle.cos(), angle.sin()
    before, turn = exact(joined[:, :heads]), torch.complex(*exact(tables[:, :, :half])[:, :, None])
    kept = tables.clone()
    steps.rotate_(joined[:, :heads], tables[0], tables[1])
    assert joined[:, heads:].isnan().all()
    assert torch.equal(tables[:, :, :half], kept[:, :, :half])
    numbers = torch.complex(*before.chunk(2, dim=-1))
    turned = numbers * turn
    size = numbers.abs().repeat(1, 1, 2)
    assert_near(steps, joined[:, :heads], torch.cat([turned.real, turned.imag], dim=-1), size)


@few
@given(tokens=st.integers(1, 3), heads=st.integers(1, 5), half=st.integers(1, 40), wider=st.sampled_from([0, 1, 40]))
@example(tokens=1, heads=1, half=1, wider=1)
@example(tokens=1, heads=19, half=120, wider=120)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotation_multiplies_complex_numbers(
    steps: Steps, dtype: torch.dtype, tokens: int, heads: int, half: int, wider: int
) -> None:
    check_rotate(steps, tokens, heads, half, wider, dtype)


def test_rotation_of_no_token_and_of_zeros(steps: Steps) -> None:
    tables = torch.ones(2, 4, 8, device=steps.device)
    steps.rotate_(torch.empty(0, 3, 16, device=steps.device), tables[0, :0], tables[1, :0])
    zeros = torch.zeros(4, 3, 16, device=steps.device)
    steps.rotate_(zeros, tables[0], tables[1])
    assert not zeros.any()


# --- sum and norm


def check_norm(
    steps: Steps, rows: int, width: int, *, centred: bool, biased: bool, keep_sum: bool, dtype: torch.dtype
) -> None:
    x, residual = (among_nans(random(steps, rows, width, dtype=dtype, seed=seed)) for seed in (1, 2))
    weight = among_nans(random(steps, width, dtype=dtype))
    bias = among_nans(random(steps, width, dtype=dtype, seed=3)) if biased else None
    total, parameters = exact(x) + exact(residual), [exact(p) for p in (weight, bias) if p is not None]
    found = steps.add_norm(x, residual, Norm(weight, bias, 1e-5, centred), keep_sum)
    assert found.shape == (rows, width)
    assert found.dtype == dtype
    if keep_sum:
        assert_near(steps, residual, total, total.abs())
        if not (steps.name == "triton" and steps.device.type == "cpu"):  # the interpreter cuts bfloat16 off
            assert torch.equal(exact(residual), exact(total.to(dtype)))
        total = exact(residual)
    for parameter, before in zip((weight, bias), parameters, strict=False):
        assert parameter is not None
        assert torch.equal(exact(parameter), before)
    mean = total.mean(dim=1, keepdim=True) if centred else torch.zeros(rows, 1, dtype=torch.float64)
    deviation = ((total - mean).square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    wanted = (total - mean) / deviation * parameters[0]
    size = (total.abs() + mean.abs() + (0 if width > 1 else 1)) / deviation * parameters[0].abs() + wanted.abs()
    if biased:
        wanted, size = wanted + parameters[1], size + parameters[1].abs()
    assert_near(steps, found, wanted, size)


@few
@given(rows=st.integers(1, 3), width=st.integers(2, 200), keep_sum=st.booleans())
@example(rows=2, width=1030, keep_sum=True)
@example(rows=1, width=3, keep_sum=False)
@pytest.mark.parametrize(("centred", "biased"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_of_the_sum_is_the_formula(
    steps: Steps, dtype: torch.dtype, centred: bool, biased: bool, rows: int, width: int, keep_sum: bool
) -> None:
    check_norm(steps, rows, width, centred=centred, biased=biased, keep_sum=keep_sum, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keep_sum", [False, True])
def test_a_row_of_zeros_gives_the_bias(steps: Steps, dtype: torch.dtype, keep_sum: bool) -> None:
    weight, bias = (random(steps, 37, dtype=dtype, seed=seed) for seed in (1, 2))
    for norm, wanted in ((Norm(weight, bias, 1e-12, True), bias), (Norm(weight, None, 1e-6, False), 0 * bias)):
        x, residual = (torch.zeros(3, 37, dtype=dtype, device=steps.device) for _ in range(2))
        assert torch.equal(steps.add_norm(x, residual, norm, keep_sum), wanted.expand(3, 37))


def test_norm_takes_packed_rows_of_three_dimensions_and_none(steps: Steps) -> None:
    x, residual = (random(steps, 1, 5, 24, dtype=torch.float32, seed=seed) for seed in (1, 2))
    norm = Norm(random(steps, 24, dtype=torch.float32), None, 1e-6, False)
    flat = steps.add_norm(x[0].clone(), residual[0].clone(), norm, False)
    assert torch.equal(steps.add_norm(x.clone(), residual.clone(), norm, False), flat[None])
    assert steps.add_norm(x[:, :0].clone(), residual[:, :0].clone(), norm, True).shape == (1, 0, 24)


@pytest.mark.parametrize("centred", [False, True])
def test_nan_in_one_row_stays_there(steps: Steps, centred: bool) -> None:
    x, residual = (random(steps, 3, 21, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    x[1, 4] = NAN
    norm = Norm(torch.ones(21, dtype=torch.bfloat16, device=steps.device), None, 1e-6, centred)
    found = steps.add_norm(x, residual, norm, True)
    assert found.isnan().all(dim=1).tolist() == [False, True, False]
    assert found[0].isfinite().all()
    assert found[2].isfinite().all()


# --- which of the two runs


@pytest.fixture
def on_cuda(triton_module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[torch.device, Any]]:
    """Let ``use_triton`` find the loaded module, and its check run wherever the kernels do."""
    check, device = kernels.check_triton, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(kernels, "check_triton", lambda _: check(device))
    monkeypatch.setitem(sys.modules, "twinvec.compute.triton", triton_module)
    monkeypatch.setattr(twinvec.compute, "triton", triton_module, raising=False)
    kernels.use_triton.cache_clear()
    yield torch.device("cuda"), triton_module
    kernels.use_triton.cache_clear()


def test_kernels_that_agree_with_torch_are_used(
    on_cuda: tuple[torch.device, Any], caplog: pytest.LogCaptureFixture
) -> None:
    device, _ = on_cuda
    assert kernels.use_triton(device)
    assert not kernels.use_triton(torch.device("cpu"))
    assert not caplog.records


def _scaled(step: Any) -> Any:
    return lambda *args, **options: step(*args, **options) * 1.5


def _idle(step: Any) -> Any:
    return lambda *args: None


def _keeping_no_sum(step: Any) -> Any:
    return lambda x, residual, *args, **options: step(x, residual.clone(), *args, **options)


def _uncompiled(step: Any) -> Any:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("no C compiler")

    return fail


@pytest.mark.parametrize(
    ("step", "damage", "message"),
    [
        ("gate", _scaled, "gate is off by"),
        ("rotate_", _idle, "rotate is off by"),
        ("add_norm", _scaled, "add_norm is off by"),
        ("add_norm", _keeping_no_sum, "add_norm is off by"),
        ("gate", _uncompiled, "no C compiler"),
    ],
)
def test_a_broken_kernel_leaves_torch_in_use_with_one_warning(
    on_cuda: tuple[torch.device, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
    damage: Callable[[Any], Any],
    message: str,
) -> None:
    device, module = on_cuda
    monkeypatch.setattr(module, step, damage(getattr(module, step)))
    with caplog.at_level(logging.WARNING):
        assert not kernels.use_triton(device)
        assert not kernels.use_triton(device)
    (record,) = caplog.records
    assert message in record.getMessage()


def test_without_triton_torch_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    kernels.use_triton.cache_clear()
    assert not kernels.use_triton(torch.device("cuda"))
    kernels.use_triton.cache_clear()


# --- compiling for GPUs that are not there

COMPILE = """
import itertools, json, sys
import triton
from triton.backends.compiler import GPUTarget
from twinvec.compute import triton as _triton

POINTERS = {"gate_up", "out", "x", "cos", "sin", "residual", "weight", "bias"}

def compiled(fn, constants, dtype, arch, warps=4):
    types = {name: "*" + dtype if name in POINTERS else "fp32" if name == "eps" else "i32" for name in fn.arg_names}
    signature = {name: "constexpr" if name in constants else types[name] for name in fn.arg_names}
    source = triton.compiler.ASTSource(fn=fn, signature=signature, constexprs=constants)
    return len(triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps}).asm["cubin"])

sizes = {}
arch = int(sys.argv[1])
for dtype in ("bf16", "fp16", "fp32"):
    sizes["rotate", dtype] = compiled(_triton._rotate_kernel, {"HEADS": 16, "HALF": 32}, dtype, arch)
for activation in ("gelu", "gelu_tanh", "silu"):
    sizes[activation] = compiled(_triton._gate_kernel, {"ACTIVATION": activation, "BLOCK": 1024}, "bf16", arch)
for flags in itertools.product([False, True], repeat=3):
    constants = dict(zip(("CENTRED", "BIAS", "KEEP_SUM"), flags), BLOCK=1024)
    sizes[("norm", *flags)] = compiled(_triton._add_norm_kernel, constants, "bf16", arch, 16)
# an integer argument of 1 becomes a constant
one = {"width": 1, "row_stride": 1, "ACTIVATION": "gelu", "BLOCK": 1}
sizes["gate", 1] = compiled(_triton._gate_kernel, one, "bf16", arch)
one = {"heads": 1, "half": 1, "token_stride": 1, "head_stride": 1, "cos_stride": 1, "sin_stride": 1, "HEADS": 1}
sizes["rotate", 1] = compiled(_triton._rotate_kernel, one | {"HALF": 1}, "bf16", arch)
one = {"width": 1, "CENTRED": True, "BIAS": True, "KEEP_SUM": True, "BLOCK": 1}
sizes["norm", 1] = compiled(_triton._add_norm_kernel, one, "bf16", arch, 1)
print(json.dumps({str(name): size for name, size in sizes.items()}))
"""


@pytest.mark.parametrize("arch", [80, 90])
def test_every_kernel_compiles_for_gpus(arch: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-c", COMPILE, str(arch)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)
    assert len(sizes) == 17
    assert min(sizes.values()) > 1000
