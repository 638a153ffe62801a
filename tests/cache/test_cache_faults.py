"""The persistent cache: damage, ill will, disks that fail, threads and processes."""

from __future__ import annotations

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.rows import FILE, ROWS, key_of, present, rows_of, same
from twinvec.cache import VectorCache
from twinvec.cache.rows import Row
from twinvec.errors import ConfigurationError

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def execute(folder: Path, statement: str, parameters: Sequence[Any] = ()) -> None:
    """Change the database behind the cache's back."""
    connection = sqlite3.connect(folder / FILE)
    with connection:
        assert connection.execute(statement, parameters).rowcount
    connection.close()


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
