"""Tiny random checkpoints in the official sentence-transformers layouts.

The builders write what the real repositories contain, with 2-4 layers of hidden size 64. There are two
generations of the layout. ``legacy_pooling_booleans=True`` writes that of sentence-transformers 2.x to 5.x,
which nearly all published repositories have: ``sentence_transformers.models.*``, ``pooling_mode_*`` booleans,
``max_seq_length`` in ``sentence_bert_config.json``. Otherwise it is that of 6.x: its module paths, one
``pooling_mode``, ``max_seq_length`` as the tokenizer's ``model_max_length``.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig

from reference.prompts import GEMMA_PROMPTS, WEB_SEARCH

from .checkpoint_files import Dtype, write_json
from .sentence_reference import LEGACY_POOLING, read_json
from .tokenizers_ import write_bpe_tokenizer, write_wordpiece_tokenizer, write_xlmr_tokenizer

ModelT = TypeVar("ModelT", bound=nn.Module)
Weights = Literal["safetensors", "bin"]

TANH = "torch.nn.modules.activation.Tanh"
RELU = "torch.nn.modules.activation.ReLU"
IDENTITY = "torch.nn.modules.linear.Identity"

VOCAB = 600
HIDDEN = 64


class _DenseOptions(TypedDict, total=False):
    activation: str
    bias: bool


class DenseSpec(_DenseOptions):
    """One Dense module; the activation is a dotted ``torch`` class and defaults to Tanh, the bias to True."""

    out_features: int


class Backbone(NamedTuple):
    """How to make one tiny model: its tokenizer writer, config values and, where not AutoModel, its class."""

    write_tokenizer: Callable[[Path], None]
    config: dict[str, Any]
    model_class: str = "AutoModel"


def _sizes(**special: Any) -> dict[str, Any]:
    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2}
    return sizes | {"num_attention_heads": 4, "max_position_embeddings": 512} | special


_WORDPIECE_IDS = {"pad_token_id": 0}
_XLMR_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 514}
_BPE_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "num_key_value_heads": 2}

_qwen_tokenizer = partial(
    write_bpe_tokenizer, bos="<|im_start|>", eos="<|endoftext|>", pad="<|endoftext|>", add_bos=False
)
_gemma_tokenizer = partial(
    write_bpe_tokenizer, bos="<bos>", eos="<eos>", bos_id=2, eos_id=1, pad="<pad>", vocab_size=VOCAB
)
_t5_tokenizer = partial(write_bpe_tokenizer, bos_id=3, eos_id=1, add_bos=False, pad="<pad>")

BACKBONES: dict[str, Backbone] = {
    "bert": Backbone(write_wordpiece_tokenizer, _sizes(**_WORDPIECE_IDS)),
    "electra": Backbone(write_wordpiece_tokenizer, _sizes(**_WORDPIECE_IDS, embedding_size=32)),
    "albert": Backbone(write_wordpiece_tokenizer, _sizes(**_WORDPIECE_IDS, embedding_size=32)),
    "nomic_bert": Backbone(write_wordpiece_tokenizer, _sizes(**_WORDPIECE_IDS)),
    "distilbert": Backbone(
        write_wordpiece_tokenizer,
        {"vocab_size": VOCAB, "dim": HIDDEN, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
    ),
    "modernbert": Backbone(
        write_wordpiece_tokenizer,  # layers: global, local, local, global; 8 tokens to each side
        _sizes(num_hidden_layers=4, local_attention=16, global_attn_every_n_layers=3)
        | {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
    ),
    "deberta-v2": Backbone(
        write_wordpiece_tokenizer,
        _sizes(**_WORDPIECE_IDS, type_vocab_size=0, position_biased_input=False, share_att_key=True)
        | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
        | {"norm_rel_ebd": "layer_norm", "max_relative_positions": -1},
    ),
    "xlm-roberta": Backbone(write_xlmr_tokenizer, _sizes(**_XLMR_IDS, type_vocab_size=1)),
    "roberta": Backbone(write_xlmr_tokenizer, _sizes(**_XLMR_IDS, type_vocab_size=1)),
    "jina_embeddings_v3": Backbone(write_xlmr_tokenizer, _sizes(**_XLMR_IDS, type_vocab_size=1)),
    "mpnet": Backbone(write_xlmr_tokenizer, _sizes(**_XLMR_IDS)),
    "eurobert": Backbone(write_bpe_tokenizer, _sizes(**_BPE_IDS, mask_token_id=0)),
    "llama": Backbone(write_bpe_tokenizer, _sizes(**_BPE_IDS)),
    "mistral": Backbone(write_bpe_tokenizer, _sizes(**_BPE_IDS, sliding_window=16)),
    "qwen2": Backbone(_qwen_tokenizer, _sizes(**_BPE_IDS)),
    "qwen3": Backbone(_qwen_tokenizer, _sizes(**_BPE_IDS, head_dim=32)),
    "gemma3_text": Backbone(
        _gemma_tokenizer,  # the window of 16 becomes 8 tokens to each side
        _sizes(num_hidden_layers=4, head_dim=16, query_pre_attn_scalar=24, num_key_value_heads=2)
        | {"use_bidirectional_attention": True, "sliding_window": 16}
        | {"layer_types": [f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding")]}
        | {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 3},
    ),
    "t5": Backbone(
        _t5_tokenizer,
        {"vocab_size": VOCAB, "d_model": HIDDEN, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
        | {"eos_token_id": 1, "pad_token_id": 2},
        "T5EncoderModel",
    ),
}


def build_sentence_transformer(
    folder: Path,
    backbone: str,
    *,
    pooling: str | list[str] = "mean",
    normalize: bool = True,
    dense: list[DenseSpec] | None = None,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    truncate_dim: int | None = None,
    max_seq_length: int | None = None,
    do_lower_case: bool = False,
    include_prompt: bool = True,
    legacy_pooling_booleans: bool = False,
    dtype: Dtype = "float32",
    seed: int = 0,
) -> Path:
    """Write a whole checkpoint: backbone, tokenizer, modules and their configs. Returns ``folder``."""
    legacy = legacy_pooling_booleans
    _write_backbone(folder, backbone, dtype=dtype, seed=seed)
    _write_sequence_config(folder, legacy, max_seq_length, do_lower_case)
    modules = ["Transformer", "Pooling"]
    dim = _write_pooling(folder / "1_Pooling", pooling, include_prompt, legacy)
    for spec in dense or []:
        dense_folder = folder / f"{len(modules)}_Dense"
        dim = _write_dense(dense_folder, dim, spec, legacy=legacy, dtype=dtype, seed=seed + len(modules))
        modules.append("Dense")
    if normalize:
        _write_normalize(folder / f"{len(modules)}_Normalize", legacy)
        modules.append("Normalize")
    _write_modules(folder, modules, legacy)
    _write_model_config(folder, legacy, prompts, default_prompt_name, truncate_dim)
    return folder


def build_multilingual_e5(folder: Path, *, with_prompts: bool = False, dtype: Dtype = "float32") -> Path:
    """multilingual-e5: mean + L2; the real one has no prompts but an old ``position_ids`` buffer."""
    prompts = {"query": "query: ", "passage": "passage: "} if with_prompts else None
    build_sentence_transformer(
        folder, "xlm-roberta", prompts=prompts, max_seq_length=512, legacy_pooling_booleans=True, dtype=dtype
    )
    if not with_prompts:
        (folder / "config_sentence_transformers.json").unlink()
    _drop_newer_pooling_keys(folder)
    _rewrite_weights(folder, extra={"embeddings.position_ids": torch.arange(514)[None]})
    return folder


def build_bge_m3(folder: Path, *, weights: Weights = "bin", dtype: Dtype = "float32", seed: int = 0) -> Path:
    """bge-m3: CLS + L2, and the sparse and ColBERT heads as pickled state dicts beside the backbone."""
    build_sentence_transformer(
        folder,
        "xlm-roberta",
        pooling="cls",
        max_seq_length=500,
        legacy_pooling_booleans=True,
        dtype=dtype,
        seed=seed,
    )
    _drop_newer_pooling_keys(folder)
    _rewrite_weights(folder, weights=weights)
    for offset, (name, features) in enumerate({"sparse_linear": 1, "colbert_linear": HIDDEN}.items(), 1):
        head = randomise(nn.Linear(HIDDEN, features), seed + offset)
        nn.init.ones_(head.bias)  # as in the real one, most sparse weights are positive
        torch.save(head.to(getattr(torch, dtype)).state_dict(), folder / f"{name}.pt")
    return folder


def build_qwen3_embedding(folder: Path, *, dtype: Dtype = "float32", seed: int = 0) -> Path:
    """Qwen3-Embedding: causal, last token (the tokenizer adds ``<|endoftext|>``), keys without ``model.``."""
    build_sentence_transformer(
        folder,
        "qwen3",
        pooling="lasttoken",
        prompts={"query": WEB_SEARCH, "document": ""},
        legacy_pooling_booleans=True,
        dtype=dtype,
        seed=seed,
    )
    _update_json(folder / "config.json", architectures=["Qwen3ForCausalLM"])
    return folder


def build_gte_qwen2(folder: Path, *, dtype: Dtype = "float32", seed: int = 0) -> Path:
    """gte-Qwen2: bidirectional, last token; only ``add_eos_token`` says that an eos is appended."""
    build_sentence_transformer(
        folder,
        "qwen2",
        pooling="lasttoken",
        prompts={"query": WEB_SEARCH + " "},
        max_seq_length=500,
        legacy_pooling_booleans=True,
        dtype=dtype,
        seed=seed,
    )
    _qwen_tokenizer(folder, add_eos=False)
    _update_json(
        folder / "tokenizer_config.json",
        add_eos_token=True,
        auto_map={"AutoTokenizer": [f"tokenization_qwen.Qwen2Tokenizer{kind}" for kind in ("", "Fast")]},
    )
    _update_json(
        folder / "config.json",
        architectures=["Qwen2ForCausalLM"],
        auto_map={"AutoModel": "modeling_qwen.Qwen2Model"},
        is_causal=False,
    )
    _rewrite_weights(folder, prefix="model.")
    return folder


def build_embedding_gemma(folder: Path, *, dtype: Dtype = "float32", seed: int = 0) -> Path:
    """EmbeddingGemma: bidirectional with local layers, mean, two bias-free linear Dense modules, L2."""
    return build_sentence_transformer(
        folder,
        "gemma3_text",
        dense=[
            {"out_features": 4 * HIDDEN, "activation": IDENTITY, "bias": False},
            {"out_features": HIDDEN, "activation": IDENTITY, "bias": False},
        ],
        prompts=GEMMA_PROMPTS,
        max_seq_length=400,
        legacy_pooling_booleans=True,
        dtype=dtype,
        seed=seed,
    )


def build_splade(
    folder: Path,
    backbone: Literal["bert", "distilbert"] = "bert",
    *,
    layout: Literal["bare", "legacy", "current"] = "legacy",
    dtype: Dtype = "float32",
    seed: int = 0,
) -> Path:
    """SPLADE (max): masked-LM weights alone, or with the SparseEncoder modules of 5.x (legacy) or 6.x."""
    _write_backbone(folder, backbone, model_class="AutoModelForMaskedLM", dtype=dtype, seed=seed)
    if layout == "bare":
        return folder
    legacy = layout == "legacy"
    package = "sentence_transformers.sparse_encoder." + ("models" if legacy else "modules.splade_pooling")
    transformer = f"{package}.MLMTransformer" if legacy else _type_string("Transformer", legacy)
    write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": transformer},
            {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": f"{package}.SpladePooling"},
        ],
    )
    width = "word_embedding_dimension" if legacy else "embedding_dimension"
    pooling = {"pooling_strategy": "max", "activation_function": "relu", width: VOCAB}
    write_json(folder / "1_SpladePooling" / "config.json", pooling)
    _write_sequence_config(folder, legacy, 256, False, task="fill-mask")
    _write_model_config(folder, legacy, {"query": "", "document": ""}, None, None)
    _update_json(folder / "config_sentence_transformers.json", model_type="SparseEncoder", similarity_fn_name="dot")
    return folder


def _write_backbone(folder: Path, backbone: str, *, model_class: str | None = None, dtype: Dtype, seed: int) -> None:
    """Tokenizer, ``config.json`` and ``model.safetensors`` of the backbone with random weights."""
    spec = BACKBONES[backbone]
    spec.write_tokenizer(folder)
    config = AutoConfig.for_model(backbone, **spec.config)
    model_type = getattr(transformers, model_class or spec.model_class)
    build = model_type.from_config if hasattr(model_type, "from_config") else model_type
    model = randomise(build(config), seed).to(getattr(torch, dtype))
    model.save_pretrained(folder)


def randomise(model: ModelT, seed: int) -> ModelT:
    """Weights far from their initialisation: texts, positions and every bias make a visible difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.add_(0.1 * noise)
                continue
            # what all tokens share (token types) stays small, or every text would look alike
            embedding = "embed" in name and "type" not in name
            parameter.copy_(noise * (0.3 if embedding else 1.2 / parameter.shape[-1] ** 0.5))
    return model


def _rewrite_weights(
    folder: Path,
    *,
    prefix: str = "",
    extra: dict[str, torch.Tensor] | None = None,
    weights: Weights = "safetensors",
) -> None:
    file = folder / "model.safetensors"
    tensors = {prefix + name: tensor for name, tensor in load_file(file).items()} | (extra or {})
    if weights == "safetensors":
        save_file(tensors, file, metadata={"format": "pt"})
    else:
        file.unlink()
        torch.save(tensors, folder / "pytorch_model.bin")


def _write_pooling(folder: Path, pooling: str | list[str], include_prompt: bool, legacy: bool) -> int:
    modes = [pooling] if isinstance(pooling, str) else pooling
    config: dict[str, Any]
    if legacy:
        config = {"word_embedding_dimension": HIDDEN}
        config |= {key: mode in modes for key, mode in LEGACY_POOLING.items()}
    else:
        config = {"embedding_dimension": HIDDEN, "pooling_mode": pooling}
    write_json(folder / "config.json", config | {"include_prompt": include_prompt})
    return HIDDEN * len(modes)


def _drop_newer_pooling_keys(folder: Path) -> None:
    """Repositories written before 2.3 know four poolings and no ``include_prompt``."""
    file = folder / "1_Pooling" / "config.json"
    newer = {"pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken", "include_prompt"}
    write_json(file, {key: value for key, value in read_json(file).items() if key not in newer})


def _write_dense(folder: Path, in_features: int, spec: DenseSpec, *, legacy: bool, dtype: Dtype, seed: int) -> int:
    bias = spec.get("bias", True)
    config: dict[str, Any] = {"in_features": in_features, "out_features": spec["out_features"], "bias": bias}
    config["activation_function"] = spec.get("activation", TANH)
    if not legacy:
        config |= {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    write_json(folder / "config.json", config)
    linear = randomise(nn.Linear(in_features, spec["out_features"], bias=bias), seed)
    state = linear.to(getattr(torch, dtype)).state_dict()
    tensors = {f"linear.{name}": tensor for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return spec["out_features"]


def _write_normalize(folder: Path, legacy: bool) -> None:
    folder.mkdir()  # the legacy module has no config at all
    if not legacy:
        config = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        write_json(folder / "config.json", config)


def _write_modules(folder: Path, names: list[str], legacy: bool) -> None:
    entries = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{name}" if index else "",
            "type": _type_string(name, legacy),
        }
        for index, name in enumerate(names)
    ]
    write_json(folder / "modules.json", entries)


def _type_string(name: str, legacy: bool) -> str:
    if legacy:
        return f"sentence_transformers.models.{name}"
    package = "sentence_transformer" if name == "Pooling" else "base"
    return f"sentence_transformers.{package}.modules.{name.lower()}.{name}"


def _write_sequence_config(
    folder: Path,
    legacy: bool,
    max_seq_length: int | None,
    do_lower_case: bool,
    task: str = "feature-extraction",
) -> None:
    """``sentence_bert_config.json``; since 6.x the length limit is the tokenizer's ``model_max_length``."""
    config: dict[str, Any] = {}
    if legacy and max_seq_length is not None:
        config = {"max_seq_length": max_seq_length, "do_lower_case": do_lower_case}
    elif not legacy:
        output = "logits" if task == "fill-mask" else "last_hidden_state"
        config = {"transformer_task": task, "module_output_name": "token_embeddings"}
        config["modality_config"] = {"text": {"method": "forward", "method_output_name": output}}
        if max_seq_length is not None:
            _update_json(folder / "tokenizer_config.json", model_max_length=max_seq_length)
    if do_lower_case:
        config["do_lower_case"] = True
    if config:
        write_json(folder / "sentence_bert_config.json", config)


def _write_model_config(
    folder: Path,
    legacy: bool,
    prompts: dict[str, str] | None,
    default_prompt_name: str | None,
    truncate_dim: int | None,
) -> None:
    """``config_sentence_transformers.json``; repositories from before prompts hold the versions only."""
    version = "2.2.2" if legacy and prompts is None else "5.1.0" if legacy else "6.2.0"
    versions = {"sentence_transformers": version, "transformers": "4.33.0" if legacy else "5.23.0"}
    config: dict[str, Any] = {"__version__": versions | {"pytorch": torch.__version__}}
    if not legacy:
        config = {"model_type": "SentenceTransformer"} | config
        prompts = prompts or {"query": "", "document": ""}
    if prompts is not None:
        config |= {"prompts": prompts, "default_prompt_name": default_prompt_name}
        config["similarity_fn_name"] = "cosine"
    if truncate_dim is not None:
        config["truncate_dim"] = truncate_dim
    write_json(folder / "config_sentence_transformers.json", config)


def _update_json(file: Path, **values: Any) -> None:
    write_json(file, read_json(file) | values)
