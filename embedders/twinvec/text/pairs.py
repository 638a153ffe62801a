"""Pairs of a query and a text for rerankers: the query is never cut, only the end of the text.

For the engine a pair is a single string, built by ``join_pair`` and understood only by pair tokenizers, so that pairs
use the same queue, memo and caches as texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twinvec.checkpoints.files import Checkpoint
from twinvec.errors import CheckpointError, ConfigurationError
from twinvec.text.tokenizer import TextTokenizer, TokenizedText


def join_pair(query: str, text: str) -> str:
    """Join a pair into one string; different pairs yield different strings."""
    return f"{len(query)}:{query}{text}"


def split_pair(pair: str) -> tuple[str, str]:
    """Split the result of ``join_pair`` into query and text."""
    length, _, joined = pair.partition(":")
    return joined[: int(length)], joined[int(length) :]


class PairTokenizer(TextTokenizer):
    """Puts the special tokens of the checkpoint's own pair template around a query and a text."""

    def __init__(self, checkpoint: Checkpoint, max_length: int, *, lower_case: bool = False) -> None:
        super().__init__(checkpoint, max_length, lower_case=lower_case)
        probe = self._tokenizer.encode("a", "a", add_special_tokens=True)
        query, text = ([i for i, part in enumerate(probe.sequence_ids) if part == side] for side in (0, 1))
        if not query or not text or query[-1] > text[0]:
            raise CheckpointError(f"{self._path}: its template does not support pairs of texts. Download it again.")
        self._front = probe.ids[: query[0]]
        self._middle = probe.ids[query[-1] + 1 : text[0]]
        self._tail = probe.ids[text[-1] + 1 :]
        types = probe.type_ids
        border = types.index(1) if 1 in types else len(types)
        if any(types[:border]) or set(types[border:]) - {1} or border not in (text[0], len(types)):
            raise CheckpointError(f"{self._path}: the token types of a pair are not 0 for the query and 1 for the text")
        names = checkpoint.json("tokenizer_config.json").get("model_input_names", ["token_type_ids"])
        self._typed = border == text[0] and "token_type_ids" in names

    def encode(self, texts: Sequence[str], prompt: str = "", max_length: int | None = None) -> list[TokenizedText]:
        """Tokenise pairs; only the ends of their texts are ever cut.

        Args:
            texts: results of ``join_pair``.
            prompt: goes before each query.
            max_length: tokens per pair, special tokens included; default: the tokenizer's own limit.

        Returns:
            In each result, ``prompt_length`` counts the tokens of type 0: those before the text, if there are two
            types.

        Raises:
            ConfigurationError: a query leaves no room for a text.
        """
        limit = self.max_length if max_length is None else max_length
        pairs = [split_pair(pair) for pair in texts]
        fronts = self._fronts([query for query, _ in pairs], prompt)
        encoded = []
        for (query, _), ids in zip(pairs, self._ids([text for _, text in pairs]), strict=True):
            full = [*fronts[query], *ids]
            room = _room(len(fronts[query]) + len(self._tail), limit)
            cut = [*full[: len(fronts[query]) + room], *self._tail]
            border = len(fronts[query]) if self._typed else len(cut)
            encoded.append(TokenizedText(np.array(cut, dtype=np.int32), border, len(full) + len(self._tail)))
        return encoded

    def overhead(self, prompt: str = "") -> int:
        """Return how many tokens of a pair do not belong to the text; ``prompt`` contains the query."""
        return len(self._front) + len(self._ids([prompt])[0]) + len(self._middle) + len(self._tail)

    def _fronts(self, queries: Sequence[str], prompt: str) -> dict[str, list[int]]:
        """Return the tokens before the text, for each query."""
        distinct = list(dict.fromkeys(queries))
        found = self._ids([prompt + query for query in distinct])
        return {q: [*self._front, *ids, *self._middle] for q, ids in zip(distinct, found, strict=True)}


class InstructedPairTokenizer(TextTokenizer):
    """Writes a pair into a language model's chat format; the wording is that of the model card."""

    def __init__(self, checkpoint: Checkpoint, max_length: int, *, before: str, between: str, behind: str) -> None:
        self._words = before, behind
        self._between = between
        super().__init__(checkpoint, max_length)

    def encode(self, texts: Sequence[str], prompt: str = "", max_length: int | None = None) -> list[TokenizedText]:
        """See ``PairTokenizer``; ``prompt`` contains the instruction."""
        limit = self.max_length if max_length is None else max_length
        pairs = [split_pair(pair) for pair in texts]
        for query in dict.fromkeys(query for query, _ in pairs):
            _room(self.overhead(prompt + query), limit)
        return super().encode([f"{query}{self._between}{text}" for query, text in pairs], prompt, max_length)

    def overhead(self, prompt: str = "") -> int:
        """Return how many tokens of a pair do not belong to the text; ``prompt`` contains instruction and query."""
        return super().overhead(prompt + self._between)

    def _outer_specials(self, config: dict[str, Any]) -> tuple[list[int], list[int]]:
        before, behind = self._ids(list(self._words))
        return before, behind


def _room(taken: int, limit: int) -> int:
    """Return how many tokens are left for the text.

    Raises:
        ConfigurationError: none are left.
    """
    if taken >= limit:
        raise ConfigurationError(
            f"a query and the tokens around it take {taken} tokens, which leaves no room for a text within "
            f"max_length={limit}: shorten the query or raise max_length"
        )
    return limit - taken
