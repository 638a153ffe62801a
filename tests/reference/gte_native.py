"""An official GTE configuration in the words of transformers' own class."""

from pathlib import Path
from typing import Any

from transformers import GteConfig

from .checkpoint_files import read_config


def gte_config(folder: Path) -> GteConfig:
    """The checkpoint's config in transformers' words (``linear`` rope stands for NTK)."""
    config = read_config(folder)
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    theta, scaling = config["rope_theta"], config["rope_scaling"]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling:
        factor = scaling["factor"]
        rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head_dim)}
    kept = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    kept |= {"type_vocab_size", "layer_norm_eps", "pad_token_id"}
    settings: dict[str, Any] = {key: config[key] for key in kept} | {"num_labels": 1, "rope_parameters": rope}
    return GteConfig(**settings)
