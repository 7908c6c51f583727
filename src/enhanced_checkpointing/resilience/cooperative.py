"""Long work that must not hold up the event loop: in short turns on it, or in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import suppress
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


async def in_thread_of_its_own(work: Callable[[], T], name: str) -> T:
    """The result of `work`, which blocks: the loop's executor may be full of callers that wait for this very work.
    A caller that is cancelled leaves it behind; it does not hold up the process's end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # what `work` returned

    def run() -> None:
        result: T | None = None
        failed: Exception | None = None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  # it belongs to whoever waits
            failed = error
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
