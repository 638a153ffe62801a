"""sentence-transformers' MultiVectorEncoder: a vector for each token, for late interaction (ColBERT)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from twinvec.checkpoints.fields import TEXT, whole
from twinvec.checkpoints.files import Checkpoint
from twinvec.errors import UnsupportedCheckpointError
from twinvec.families.base import Description, Family, Supported
from twinvec.families.modules import build_dense_layers, output_dim, read_modules
from twinvec.vectors import MultiVectors

if TYPE_CHECKING:
    import torch

    from twinvec.compute.backbone import Backbone
    from twinvec.compute.heads import TokenVectorHead

_MASK = "MultiVectorMask"
_LENGTH = whole(1, 2**24)
_LENGTHS = {"query": "query_length", "document": "document_length"}


class MultiVectorEncoder(Family):
    """A checkpoint with modules.json that ends in a mask and a normalisation of token vectors."""

    name = "multi-vector"
    supported = (Supported("sentence-transformers MultiVectorEncoder (ColBERT without query expansion)", "by token",
                           "the model's", "-", "the model's"),)  # fmt: skip

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether modules.json masks token vectors."""
        from twinvec.families.sentence_transformers import TYPES

        return checkpoint.model_type in TYPES and any(module.kind == _MASK for module in checkpoint.modules)

    def describe(self, checkpoint: Checkpoint) -> Description:
        """Read the configuration and the modules; what would change a vector and is not computed is refused."""
        from twinvec.families.sentence_transformers import describe_encoder

        modules = read_modules(checkpoint)
        kinds = [module.kind for module in checkpoint.modules]
        if kinds != ["Transformer", *["Dense"] * len(modules.dense), _MASK, "Normalize"]:
            raise UnsupportedCheckpointError(
                f"{checkpoint.name}: modules.json lists {', '.join(kinds)}; a MultiVectorEncoder is computed as "
                f"Transformer, any number of Dense, {_MASK}, Normalize"
            )
        known = describe_encoder(self.name, checkpoint, modules)
        output_dim(known.hidden, modules, ("tokens",))
        return replace(known, dense_layers=modules.dense, multi=_read_rules(checkpoint))

    def build(
        self, checkpoint: Checkpoint, description: Description, dtype: torch.dtype, device: torch.device
    ) -> Backbone:
        """Load the native class of the model type."""
        from twinvec.families.sentence_transformers import build_backbone

        return build_backbone(checkpoint, dtype, device)

    def build_layers(self, checkpoint: Checkpoint, description: Description) -> torch.nn.Module:
        """Return nothing: there is no pooled vector."""
        import torch

        return torch.nn.Identity()

    def build_multi(self, checkpoint: Checkpoint, description: Description) -> TokenVectorHead:
        """Load the Dense modules."""
        from twinvec.compute.heads import TokenVectorHead

        dim = output_dim(description.hidden, read_modules(checkpoint), ("tokens",))
        return TokenVectorHead(build_dense_layers(description.dense_layers), dim)


def _read_rules(checkpoint: Checkpoint) -> MultiVectors:
    sentence = checkpoint.json("sentence_bert_config.json", dict.fromkeys(_LENGTHS.values(), _LENGTH))
    if sentence.get("query_expansion"):
        raise UnsupportedCheckpointError(
            f"{checkpoint.name}: query_expansion adds tokens to queries, which TwinVec does not compute"
        )
    settings = checkpoint.json("config_sentence_transformers.json", {"similarity_fn_name": TEXT})
    (mask,) = (module.config for module in checkpoint.modules if module.kind == _MASK)
    words, roles = mask.get("skiplist_words") or [], mask.get("skiplist_tasks")
    skipped = frozenset(_ids(checkpoint, words)) if words else frozenset[int]()
    return MultiVectors(
        mean=settings.get("similarity_fn_name") == "meanmaxsim",
        skipped=dict.fromkeys(["document"] if roles is None else roles, skipped),
        lengths={role: sentence[name] for role, name in _LENGTHS.items() if sentence.get(name)},
    )


def _ids(checkpoint: Checkpoint, words: list[str]) -> list[int]:
    """Return the ids of words that are tokens; others are no token of any text."""
    from tokenizers import Tokenizer

    known: Any = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    return [id for word in words if (id := known.token_to_id(word)) is not None]
