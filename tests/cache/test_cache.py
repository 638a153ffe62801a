"""The persistent cache: what comes back is what went in, or nothing."""

from __future__ import annotations

import copy
import errno
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import sqlite3
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from twinvec.cache import VectorCache
from twinvec.cache import sqlite as _sqlite
from twinvec.cache.rows import Key, Row
from twinvec.errors import ConfigurationError
from twinvec.vectors import SparseVector

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
FILE = "vectors.sqlite3"
SMALL = 2**20

FLOATS = st.floats(width=32)
DENSE = hnp.arrays(np.float32, st.integers(0, 40), elements=FLOATS)
SPARSE = st.dictionaries(st.integers(0, 2**31 - 1), st.floats(2.0**-100, 2.0**100, width=32), max_size=20).map(
    lambda row: SparseVector(np.array(sorted(row), np.int32), np.array([row[k] for k in sorted(row)], np.float32))
)
COUNTS = st.integers(0, 2**32 - 1)
ROWS = st.builds(Row, st.none() | DENSE, st.none() | SPARSE, COUNTS, COUNTS)
TEXTS = st.text(max_size=6) | st.text("ab\0", max_size=4)
KEYS = st.builds(Key, TEXTS, TEXTS, st.integers(1, 5))


def key_of(number: int, prompt: str = "query: ") -> Key:
    return Key(prompt, f"text {number}", 512)


def row_of(key: Key, dims: int = 1024) -> Row:
    """Return the one right row of a key, so that any process can tell a wrong one."""
    rng = np.random.default_rng(zlib.crc32(repr(key).encode()))
    indices = np.unique(rng.integers(0, 30_000, 20)).astype(np.int32)
    sparse = SparseVector(indices, rng.random(len(indices), np.float32) + np.float32(0.1))
    return Row(rng.standard_normal(dims, np.float32), sparse, int(rng.integers(600)), int(rng.integers(9000)))


def rows_of(numbers: Sequence[int], prompt: str = "query: ") -> list[tuple[Key, Row]]:
    return [(key, row_of(key)) for key in (key_of(number, prompt) for number in numbers)]


def same(a: Row | None, b: Row | None) -> bool:
    """Whether all bits are equal."""
    if a is None or b is None:
        return a is b
    arrays = [(a.dense, b.dense)]
    if a.sparse is not None and b.sparse is not None:
        arrays += [(a.sparse.values, b.sparse.values)]
        if not np.array_equal(a.sparse.indices, b.sparse.indices) or a.sparse.indices.dtype != b.sparse.indices.dtype:
            return False
    elif a.sparse is not b.sparse:
        return False
    for x, y in arrays:
        if x is None or y is None:
            if x is not y:
                return False
        elif x.dtype != y.dtype or x.tobytes() != y.tobytes():
            return False
    return (a.tokens, a.full_length) == (b.tokens, b.full_length)


def present(cache: VectorCache, numbers: Sequence[int], prompt: str = "query: ") -> list[bool]:
    """Whether each row is there; a wrong one fails the test."""
    keys = [key_of(number, prompt) for number in numbers]
    found = cache.get_many("model", keys)
    assert all(row is None or same(row, row_of(key)) for key, row in zip(keys, found, strict=True))
    return [row is not None for row in found]


def execute(folder: Path, statement: str, parameters: Sequence[Any] = ()) -> None:
    """Change the database behind the cache's back."""
    connection = sqlite3.connect(folder / FILE)
    with connection:
        assert connection.execute(statement, parameters).rowcount
    connection.close()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[VectorCache]:
    with VectorCache(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorCache]:
    """For properties: each example uses namespaces or keys of its own, or clears."""
    with VectorCache(tmp_path_factory.mktemp("cache")) as opened:
        yield opened


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
        ("n", "a", "bc", 1), ("n", "ab", "c", 1), ("n", "abc", "", 1), ("n", "", "abc", 1), ("na", "", "bc", 1),
        ("na", "b", "c", 1), ("nabc", "", "", 1), ("", "nabc", "", 1), ("", "", "nabc", 1), ("n", "a", "bc", 2),
        ("n", "a", "bc", 11), ("n", "a", "bc1", 1), ("n", "a\0", "bc", 1), ("n", "a", "\0bc", 1), ("n", "a|bc", "", 1),
        ("n", "A", "bc", 1), ("n", "a", "bc ", 1), ("n", "a", "é", 1), ("n", "a", "e\u0301", 1),
    ]  # fmt: skip
    for number, (namespace, *rest) in enumerate(parts):
        cache.put_many(namespace, [(Key._make(rest), row_of(key_of(number)))])
    for number, (namespace, *rest) in enumerate(parts):
        assert same(cache.get_many(namespace, [Key._make(rest)])[0], row_of(key_of(number)))
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
        with pytest.raises(ConfigurationError, match="cannot be the folder"):
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


# damage and ill will


@given(data=st.data(), row=ROWS)
def test_a_damaged_value_is_a_miss_and_is_dropped(shared: VectorCache, data: st.DataObject, row: Row) -> None:
    shared.clear()
    shared.put_many("model", [(key_of(1), row)])
    connection = sqlite3.connect(shared.path / FILE)
    (value,) = connection.execute("SELECT value FROM vectors").fetchone()
    position = data.draw(st.integers(0, len(value) - 1))
    damaged = data.draw(
        st.sampled_from([value[:position], value + b"\0", value + value])
        | st.integers(1, 255).map(lambda x: value[:position] + bytes([value[position] ^ x]) + value[position + 1 :])
    )
    connection.execute("UPDATE vectors SET value = ?", (damaged,))
    connection.commit()
    connection.close()
    assert shared.get_many("model", [key_of(1)]) == [None]
    assert shared.stats()["entries"] == 0
    shared.put_many("model", [(key_of(1), row)])
    assert same(shared.get_many("model", [key_of(1)])[0], row)


def test_a_value_under_another_key_is_a_miss(cache: VectorCache) -> None:
    cache.put_many("model", rows_of([1, 2]))
    execute(cache.path, "UPDATE vectors SET value = (SELECT value FROM vectors ORDER BY id LIMIT 1)")
    assert present(cache, [1, 2]) == [True, False]


def test_a_value_of_another_version_is_a_miss(cache: VectorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinvec.cache.disk._VERSION", 2)
    cache.put_many("model", rows_of([1]))
    assert present(cache, [1]) == [True]
    monkeypatch.undo()
    assert present(cache, [1]) == [False]


def test_a_folder_of_an_early_version_is_refused_with_the_reason(cache: VectorCache) -> None:
    """Its namespaces came from samples of the weights."""
    cache.put_many("model", rows_of([1]))
    cache.close()
    execute(cache.path, "PRAGMA user_version = 0")
    with pytest.raises(ConfigurationError, match=r"samples of their weights.*remove the folder"):
        VectorCache(cache.path)


class Bomb:
    """Runs when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 5])
def test_a_planted_pickle_is_not_executed(cache: VectorCache, tmp_path: Path, protocol: int) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "executed"), protocol)
    for value in (bomb, "x" + repr(bomb), 5, 0.5):
        cache.put_many("model", rows_of([1]))
        execute(cache.path, "UPDATE vectors SET value = ?", (value,))
        assert present(cache, [1]) == [False]
    execute(cache.path, "INSERT INTO vectors (key, used, value) VALUES (?, 1, ?)", (bomb, bomb))
    assert present(cache, [1]) == [False]
    assert not (tmp_path / "executed").exists()
    pickle.loads(bomb)
    assert (tmp_path / "executed").exists()


def test_a_planted_text_that_is_no_utf8_does_not_hide_its_neighbours(cache: VectorCache) -> None:
    cache.put_many("model", rows_of(range(20)))
    execute(cache.path, "UPDATE vectors SET value = CAST(X'ff' AS TEXT) WHERE id = 1")
    assert present(cache, range(20)) == [False] + [True] * 19


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER planted AFTER INSERT ON vectors BEGIN DELETE FROM vectors; END",
        "CREATE VIEW planted AS SELECT 1",
        "DROP INDEX vectors_by_use",
        "ALTER TABLE vectors ADD COLUMN more",
    ],
)
def test_a_database_with_another_layout_is_refused(tmp_path: Path, statement: str) -> None:
    VectorCache(tmp_path).close()
    execute(tmp_path, statement)
    with pytest.raises(ConfigurationError, match="another program"):
        VectorCache(tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_gives_right_rows_or_none(tmp_path: Path, seed: int) -> None:
    with VectorCache(tmp_path) as cache:
        cache.put_many("model", rows_of(range(200)))
    rng = random.Random(seed)
    content = bytearray((tmp_path / FILE).read_bytes())
    for _ in range(rng.choice([1, 20, 400])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    if seed % 3 == 0:
        page = rng.randrange(1, len(content) // 4096) * 4096
        content[page : page + 4096] = rng.randbytes(4096)
    if seed % 4 == 0:
        del content[rng.randrange(4096, len(content)) :]
    (tmp_path / FILE).write_bytes(content)
    try:
        cache = VectorCache(tmp_path)
    except ConfigurationError:
        return
    with cache:
        present(cache, range(220))
        cache.put_many("model", rows_of(range(200, 220)))
        present(cache, range(220))


# disks that cannot be written or read


def failing(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.OperationalError("attempt to write a readonly database"),
        sqlite3.DatabaseError("database disk image is malformed"),
    ],
)
def test_a_failing_write_costs_one_warning(
    cache: VectorCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    cache.put_many("model", rows_of([1]))
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "twinvec.cache.disk"):
        patch.setattr(cache._writer, "connection", failing(error))
        for number in range(2, 6):
            cache.put_many("model", rows_of([number]))
            assert present(cache, [1, number]) == [True, False]
    assert [(record.levelname, record.name) for record in caplog.records] == [("WARNING", "twinvec.cache.disk")]
    assert str(error) in caplog.text
    cache.put_many("model", rows_of([2]))
    assert present(cache, [1, 2]) == [True, True]


def test_a_full_disk_keeps_what_is_there(cache: VectorCache, caplog: pytest.LogCaptureFixture) -> None:
    cache.put_many("model", rows_of(range(50)))
    with cache._writer.connection() as connection:
        connection.execute("PRAGMA max_page_count = 60")  # SQLite's own "database or disk is full"
    for start in range(50, 250, 100):
        cache.put_many("model", rows_of(range(start, start + 100)))
    assert present(cache, range(250)) == [True] * 50 + [False] * 200
    assert len(caplog.records) == 1
    assert "full" in caplog.text


def test_a_write_that_fails_midway_leaves_nothing_open(
    cache: VectorCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("twinvec.cache.disk._PUT", "INSERT INTO missing VALUES (?, ?, ?)")
        cache.put_many("model", rows_of([1]))
    assert "no such table" in caplog.text
    cache.put_many("model", rows_of([2]))
    assert present(cache, [1, 2]) == [False, True]


def test_a_failing_read_is_a_miss(
    cache: VectorCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put_many("model", rows_of([1]))
    monkeypatch.setattr(cache._reader, "connection", failing(sqlite3.OperationalError("disk I/O error")))
    assert present(cache, [1]) == [False]
    assert cache.stats() == {"hits": 0, "misses": 1, "entries": 0, "bytes": 0}
    assert len(caplog.records) == 1


def use_read_only(folder: Path) -> None:
    if os.geteuid() == 0:  # permissions do not bind root
        os.setuid(65534)
    cache = VectorCache(folder)
    assert present(cache, range(20)) == [True] * 10 + [False] * 10
    cache.put_many("model", rows_of([10]))
    assert present(cache, [10]) == [False]
    cache.close()
    try:
        VectorCache(folder / "new")
    except ConfigurationError:
        return
    raise AssertionError("a folder that cannot be made was not refused")


@needs_fork
def test_a_read_only_folder_is_read_and_a_new_one_is_refused() -> None:
    folder = Path(tempfile.mkdtemp())  # tmp_path is closed to other users
    try:
        with VectorCache(folder) as cache:
            cache.put_many("model", rows_of(range(10)))
        (folder / FILE).chmod(0o444)
        folder.chmod(0o555)
        run_forked(use_read_only, folder)
        assert [file.name for file in folder.iterdir()] == [FILE]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


# threads and processes


def run_forked(target: Callable[..., None], *arguments: Any) -> None:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_a_lookup_does_not_wait_for_a_writer(cache: VectorCache) -> None:
    cache.put_many("model", rows_of([1]))
    writer = sqlite3.connect(cache.path / FILE, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    writer.execute("DELETE FROM vectors")
    assert present(cache, [1]) == [True]
    writer.execute("COMMIT")
    writer.close()
    assert present(cache, [1]) == [False]


def test_threads_share_one_cache(tmp_path: Path) -> None:
    with VectorCache(tmp_path) as cache, ThreadPoolExecutor(8) as pool:

        def work(thread: int) -> None:
            rng = random.Random(thread)
            for _ in range(20):
                numbers = rng.sample(range(100), 8)
                cache.put_many("model", rows_of(numbers))
                assert all(present(cache, numbers))

        for future in [pool.submit(work, thread) for thread in range(8)]:
            future.result()
        assert cache.stats()["hits"] == 8 * 20 * 8


def use_after_fork(cache: VectorCache, child: int) -> None:
    assert cache._reader._connection is None  # the parent's would share its locks
    assert cache._writer._connection is None
    assert all(present(cache, range(20)))
    cache.put_many("model", rows_of(range(20), f"child {child}"))
    assert all(present(cache, range(20), f"child {child}"))


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_threads_are_at_work(cache: VectorCache) -> None:
    cache.put_many("model", rows_of(range(20)))
    stop = threading.Event()

    def work(thread: int) -> None:
        while not stop.is_set():
            cache.put_many("model", rows_of(range(20), f"thread {thread}"))
            assert all(present(cache, range(20), f"thread {thread}"))

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work, thread) for thread in range(2)]
        try:
            for child in range(4):
                run_forked(use_after_fork, cache, child)
        finally:
            stop.set()
        for future in futures:
            future.result()
    for child in range(4):
        assert all(present(cache, range(20), f"child {child}"))


def write_for_ever(folder: Path, prompt: str, acknowledge: Connection) -> None:
    cache = VectorCache(folder)
    batch = 0
    while True:
        cache.put_many("model", rows_of(range(10 * batch, 10 * batch + 10), prompt))
        batch += 1
        acknowledge.send(batch)


def test_kill_9_of_a_writer_loses_nothing(tmp_path: Path) -> None:
    rng = random.Random(9)
    spawn = multiprocessing.get_context("spawn")
    written: dict[str, int] = {}
    with VectorCache(tmp_path) as cache:
        for attempt in range(5):
            receiver, sender = spawn.Pipe(duplex=False)
            process = spawn.Process(target=write_for_ever, args=(tmp_path, f"killed {attempt}", sender))
            process.start()
            sender.close()
            acknowledged = 0
            for batch in range(rng.randint(1, 30)):
                acknowledged = receiver.recv()
                cache.put_many("model", rows_of([100 * attempt + batch]))
            process.kill()
            process.join()
            try:
                while True:
                    acknowledged = receiver.recv()
            except EOFError:
                written[f"killed {attempt}"] = 10 * acknowledged
            own = [100 * attempt + other for other in range(batch + 1)]
            with VectorCache(tmp_path) as reopened:
                for opened in (cache, reopened):
                    assert all(present(opened, own))
                    for prompt, count in written.items():
                        assert all(present(opened, range(count), prompt))
                        # the call that was killed: all of it or nothing
                        assert len(set(present(opened, range(count, count + 10), prompt))) == 1
