"""The description of a checkpoint by its family, and the interface that builds the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from twinvec.checkpoints.files import Checkpoint
from twinvec.text.prompts import PromptTemplate
from twinvec.vectors import MultiVectors

if TYPE_CHECKING:
    import torch

    from twinvec.compute.backbone import Backbone
    from twinvec.compute.heads import TokenVectorHead, TokenWeightHead
    from twinvec.text.tokenizer import TextTokenizer

SparseKind = Literal["token_weights", "masked_lm"]


@dataclass(frozen=True)
class Description:
    """Everything that can be said about a checkpoint without its weights.

    Attributes:
        family: name of the family, as listed by `twinvec models`.
        hidden: width of the token states.
        vocabulary: rows of the token embedding; None if only the checkpoint's own code knows.
        dim: dense dimensions; None for a sparse-only model.
        max_length: the model's own limit in tokens, special tokens included.
        position_limit: the largest ``max_length`` that the position encoding supports.
        padding_idx: positions start after this number, so it must be the tokenizer's pad token; None if they start at
            0.
        prompts: roles and instructions.
        pooling: pooling modes, concatenated.
        include_prompt: whether the prompt's tokens count in the pooling.
        dense_layers: folders of Dense modules after the pooling, with their configs.
        min_dim: smallest elastic dimension; None if the model was not trained for elastic dims.
        sparse: the output of the checkpoint's own head; None if it has none.
        multi: how it gives vectors of single tokens, if it does.
        lower_case: whether sentence-transformers lower-cases texts for this checkpoint.
        experimental: True if no published numbers have confirmed the computation yet.
        scores: whether it is a reranker: ``dim`` is 1, the logit of a pair.
        activation: the activation that its own library applies to the logit, a torch module by its full name.
    """

    family: str
    hidden: int
    vocabulary: int | None
    dim: int | None
    max_length: int
    position_limit: int
    padding_idx: int | None = None
    prompts: PromptTemplate = field(default_factory=PromptTemplate)
    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    dense_layers: tuple[Any, ...] = ()
    min_dim: int | None = None
    sparse: SparseKind | None = None
    multi: MultiVectors | None = None
    lower_case: bool = False
    experimental: bool = False
    scores: bool = False
    activation: str = ""


@dataclass(frozen=True)
class Published:
    """Published scores of one model: queries x documents.

    Attributes:
        source: where they are published, and their precision.
        queries, documents: the texts.
        scores: name (see ``twinvec.verify``) -> queries x documents.
        task: the instruction of the queries.
        model: hub id of the model.
        roles: whether queries are embedded as queries; otherwise as documents, without their prompt.
    """

    source: str
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    scores: Mapping[str, tuple[tuple[float, ...], ...]]
    task: str | None = None
    model: str = ""
    roles: bool = True


@dataclass(frozen=True)
class Supported:
    """A row of `twinvec models`."""

    models: str
    dims: str
    max_length: str
    sparse: str
    prompts: str


class Family(ABC):
    """One checkpoint family. Stateless: a namespace with a common shape."""

    name: ClassVar[str]
    supported: ClassVar[tuple[Supported, ...]]
    published: ClassVar[tuple[Published, ...]] = ()  # those of the main model first

    @abstractmethod
    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether this family supports the checkpoint, judging by config and tensor names only."""

    @abstractmethod
    def describe(self, checkpoint: Checkpoint) -> Description:
        """Read the checkpoint's configuration.

        Raises:
            CheckpointError: a required field is missing, or a value is not supported.
        """

    @abstractmethod
    def build(
        self, checkpoint: Checkpoint, description: Description, dtype: torch.dtype, device: torch.device
    ) -> Backbone:
        """Load the weights onto a device, strictly.

        Raises:
            CheckpointMismatchError: the tensors do not fit.
        """

    def runs_own_code(self, checkpoint: Checkpoint) -> bool:
        """Return whether the checkpoint's Python files may take part in the computation."""
        return False

    def build_layers(self, checkpoint: Checkpoint, description: Description) -> torch.nn.Module:
        """Load the layers after the pooling, in fp32."""
        from twinvec.families.modules import build_dense_layers

        return build_dense_layers(description.dense_layers)

    def build_tokenizer(self, checkpoint: Checkpoint, description: Description) -> TextTokenizer:
        """Return the tokenizer, which turns a prompt and a text into tokens."""
        from twinvec.text.tokenizer import TextTokenizer

        return TextTokenizer(checkpoint, description.max_length, lower_case=description.lower_case)

    def build_head(self, checkpoint: Checkpoint, description: Description) -> TokenWeightHead:
        """Load the checkpoint's own lexical head; only called if ``sparse`` is "token_weights"."""
        raise NotImplementedError(f"{self.name} describes a lexical head but does not load one")

    def build_multi(self, checkpoint: Checkpoint, description: Description) -> TokenVectorHead:
        """Load the layers that make vectors of single tokens; only called if ``multi`` is described."""
        raise NotImplementedError(f"{self.name} describes vectors of tokens but loads no head for them")
