"""Cross-encoders: an encoder with a single-label classification head, which scores a query and a text together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from twinvec.checkpoints.fields import TEXT, check_fields
from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.tensors import load_strict, load_tensors
from twinvec.errors import CheckpointError, UnsupportedCheckpointError
from twinvec.families.base import Description, Family, Published, Supported
from twinvec.families.modules import activation_named, read_modules

if TYPE_CHECKING:
    import torch

    from twinvec.compute.backbone import Backbone
    from twinvec.text.tokenizer import TextTokenizer

_POOLED = ("pooler.dense", ":tanh", "classifier")
_PROJECTED = ("classifier.dense", ":tanh", "classifier.out_proj")
# the layers after the pooled state, by the names of their tensors, and activations (":config field=default")
HEADS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("new", "gte", "bert", "nomic_bert"), _POOLED),
    **dict.fromkeys(("xlm-roberta", "roberta", "camembert", "mpnet", "jina_embeddings_v3"), _PROJECTED),
    "electra": ("classifier.dense", ":gelu", "classifier.out_proj"),
    "albert": ("pooler", ":tanh", "classifier"),
    "distilbert": ("pre_classifier", ":relu", "classifier"),
    "deberta-v2": ("pooler.dense", ":pooler_hidden_act=gelu", "classifier"),
    "modernbert": ("head.dense", ":classifier_activation=gelu", "head.norm", "classifier"),
    "eurobert": ("dense", ":gelu", "classifier"),
}
_POOLING = {"modernbert": "cls", "eurobert": "late"}  # default, where the config may choose another
_SCORE = "SequenceClassification"
_SIGMOID = "torch.nn.modules.activation.Sigmoid"  # sentence-transformers' default


class CrossEncoder(Family):
    """``*ForSequenceClassification`` with one label, and sentence-transformers' CrossEncoder folders."""

    name = "cross-encoder"
    supported = (
        Supported("BAAI/bge-reranker-v2-m3, cross-encoder/ms-marco-*, gte-reranker-modernbert-base, ... (one label on "
                  "BERT, XLM-R, RoBERTa, MPNet, ModernBERT, DeBERTa, ...)", "reranker", "the model's", "-", "none"),
    )  # fmt: skip

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the weights have the head, and no architecture says that it serves another purpose."""
        heads = [name for name in checkpoint.architectures if "For" in name]
        return _has_head(checkpoint) and (not heads or any(name.endswith(_SCORE) for name in heads))

    def describe(self, checkpoint: Checkpoint) -> Description:
        """Read the configuration; models with more than one label have no score."""
        head = HEADS[checkpoint.model_type]
        labels = checkpoint.tensors[str(_find(checkpoint, f"{head[-1]}.weight"))].shape[0]
        if labels != 1:
            raise UnsupportedCheckpointError(
                f"{checkpoint.name}: its head has {labels} labels, so it is a classifier. A reranker has a single "
                "label, whose logit is the score of a pair"
            )
        hidden, limit, padding = self._sizes(checkpoint)
        modules = read_modules(checkpoint)
        if more := [module.kind for module in checkpoint.modules[1:]]:
            raise UnsupportedCheckpointError(f"{checkpoint.name}: a cross-encoder with modules {', '.join(more)}")
        return Description(
            family=self.name,
            hidden=hidden,
            vocabulary=checkpoint.config["vocab_size"],
            dim=1,
            max_length=min(modules.max_length or limit, limit),
            position_limit=limit,
            padding_idx=padding,
            prompts=modules.prompts,
            pooling=(_pooling(checkpoint),),
            lower_case=modules.lower_case,
            scores=True,
            activation=read_activation(checkpoint),
        )

    def build(
        self, checkpoint: Checkpoint, description: Description, dtype: torch.dtype, device: torch.device
    ) -> Backbone:
        """Load the native class without its head."""
        from twinvec.families.sentence_transformers import build_backbone

        ignore = [rf"^(\w+\.)?{re.escape(layer)}\." for layer in _layers(HEADS[checkpoint.model_type])]
        return build_backbone(checkpoint, dtype, device, pairs=True, ignore=ignore)

    def build_layers(self, checkpoint: Checkpoint, description: Description) -> torch.nn.Module:
        """Load the head, strictly."""
        import torch
        from transformers.activations import ACT2FN

        config, hidden = checkpoint.config, description.hidden
        *_, last = head = HEADS[checkpoint.model_type]
        modules: list[torch.nn.Module] = []
        for name in head:
            if name.startswith(":"):
                field, _, default = name[1:].rpartition("=")
                modules.append(ACT2FN[config.get(field) or default])
                continue
            layer: torch.nn.Module
            if name == "head.norm":
                layer = torch.nn.LayerNorm(hidden, config.get("norm_eps", 1e-5), bias=bool(config.get("norm_bias")))
            else:
                bias = name != "head.dense" or bool(config.get("classifier_bias"))
                layer = torch.nn.Linear(hidden, 1 if name == last else hidden, bias)
            load_strict(layer, _tensors_of(checkpoint, name), f"{checkpoint.name}, {name}")
            modules.append(layer)
        return torch.nn.Sequential(*modules)

    def build_tokenizer(self, checkpoint: Checkpoint, description: Description) -> TextTokenizer:
        """Return the pair tokenizer."""
        from twinvec.text.pairs import PairTokenizer

        return PairTokenizer(checkpoint, description.max_length, lower_case=description.lower_case)

    def _sizes(self, checkpoint: Checkpoint) -> tuple[int, int, int | None]:
        from twinvec.families.sentence_transformers import padding_idx, read_sizes

        return *read_sizes(checkpoint), padding_idx(checkpoint)


class GteReranker(CrossEncoder):
    """GTE's reranker."""

    name = "gte-reranker"
    supported = (Supported("Alibaba-NLP/gte-multilingual-reranker-base", "reranker", "8192", "-", "none"),)
    published = (
        Published(
            source="published in fp32",
            model="Alibaba-NLP/gte-multilingual-reranker-base",
            queries=("What is Deep Learning?",),
            documents=("Deep Learning is not...",),
            scores={"logit": ((-0.741733,),)},
        ),
    )

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the weights have the head: "architectures" can be wrong or empty in real files."""
        return checkpoint.model_type in ("new", "gte") and _has_head(checkpoint)

    def build(
        self, checkpoint: Checkpoint, description: Description, dtype: torch.dtype, device: torch.device
    ) -> Backbone:
        """Load GteModel."""
        from twinvec.families.gte import Gte

        return Gte().build(checkpoint, description, dtype, device)

    def _sizes(self, checkpoint: Checkpoint) -> tuple[int, int, int | None]:
        from twinvec.families.gte import Gte

        found = Gte().describe(checkpoint)
        return found.hidden, found.position_limit, None


def read_activation(checkpoint: Checkpoint) -> str:
    """Return the activation that sentence-transformers' CrossEncoder would apply to the logit.

    Raises:
        CheckpointError: the activation cannot be applied to a single logit.
    """
    settings = checkpoint.json("config_sentence_transformers.json", {"activation_fn": TEXT})
    inner = checkpoint.config.get("sentence_transformers") or {}
    check_fields(checkpoint.folder / "config.json", inner, {"activation_fn": TEXT}, prefix="sentence_transformers.")
    name = settings.get("activation_fn") or inner.get("activation_fn")
    name = str(name or checkpoint.config.get("sbert_ce_default_activation_function") or _SIGMOID)
    if "Softmax" in name or activation_named(name) is None:
        raise CheckpointError(f"{checkpoint.name}: activation_fn {name!r} is not a torch activation for a single logit")
    return name


def _layers(head: tuple[str, ...]) -> list[str]:
    return [name for name in head if not name.startswith(":")]


def _has_head(checkpoint: Checkpoint) -> bool:
    head = HEADS.get(checkpoint.model_type)
    if head is None or any(module.kind == "Pooling" for module in checkpoint.modules):
        return False
    return all(_find(checkpoint, f"{layer}.weight") for layer in _layers(head))


def _find(checkpoint: Checkpoint, name: str) -> str | None:
    """Return a tensor's name in the file, where the backbone's name may come before it."""
    return next((full for full in checkpoint.tensors if re.fullmatch(rf"(\w+\.)?{re.escape(name)}", full)), None)


def _tensors_of(checkpoint: Checkpoint, layer: str) -> dict[str, torch.Tensor]:
    prefix = str(_find(checkpoint, f"{layer}.weight")).removesuffix("weight")
    tensors = {k: v for file in checkpoint.weight_files for k, v in load_tensors(file, prefix).items()}
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _pooling(checkpoint: Checkpoint) -> str:
    default = _POOLING.get(checkpoint.model_type)
    said = default and str(checkpoint.config.get("classifier_pooling") or default)
    found = {"bos": "cls", None: "cls"}.get(said, said)
    if found not in ("cls", "mean"):
        raise UnsupportedCheckpointError(f"{checkpoint.name}: classifier_pooling={said!r} is not supported")
    return str(found)
