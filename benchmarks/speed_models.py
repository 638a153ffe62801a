"""Checkpoints of real sizes with random weights, a tokenizer trained on the spot, and texts of known lengths.

Nothing is downloaded: the tokenizer learns from the FAQ answers of the demo, and so are the texts made.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
CORPUS = REPOSITORY / "benchmarks/collections/faq/corpus.jsonl"
PEER = "peer"  # the folder, inside of a checkpoint, of the same weights as sentence-transformers can load them
MAX_TOKENS = 8192
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_VOCABULARY = 8192  # of the tokenizer; what the corpus has words for
_BLOCK = 4_000_037  # random numbers, repeated; prime, so that no two rows of a matrix are alike


@dataclass(frozen=True)
class Shape:
    """The size of a model.

    Attributes:
        family: decides the layout of the files, the pooling and whether there is a lexical head.
        dtype: of the weight file; what sentence-transformers takes by default.
    """

    name: str
    family: Literal["gte", "giga", "bert"]
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    dtype: str

    @property
    def has_head(self) -> bool:
        """Return whether there is a sparse half."""
        return self.family == "gte"

    @property
    def layer_weights(self) -> int:
        """Return the matrix weights of a layer: projections and a feed-forward block, gated but for BERT."""
        projections = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return projections + (2 if self.family == "bert" else 3) * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Return the weights, without those of norms and biases."""
        return self.layers * self.layer_weights + self.vocabulary * self.hidden

    def flops(self, lengths: Iterable[int]) -> float:
        """Return the operations of texts of these lengths: projections, feed-forward, attention; no embedding."""
        attention = 4 * self.heads * self.head_dim
        return float(self.layers * sum(2 * n * self.layer_weights + n * n * attention for n in lengths))


# GTE's official vocabulary is 250048: it would add 0.3 GB to the memory and nothing to the work.
# Giga's intermediate sizes are presumed: with them the parameters are 484 million and 3.15 billion.
MODELS = {
    shape.name: shape
    for shape in (
        Shape("gte-base", "gte", 12, 768, 12, 12, 64, 3072, 30522, "float32"),
        Shape("giga-480m", "giga", 28, 1024, 16, 8, 64, 3072, 128256, "bfloat16"),
        Shape("giga-3b", "giga", 36, 2048, 16, 8, 128, 11008, 128256, "bfloat16"),
    )
}


# for the comparison on a CPU alone: the first two are real checkpoints, known here for their operations
CPU_MODELS = {
    "minilm": Shape("minilm", "bert", 6, 384, 12, 12, 32, 1536, 30522, "float32"),
    "e5-small": Shape("e5-small", "bert", 12, 384, 12, 12, 32, 1536, 250037, "float32"),
    "bert-base": Shape("bert-base", "bert", 12, 768, 12, 12, 64, 3072, 30522, "float32"),
    "gte-base": MODELS["gte-base"],
}


def tiny(shape: Shape) -> Shape:
    """Return a model of the same kind that takes no time."""
    kv_heads = 4 if shape.kv_heads == shape.heads else 2
    return replace(
        shape, layers=2, hidden=64, heads=4, kv_heads=kv_heads, head_dim=16, intermediate=128, vocabulary=_VOCABULARY
    )


def answers() -> list[str]:
    """Return the FAQ answers of the demo."""
    return [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]


def train_tokenizer() -> Tokenizer:
    """Train a lower-casing WordPiece tokenizer on the FAQ answers."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=_VOCABULARY, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(answers(), trainer)
    specials = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=specials)
    return tokenizer


def mixed(n: int) -> list[str]:
    """Return n different texts with the lengths of FAQ answers: the answers, or windows of their words."""
    whole = answers()
    if n <= len(whole):
        return whole[:n]
    words = [word for answer in whole for word in answer.split()]
    lengths = [len(answer.split()) for answer in whole]
    chance = random.Random(0)
    made: dict[str, None] = {}
    while len(made) < n:
        length = chance.choice(lengths)
        start = chance.randrange(len(words) - length)
        made[" ".join(words[start : start + length])] = None
    return list(made)


def of_lengths(lengths: Sequence[int], tokenizer: Tokenizer, seed: int = 0) -> list[str]:
    """Return different texts of exactly these many tokens, special tokens included."""
    words = [word for answer in answers() for word in answer.split()]
    sizes = [len(encoded.ids) for encoded in tokenizer.encode_batch(words, add_special_tokens=False)]
    chance = random.Random(seed)
    made: dict[str, int] = {}
    for length in lengths:
        before = len(made)
        while len(made) == before:
            chosen, room, at = [], length - 2, chance.randrange(len(words))
            while room:
                if 0 < sizes[at] <= room:
                    chosen.append(words[at])
                    room -= sizes[at]
                at = (at + 1) % len(words)
            made.setdefault(" ".join(chosen), length)
    texts = list(made)
    assert count(texts, tokenizer) == list(made.values())
    return texts


def count(texts: list[str], tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of each text, special tokens included."""
    return [len(encoded.ids) for encoded in tokenizer.encode_batch(texts)]


def build_checkpoint(folder: Path, shape: Shape = MODELS["gte-base"], tokenizer: Tokenizer | None = None) -> None:
    """Write a sentence-transformers folder in the family's layout, and beside the weights the peer's folder."""
    from safetensors.torch import save_file

    config = {"gte": _gte_config, "giga": _giga_config, "bert": _bert_config}[shape.family](shape)
    save_file(_random_tensors(shape, config), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = tokenizer or train_tokenizer()
    _write_files(folder, shape, tokenizer, config)
    peer = folder / PEER
    peer.mkdir()
    (peer / "model.safetensors").symlink_to(folder / "model.safetensors")
    native = {"model_type": "qwen3", "architectures": ["Qwen3Model"]} if shape.family == "giga" else {}
    _write_files(peer, shape, tokenizer, config | native)


def _gte_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["GteForTokenClassification"],
        "model_type": "gte",
        "hidden_act": "gelu",
        "hidden_size": shape.hidden,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": MAX_TOKENS,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 160000.0, "factor": 8 ** (2 / shape.head_dim)},
        "type_vocab_size": 1,
        "vocab_size": shape.vocabulary,
    }


def _bert_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": shape.vocabulary,
    }


def _giga_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3BidirectionalModel"],
        "model_type": "qwen3_bidirec",
        "attention_bias": False,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "is_causal": False,
        "layer_types": ["full_attention"] * shape.layers,
        "max_position_embeddings": MAX_TOKENS,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 100000.0,
        "tie_word_embeddings": False,
        "use_cache": False,
        "vocab_size": shape.vocabulary,
    }


def _random_tensors(shape: Shape, config: dict[str, Any]) -> dict[str, Any]:
    """Return weights that keep variance 1 through every matrix: a repeated block, for billions take long to draw."""
    import torch
    import transformers

    values = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        if shape.family == "gte":
            model: Any = transformers.GteForTokenClassification(transformers.GteConfig(**values))
        elif shape.family == "bert":
            model = transformers.BertModel(transformers.BertConfig(**values), add_pooling_layer=False)
        else:
            model = torch.nn.ModuleDict({"model": transformers.Qwen3Model(transformers.Qwen3Config(**values))})
    dtype = getattr(torch, shape.dtype)
    noise = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0))
    blocks: dict[float, Any] = {}
    tensors = {}
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        if tensor.dim() == 1:
            tensors[name] = torch.full(tensor.shape, float(name.endswith("weight")), dtype=dtype)
            continue
        scale = 1.0 if "embed" in name else 1 / math.sqrt(tensor.shape[-1])
        if scale not in blocks:
            blocks[scale] = (noise * scale).to(dtype)
        start, size = 104729 * number % _BLOCK, tensor.numel()
        tensors[name] = blocks[scale].repeat(-(-(start + size) // _BLOCK))[start : start + size].view(tensor.shape)
    return tensors


def _write_files(folder: Path, shape: Shape, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    tokens = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    pooling = "pooling_mode_cls_token" if shape.family == "gte" else "pooling_mode_mean_tokens"
    write = {
        "config.json": config | {"dtype": shape.dtype},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(kinds.items())
        ],
        "sentence_bert_config.json": {"max_seq_length": config["max_position_embeddings"], "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": shape.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            pooling: True,
        },
        "special_tokens_map.json": tokens,
        "tokenizer_config.json": tokens
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_TOKENS,
            "model_input_names": ["input_ids", "attention_mask"],
        },
    }
    for path in kinds.values():
        (folder / path).mkdir(exist_ok=True)
    for name, value in write.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
