"""One flow, two drivers: values, errors, cancellation and nesting are the same under both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable

import pytest

from twinvec.flows import Flow, awaiting, block, blocking, call, threaded, wait
from twinvec.overriding import heard


class Adder:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def add(self, a: int, b: int = 0) -> int:
        self.seen.append("add")
        if b < 0:
            raise ValueError("negative")
        return a + b

    async def aadd(self, a: int, b: int = 0) -> int:
        self.seen.append("aadd")
        await asyncio.sleep(0)
        if b < 0:
            raise ValueError("negative")
        return a + b

    async def both(self, a: int, b: int) -> int:
        return await self.once(await self.once(a, b), b)

    async def once(self, a: int, b: int) -> int:
        return await call(self.add, self.aadd, a, b=b)

    async def forgiving(self, a: int, b: int) -> str:
        try:
            return str(await self.once(a, b))
        except ValueError as error:
            return f"caught {error}"
        finally:
            self.seen.append("finally")

    @threaded
    def where(self) -> int:
        return threading.get_ident()

    @blocking
    async def summed(self, a: int, *, b: int = 0) -> int:
        """Return the sum."""
        return await call(self.add, self.aadd, a, b)

    asummed = heard(awaiting(summed))
    with_another_name = awaiting(summed, "with_another_name")

    @blocking
    async def _hidden(self) -> None: ...

    _ahidden = awaiting(_hidden)


def test_each_driver_takes_its_own_form_of_a_call() -> None:
    adder = Adder()
    assert block(adder.both(1, 2)) == 5
    assert adder.seen == ["add", "add"]
    assert asyncio.run(wait(adder.both(1, 2))) == 5
    assert adder.seen == ["add", "add", "aadd", "aadd"]


@pytest.mark.parametrize("drive", [block, lambda flow: asyncio.run(wait(flow))], ids=["block", "wait"])
def test_errors_are_raised_where_the_flow_awaits(drive: Callable[[Flow[object]], object]) -> None:
    adder = Adder()
    assert drive(adder.forgiving(1, -1)) == "caught negative"
    assert adder.seen[-1] == "finally"
    with pytest.raises(ValueError, match="negative"):
        drive(adder.both(1, -1))


async def test_blocking_works_inside_of_a_running_loop() -> None:
    assert block(Adder().both(1, 2)) == 5


async def test_threads_only_where_a_loop_waits() -> None:
    async def where() -> int:
        return await Adder().where()

    assert block(where()) == threading.get_ident()
    assert await wait(where()) != threading.get_ident()


async def test_a_method_and_its_twin_are_made_of_one_flow() -> None:
    adder = Adder()
    assert adder.summed(1, b=2) == 3
    assert adder.seen == ["add"]
    assert await adder.asummed(1, b=2) == await adder.with_another_name(1, b=2) == 3
    assert adder.seen == ["add", "aadd", "aadd"]
    assert inspect.signature(Adder.asummed) == inspect.signature(Adder.summed)
    assert (Adder.summed.__doc__, Adder.asummed.__doc__) == ("Return the sum.", "See ``summed``.")
    assert inspect.iscoroutinefunction(Adder.asummed)
    assert not inspect.iscoroutinefunction(Adder.summed)
    twins = (Adder.asummed, Adder.with_another_name, Adder._ahidden)
    assert [made.__qualname__ for made in twins] == ["Adder.asummed", "Adder.with_another_name", "Adder._ahidden"]


async def test_a_twin_hears_an_override_of_the_blocking_method_alone() -> None:
    class Doubling(Adder):
        def summed(self, a: int, *, b: int = 0) -> int:
            return 2 * super().summed(a, b=b)

    class Both(Doubling):
        async def asummed(self, a: int, *, b: int = 0) -> int:
            return -(await super().asummed(a, b=b))

        def summed(self, a: int, *, b: int = 0) -> int:
            return 0

    doubling = Doubling()
    assert await doubling.asummed(1, b=2) == 6
    assert await doubling.with_another_name(1, b=2) == 3
    assert await Both().asummed(1, b=2) == -3


async def test_cancellation_reaches_the_flow() -> None:
    seen = []
    started = asyncio.Event()

    async def forever() -> None:
        started.set()
        await asyncio.Event().wait()

    async def flow() -> None:
        try:
            await call(lambda: None, forever)
        finally:
            seen.append("cleaned up")

    task = asyncio.ensure_future(wait(flow()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cleaned up"]
