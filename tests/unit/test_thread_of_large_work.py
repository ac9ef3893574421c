"""Large work in a thread: it takes the objects of a failure with it."""

import threading

import pytest

from chatrpc_server.process import large_work


class Noted:
    """An object that notes the thread that frees it."""

    def __init__(self, freed_in: list[str]) -> None:
        self._freed_in = freed_in

    def __del__(self) -> None:
        self._freed_in.append(threading.current_thread().name)


async def test_a_failure_frees_its_values_in_the_thread() -> None:
    freed_in: list[str] = []

    def fail() -> None:
        value = Noted(freed_in)
        raise ValueError(str(bool(value)))

    with pytest.raises(ValueError, match="True"):
        await large_work.run(large_work.LARGE_BYTES, fail)
    assert len(freed_in) == 1
    assert freed_in[0].startswith("large-work")
