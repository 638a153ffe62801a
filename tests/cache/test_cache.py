"""The persistent cache: what goes in comes out; opening, closing, copies, size."""

from __future__ import annotations

import copy
import os
import pickle
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.rows import FILE, ROWS, key_of, present, row_of, rows_of, same
from twinvec.cache import VectorCache
from twinvec.cache import sqlite as _sqlite
from twinvec.cache.rows import Key, Row
from twinvec.errors import ConfigurationError

SMALL = 2**20
TEXTS = st.text(max_size=6) | st.text("ab\0", max_size=4)
KEYS = st.builds(Key, TEXTS, TEXTS, st.integers(1, 5))


# what goes in comes out


@given(rows=st.dictionaries(KEYS, ROWS, max_size=6), namespace=st.text(max_size=5), absent=KEYS)
def test_rows_come_back_bit_by_bit(shared: VectorCache, rows: dict[Key, Row], namespace: str, absent: Key) -> None:
    shared.clear()
    shared.put_many(namespace, list(rows.items()))
    with VectorCache(shared.path) as other:
        found = other.get_many(namespace, [*rows, absent])
    assert len(found) == len(rows) + 1
    assert all(same(a, b) for a, b in zip(found, [*rows.values(), rows.get(absent)], strict=True))


@given(a=st.tuples(st.text(max_size=4), KEYS), b=st.tuples(st.text(max_size=4), KEYS))
def test_two_keys_never_share_a_row(shared: VectorCache, a: tuple[str, Key], b: tuple[str, Key]) -> None:
    shared.clear()
    shared.put_many(a[0], [(a[1], row_of(key_of(1), 8))])
    assert (shared.get_many(b[0], [b[1]])[0] is not None) == (a == b)


def test_no_shift_between_the_parts_of_a_key_collides(cache: VectorCache) -> None:
    parts = [
        ("n", Key("a", "bc", 1)),
        ("n", Key("ab", "c", 1)),
        ("n", Key("abc", "", 1)),
        ("n", Key("", "abc", 1)),
        ("na", Key("", "bc", 1)),
        ("na", Key("b", "c", 1)),
        ("nabc", Key("", "", 1)),
        ("", Key("nabc", "", 1)),
        ("", Key("", "nabc", 1)),
        ("n", Key("a", "bc", 2)),
        ("n", Key("a", "bc", 11)),
        ("n", Key("a", "bc1", 1)),
        ("n", Key("a\x00", "bc", 1)),
        ("n", Key("a", "\x00bc", 1)),
        ("n", Key("a|bc", "", 1)),
        ("n", Key("A", "bc", 1)),
        ("n", Key("a", "bc ", 1)),
        ("n", Key("a", "\xe9", 1)),
        ("n", Key("a", "e\u0301", 1)),
        ("n", Key("a", "bc", 1, "query")),
        ("n", Key("a", "bcquery", 1)),
        ("n", Key("a", "bc", 1, "", ((0, 1),))),
        ("n", Key("a", "bc", 1, "", ((0, 1), (1, 2)))),
    ]
    for number, (namespace, key) in enumerate(parts):
        cache.put_many(namespace, [(key, row_of(key_of(number)))])
    for number, (namespace, key) in enumerate(parts):
        assert same(cache.get_many(namespace, [key])[0], row_of(key_of(number)))
    assert cache.stats()["entries"] == len(parts)


def test_arrays_are_float32_and_the_callers_own(cache: VectorCache) -> None:
    cache.put_many("model", rows_of([1]))
    first, second = (cache.get_many("model", [key_of(1)])[0] for _ in range(2))
    assert first is not None
    assert first.dense is not None
    assert first.dense.dtype == np.float32
    first.dense[:] = 0
    assert same(second, row_of(key_of(1)))


@pytest.mark.parametrize("dense", [np.zeros(4, np.float16), np.zeros(4), np.zeros((2, 2), np.float32)])
def test_other_arrays_are_refused_rather_than_rounded(cache: VectorCache, dense: Any) -> None:
    with pytest.raises(TypeError, match="float32"):
        cache.put_many("model", [(key_of(1), Row(dense, None, 1, 1))])
    assert cache.stats()["entries"] == 0


def test_views_are_stored_by_their_content(cache: VectorCache) -> None:
    dense = np.arange(20, dtype=np.float32)[::-2]
    cache.put_many("model", [(key_of(1), Row(dense, None, 1, 1))])
    found = cache.get_many("model", [key_of(1)])[0]
    assert found is not None
    assert found.dense is not None
    assert np.array_equal(found.dense, dense)


def test_duplicates_unknown_keys_and_many_keys(cache: VectorCache) -> None:
    cache.put_many("model", rows_of(range(0, 1200, 2)))
    numbers = [*range(1200), 4, 4, 5]
    assert present(cache, numbers) == [number % 2 == 0 for number in numbers]
    assert cache.get_many("model", []) == []
    cache.put_many("model", [])


def test_the_latest_row_of_a_key_wins(cache: VectorCache) -> None:
    old, new = row_of(key_of(1)), row_of(key_of(2))
    cache.put_many("model", [(key_of(1), old), (key_of(1), new)])
    assert same(cache.get_many("model", [key_of(1)])[0], new)
    cache.put_many("model", [(key_of(1), old)])
    assert same(cache.get_many("model", [key_of(1)])[0], old)


def test_stats_and_clear(cache: VectorCache) -> None:
    empty = cache.stats()
    assert (empty["hits"], empty["misses"], empty["entries"]) == (0, 0, 0)
    cache.put_many("model", rows_of(range(500)))
    present(cache, range(490, 510))
    stats = cache.stats()
    assert (stats["hits"], stats["misses"], stats["entries"]) == (10, 10, 500)
    assert stats["bytes"] > 500 * 4096
    file = cache.path / FILE
    cache.clear()
    assert cache.stats()["entries"] == 0
    assert cache.stats()["bytes"] == empty["bytes"]
    assert not any(present(cache, range(500)))
    cache.close()
    assert file.stat().st_size < 500 * 4096


# opening, closing, copies


def test_paths_that_cannot_be_a_cache(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below"):
        with pytest.raises(ConfigurationError, match="cannot be used as a vector cache"):
            VectorCache(path)
    assert file.read_text() == "mine"


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"something else " * 1000)
    with pytest.raises(ConfigurationError, match=FILE):
        VectorCache(tmp_path)
    assert (tmp_path / FILE).read_bytes() == b"something else " * 1000


@pytest.mark.parametrize("limit", [0, -1, 2**20 - 1, True, 2.0**30])
def test_size_limits_that_make_no_sense(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(ConfigurationError, match="size_limit"):
        VectorCache(tmp_path, size_limit=limit)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_new_folder_is_its_owners_alone(cache: VectorCache) -> None:
    assert cache.path.stat().st_mode & 0o777 == 0o700


def test_a_closed_cache_says_so_and_closing_twice_is_fine(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    cache.put_many("model", rows_of([1]))
    present(cache, [1])
    cache.close()
    cache.close()
    for call in (
        lambda: cache.get_many("model", [key_of(1)]),
        lambda: cache.put_many("model", rows_of([1])),
        cache.stats,
    ):
        with pytest.raises(ConfigurationError, match="closed"):
            call()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_carries_the_folder_and_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: Callable[[VectorCache], VectorCache]
) -> None:
    monkeypatch.chdir(tmp_path)
    with VectorCache("relative", size_limit=2**22) as cache:
        cache.put_many("model", rows_of([1]))
        present(cache, [1])
        assert b"text 1" not in pickle.dumps(cache)
        monkeypatch.chdir("/")
        with copied(cache) as other:
            assert (other.path, other.size_limit, other.hits) == (cache.path, 2**22, 0)
            assert present(other, [1]) == [True]


def test_a_folder_opened_for_the_first_time_by_many_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for attempt in range(10):
            barrier = threading.Barrier(8)

            def open_and_put(number: int, folder: Path, barrier: threading.Barrier) -> None:
                barrier.wait()
                with VectorCache(folder) as cache:
                    cache.put_many("model", rows_of([number]))

            folder = tmp_path / str(attempt)
            for future in [pool.submit(open_and_put, number, folder, barrier) for number in range(8)]:
                future.result()
            with VectorCache(folder) as cache:
                assert all(present(cache, range(8)))


def test_opening_waits_where_sqlite_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([sqlite3.OperationalError("database is locked")] * 2)
    prepared = _sqlite._prepared

    def locked_at_first(uri: str) -> sqlite3.Connection:
        for failure in failures:
            raise failure
        return prepared(uri)

    monkeypatch.setattr(_sqlite, "_prepared", locked_at_first)
    with VectorCache(tmp_path) as cache:
        cache.put_many("model", rows_of([1]))
        assert present(cache, [1]) == [True]


# size


def test_the_limit_holds_and_the_oldest_go_first(tmp_path: Path) -> None:
    with VectorCache(tmp_path, size_limit=SMALL) as cache:
        for start in range(0, 1000, 50):
            cache.put_many("model", rows_of(range(start, start + 50)))
            assert cache.stats()["bytes"] <= SMALL
        kept = present(cache, range(1000))
        assert kept == sorted(kept)
        assert 150 < sum(kept) < 256
        assert (tmp_path / FILE).stat().st_size < SMALL * 1.5


def test_a_single_large_call_keeps_the_limit(tmp_path: Path) -> None:
    with VectorCache(tmp_path, size_limit=SMALL) as cache:
        cache.put_many("model", rows_of(range(1000)))
        assert cache.stats()["bytes"] <= SMALL
        assert present(cache, [999]) == [True]
        assert (tmp_path / FILE).stat().st_size < SMALL * 1.5


def test_rows_in_use_outlive_newer_ones(tmp_path: Path) -> None:
    with VectorCache(tmp_path, size_limit=SMALL) as cache:
        cache.put_many("model", rows_of(range(100)))
        for start in range(100, 1000, 50):
            assert all(present(cache, range(10)))
            cache.put_many("model", rows_of(range(start, start + 50)))
        assert not any(present(cache, range(10, 100)))


def test_what_was_used_is_known_to_the_next_process(tmp_path: Path) -> None:
    with VectorCache(tmp_path, size_limit=SMALL) as cache:
        cache.put_many("model", rows_of(range(150)))
    with VectorCache(tmp_path, size_limit=SMALL) as cache:
        assert all(present(cache, range(10)))
    with VectorCache(tmp_path, size_limit=SMALL) as cache:
        cache.put_many("model", rows_of(range(150, 300)))
        assert all(present(cache, range(10)))
        assert not any(present(cache, range(10, 50)))


def test_use_is_written_down_before_it_fills_the_memory(cache: VectorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinvec.cache.disk._REMEMBERED", 20)
    cache.put_many("model", rows_of(range(50)))
    for _ in range(5):
        assert all(present(cache, range(50)))
        assert len(cache._used) < 20


def test_a_smaller_limit_takes_hold_at_the_next_write(tmp_path: Path) -> None:
    with VectorCache(tmp_path) as cache:
        cache.put_many("model", rows_of(range(1000)))
    with VectorCache(tmp_path, size_limit=SMALL) as cache:
        cache.put_many("model", rows_of([1000]))
        assert cache.stats()["bytes"] <= SMALL
        assert present(cache, [1000]) == [True]


def test_a_row_that_would_push_out_the_others_is_not_kept(tmp_path: Path) -> None:
    with VectorCache(tmp_path, size_limit=SMALL) as cache:
        huge = Row(np.zeros(SMALL // 4, np.float32), None, 1, 1)
        cache.put_many("model", [*rows_of(range(10)), (key_of(99), huge)])
        assert cache.get_many("model", [key_of(99)]) == [None]
        assert all(present(cache, range(10)))
