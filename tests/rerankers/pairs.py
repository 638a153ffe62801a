"""Pairs for rerankers: ragged, in several scripts, with equal ones and empty texts."""

from __future__ import annotations

import random

from reference.tokenizers_ import WORDS_EN, WORDS_RU, WORDS_ZH
from support import TEXTS

Pair = tuple[str, str]
_WORDS = WORDS_EN + WORDS_RU + WORDS_ZH


def random_pairs(count: int, *, longest: int = 60, seed: int = 0) -> list[Pair]:
    """Return so many pairs."""
    chance = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(chance.choices(_WORDS, k=chance.randint(0, most)))

    queries = [*TEXTS[:4], *(words(8) for _ in range(count // 10))]
    pairs = [(chance.choice(queries), words(longest)) for _ in range(count - len(TEXTS))]
    return pairs + [(chance.choice(queries), text) for text in TEXTS]
