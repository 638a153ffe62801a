"""Texts whose rows, tokens and faults are known from themselves."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from twinvec.cache.rows import Cache, Key, Row
from twinvec.engine.job import Job, Request
from twinvec.text.tokenizer import TokenizedText
from twinvec.vectors import SparseVector

UNTOKENISABLE, UNRUNNABLE, NOT_FINITE, TOO_LARGE = "t!", "r!", "nnn!", "mmmm!"  # whoever asks for them gets an error
EMPTY, LONG = "", "a long text"  # no vector without a prompt; longer than the smaller of the two maximum lengths
TEXTS = ["a", "bb", "cccc", "dddddd", LONG, EMPTY, UNTOKENISABLE, UNRUNNABLE, NOT_FINITE, TOO_LARGE]


class FaultError(Exception):
    """Of a tokenizer, a forward pass or a device."""


class Persistent:
    """A persistent cache: only its identity matters, the world answers for it."""


CACHE, LIAR = cast(Cache, Persistent()), cast(Cache, Persistent())
WRONG = Key("", "wrong", 100)  # what a liar has for every text
_numbers: dict[Key, int] = {}


def request(**wanted: Any) -> Request:
    """Return what a caller wants, a dense half unless told otherwise."""
    defaults = {"max_length": 100, "prompt": "", "dim": 1, "keys": None, "urgent": False}
    return Request(**{**defaults, **wanted})


def lengths(key: Key) -> tuple[int, int]:
    """Return the tokens of a text, one a character, after and before the cut."""
    full = len(key.prompt) + len(key.text)
    return min(full, key.max_length), full


def row_of(key: Key, *, dense: bool = True, sparse: bool = True) -> Row:
    """Return the row of a text: no two have the same values."""
    value = np.float32(_numbers.setdefault(key, len(_numbers) + 1))
    one = SparseVector(np.zeros(1, np.int32), np.full(1, value, np.float32))
    return Row(np.full(1, value, np.float32) if dense else None, one if sparse else None, *lengths(key))


def is_row_of(key: Key, row: Row) -> bool:
    """Return whether a row is that of a text, in each half that it has."""
    other = row_of(key)
    assert other.dense is not None
    assert other.sparse is not None
    dense = row.dense is None or bool(row.dense[0] == other.dense[0])
    sparse = row.sparse is None or bool(row.sparse.values[0] == other.sparse.values[0])
    return dense and sparse and (row.tokens, row.full_length) == lengths(key)


def keys_of(job: Job) -> list[Key]:
    """Return what a job asks for, at the positions of its caller's list."""
    return [Key(job.request.prompt, text, job.request.max_length) for text in job.given]


def is_computable(key: Key) -> bool:
    """Return whether a text has a row."""
    return key.text not in (UNTOKENISABLE, UNRUNNABLE, NOT_FINITE, TOO_LARGE) and lengths(key)[0] > 0


def tokenized(key: Key) -> TokenizedText:
    """Return what a tokenizer makes of a text."""
    tokens, full = lengths(key)
    return TokenizedText(np.zeros(tokens, np.int32), 0, full)
