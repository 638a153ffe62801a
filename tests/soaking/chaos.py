"""Failures above and below the core: in the tokenizer and in the forward pass of every model."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from typing import Any

import torch

from soaking.texts import ERROR_MARK, NAN_MARK, OOM_TOKENS
from twinvec.compute.backbone import PackedTransformer
from twinvec.compute.packing import TokenBatch
from twinvec.text.tokenizer import TextTokenizer, TokenizedText

CHANCE_OOM_TOKENS = 200
FAILURE_RATE = 0.01


class InjectedError(RuntimeError):
    """A failure that comes and goes: any call may get it."""


class PoisonError(RuntimeError):
    """A failure of one text: only calls that hold it may get it."""


class Chaos:
    """See above.

    Attributes:
        on: whether anything fails.
        counts: what has failed.
        losses: id of a backbone -> forward passes that lose their device.
    """

    def __init__(self, generator: random.Random) -> None:
        self.on = False
        self.counts: Counter[str] = Counter()
        self.losses: Counter[int] = Counter()
        self._generator = generator
        self._marked: dict[tuple[int, ...], str] = {}  # token ids -> mark
        self._lock = threading.Lock()

    def install(self) -> None:
        """Wrap the forward pass and the tokenizer."""
        encode, forward = TextTokenizer.encode, PackedTransformer.forward
        chaos = self

        def failing_encode(self: TextTokenizer, texts: Any, prompt: str = "", *rest: Any) -> list[TokenizedText]:
            if chaos._chance("slow tokenizer", 0.05):
                time.sleep(0.05 * chaos._generator.random())
            if chaos._chance("tokenizer failures"):
                raise InjectedError("injected into the tokenizer")
            encoded = encode(self, texts, prompt, *rest)
            chaos._remember(texts, encoded)
            return encoded

        def failing_forward(self: PackedTransformer, batch: TokenBatch) -> torch.Tensor:
            if not chaos.on:
                return forward(self, batch)
            spoiled = chaos._strike(id(self), batch)
            output = forward(self, batch)
            for start, stop in spoiled:
                output[start:stop] = torch.nan
            return output

        patched: list[tuple[type, str, object]] = [
            (TextTokenizer, "encode", failing_encode),
            (PackedTransformer, "forward", failing_forward),
        ]
        for owner, name, failing in patched:
            setattr(owner, name, failing)

    def _chance(self, what: str, rate: float = FAILURE_RATE) -> bool:
        if not self.on or self._generator.random() >= rate:
            return False
        self._count(what)
        return True

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _remember(self, texts: list[str], encoded: list[TokenizedText]) -> None:
        for text, tokens in zip(texts, encoded, strict=True):
            if text[:1] in (NAN_MARK, ERROR_MARK):
                self._marked[tuple(tokens.ids.tolist())] = text[0]

    def _strike(self, backbone: int, batch: TokenBatch) -> list[tuple[int, int]]:
        """Raise, or return the token ranges to spoil."""
        with self._lock:
            lost = self.losses[backbone] > 0
            self.losses[backbone] -= int(lost)
        if lost:
            self._count("lost devices")
            raise RuntimeError("CUDA error: injected")
        if self._chance("slow passes", 0.05):
            time.sleep(0.02 * self._generator.random())
        if self._chance("forward failures"):
            raise InjectedError("injected into the forward pass")
        large = batch.n_tokens > OOM_TOKENS
        if large or (batch.n_tokens > CHANCE_OOM_TOKENS and self._chance("chance out of memory")):
            self._count("out of memory")
            raise torch.OutOfMemoryError("injected")
        ids, bounds = batch.input_ids.tolist(), batch.cu_seqlens.tolist()
        ranges = list(itertools.pairwise(bounds))
        marks = [self._marked.get(tuple(ids[start:stop])) for start, stop in ranges]
        if ERROR_MARK in marks:
            self._count("raising texts")
            raise PoisonError("injected for a text")
        return [part for part, mark in zip(ranges, marks, strict=True) if mark == NAN_MARK]
