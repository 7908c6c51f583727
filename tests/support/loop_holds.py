"""How long the event loop is held: processor time that its thread takes between two turns of a ticking task."""

from __future__ import annotations

import asyncio
import gc
import time
from types import TracebackType
from typing import Self


class LoopHolds:
    """`longest`: seconds of the longest hold while it was open.

    Processor time, so that a busy machine adds nothing. What the garbage collector takes is `collecting`, the longest
    of its runs, and not in `longest`: it looks at all objects of the application, of which ours are a part.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self.collecting = 0.0
        self._collected = 0.0
        self._collection_began = 0.0
        self._ticking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        gc.callbacks.append(self._collects)
        self._ticking = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.sleep(0)  # so that what has just ended is counted
        assert self._ticking is not None
        self._ticking.cancel()
        await asyncio.wait({self._ticking})
        gc.callbacks.remove(self._collects)

    def _collects(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collection_began = time.thread_time()
            return
        took = time.thread_time() - self._collection_began
        self._collected += took
        self.collecting = max(self.collecting, took)

    async def _tick(self) -> None:
        last = time.thread_time()
        while True:
            self._collected = 0.0
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest = max(self.longest, now - last - self._collected)
            last = now
