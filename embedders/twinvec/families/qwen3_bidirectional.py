"""Giga Embeddings 0826: Qwen3 (480M, 3B) and DeepSeek-V3 mixture of experts (10B) with bidirectional attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinvec.checkpoints.fields import check_fields, only
from twinvec.checkpoints.files import Checkpoint
from twinvec.families.base import Description, Family, Supported
from twinvec.families.modules import default_prompts, read_modules

if TYPE_CHECKING:
    import torch

    from twinvec.compute.backbone import Backbone

_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
             "vocab_size", "max_position_embeddings", "rms_norm_eps")  # fmt: skip
_MOE = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts", "n_group",
        "num_experts_per_tok", "topk_group", "norm_topk_prob", "routed_scaling_factor", "moe_intermediate_size",
        "first_k_dense_replace")  # fmt: skip
_TYPES = {"qwen3_bidirec": (*_REQUIRED, "head_dim"), "deepseek_v3_bidirec": (*_REQUIRED, *_MOE)}
_CLASS = "Qwen3BidirectionalModel"
_FIELDS = {
    "is_causal": only(False, "since this family is bidirectional"),
    "use_sliding_window": only(False, "since windows of a bidirectional model are undefined"),
}
_MAX_LENGTH = 8192


class GigaBidirectional(Family):
    """Giga Embeddings 0826: mean pooling with the prompt included, instructions before queries, no Matryoshka."""

    name = "giga-0826"
    supported = (
        Supported("ai-sage/Giga-Embeddings-instruct-480M-0826", "1024", "8192", "-", "instruction before queries"),
        Supported("ai-sage/Giga-Embeddings-instruct-3B-0826", "2048", "8192", "-", "instruction before queries"),
        Supported("ai-sage/Giga-Embeddings-instruct-10B-A1.8B-0826", "1536", "8192", "-", "instruction before queries"),
    )

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the config is of one of the two bidirectional types, or lost its type but kept its class."""
        return checkpoint.model_type in _TYPES or _kind(checkpoint) == "qwen3_bidirec"

    def describe(self, checkpoint: Checkpoint) -> Description:
        """Read the configuration."""
        config = checkpoint.config
        rope = config.get("rope_parameters")
        checkpoint.check(*_TYPES[_kind(checkpoint)], *([] if rope else ["rope_theta"]), fields=_FIELDS)
        if rope:
            check_fields(checkpoint.folder / "config.json", rope, {}, ["rope_theta"], "rope_parameters.")
        modules = read_modules(checkpoint)
        positions = config["max_position_embeddings"]
        prompts = modules.prompts if modules.prompts.instruct else default_prompts("retrieval")
        return Description(
            family=self.name,
            hidden=config["hidden_size"],
            vocabulary=config["vocab_size"],
            dim=config["hidden_size"],
            max_length=min(modules.max_length or _MAX_LENGTH, _MAX_LENGTH, positions),
            position_limit=positions,
            prompts=prompts,
            pooling=modules.pooling or ("mean",),
            include_prompt=modules.include_prompt,
            lower_case=modules.lower_case,
        )

    def build(
        self, checkpoint: Checkpoint, description: Description, dtype: torch.dtype, device: torch.device
    ) -> Backbone:
        """Load Qwen3Model or DeepseekV3Model; the router of the mixture of experts stays in fp32."""
        import transformers

        from twinvec.compute.backbone import PackedTransformer, load_native, native_config

        dense = _kind(checkpoint) == "qwen3_bidirec"
        config_class = transformers.Qwen3Config if dense else transformers.DeepseekV3Config
        model_class = transformers.Qwen3Model if dense else transformers.DeepseekV3Model
        config = native_config(config_class, {**checkpoint.config, "is_causal": False}, checkpoint)
        return PackedTransformer(load_native(model_class, config, checkpoint, dtype, device), causal=False)


def _kind(checkpoint: Checkpoint) -> str:
    lost = checkpoint.model_type in ("", "qwen3") and _CLASS in checkpoint.architectures
    return "qwen3_bidirec" if lost else checkpoint.model_type
