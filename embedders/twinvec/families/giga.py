"""Giga Embeddings, original series (``gigarembed``): a bidirectional text backbone and a latent-attention block.

Two generations share the name; tensor names tell them apart. Generation 1 has a Llama backbone and pre-norms in the
latent block. Generation 2 has multi-head latent attention (MLA); its layout is presumed, so it loads only if every
tensor fits, and stays experimental until ``twinvec verify`` agrees with the published scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twinvec.checkpoints.fields import CONFIG, OBJECT, check_fields, one_of, only
from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.tensors import check_tensors
from twinvec.errors import CheckpointError, RemoteCodeRequiredError
from twinvec.families.base import Description, Family, Published, Supported
from twinvec.families.modules import default_prompts, read_modules
from twinvec.text.prompts import TASKS

if TYPE_CHECKING:
    import torch

    from twinvec.compute.backbone import Backbone

_TEXT = ("rope_theta", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_MLA = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
_MAX_LENGTH = 4096
_FIELDS = {
    "is_causal": only(False, "since this family is bidirectional"),
    "norm_type": one_of("RMSNorm", "rmsnorm", "rms_norm", "LlamaRMSNorm"),  # others: same names, another formula
    "use_sliding_window": only(False, "since windows of a bidirectional model are undefined"),
}
_REFUSED = ("use_mla_scaling_factor", "apply_qk_norm", "gated_attention")  # options that change MLA's formula


class Giga(Family):
    """Giga Embeddings, original series: mean over all tokens after the latent block, instructions before queries."""

    name = "giga"
    supported = (Supported("ai-sage/Giga-Embeddings-instruct", "2048", "4096", "-", "instruction before queries"),)
    published = (
        Published(
            source="model card, bf16",
            model="ai-sage/Giga-Embeddings-instruct",
            task=TASKS["web_search"].instruction,
            queries=("What is the capital of Russia?", "Explain gravity"),
            documents=(
                "The capital of Russia is Moscow.",
                "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects "
                "and is responsible for the movement of planets around the sun.",
            ),
            scores={"dense": ((0.5820, 0.0713), (0.0688, 0.6211))},
        ),
    )

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the config is of type ``gigarembed``."""
        return checkpoint.model_type == "gigarembed"

    def describe(self, checkpoint: Checkpoint) -> Description:
        """Read the nested text configuration."""
        text = _text_config(checkpoint, _is_mla(checkpoint))
        modules = read_modules(checkpoint)
        positions = text.get("max_position_embeddings") or _MAX_LENGTH
        prompts = modules.prompts if modules.prompts.instruct else default_prompts("web_search")
        return Description(
            family=self.name,
            hidden=text["hidden_size"],
            vocabulary=text["vocab_size"],
            dim=text["hidden_size"],
            max_length=min(modules.max_length or _MAX_LENGTH, _MAX_LENGTH, positions),
            position_limit=positions,
            prompts=prompts,
            pooling=("mean",),
            experimental=_is_mla(checkpoint),
        )

    def runs_own_code(self, checkpoint: Checkpoint) -> bool:
        """Return whether generation 2 may fall back to its own code."""
        return checkpoint.trusted and _is_mla(checkpoint)

    def build(
        self, checkpoint: Checkpoint, description: Description, dtype: torch.dtype, device: torch.device
    ) -> Backbone:
        """Load natively if every tensor fits, otherwise through the checkpoint's own code if the caller opted in."""
        from twinvec.families.giga_model import GigaBackbone, build_modules
        from twinvec.families.own_code import build_remote

        if _is_mla(checkpoint):
            try:
                text = _text_config(checkpoint)
                if unknown := [k for k in _REFUSED if text.get(k)] + (
                    ["q_lora_rank"] if text.get("q_lora_rank") else []
                ):
                    raise CheckpointError(f"text_config sets {', '.join(unknown)}")
                modules = build_modules(checkpoint, text, mla=True)
                found = {k: v.shape for k, v in checkpoint.tensors.items()}
                check_tensors(found, {k: tuple(v.shape) for k, v in modules.state_dict().items()}, checkpoint.name)
            except CheckpointError as error:
                if checkpoint.trusted:
                    return build_remote(checkpoint, dtype)
                raise RemoteCodeRequiredError(
                    f"{checkpoint.name}: this generation of gigarembed does not have the layout that TwinVec supports "
                    f"natively. To run the checkpoint's own code, read it, then pass trust_remote_code=True with "
                    f"revision= set to its full commit.\n{error}"
                ) from error
        else:
            modules = build_modules(checkpoint, _text_config(checkpoint), mla=False)
        return GigaBackbone.load(checkpoint, modules, dtype, device)


def _is_mla(checkpoint: Checkpoint) -> bool:
    return any("kv_proj" in name or "kv_a_proj" in name for name in checkpoint.tensors if ".self_attn." in name)


def _text_config(checkpoint: Checkpoint, own_code_may_run: bool = False) -> dict[str, Any]:
    nested = "text_config" in checkpoint.config
    required = _TEXT + (_MLA if _is_mla(checkpoint) else ())
    fields = {} if own_code_may_run else _FIELDS
    checkpoint.check(*required, part="text_config" if nested else None, fields=fields)
    file, heads = checkpoint.folder / "config.json", {"num_cross_heads": CONFIG["num_attention_heads"]}
    check_fields(file, checkpoint.config, {"latent_attention_config": OBJECT})
    latent = checkpoint.config.get("latent_attention_config") or {}
    check_fields(file, latent, heads, prefix="latent_attention_config.")
    return dict(checkpoint.config["text_config"] if nested else checkpoint.config)
