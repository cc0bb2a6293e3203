"""What requests hold in memory: never more than they may, and nobody waits for ever."""

import asyncio
from contextvars import Context

import pytest

from deployments.errors import Overloaded
from serve_app.limits import AHEAD_BYTES, FEW_BYTES, HoldsTooMuch, Memory, hold, hold_in_turn
from tests.waiting import PATIENCE_S

MiB = 1024 * 1024


def test_streams_that_come_together_all_come_to_an_end() -> None:
    """Each holds more than there is room for, if all were to begin."""
    memory = Memory(8 * MiB, 1)
    most = 0

    async def stream() -> None:
        nonlocal most
        for _ in range(3):  # batches
            with memory.holding():
                for _ in range(6 * 16):
                    await hold_in_turn(MiB // 16)
                    most = max(most, memory.held)
                    await asyncio.sleep(0)

    async def scenario() -> None:
        await asyncio.gather(*(asyncio.create_task(stream(), context=Context()) for _ in range(20)))

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))
    assert memory.held == 0
    assert most <= 8 * MiB // AHEAD_BYTES * 6 * MiB  # of 20 at a time four


def test_one_that_is_alone_holds_what_it_needs_in_whatever_parts() -> None:
    async def scenario() -> None:
        memory = Memory(MiB, 1)
        with memory.holding():
            hold(FEW_BYTES + 1)
            with memory.holding():
                await hold_in_turn(3 * MiB)
            assert memory.held == FEW_BYTES + 1
        assert memory.held == 0

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


def test_what_is_held_ends_with_its_block_whatever_happens() -> None:
    memory = Memory(MiB, 1)
    with memory.holding():
        hold(MiB - 1)
        with pytest.raises(HoldsTooMuch, match="one request may hold 1048576 bytes"):
            hold(2)
        assert memory.held == MiB - 1

        def another() -> None:
            with memory.holding():
                hold(FEW_BYTES)  # is let in
                with pytest.raises(Overloaded):
                    hold(1)

        Context().run(another)
        assert memory.held == MiB - 1
    assert memory.held == 0
    hold(5)  # of nobody's request
