"""Heads on the states of single tokens: a learned weight each, or a vector each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from twinvec.checkpoints.tensors import load_strict


class TokenVectorHead(torch.nn.Module):
    """A unit vector per token, in fp32, for late interaction (MaxSim)."""

    def __init__(self, layers: torch.nn.Module, dim: int) -> None:
        """Take the layers between a token's state and its vector of ``dim`` numbers."""
        super().__init__()
        self.layers, self.dim = layers, dim

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return fp32 [tokens, dim] from states [tokens, hidden]."""
        return F.normalize(self.layers(hidden.float()), dim=-1)


class TokenWeightHead(torch.nn.Module):
    """relu(linear(h)) per token, in fp32, as the GTE and bge-m3 references compute it."""

    def __init__(self, hidden: int, tensors: Mapping[str, torch.Tensor], where: str) -> None:
        """Load ``weight`` [1, hidden] and ``bias`` [1], strictly.

        Raises:
            CheckpointMismatchError: names or shapes differ.
        """
        super().__init__()
        self.linear = torch.nn.Linear(hidden, 1)
        load_strict(self.linear, tensors, where)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return fp32 [tokens] from states [tokens, hidden]."""
        return F.relu(self.linear(hidden.float())[:, 0])
