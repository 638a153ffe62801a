"""Dense pooling of packed hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from twinvec.compute.packing import TokenBatch

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def pool(hidden: torch.Tensor, batch: TokenBatch, modes: Sequence[str], include_prompt: bool = True) -> torch.Tensor:
    """Pool token states [tokens, hidden] into fp32 [texts, hidden * len(modes)].

    The formulas are those of sentence-transformers' Pooling: several modes are concatenated; "weightedmean" weights the
    token at position p by p + 1; "mean_sqrt_len_tokens" divides the sum by the square root of the length.

    Args:
        hidden: states of all tokens, in any dtype; sums run in fp32.
        batch: the batch they belong to.
        modes: names from ``POOLING_MODES``.
        include_prompt: False excludes the prompt's tokens (and special tokens before them) from every sum and maximum;
            "cls" is then the first token after them.
    """
    ends, lengths = batch.cu_seqlens[1:].long(), batch.cu_seqlens.diff().long()
    starts = (ends - lengths).clamp_max(len(hidden) - 1)  # an empty filler text (graphs) may start at the end
    weights = torch.ones(len(hidden), 1, device=hidden.device)
    if not include_prompt:
        prompt = torch.tensor(batch.prompt_lengths, device=hidden.device)
        starts = torch.where(prompt < lengths, starts + prompt, starts)
        weights[batch.position_ids < torch.repeat_interleave(prompt, lengths, output_size=len(hidden))] = 0
    pooled = []
    for mode in modes:
        if mode == "cls":
            pooled.append(hidden[starts].float())
        elif mode == "lasttoken":
            pooled.append(hidden[ends - 1].float())
        elif mode == "max":
            states = hidden.float().masked_fill(weights == 0, -torch.inf)
            pooled.append(_reduce(states, "max", lengths))
        else:
            scale = weights * (batch.position_ids[:, None] + 1) if mode == "weightedmean" else weights
            # a zero row keeps a text that is all prompt at 0 instead of NaN, like the reference's clamp
            total = _reduce(hidden.float() * scale, "sum", lengths)
            norm = _reduce(scale, "sum", lengths).clamp_min(1e-9)
            pooled.append(total / (norm.sqrt() if mode == "mean_sqrt_len_tokens" else norm))
    return torch.cat(pooled, dim=-1)


def _reduce(rows: torch.Tensor, how: str, lengths: torch.Tensor) -> torch.Tensor:
    # unsafe: checking the lengths would wait for the device
    return torch.segment_reduce(rows, how, lengths=lengths, unsafe=True)
