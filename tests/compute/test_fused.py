"""Fused layers against the classes of transformers as they are, one text at a time."""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers

from twinvec.compute import fused, linear
from twinvec.compute.backbone import Backbone, PackedTransformer, PaddedTransformer
from twinvec.compute.packing import TokenBatch
from twinvec.compute.quantization import quantize
from twinvec.text.tokenizer import TokenizedText

CPU, JOINED = torch.device("cpu"), torch.device("cuda")  # the layout is chosen by name: tensors stay on the CPU
LENGTHS = (1, 7, 7, 3, 40, 12, 12)


class Family(NamedTuple):
    """A model class and what is special about its configuration."""

    name: str
    config: dict[str, Any] = {}  # noqa: RUF012
    padding_idx: int | None = None
    causal: bool | None = None
    packed: bool = True

    def build(self, **changes: Any) -> Any:
        config_class = getattr(transformers, f"{self.name}Config")
        config = config_class(**(SIZES | self.config | changes))
        torch.manual_seed(0)
        model = getattr(transformers, self.name + "Model")(config)
        for parameter in model.parameters():  # biases and norms too, which start as zeros and ones
            parameter.detach().add_(0.1 * torch.randn_like(parameter))
        return model.eval().double()

    def wrap(self, model: Any) -> Backbone:
        if not self.packed:
            return PaddedTransformer(model, pad_id=1)
        backbone = PackedTransformer(model, padding_idx=self.padding_idx, causal=self.causal)
        backbone.use_attention("sdpa")
        return backbone


SIZES: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 512, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
LATENT = {
    "q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 8,
    "num_key_value_heads": 4, "first_k_dense_replace": 3,
}  # fmt: skip
XLMR = {"max_position_embeddings": 514, "type_vocab_size": 1}
GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES = {
    "gte": Family("Gte"),
    "nomic": Family("NomicBert"),
    "jina": Family("JinaEmbeddingsV3"),
    "eurobert": Family("EuroBert", GROUPED),
    "eurobert with biases": Family("EuroBert", GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "llama": Family("Llama", {"num_key_value_heads": 1}),
    "llama with biases": Family("Llama", GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "llama, bidirectional": Family("Llama", GROUPED, causal=False),
    "mistral": Family("Mistral", GROUPED | {"sliding_window": 6}),
    "mistral without window": Family("Mistral", GROUPED | {"sliding_window": None}),
    "qwen2": Family("Qwen2", GROUPED | WINDOWS),
    "qwen2 without window": Family("Qwen2", GROUPED),
    "qwen3": Family("Qwen3", {"num_key_value_heads": 2, "head_dim": 16} | WINDOWS),
    "qwen3 without window": Family("Qwen3", GROUPED | {"attention_bias": True}),
    "bert": Family("Bert"),
    "bert, tanh": Family("Bert", {"hidden_act": "gelu_pytorch_tanh"}),
    "roberta": Family("Roberta", XLMR, padding_idx=1),
    "xlm-roberta": Family("XLMRoberta", XLMR, padding_idx=1),
    "camembert": Family("Camembert", XLMR, padding_idx=1),
    "electra": Family("Electra", {"embedding_size": 16}),
    "mpnet": Family("MPNet", {"max_position_embeddings": 514}, packed=False),
    "gemma3": Family("Gemma3Text", GROUPED | {"layer_types": GEMMA_LAYERS, "sliding_window": 6}),
    "deepseek": Family("DeepseekV3", LATENT),
}
NO_SUCH_STEP = {"MPNetSelfOutput", "JinaEmbeddingsV3MLP"}  # the first is no class, the second has no gate
LAYOUTS = pytest.mark.parametrize("device", [CPU, JOINED], ids=["cpu", "joined"])


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(linear, "ROWS", 30)  # several per batch, the last one not full
    with torch.no_grad():
        yield


def make_batch(lengths: tuple[int, ...]) -> TokenBatch:
    generator = np.random.default_rng(0)
    return TokenBatch.pack([TokenizedText(generator.integers(5, 90, n).astype(np.int32), 0, n) for n in lengths])


@pytest.fixture
def batch() -> TokenBatch:
    return make_batch(LENGTHS)


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make transformers' RMS norms compute in fp64: they would go through fp32 in the middle of a fp64 model."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        eps = getattr(self, "variance_epsilon", None) or self.eps
        weight = 1 + self.weight if "Gemma" in type(self).__name__ else self.weight
        normed: torch.Tensor = weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return normed

    for family in FAMILIES.values():
        module = sys.modules[getattr(transformers, family.name + "Model").__module__]
        for name in vars(module):
            if name.endswith("RMSNorm"):
                monkeypatch.setattr(getattr(module, name), "forward", forward)


def alone(family: Family, model: Any, batch: TokenBatch, attention: str) -> torch.Tensor:
    """Run each text by itself through the class as transformers has it; return the rows of all."""
    model.set_attn_implementation(attention)
    options: dict[str, Any] = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    rows = []
    for ids in batch.input_ids.split(list(batch.lengths)):
        if family.causal is False:  # the class has no such switch: a mask of its own lets everything through
            options["attention_mask"] = torch.zeros(1, 1, len(ids), len(ids), dtype=torch.float64)
        rows.append(model(input_ids=ids[None], **options).last_hidden_state[0])
    return torch.cat(rows)


@pytest.mark.usefixtures("exact_norms")
@LAYOUTS
@pytest.mark.parametrize("name", FAMILIES)
def test_fp64_agrees_to_the_last_digits(name: str, device: torch.device, batch: TokenBatch) -> None:
    family = FAMILIES[name]
    # the eager functions of decoders take the softmax in fp32
    wanted = alone(family, family.build(), batch, "sdpa" if family.packed else "eager")
    backbone = family.wrap(family.build())
    backbone.fuse(device)
    torch.testing.assert_close(backbone(batch), wanted, rtol=1e-10, atol=1e-10)


@LAYOUTS
@pytest.mark.parametrize("name", FAMILIES)
def test_the_classes_as_they_are_agree_as_far_as_their_fp32(name: str, device: torch.device, batch: TokenBatch) -> None:
    family = FAMILIES[name]
    wanted = alone(family, family.build(), batch, "eager")
    backbone = family.wrap(family.build())
    backbone.fuse(device)
    torch.testing.assert_close(backbone(batch), wanted, rtol=1e-5, atol=1e-5)


@LAYOUTS
@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_stays_within_its_roundings_and_is_repeated_bitwise(
    name: str, device: torch.device, batch: TokenBatch
) -> None:
    """In-place work that destroyed what is still needed, or weights, would show in the second run."""
    family = FAMILIES[name]
    model = family.build().bfloat16()
    wanted = alone(family, family.build().bfloat16().double(), batch, "eager")
    backbone = family.wrap(model)
    backbone.fuse(device)
    found = backbone(batch)
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).norm() < 2e-2 * wanted.norm()
    assert torch.equal(backbone(batch), found)


@LAYOUTS
def test_slices_of_their_real_size(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ROWS", 512)
    batch = make_batch((300, 1, 290, 2))
    family = FAMILIES["gte"]
    backbone = family.wrap(family.build())
    backbone.fuse(device)
    torch.testing.assert_close(backbone(batch), alone(family, family.build(), batch, "sdpa"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("windowed", "plain"), [
    ("mistral", "mistral without window"), ("qwen2", "qwen2 without window"),
])  # fmt: skip
def test_the_windows_of_these_families_reach_no_further_than_they_say(
    windowed: str, plain: str, batch: TokenBatch
) -> None:
    """Else agreement with a window would prove nothing."""
    rows = [alone(FAMILIES[name], FAMILIES[name].build(), batch, "sdpa") for name in (windowed, plain)]
    assert (rows[0] - rows[1]).abs().amax() > 1e-3


@pytest.mark.parametrize("name", ["xlm-roberta", "roberta"])
def test_positions_do_not_count_a_pad_token_inside_a_text(name: str) -> None:
    family, batch = FAMILIES[name], make_batch((4, 9, 6))
    batch.input_ids[7] = batch.input_ids[13] = 1
    backbone = family.wrap(family.build())
    backbone.fuse(CPU)
    torch.testing.assert_close(backbone(batch), alone(family, family.build(), batch, "sdpa"), rtol=1e-10, atol=1e-10)


@LAYOUTS
@pytest.mark.parametrize("name", ["bert", "electra"])
def test_token_types_are_those_of_the_caller(name: str, device: torch.device) -> None:
    family, batch = FAMILIES[name], make_batch((9,))
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    backbone = family.wrap(family.build())
    assert isinstance(backbone, PackedTransformer)
    backbone.fuse(device)
    options = {"input_ids": batch.input_ids[None], "token_type_ids": types}
    found = backbone.model(position_ids=batch.position_ids[None], packed=batch, **options).last_hidden_state
    wanted = family.build()(**options).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@LAYOUTS
@pytest.mark.parametrize("name", FAMILIES)
def test_joining_keeps_the_number_of_weights_and_gives_the_single_ones_up(name: str, device: torch.device) -> None:
    family = FAMILIES[name]
    model = family.build()
    before = {key: value.numel() for key, value in model.named_parameters()}
    family.wrap(model).fuse(device)
    after = {key: value.numel() for key, value in model.named_parameters()}
    assert sum(after.values()) == sum(before.values())
    assert any("qkv" in key for key in after) == (family.packed and name not in ("gemma3", "deepseek"))
    parts = [key.split(".")[-2] for key in after]
    if any("qkv" in part for part in parts):
        assert not {"q_proj", "k_proj", "v_proj", "query", "key", "value"} & set(parts)
    if any("gate_up" in part for part in parts):
        assert device is JOINED
        assert not {"gate_proj", "up_proj"} & set(parts)


@LAYOUTS
@pytest.mark.parametrize(("name", "steps"), [("bert", fused._PLAIN), ("llama", fused._GATED)])
@pytest.mark.parametrize("activation", ["relu", "gelu_new", "quick_gelu"])
def test_unknown_activations_are_left_alone(
    name: str, steps: set[str], activation: str, device: torch.device, batch: TokenBatch
) -> None:
    family = FAMILIES[name]
    model = family.build(hidden_act=activation)
    backbone = family.wrap(model)
    backbone.fuse(device)
    for module in model.modules():
        if type(module).__name__ in steps:
            assert "forward" not in vars(module)
            assert not hasattr(module, "gate_up_proj")
    wanted = alone(family, family.build(hidden_act=activation), batch, "eager")
    torch.testing.assert_close(backbone(batch), wanted, rtol=1e-5, atol=1e-5)


@LAYOUTS
def test_padded_models_keep_their_attention(device: torch.device) -> None:
    model = FAMILIES["bert"].build()
    fused.fuse(model, device, packed=False)
    attention = model.encoder.layer[0].attention.self
    assert "forward" not in vars(attention)
    assert attention.query.out_features == 32


def test_quantised_projections_are_not_joined() -> None:
    model = FAMILIES["llama"].build()
    quantize(model)
    with pytest.raises(AssertionError, match="before they are quantised"):
        fused.fuse(model, CPU, packed=True)


def test_every_class_that_is_known_was_met(monkeypatch: pytest.MonkeyPatch) -> None:
    met = set()
    find = fused._fused_forward

    def note(module: Any, *args: Any) -> Any:
        forward = find(module, *args)
        if forward is not None:
            met.add(type(module).__name__)
        return forward

    monkeypatch.setattr(fused, "_fused_forward", note)
    for family in FAMILIES.values():
        family.wrap(family.build()).fuse(CPU)
    known = set().union(
        fused._ROTARY, fused._ABSOLUTE, fused._GATED, fused._PLAIN, fused._POST_NORM, fused._PRE_NORM, fused._SUMS,
        fused._RMS, fused._MODELS,
    )  # fmt: skip
    assert known - met == NO_SUCH_STEP
