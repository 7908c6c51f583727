"""Long work on the event loop in short turns: everything else that waits for the loop runs in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def collected(items: AsyncIterable[T] | Iterable[T]) -> list[T]:
    """All items, each of which takes a while to make. Between two of them the event loop goes on: a turn costs about
    as much as the smallest item, and a count of items, unlike a clock, is the same in a simulation."""
    found: list[T] = []
    if isinstance(items, AsyncIterable):
        async for item in items:
            if found:
                await asyncio.sleep(0)
            found.append(item)
        return found
    for item in items:
        if found:
            await asyncio.sleep(0)
        found.append(item)
    return found
