"""Errors travel between processes with everything that they carry."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from twinvec import errors

CASES = [
    errors.FingerprintMismatchError("store", stored="a", given="b", stored_model="c", given_model="d"),
    errors.CheckpointFieldError(Path("config.json"), "dim", -1, "is negative"),
    errors.CheckpointMismatchError("model", missing=["a"], mismatched={"b": ((1,), (2,))}),
    errors.InvalidRecordError("too long", id="x", field="text"),
    errors.TextTooLongError("is too long", position=3),
    errors.ConfigurationError("no"),
]


@pytest.mark.parametrize("error", CASES, ids=lambda error: type(error).__name__)
def test_a_pickled_error_is_the_same(error: errors.TwinVecError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
