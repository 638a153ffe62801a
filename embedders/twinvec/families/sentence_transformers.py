"""Any sentence-transformers checkpoint on a transformers encoder or decoder, bge-m3's lexical head, and SPLADE."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from twinvec.checkpoints.fields import only, whole
from twinvec.checkpoints.files import BGE_HEAD, BGE_MULTI_HEAD, Checkpoint
from twinvec.checkpoints.tensors import load_strict, load_tensors
from twinvec.errors import CheckpointFieldError, CheckpointNotFoundError, UnsupportedCheckpointError
from twinvec.families.base import Description, Family, Published, Supported
from twinvec.families.modules import SentenceModules, output_dim, read_modules
from twinvec.vectors import MultiVectors

if TYPE_CHECKING:
    import torch

    from twinvec.compute.backbone import Backbone
    from twinvec.compute.heads import TokenVectorHead, TokenWeightHead


@dataclass(frozen=True)
class _Type:
    """How a transformers model type is run.

    Attributes:
        offset: positions start at padding_idx + 1.
        positions: the only ``position_embedding_type`` supported by transformers for it.
        names: the config's names for hidden size, layers and heads, if unusual.
    """

    offset: bool = False
    positions: str | None = None
    names: tuple[str, ...] = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


_DISTIL = ("dim", "n_layers", "n_heads", "vocab_size")
TYPES: dict[str, _Type] = {
    **dict.fromkeys(("bert", "electra", "albert"), _Type(positions="absolute")),
    **dict.fromkeys(("modernbert", "nomic_bert", "jina_embeddings_v3", "eurobert"), _Type()),
    **dict.fromkeys(("qwen2", "qwen3", "llama", "mistral", "gemma3_text"), _Type()),
    **dict.fromkeys(("xlm-roberta", "roberta", "camembert"), _Type(offset=True, positions="absolute")),
    "distilbert": _Type(names=_DISTIL),
    **dict.fromkeys(("mpnet", "deberta-v2"), _Type()),
}
_BGE_MULTI = MultiVectors(left_out=1, mean=True)  # all tokens but the first, as in FlagEmbedding
_MPNET_POSITIONS = 2  # MPNet starts at 2, whatever its pad_token_id
_NO_OTHER = "since transformers supports no other positions here"
# decoders turned into encoders: recognised by class if the config lost is_causal
_BIDIRECTIONAL = re.compile(r"(?i:bidirec)|Bi(Model|For)|EncoderModel")
_CAUSAL_BY_DEFAULT = ("qwen2", "qwen3", "llama", "mistral", "gemma3_text")


class SentenceTransformers(Family):
    """A checkpoint with a modules.json, on one of the model types in ``TYPES``."""

    name = "sentence-transformers"
    supported = (
        Supported("BAAI/bge-m3", "1024", "8192", "lexical head", "none"),
        Supported("intfloat/multilingual-e5-*, bge, MiniLM, mpnet, ... (BERT, XLM-R, RoBERTa, MPNet)", "all of them",
                  "the model's", "head file", "the model's"),
        Supported("ModernBERT, Nomic, Jina v3, EuroBERT, Qwen2/3 (Qwen3-Embedding, gte-Qwen2), Llama, Mistral, "
                  "Gemma3 (EmbeddingGemma)", "Matryoshka where claimed", "the model's", "head file", "the model's"),
    )  # fmt: skip
    published = (
        Published(
            source="model card",
            model="BAAI/bge-m3",
            queries=("What is BGE M3?",),
            documents=(
                "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector "
                "interaction.",
                "Defination of BM25",
            ),
            scores={"sparse": ((0.195549, 0.0),)},
        ),
        Published(
            source="model card",
            model="BAAI/bge-m3",
            queries=("What is BGE M3?",),
            documents=("What", "is", "B", "GE", "M", "3", "?"),
            scores={"weight of a token": ((0.08356, 0.0814, 0.1296, 0.252, 0.1702, 0.2695, 0.04092),)},
        ),
    )

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the model type is known and modules.json defines the pooling."""
        return checkpoint.model_type in TYPES and any(m.kind == "Pooling" for m in checkpoint.modules)

    def describe(self, checkpoint: Checkpoint) -> Description:
        """Read the configuration and the sentence-transformers files."""
        modules = read_modules(checkpoint)
        known = describe_encoder(self.name, checkpoint, modules)
        dim = output_dim(known.hidden, modules, modules.pooling)
        return replace(
            known,
            dim=min(modules.truncate_dim or dim, dim),
            pooling=modules.pooling,
            include_prompt=modules.include_prompt,
            dense_layers=modules.dense,
            min_dim=_min_dim(checkpoint, modules),
            sparse="token_weights" if _has_bge_head(checkpoint) else None,
            multi=_BGE_MULTI if (checkpoint.root / BGE_MULTI_HEAD).is_file() else None,
        )

    def build(
        self, checkpoint: Checkpoint, description: Description, dtype: torch.dtype, device: torch.device
    ) -> Backbone:
        """Load the native class of the model type."""
        return build_backbone(checkpoint, dtype, device)

    def build_head(self, checkpoint: Checkpoint, description: Description) -> TokenWeightHead:
        """Load bge-m3's lexical head; if it is missing, that is an error rather than a model without one."""
        from twinvec.compute.heads import TokenWeightHead

        return TokenWeightHead(description.hidden, load_tensors(checkpoint.root / BGE_HEAD), checkpoint.name)

    def build_multi(self, checkpoint: Checkpoint, description: Description) -> TokenVectorHead:
        """Load bge-m3's head for vectors of tokens."""
        import torch

        from twinvec.compute.heads import TokenVectorHead

        tensors = load_tensors(checkpoint.root / BGE_MULTI_HEAD)
        linear = torch.nn.Linear(description.hidden, len(tensors.get("bias", ())))
        load_strict(linear, tensors, f"{checkpoint.name}, {BGE_MULTI_HEAD}")
        return TokenVectorHead(linear, linear.out_features)


class Splade(Family):
    """A masked language model trained for sparse retrieval: log1p(relu(logits)), maximum over tokens."""

    name = "splade"
    supported = (Supported("naver/splade-*, any SPLADE masked-LM (BERT, DistilBERT, RoBERTa, XLM-R, ModernBERT)", "-",
                           "the model's", "vocabulary", "none"),)  # fmt: skip

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the architecture is a masked language model of a known type."""
        masked = any(name.endswith("ForMaskedLM") for name in checkpoint.architectures)
        dense = any(m.kind == "Pooling" for m in checkpoint.modules)
        return masked and not dense and checkpoint.model_type in TYPES

    def describe(self, checkpoint: Checkpoint) -> Description:
        """Read the configuration."""
        return replace(describe_encoder(self.name, checkpoint, read_modules(checkpoint)), sparse="masked_lm")

    def build(
        self, checkpoint: Checkpoint, description: Description, dtype: torch.dtype, device: torch.device
    ) -> Backbone:
        """Load the native masked language model, tied output embeddings included."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

        from twinvec.compute.backbone import PackedMaskedLM, PaddedMaskedLM, load_native, native_config

        config = native_config(CONFIG_MAPPING[checkpoint.model_type], dict(checkpoint.config), checkpoint)
        model = load_native(MODEL_FOR_MASKED_LM_MAPPING[type(config)], config, checkpoint, dtype, device)
        if not type(model)._supports_attention_backend:
            return PaddedMaskedLM(model, config.pad_token_id or 0)
        return PackedMaskedLM(model, padding_idx=padding_idx(checkpoint))


def describe_encoder(family: str, checkpoint: Checkpoint, modules: SentenceModules) -> Description:
    """Describe a checkpoint of a known model type, as yet without any output."""
    hidden, limit = read_sizes(checkpoint)
    return Description(
        family=family,
        hidden=hidden,
        vocabulary=checkpoint.config["vocab_size"],
        dim=None,
        max_length=min(modules.max_length or limit, limit),
        position_limit=limit,
        padding_idx=padding_idx(checkpoint),
        prompts=modules.prompts,
        pooling=(),
        lower_case=modules.lower_case,
    )


def build_backbone(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, pairs: bool = False, ignore: Iterable[str] = ()
) -> Backbone:
    """Load the native class of a model type.

    Args:
        checkpoint: a checkpoint that has been described.
        dtype: of the parameters.
        device: where to load the model.
        pairs: for a cross-encoder, whose model may have two token types.
        ignore: regular expressions of tensors that belong to a head.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    from twinvec.compute.backbone import PackedTransformer, PaddedTransformer, load_native, native_config

    config = native_config(CONFIG_MAPPING[checkpoint.model_type], dict(checkpoint.config), checkpoint)
    model = load_native(MODEL_MAPPING[type(config)], config, checkpoint, dtype, device, ignore=ignore)
    token_types = pairs and (getattr(config, "type_vocab_size", None) or 0) > 1
    if not type(model)._supports_attention_backend:  # it would ignore a packed attention function
        return PaddedTransformer(model, config.pad_token_id or 0, token_types=token_types)
    causal = _causal(config, checkpoint)
    if causal is False and checkpoint.model_type != "gemma3_text" and _has_windows(config):
        raise UnsupportedCheckpointError(
            f"{checkpoint.name}: a bidirectional {checkpoint.model_type} with a sliding window; its width is "
            "not defined alike by transformers' own attention functions"
        )
    return PackedTransformer(model, padding_idx=padding_idx(checkpoint), causal=causal, token_types=token_types)


def read_sizes(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return hidden size and positions of a checked configuration."""
    kind = TYPES[checkpoint.model_type]
    fields = {} if kind.positions is None else {"position_embedding_type": only(kind.positions, _NO_OTHER)}
    if checkpoint.model_type not in _CAUSAL_BY_DEFAULT:
        fields["pad_token_id"] = whole(0, 2**24)
    config, file = checkpoint.config, checkpoint.folder / "config.json"
    required = [*kind.names, "max_position_embeddings", *(["pad_token_id"] if kind.offset else [])]
    checkpoint.check(*required, fields=fields)
    limit = config["max_position_embeddings"]
    if kind.offset:
        limit -= config["pad_token_id"] + 1
    if checkpoint.model_type == "mpnet":
        limit -= _MPNET_POSITIONS
    if limit < 1:
        raise CheckpointFieldError(
            file, "max_position_embeddings", config["max_position_embeddings"], "leaves no position"
        )
    return config[kind.names[0]], limit


def padding_idx(checkpoint: Checkpoint) -> int | None:
    """Return the pad token after whose id positions start; None if they start at 0."""
    return int(checkpoint.config["pad_token_id"]) if TYPES[checkpoint.model_type].offset else None


def _has_bge_head(checkpoint: Checkpoint) -> bool:
    """bge-m3 ships two heads; a copy with the multi-vector head but no lexical head is damaged."""
    if (checkpoint.root / BGE_HEAD).is_file():
        return True
    if (checkpoint.root / BGE_MULTI_HEAD).is_file():
        raise CheckpointNotFoundError(
            f"{checkpoint.name}: {BGE_MULTI_HEAD} is there but {BGE_HEAD} is missing. Download the checkpoint again."
        )
    return False


def _min_dim(checkpoint: Checkpoint, modules: SentenceModules) -> int | None:
    """Return the smallest dimension that the checkpoint claims to support (Matryoshka); None if it claims nothing."""
    config = checkpoint.config
    if claimed := config.get("matryoshka_dimensions"):
        return int(min(claimed))
    is_qwen3_embedding = checkpoint.model_type == "qwen3" and modules.pooling == ("lasttoken",)
    is_embedding_gemma = checkpoint.model_type == "gemma3_text" and len(modules.dense) == 2
    if config.get("is_matryoshka") or is_qwen3_embedding:
        return 32  # the Qwen3-Embedding card: "user-defined output dimensions from 32"
    if is_embedding_gemma:
        return 128  # the EmbeddingGemma card: 768, 512, 256, 128
    return modules.truncate_dim


def _has_windows(config: Any) -> bool:
    layers = getattr(config, "layer_types", None)
    return bool(getattr(config, "sliding_window", None)) and (layers is None or "sliding_attention" in layers)


def _causal(config: Any, checkpoint: Checkpoint) -> bool | None:
    if checkpoint.model_type not in _CAUSAL_BY_DEFAULT:
        return None
    named = any(_BIDIRECTIONAL.search(name) for name in checkpoint.architectures)
    causal = checkpoint.config.get("is_causal")
    if causal is None:
        return not (named or getattr(config, "use_bidirectional_attention", False))
    if causal and named:
        raise CheckpointFieldError(
            checkpoint.folder / "config.json", "is_causal", True, f"contradicts {', '.join(checkpoint.architectures)}"
        )
    return bool(causal)
