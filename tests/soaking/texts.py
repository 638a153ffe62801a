"""Texts of all lengths, and texts that fail."""

from __future__ import annotations

import random

from reference.tokenizers_ import WORDS_EN, WORDS_RU, WORDS_ZH

NAN_MARK, ERROR_MARK = "@", "&"
OOM_TOKENS = 320  # more do not "fit"
N_CLEAN, N_POISON = 120, 5


def make_texts(generator: random.Random) -> list[str]:
    """Return clean texts of all lengths, then texts that give NaN, that raise, and that do not fit into memory."""
    words = WORDS_EN + WORDS_RU + WORDS_ZH

    def text(n: int) -> str:
        return " ".join(generator.choices(words, k=n))

    clean = ["", *(text(generator.choice((1, 2, 4, 8, 16, 40))) for _ in range(N_CLEAN - 1))]
    poison = [f"{mark} {i} {text(5)}" for mark in (NAN_MARK, ERROR_MARK) for i in range(N_POISON)]
    return clean + poison + [text(OOM_TOKENS + 10 * i) for i in range(N_POISON)]


def kind_of(number: int) -> str:
    """Return what is wrong with a text."""
    return "clean" if number < N_CLEAN else ("nan", "error", "huge")[(number - N_CLEAN) // N_POISON]
