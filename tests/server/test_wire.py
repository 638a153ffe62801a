"""The wire format: what goes in comes out, bit for bit; what is something else is refused."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from twinvec import EmbeddingBatch, MultiBatch, SparseBatch, Task, errors
from twinvec.server import wire

floats = st.floats(width=32, allow_nan=False)
weights = st.floats(min_value=2**-120, max_value=2**100, width=32)
rows = st.dictionaries(st.integers(0, 2**31 - 1), weights, max_size=5)


@st.composite
def batches(draw: st.DrawFn) -> EmbeddingBatch:
    n = draw(st.integers(0, 6))
    dim = draw(st.integers(1, 9))
    dense = draw(st.none() | hnp.arrays(np.float32, (n, dim), elements=floats))
    sparse = draw(st.none() | st.lists(rows, min_size=n, max_size=n).map(SparseBatch.from_dicts))
    counts = draw(hnp.arrays(np.int32, n, elements=st.integers(0, 2**31 - 1)))
    vectors = hnp.arrays(np.float32, st.tuples(st.integers(0, 3), st.just(dim)), elements=floats)
    multi = draw(st.none() | st.lists(vectors, min_size=n, max_size=n).map(MultiBatch.stack))
    return EmbeddingBatch(dense, sparse, counts, draw(hnp.arrays(np.bool_, n)), multi)


def bits(batch: EmbeddingBatch) -> list[object]:
    arrays: list[Any] = [batch.dense, batch.token_counts, batch.truncated]
    if batch.sparse is not None:
        arrays += [batch.sparse.indptr, batch.sparse.indices, batch.sparse.values]
    if batch.multi is not None:
        arrays += [batch.multi.indptr, batch.multi.values]
    return [None if array is None else (array.dtype.str, array.shape, array.tobytes()) for array in arrays]


@settings(max_examples=200, deadline=None)
@given(batches())
def test_a_batch_survives_bit_for_bit(batch: EmbeddingBatch) -> None:
    assert bits(wire.unpack_batch(wire.pack_batch(batch))) == bits(batch)


def test_views_with_other_strides_survive() -> None:
    dense = np.arange(24, dtype=np.float32).reshape(6, 4)
    batch = EmbeddingBatch(dense[::-2, ::2], None, np.arange(3, dtype=np.int32), np.zeros(3, np.bool_))
    np.testing.assert_array_equal(wire.unpack_batch(wire.pack_batch(batch)).dense, dense[::-2, ::2])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5).flatmap(lambda n: hnp.arrays(np.int64, (n, 2))), max_size=5))
def test_offsets_survive(offsets: list[np.ndarray]) -> None:
    found = wire.unpack_offsets(wire.pack_offsets(offsets))
    assert [o.tolist() for o in found] == [o.tolist() for o in offsets]


def packed() -> bytes:
    sparse = SparseBatch.from_dicts([{1: 2.0}, {}])
    dense = np.zeros((2, 3), np.float32)
    multi = MultiBatch.stack([np.ones((1, 3), np.float32), np.ones((2, 3), np.float32)])
    return wire.pack_batch(EmbeddingBatch(dense, sparse, np.ones(2, np.int32), np.zeros(2, np.bool_), multi))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_a_value_error_or_an_equal_shape(data: st.DataObject) -> None:
    whole = bytearray(packed())
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        assert len(wire.unpack_batch(bytes(whole))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("token_counts"), "missing token_counts"),
        (lambda arrays: arrays.pop("sparse.values"), "the sparse half is incomplete"),
        (lambda arrays: arrays.pop("multi.indptr"), "the multi half is incomplete"),
        (lambda arrays: arrays.update({"multi.indptr": np.zeros((), np.int64)}), "must be rows of vectors"),
        (lambda arrays: arrays.update(dense=arrays["dense"].astype(np.float64)), "dense has the unexpected type"),
        (lambda arrays: arrays.update(more=np.zeros(1)), "more has the unexpected type"),
        (lambda arrays: arrays.update(dense=np.zeros((3, 3), np.float32)), "dense has shape"),
    ],
)
def test_other_arrays_are_refused(change: object, message: str) -> None:
    arrays = load(packed())
    change(arrays)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        wire.unpack_batch(save(arrays))
    with pytest.raises(ValueError, match="not safetensors"):
        wire.unpack_batch(b"{}")


def test_offsets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="are inconsistent"):
        wire.unpack_offsets(save({"indptr": np.array([0, 3]), "offsets": np.zeros((2, 2), np.int64)}))


def test_tasks_survive() -> None:
    for task in (None, "similarity", Task("Find it"), Task("Find it", symmetric=True)):
        assert wire.task_from_json(wire.task_to_json(task)) == task
    for wrong in (3, ["a"], {"instruction": "a", "symmetric": "yes"}, {"other": "a"}, {"instruction": 3}):
        with pytest.raises((TypeError, errors.PromptError)):
            wire.task_from_json(wrong)


def test_every_error_of_a_call_has_a_status_and_can_be_made_from_its_message() -> None:
    for kind, error in wire.ERRORS.items():
        assert error.__name__ == kind
        assert str(error("the message")) == "the message"
    stores = {name for name, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, errors.StoreError)}
    assert stores & wire.ERRORS.keys() == {"FilterError", "StoreError"}  # what a search over HTTP can tell its caller
