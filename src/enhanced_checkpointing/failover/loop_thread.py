"""An event loop of the manager's own, in a thread, for programs that have none or that block theirs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

END_SECONDS = 2.0
"""How long tasks that were left in the loop are waited for at its end."""


class LoopThread:
    """Starts a daemon thread that runs a new event loop until `stop`."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()  # psycopg cannot run on the one that Windows would choose
        self._thread = threading.Thread(target=self._run, name="enhanced-checkpointing", daemon=True)
        self._started = threading.Event()
        self._thread.start()
        self._started.wait()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it; not from the loop's own thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stop(self) -> None:
        """End the loop and wait for its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._started.set)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self._end_tasks())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    async def _end_tasks(self) -> None:
        """End what a caller who was cancelled in mid-cleanup has left."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=END_SECONDS)
