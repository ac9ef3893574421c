# ruff: noqa: PT012  # the object under test is a context manager
"""One timer for all waits of a stream: it raises as asyncio.timeout does, and never outside a wait."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from chatrpc_server.core.errors import TimedOut
from chatrpc_server.upstream.idle_timeout import IdleTimeout

LONG = 60.0


def idle_timeout() -> IdleTimeout:
    return IdleTimeout("nothing for {:g} s")


async def test_a_wait_that_is_too_long() -> None:
    with pytest.raises(TimedOut, match=r"nothing for 0\.02 s"):
        async with idle_timeout() as timeout:
            timeout.arm(0.02)
            await asyncio.sleep(LONG)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_each_wait_has_its_own_time() -> None:
    """It may be longer or shorter than the previous one, which was long enough."""
    with pytest.raises(TimedOut, match=r"nothing for 0\.03 s"):
        async with idle_timeout() as timeout:
            for seconds in (LONG, 0.05, 0.5, 0.05, LONG):
                timeout.arm(seconds)
                await asyncio.sleep(0.02)
            timeout.arm(0.03)
            await asyncio.sleep(LONG)


async def test_the_timer_is_off_between_waits() -> None:
    async with idle_timeout() as timeout:
        timeout.arm(0.01)
        timeout.disarm()
        await asyncio.sleep(0.03)
        timeout.arm(LONG)
        await asyncio.sleep(0.03)


async def test_the_consumer_of_a_suspended_generator_is_not_interrupted() -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        async with idle_timeout() as timeout:
            for number in range(3):
                timeout.arm(0.02)
                await asyncio.sleep(0)
                timeout.disarm()
                yield number
            timeout.arm(0.02)
            await asyncio.sleep(LONG)

    seen = []
    with pytest.raises(TimedOut):
        async with aclosing(numbers()) as stream:
            async for number in stream:
                await asyncio.sleep(0.04)
                seen.append(number)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("cancel_first", [True, False], ids=["the cancel first", "the timer first"])
async def test_a_simultaneous_cancel_wins(cancel_first: bool) -> None:
    """Both happen before the task runs again."""
    timeout = idle_timeout()

    async def wait_too_long() -> None:
        async with timeout:
            timeout.arm(0)
            await asyncio.sleep(LONG)

    task = asyncio.create_task(wait_too_long())
    await asyncio.sleep(0)  # it waits now; the timer fires in the next turn
    for ends in (task.cancel, timeout._on_timer) if cancel_first else (timeout._on_timer, task.cancel):
        ends()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_result_in_the_turn_of_the_timer_is_too_late() -> None:
    """The wait is done and its task is scheduled; the timer fires in the same turn."""
    loop = asyncio.get_running_loop()
    comes = loop.create_future()
    with pytest.raises(TimedOut):
        async with idle_timeout() as timeout:
            timeout.arm(0.01)
            timeout._timer.cancel()  # type: ignore[union-attr]
            loop.call_later(0.02, comes.set_result, None)
            loop.call_later(0.02, timeout._on_timer)
            await comes
            await asyncio.sleep(LONG)


async def test_another_exception_wins() -> None:
    with pytest.raises(KeyError):
        async with idle_timeout() as timeout:
            timeout.arm(0)
            try:
                await asyncio.sleep(LONG)
            finally:
                raise KeyError
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_nested_timeouts() -> None:
    """For example the connect timeout within the first chunk's."""
    with pytest.raises(TimedOut):
        async with idle_timeout() as timeout:
            timeout.arm(0.01)
            async with asyncio.timeout(LONG):
                await asyncio.sleep(LONG)
    with pytest.raises(TimeoutError):
        async with idle_timeout() as timeout:
            timeout.arm(LONG)
            async with asyncio.timeout(0.01):
                await asyncio.sleep(LONG)
    with pytest.raises(TimedOut):
        async with idle_timeout() as timeout:
            timeout.arm(0)
            async with asyncio.timeout(0):
                await asyncio.sleep(LONG)


async def test_no_timer_is_left() -> None:
    async with idle_timeout() as timeout:
        timeout.arm(LONG)
    assert timeout._timer is not None
    assert timeout._timer.cancelled()
    async with idle_timeout() as timeout:
        pass
