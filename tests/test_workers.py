"""Workers: no more threads than work at a time."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from twinvec.workers import Workers


def test_four_callers_need_no_32_threads() -> None:
    pool = Workers("test", 32)

    def call() -> None:
        for _ in range(2000):
            done = threading.Event()
            pool.run(done.set)
            done.wait()

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(pool._threads) <= 16  # a thread may not be free yet when its caller comes again
    pool.close()
    pool.join()


def test_work_beyond_the_most_threads_waits_and_is_done_before_the_end() -> None:
    pool, gate, done = Workers("test", 2), threading.Event(), list[int]()

    def work(number: int) -> None:
        gate.wait()
        done.append(number)

    for number in range(10):
        pool.run(partial(work, number))
    assert len(pool._threads) == 2
    pool.close()
    gate.set()
    pool.join()
    assert sorted(done) == list(range(10))


def test_a_thread_that_is_just_being_started_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, starting, go_on, done = Workers("test"), threading.Event(), threading.Event(), threading.Event()
    start = threading.Thread.start

    def slowly(thread: threading.Thread) -> None:
        if thread.name == "test":
            starting.set()
            go_on.wait()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", slowly)
    errors: list[BaseException] = []

    def join() -> None:
        joining.set()
        try:
            pool.join()
        except RuntimeError as error:
            errors.append(error)

    joining = threading.Event()
    caller = threading.Thread(target=pool.run, args=(done.set,), name="caller")
    closer = threading.Thread(target=join, name="closer")
    caller.start()
    starting.wait()
    pool.close()
    closer.start()
    joining.wait()
    closer.join(0.05)  # an error comes at once
    go_on.set()
    caller.join()
    closer.join()
    assert errors == []
    assert done.is_set()
