"""Long work in short turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from enhanced_checkpointing.resilience.cooperative import collected


async def coming() -> AsyncIterator[int]:
    for number in range(5):
        yield number


@pytest.mark.parametrize("kind", ["asynchronous", "plain"])
async def test_between_two_items_everything_else_gets_its_turn(kind: str) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(other())
    assert await collected(coming() if kind == "asynchronous" else iter(range(5))) == [0, 1, 2, 3, 4]
    beside.cancel()
    assert turns >= 3
