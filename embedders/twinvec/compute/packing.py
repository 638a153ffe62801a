"""Ragged batches: the planner, a pure function of lengths and a budget, and the packed batch itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

    from twinvec.text.tokenizer import TokenizedText


def plan(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Partition texts into batches of at most ``token_budget`` tokens; a longer text gets its own batch.

    Sorted by length, longest first: memory peaks in the first batch rather than the last, and texts of equal length are
    adjacent, so that attention can process them in one call.

    Returns:
        Batches of positions in ``lengths``; every position appears exactly once.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget={token_budget} must be at least 1")
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or lengths[index] > room:
            batches.append([])
            room = token_budget
        batches[-1].append(index)
        room -= lengths[index]
    return batches


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Texts laid end to end, without padding, from tokenizer to pooling.

    Attributes:
        input_ids: int64 [tokens].
        position_ids: int64 [tokens], from 0 in each text.
        cu_seqlens: int32 [texts + 1]; text i is ``input_ids[cu_seqlens[i]:cu_seqlens[i + 1]]``.
        lengths: tokens per text, on the host.
        prompt_lengths: how many leading tokens of each text belong to the prompt and the special tokens before it.
        multi: what vectors of single tokens are requested for any text; see ``Key``.
        spans: what is pooled if texts have spans; None if none has any.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    lengths: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    multi: frozenset[str] = frozenset()
    spans: Spanned | None = None

    @classmethod
    def pack(cls, texts: Sequence[TokenizedText]) -> TokenBatch:
        """Lay tokenised texts end to end."""
        import torch

        lengths = tuple(len(t.ids) for t in texts)
        return cls(
            input_ids=torch.from_numpy(np.concatenate([t.ids for t in texts]).astype(np.int64)),
            position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
            cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
            lengths=lengths,
            prompt_lengths=tuple(t.prompt_length for t in texts),
            multi=frozenset(t.multi for t in texts if t.multi),
            spans=cls._pack_spans(texts) if any(t.spans for t in texts) else None,
        )

    @classmethod
    def _pack_spans(cls, texts: Sequence[TokenizedText]) -> Spanned:
        import torch

        places, parts, start = [], [], 0
        for text in texts:
            for first, end in text.spans or [(0, len(text.ids))]:
                places.append(np.arange(start + first, start + end))
                parts.append(replace(text, ids=text.ids[first:end], prompt_length=0, spans=()) if text.spans else text)
            start += len(text.ids)
        return Spanned(torch.from_numpy(np.concatenate(places)), parts, cls.pack(parts))

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Return the tokens of the longest text."""
        return max(self.lengths)

    def token_types(self) -> torch.Tensor:
        """Return int64 [tokens]: 0 for tokens of the prompt (in a pair, the query), 1 for those of the text."""
        import torch

        device = self.position_ids.device
        lengths, prompts = (torch.tensor(each, device=device) for each in (self.lengths, self.prompt_lengths))
        text_begins = torch.repeat_interleave(prompts, lengths, output_size=self.n_tokens)
        return (self.position_ids >= text_begins).long()

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Return (first token, texts, length) for each run of adjacent texts of equal length."""
        runs, start = [], 0
        for length, group in groupby(self.lengths):
            count = len(list(group))
            runs.append((start, count, length))
            start += count * length
        return runs

    def filled(self, tokens: int) -> TokenBatch:
        """Return the batch padded with token 0 to ``tokens`` in all; the added rows belong to no text."""
        import torch

        if tokens == len(self.input_ids):
            return self
        ids, positions = (torch.zeros(tokens, dtype=torch.int64, device=self.input_ids.device) for _ in range(2))
        ids[: len(self.input_ids)], positions[: len(self.input_ids)] = self.input_ids, self.position_ids
        return replace(self, input_ids=ids, position_ids=positions)

    def pinned(self) -> TokenBatch:
        """Return a copy in pinned memory, from which copies to a CUDA device are asynchronous."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on ``device``; the copy to a CUDA device does not block."""
        if device.type == "cpu":
            return self
        if device.type != "cuda":
            return self._each(lambda tensor: tensor.to(device))
        return self.pinned()._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TokenBatch:
        ids, positions, ends = (change(tensor) for tensor in (self.input_ids, self.position_ids, self.cu_seqlens))
        return replace(self, input_ids=ids, position_ids=positions, cu_seqlens=ends)


class Spanned(NamedTuple):
    """The tokens that are pooled of a batch whose texts have spans.

    Attributes:
        places: int64 [tokens of the spans], their positions in the batch.
        texts: the spans as texts; a text without spans is one of them.
        batch: these, laid end to end.
    """

    places: torch.Tensor
    texts: Sequence[TokenizedText]
    batch: TokenBatch
