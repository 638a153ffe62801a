"""Stand-in for the configuration code of the original Giga Embeddings, written for these tests."""

from typing import Any

from transformers import PretrainedConfig


class GigarConfig(PretrainedConfig):
    """Text tower: a Llama layout."""

    model_type = "gigar"

    def __init__(self, **settings: Any) -> None:
        """Keep every setting of the checkpoint as an attribute."""
        super().__init__(**settings)


class LatentAttentionConfig(PretrainedConfig):
    """Latent block. Trap: it is registered with AutoModel only when the modeling file is imported."""

    model_type = "latent_attention"

    def __init__(self, **settings: Any) -> None:
        """Keep every setting of the checkpoint as an attribute."""
        super().__init__(**settings)


class GigarEmbedConfig(PretrainedConfig):
    """Trap: nests two configs that transformers does not know."""

    model_type = "gigarembed"

    def __init__(
        self,
        text_config: dict[str, Any] | None = None,
        latent_attention_config: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """Build the nested configs from their dictionaries."""
        self.text_config = GigarConfig(**(text_config or {}))
        self.latent_attention_config = LatentAttentionConfig(**(latent_attention_config or {}))
        super().__init__(**settings)
