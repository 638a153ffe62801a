"""Interrupts of one task beside cancellations by others."""

import asyncio
import sys
from typing import Any

import pytest

from twinvec.server.interrupts import Interrupt

counted = pytest.mark.skipif(sys.version_info < (3, 11), reason="nobody counts cancellations")


async def interrupted(interrupt: Interrupt) -> None:
    asyncio.get_running_loop().call_soon(interrupt)
    await asyncio.Event().wait()


async def test_the_block_ends_and_the_task_goes_on() -> None:
    with Interrupt() as interrupt:
        await interrupted(interrupt)
    assert interrupt.happened
    await asyncio.wait_for(asyncio.sleep(0), 60)


async def test_a_deadline_that_is_kept_interrupts_nothing() -> None:
    with Interrupt() as interrupt:
        interrupt.in_seconds(60)
    assert not interrupt.happened


@counted
async def test_another_error_leaves_no_cancellation_behind() -> None:
    async def fail_when_interrupted() -> None:
        with Interrupt() as interrupt:
            try:
                await interrupted(interrupt)
            except asyncio.CancelledError:
                raise LookupError from None

    with pytest.raises(LookupError):
        await fail_when_interrupted()
    task: Any = asyncio.current_task()
    assert task.cancelling() == 0


@counted
async def test_a_cancellation_by_another_goes_on_beside_an_interrupt() -> None:
    begun = asyncio.Event()

    async def work(interrupts: list[Interrupt]) -> None:
        with Interrupt() as interrupt:
            interrupts.append(interrupt)
            begun.set()
            await asyncio.Event().wait()

    interrupts: list[Interrupt] = []
    task = asyncio.create_task(work(interrupts))
    await begun.wait()
    task.cancel()
    interrupts[0]()
    with pytest.raises(asyncio.CancelledError):
        await task
