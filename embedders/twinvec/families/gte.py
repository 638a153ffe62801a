"""GTE v1.5 and multilingual: Alibaba's ``new`` architecture and its ``gte`` copies, with the lexical head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twinvec.checkpoints.fields import check_fields, only
from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.tensors import load_tensors
from twinvec.errors import CheckpointFieldError
from twinvec.families.base import Description, Family, Published, Supported
from twinvec.families.modules import output_dim, read_modules

if TYPE_CHECKING:
    import torch

    from twinvec.compute.backbone import Backbone
    from twinvec.compute.heads import TokenWeightHead

_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
             "max_position_embeddings", "layer_norm_eps")  # fmt: skip
# options of the original code that the native class does not support
_FIELDS = {
    "logn_attention_scale": only(False, "nothing else is supported"),
    "layer_norm_type": only("layer_norm", "nothing else is supported"),
    "position_embedding_type": only("rope", "nothing else is supported"),
}
_MATRYOSHKA_SHARE = 6  # 128 of 768 dimensions
_CHINA = "中国的首都在哪儿"
_DOCUMENTS = (
    "what is the capital of China?",
    "how to implement quick sort in python?",
    "北京",
    "快排算法介绍",
)


def _deep_learning(model: str, cosine: float) -> Published:
    return Published(
        source="published in fp32, without prompts",
        model=model,
        roles=False,
        queries=("What is Deep Learning?",),
        documents=("Deep Learning is...",),
        scores={"dense": ((cosine,),)},
    )


class Gte(Family):
    """GTE: CLS pooling, NTK-scaled rope, dense and lexical head from one file."""

    name = "gte"
    supported = (
        Supported("Alibaba-NLP/gte-multilingual-base", "128-768", "8192", "lexical head", "none"),
        Supported("Alibaba-NLP/gte-base-en-v1.5, gte-large-en-v1.5", "768, 1024", "8192", "-", "none"),
        Supported("Snowflake/snowflake-arctic-embed-m-v2.0", "768", "8192", "-", '"query: " before queries'),
    )
    published = (
        Published(
            source="model card, fp16",
            model="Alibaba-NLP/gte-multilingual-base",
            queries=(_DOCUMENTS[0],),
            documents=_DOCUMENTS[1:],
            scores={"dense": ((0.3017, 0.7504, 0.3203),)},
        ),
        Published(
            source="model card, fp16",
            model="Alibaba-NLP/gte-multilingual-base",
            queries=(_CHINA,),
            documents=_DOCUMENTS,
            scores={
                "dense": ((0.8530, 0.2576, 0.7695, 0.3254),),
                "sparse": ((0.0, 0.0, 4.6009, 1.5703),),
                "dense + 0.3 sparse": ((0.8530, 0.2576, 2.1498, 0.7965),),
            },
        ),
        _deep_learning("Alibaba-NLP/gte-multilingual-base", 0.851398),
        _deep_learning("Alibaba-NLP/gte-base-en-v1.5", 0.776017),
        _deep_learning("Snowflake/snowflake-arctic-embed-m-v2.0", 0.806664),
    )

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the config is of type ``new`` or ``gte``."""
        return checkpoint.model_type in ("new", "gte")

    def describe(self, checkpoint: Checkpoint) -> Description:
        """Read the configuration."""
        checkpoint.check(*_REQUIRED, fields=_FIELDS)
        modules = read_modules(checkpoint)
        hidden, positions = checkpoint.config["hidden_size"], checkpoint.config["max_position_embeddings"]
        pooling = modules.pooling or ("cls",)
        has_head = any(name.startswith("classifier.") for name in checkpoint.tensors)
        matryoshka = min(checkpoint.config.get("matryoshka_dimensions") or [hidden])
        return Description(
            family=self.name,
            hidden=hidden,
            vocabulary=checkpoint.config["vocab_size"],
            dim=output_dim(hidden, modules, pooling),
            max_length=min(modules.max_length or positions, positions),
            position_limit=positions,
            prompts=modules.prompts,
            pooling=pooling,
            include_prompt=modules.include_prompt,
            dense_layers=modules.dense,
            min_dim=hidden // _MATRYOSHKA_SHARE if has_head else (matryoshka if matryoshka < hidden else None),
            sparse="token_weights" if has_head else None,
            lower_case=modules.lower_case,
        )

    def build(
        self, checkpoint: Checkpoint, description: Description, dtype: torch.dtype, device: torch.device
    ) -> Backbone:
        """Load GteModel; the lexical head is loaded by ``build_head``."""
        from transformers import GteConfig, GteModel

        from twinvec.compute.backbone import PackedTransformer, load_native, native_config

        config = native_config(GteConfig, translate_config(checkpoint), checkpoint)
        model = load_native(GteModel, config, checkpoint, dtype, device, ignore=[r"^classifier\."])
        return PackedTransformer(model, token_types=description.scores and (config.type_vocab_size or 0) > 1)

    def build_head(self, checkpoint: Checkpoint, description: Description) -> TokenWeightHead:
        """Load the lexical head from the same file."""
        from twinvec.compute.heads import TokenWeightHead

        tensors = {k: v for file in checkpoint.weight_files for k, v in load_tensors(file, "classifier.").items()}
        return TokenWeightHead(
            description.hidden,
            {k.removeprefix("classifier."): v for k, v in tensors.items()},
            checkpoint.name,
        )


def translate_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return GteConfig values, with the original rope settings in transformers' terms.

    NTK scaling by f is inv_freq_i = (theta * f)^(-2i/d) / f^(2/d) (the original modeling code): a base of theta * f
    and a linear division by f^(2/d).

    Raises:
        CheckpointFieldError: the native class does not support the rope settings.
    """
    raw = dict(checkpoint.config)
    file, scaling = checkpoint.folder / "config.json", raw.get("rope_scaling")
    head_dim = raw["hidden_size"] // raw["num_attention_heads"]
    if rope := raw.get("rope_parameters"):  # a converted copy uses transformers' own terms
        scaled = rope.get("rope_type") not in (None, "default")
        check_fields(file, rope, {}, ["rope_theta", "rope_type", *(["factor"] if scaled else [])], "rope_parameters.")
        return raw
    check_fields(file, raw, {}, ["rope_theta"])
    theta = float(raw["rope_theta"])
    if not scaling:
        rope = {"rope_type": "default", "rope_theta": theta}
    elif scaling.get("type", scaling.get("rope_type")) == "ntk" and not scaling.get("mixed_b"):
        check_fields(file, scaling, {}, ["factor"], "rope_scaling.")
        factor = float(scaling["factor"])
        rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head_dim)}
    else:
        raise CheckpointFieldError(file, "rope_scaling", scaling, "is not supported, only ntk without mixed_b is")
    for key in ("rope_theta", "rope_scaling"):
        raw.pop(key, None)
    raw["rope_parameters"] = rope
    return raw
