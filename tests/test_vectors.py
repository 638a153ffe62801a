"""SparseBatch and EmbeddingBatch against scipy, numpy and plain dictionaries."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twinvec import EmbeddingBatch, SparseBatch
from twinvec.vectors import SparseVector

Row = dict[int, float]
N_KEYS = 40
WEIGHTS = st.floats(min_value=2**-10, max_value=2**10, width=32)
ROWS = st.dictionaries(st.integers(0, N_KEYS - 1), WEIGHTS, max_size=8)
BATCHES = st.lists(ROWS, max_size=6)
PAIRS_OF_BATCHES = st.tuples(BATCHES, BATCHES)
EXAMPLE: list[Row] = [{}, {7: 0.5, 2: 1.0}, {0: 2.0}, {}, {3: 4.0, 2: 8.0, 39: 16.0}, {}]


def filled(rows: list[Row]) -> NDArray[np.float32]:
    """The dense matrix, cell by cell."""
    dense = np.zeros((len(rows), N_KEYS), dtype=np.float32)
    for i, row in enumerate(rows):
        for key, weight in row.items():
            dense[i, key] = weight
    return dense


def product(a: Row, b: Row) -> float:
    return sum(weight * b.get(key, 0.0) for key, weight in a.items())


def arrays(
    indptr: list[int], indices: list[int], values: list[float]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    return np.array(indptr, np.int64), np.array(indices, np.int32), np.array(values, np.float32)


@given(BATCHES)
def test_dicts_round_trip_through_sorted_csr(rows: list[Row]) -> None:
    batch = SparseBatch.from_dicts(rows)
    assert [str(a.dtype) for a in (batch.indptr, batch.indices, batch.values)] == ["int64", "int32", "float32"]
    assert batch.indptr.tolist() == [sum(map(len, rows[:i])) for i in range(len(rows) + 1)]
    assert batch.indices.tolist() == [key for row in rows for key in sorted(row)]
    assert batch.values.tolist() == [row[key] for row in rows for key in sorted(row)]
    assert batch.to_dicts() == rows
    assert len(batch) == len(rows)


def test_weights_of_zero_are_left_out() -> None:
    assert SparseBatch.from_dicts([{1: 0.0, 2: 3.0}, {5: 0}]).to_dicts() == [{2: 3.0}, {}]


@given(BATCHES)
def test_dense_and_scipy_forms_hold_the_same_cells(rows: list[Row]) -> None:
    batch = SparseBatch.from_dicts(rows)
    np.testing.assert_array_equal(batch.to_numpy(N_KEYS), filled(rows))
    matrix = batch.to_scipy(N_KEYS)
    assert matrix.shape == (len(rows), N_KEYS)
    np.testing.assert_array_equal(matrix.toarray(), filled(rows))


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok"])
@given(rows=BATCHES)
def test_every_scipy_form_is_read(form: str, rows: list[Row]) -> None:
    matrix = scipy.sparse.coo_array(filled(rows)).asformat(form)
    assert SparseBatch.from_scipy(matrix).to_dicts() == rows


def test_scipy_duplicates_are_summed_zeros_dropped_and_keys_sorted() -> None:
    cells = ([2.0, 1.0, 4.0, 0.0, 8.0], ([0, 0, 0, 0, 1], [9, 3, 9, 5, 1]))
    matrix = scipy.sparse.coo_matrix(cells, shape=(3, 12))
    unsorted = scipy.sparse.csr_array(([5.0, 6.0], [7, 1], [0, 2]), shape=(1, 8))
    assert SparseBatch.from_scipy(matrix).to_dicts() == [{3: 1.0, 9: 6.0}, {1: 8.0}, {}]
    assert SparseBatch.from_scipy(unsorted).to_dicts() == [{1: 6.0, 7: 5.0}]
    assert unsorted.indices.tolist() == [7, 1], "the caller's matrix must stay as it was"


def test_the_number_of_keys_defaults_to_the_highest_and_may_not_be_lower() -> None:
    batch = SparseBatch.from_dicts([{4: 1.0}, {2: 1.0}])
    assert batch.to_numpy().shape == (2, 5)
    assert batch.to_scipy().shape == (2, 5)
    assert batch.to_numpy(5).shape == (2, 5)
    assert SparseBatch.from_dicts([{}]).to_numpy().shape == (1, 0)
    for convert in (batch.to_numpy, batch.to_scipy):
        with pytest.raises(ValueError, match="n_keys=4"):
            convert(4)


@given(rows=st.lists(ROWS, min_size=1, max_size=6), chosen=st.lists(st.integers(-1, 5), max_size=8))
def test_rows_are_chosen_in_the_given_order_with_repeats(rows: list[Row], chosen: list[int]) -> None:
    chosen = [i for i in chosen if i < len(rows)]
    batch = SparseBatch.from_dicts(rows)
    expected = [rows[i] for i in chosen]
    assert batch[chosen].to_dicts() == expected
    assert batch[np.array(chosen, dtype=np.int64)].to_dicts() == expected


@pytest.mark.parametrize("rows", [slice(None), slice(1, 4), slice(None, None, -2), slice(-2, None), slice(4, 1)])
def test_slices_follow_lists(rows: slice) -> None:
    assert SparseBatch.from_dicts(EXAMPLE)[rows].to_dicts() == EXAMPLE[rows]


def test_a_boolean_mask_selects_the_rows_that_are_true() -> None:
    mask: Any = np.array([False, True, False, False, True, False])
    assert SparseBatch.from_dicts(EXAMPLE)[mask].to_dicts() == [EXAMPLE[1], EXAMPLE[4]]


def test_one_row_is_a_vector_and_iteration_ends() -> None:
    batch = SparseBatch.from_dicts(EXAMPLE)
    row = batch[4]
    assert isinstance(row, SparseVector)
    assert (row.indices.tolist(), row.values.tolist(), len(row)) == ([2, 3, 39], [8.0, 4.0, 16.0], 3)
    assert batch[-5].to_dict() == batch[1].to_dict() == EXAMPLE[1]
    assert [vector.to_dict() for vector in batch] == EXAMPLE
    for row_number in (6, -7):
        with pytest.raises(IndexError):
            batch[row_number]
    with pytest.raises(IndexError):
        batch[[0, 6]]


@given(st.lists(BATCHES, max_size=4))
def test_concatenation_keeps_all_rows_in_order(parts: list[list[Row]]) -> None:
    joined = SparseBatch.stack([SparseBatch.from_dicts(part) for part in parts])
    assert joined.to_dicts() == [row for part in parts for row in part]


@given(PAIRS_OF_BATCHES)
def test_similarity_is_the_product_of_the_matrices(pair: tuple[list[Row], list[Row]]) -> None:
    a, b = map(SparseBatch.from_dicts, pair)
    scores = a.similarity(b)
    expected = (filled(pair[0]).astype(np.float64) @ filled(pair[1]).astype(np.float64).T).astype(np.float32)
    assert scores.dtype == np.float32
    assert scores.shape == (len(pair[0]), len(pair[1]))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@given(PAIRS_OF_BATCHES)
def test_similarity_agrees_with_scipy(pair: tuple[list[Row], list[Row]]) -> None:
    a, b = map(SparseBatch.from_dicts, pair)
    left, right = (scipy.sparse.csr_array(filled(rows).astype(np.float64)) for rows in pair)
    np.testing.assert_allclose(a.similarity(b), (left @ right.T).toarray(), rtol=1e-6)


@given(st.lists(st.tuples(ROWS, ROWS), max_size=6))
def test_pairwise_similarity_takes_row_by_row(pairs: list[tuple[Row, Row]]) -> None:
    a = SparseBatch.from_dicts([left for left, _ in pairs])
    b = SparseBatch.from_dicts([right for _, right in pairs])
    scores = a.pairwise_similarity(b)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [product(left, right) for left, right in pairs], rtol=1e-6)


def test_pairwise_similarity_needs_equal_lengths() -> None:
    with pytest.raises(ValueError, match="1 and 2"):
        SparseBatch.from_dicts([{}]).pairwise_similarity(SparseBatch.from_dicts([{}, {}]))


@pytest.mark.parametrize(
    ("indptr", "indices", "values"),
    [
        pytest.param([0, 2], [3, 3], [1, 1], id="a key twice in a row"),
        pytest.param([0, 2], [4, 3], [1, 1], id="keys not sorted"),
        pytest.param([0, 1, 3], [9, 4, 3], [1, 1, 1], id="second row not sorted"),
        pytest.param([0, 0, 2, 2], [4, 3], [1, 1], id="not sorted between empty rows"),
        pytest.param([0, 1], [-1], [1], id="negative key"),
        pytest.param([0, 1], [1], [0], id="zero weight"),
        pytest.param([0, 1], [1], [-0.5], id="negative weight"),
        pytest.param([0, 1], [1], [float("nan")], id="nan"),
        pytest.param([0, 1], [1], [float("inf")], id="infinity"),
        pytest.param([0, 1], [1, 2], [1, 1], id="indptr ends early"),
        pytest.param([0, 3], [1, 2], [1, 1], id="indptr ends late"),
        pytest.param([1, 2], [1, 2], [1, 1], id="indptr starts late"),
        pytest.param([0, 2, 1, 3], [1, 2, 3], [1, 1, 1], id="indptr falls"),
        pytest.param([], [], [], id="empty indptr"),
        pytest.param([0, 2], [1, 2], [1], id="fewer weights than keys"),
    ],
)
def test_malformed_rows_are_refused(indptr: list[int], indices: list[int], values: list[float]) -> None:
    with pytest.raises(ValueError, match="SparseBatch"):
        SparseBatch(*arrays(indptr, indices, values))


def test_a_key_may_fall_where_a_row_ends() -> None:
    batch = SparseBatch(*arrays([0, 0, 2, 2, 3, 3], [5, 9, 5], [1, 2, 3]))
    assert batch.to_dicts() == [{}, {5: 1.0, 9: 2.0}, {}, {5: 3.0}, {}]


def test_arrays_of_two_dimensions_are_refused() -> None:
    indptr, indices, values = arrays([0, 1], [1], [1])
    with pytest.raises(ValueError, match="one dimension"):
        SparseBatch(indptr, indices[None], values)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda key: SparseBatch.from_dicts([{key: 1.0}]), id="dicts"),
        pytest.param(lambda key: SparseBatch(np.array([0, 1]), np.array([key]), np.ones(1, np.float32)), id="arrays"),
    ],
)
def test_a_key_above_int32_is_refused_and_never_wrapped(build: Callable[[int], SparseBatch]) -> None:
    with pytest.raises((ValueError, OverflowError)):
        build(2**32 + 5)


def example_batch() -> EmbeddingBatch:
    return EmbeddingBatch(
        dense=np.arange(12, dtype=np.float32).reshape(6, 2),
        sparse=SparseBatch.from_dicts(EXAMPLE),
        token_counts=np.array([5, 6, 7, 8, 9, 10], dtype=np.int32),
        truncated=np.array([True, False, False, True, False, False]),
    )


@pytest.mark.parametrize("rows", [[4, 0, 4], [-1], [], np.array([2, 1])])
def test_choosing_embeddings_keeps_the_halves_together(rows: list[int]) -> None:
    batch, numbers = example_batch(), [int(i) for i in rows]
    chosen = batch[rows]
    assert chosen.dense is not None
    assert chosen.sparse is not None
    assert chosen.dense.tolist() == [[2.0 * (i % 6), 2.0 * (i % 6) + 1] for i in numbers]
    assert chosen.sparse.to_dicts() == [EXAMPLE[i] for i in numbers]
    assert chosen.token_counts.tolist() == [5 + i % 6 for i in numbers]
    assert chosen.truncated.tolist() == [i % 6 in (0, 3) for i in numbers]
    assert len(chosen) == len(numbers)


def test_a_slice_of_embeddings_and_absent_halves() -> None:
    part = example_batch()[1:4]
    assert part.token_counts.tolist() == [6, 7, 8]
    only_dense = EmbeddingBatch(part.dense, None, part.token_counts, part.truncated)[[2]]
    assert only_dense.sparse is None
    only_sparse = EmbeddingBatch(None, part.sparse, part.token_counts, part.truncated)[[2]]
    assert only_sparse.dense is None


def test_a_mask_such_as_truncated_chooses_embeddings() -> None:
    batch = example_batch()
    mask: Any = batch.truncated
    assert batch[mask].token_counts.tolist() == [5, 8]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dense": np.zeros((5, 2), np.float32)}, "dense"),
        ({"dense": np.zeros(6, np.float32)}, "dense"),
        ({"sparse": SparseBatch.from_dicts([{}])}, "sparse"),
        ({"truncated": np.zeros(7, np.bool_)}, "truncated"),
    ],
)
def test_halves_of_unequal_length_are_refused(changed: dict[str, Any], message: str) -> None:
    fields = vars(example_batch()) | changed
    with pytest.raises(ValueError, match=message):
        EmbeddingBatch(**fields)
