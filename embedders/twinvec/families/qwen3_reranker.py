"""Qwen3-Reranker: a causal language model that answers "yes" or "no" to a query, a text and an instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinvec.checkpoints.files import Checkpoint
from twinvec.checkpoints.tensors import load_tensors
from twinvec.errors import CheckpointError, UnsupportedCheckpointError
from twinvec.families.base import Description, Family, Supported
from twinvec.families.modules import read_modules
from twinvec.text.prompts import TASKS, PromptTemplate

if TYPE_CHECKING:
    import torch

    from twinvec.compute.backbone import Backbone
    from twinvec.text.tokenizer import TextTokenizer

# verbatim from the model card
_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_BETWEEN = "\n<Document>: "
_BEHIND = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_INSTRUCT = "<Instruct>: {task}\n<Query>: "
_MAX_LENGTH = 8192
_HEADS = ("lm_head.weight", "model.embed_tokens.weight")  # the second where the two are tied


class Qwen3Reranker(Family):
    """The log-odds of "yes" against "no" as the next token: one linear layer on the last state."""

    name = "qwen3-reranker"
    supported = (
        Supported("Qwen/Qwen3-Reranker-0.6B, -4B, -8B", "reranker", "8192", "-", "instruction before the query"),
    )

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether it is a Qwen3 language model without a Pooling module that would make it an embedder."""
        pooled = any(module.kind == "Pooling" for module in checkpoint.modules)
        return checkpoint.model_type == "qwen3" and "Qwen3ForCausalLM" in checkpoint.architectures and not pooled

    def describe(self, checkpoint: Checkpoint) -> Description:
        """Read the configuration."""
        from twinvec.families.sentence_transformers import read_sizes

        if more := [module.kind for module in checkpoint.modules[1:] if module.kind != "LogitScore"]:
            raise UnsupportedCheckpointError(f"{checkpoint.name}: a reranker with modules {', '.join(more)}")
        hidden, limit = read_sizes(checkpoint)
        modules = read_modules(checkpoint)
        return Description(
            family=self.name,
            hidden=hidden,
            vocabulary=checkpoint.config["vocab_size"],
            dim=1,
            max_length=min(modules.max_length or limit, limit, _MAX_LENGTH),
            position_limit=limit,
            prompts=PromptTemplate(
                instruct=_INSTRUCT, query=_INSTRUCT.replace("{task}", TASKS["web_search"].instruction)
            ),
            pooling=("lasttoken",),
            scores=True,
            activation="torch.nn.modules.activation.Sigmoid",  # the card's softmax over both logits
        )

    def build(
        self, checkpoint: Checkpoint, description: Description, dtype: torch.dtype, device: torch.device
    ) -> Backbone:
        """Load Qwen3Model."""
        from twinvec.families.sentence_transformers import build_backbone

        return build_backbone(checkpoint, dtype, device)

    def build_layers(self, checkpoint: Checkpoint, description: Description) -> torch.nn.Module:
        """Return the difference between the rows of "yes" and "no" as a linear layer."""
        import torch

        rows = self._rows_of_answers(checkpoint, description)
        layer = torch.nn.Linear(description.hidden, 1, bias=False)
        layer.weight.data = (rows[:1] - rows[1:]).contiguous()
        return layer

    def build_tokenizer(self, checkpoint: Checkpoint, description: Description) -> TextTokenizer:
        """Return the tokenizer with the card's chat format."""
        from twinvec.text.pairs import InstructedPairTokenizer

        return InstructedPairTokenizer(
            checkpoint, description.max_length, before=_BEFORE, between=_BETWEEN, behind=_BEHIND
        )

    def _rows_of_answers(self, checkpoint: Checkpoint, description: Description) -> torch.Tensor:
        tokenizer = self.build_tokenizer(checkpoint, description)
        ids = [tokenizer.id_of(answer) for answer in ("yes", "no")]
        for module in checkpoint.modules[1:]:  # LogitScore
            ids = [module.config[name] for name in ("true_token_id", "false_token_id")]
        if None in ids:
            raise CheckpointError(
                f"{checkpoint.name}: its tokenizer has no tokens for yes and no, so it is not Qwen3-Reranker"
            )
        for name in _HEADS:
            for file in checkpoint.weight_files:
                if (rows := load_tensors(file, name).get(name)) is not None:
                    return rows[ids].float()
        raise CheckpointError(f"{checkpoint.name}: has none of {', '.join(_HEADS)}. Download it again.")
