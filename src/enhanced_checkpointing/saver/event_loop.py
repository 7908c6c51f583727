"""Calls from any thread and any event loop, brought to the one on which a manager lives; and that loop, where the
manager has one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from enhanced_checkpointing.errors import CheckpointerError

T = TypeVar("T")
P = ParamSpec("P")

END_SECONDS = 5.0
"""How long tasks that are left in a loop of our own may take to end."""


class LoopBridge:
    """Carries calls into the event loop on which a manager lives."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._process_id = os.getpid()
        self.here: asyncio.AbstractEventLoop | None = loop
        """The loop on which a call needs no bridge: a running one is in no forked child, asyncio sees to that. None:
        all calls are refused."""

    def close(self) -> None:
        """Refuse all further calls."""
        self.here = None

    def bring(self, call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **named: P.kwargs) -> Awaitable[T]:
        """Call on the manager's loop, from whichever loop is running; to be awaited at once.

        Raises:
            CheckpointerError: the manager is closed, its loop has ended, or this is a forked child.
        """
        if self.here is not None and _running_loop() is self.here:
            return call(*args, **named)
        self._check()
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(*args, **named), self._loop))

    def wait(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `call()` on the manager's loop and wait for it, from any other thread.

        Raises:
            CheckpointerError: this thread runs the manager's loop, so that waiting would never end; or as `bring`.
        """
        self._check()
        if _running_loop() is self._loop:
            raise CheckpointerError(
                "A synchronous call of the checkpointer on the thread of its own event loop would wait for itself for "
                "ever; nothing was read or written. Use the async method (`await graph.ainvoke(…)`), call from "
                "another thread (`await asyncio.to_thread(graph.invoke, …)`), or give the manager a loop of its own "
                "with enable_async=False."
            )
        future = asyncio.run_coroutine_threadsafe(call(), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # only if this thread was interrupted while it waited

    def _check(self) -> None:
        if os.getpid() != self._process_id:
            raise CheckpointerError(
                "This process was forked after the checkpointer was started, and neither connections nor event loops "
                "survive a fork; nothing was read or written. Call initialize_enhanced_checkpointing() in the child."
            )
        if self.here is None or not self._loop.is_running():
            raise CheckpointerError(
                "The checkpointer is closed, or its event loop has ended; nothing was read or written. Keep the "
                "manager open for as long as graphs run, and call cleanup() after them."
            )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class LoopThread:
    """A daemon thread that runs a new event loop until `stop`."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()  # psycopg cannot run on the one that Windows would choose
        self._thread = threading.Thread(target=self._run, name="enhanced-checkpointing", daemon=True)
        self._started = threading.Event()
        self._thread.start()
        self._started.wait()

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
            self.loop.run_until_complete(self._end_executor())
            self.loop.close()

    async def _end_tasks(self) -> None:
        """End what a caller who was cancelled in mid-cleanup has left."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=END_SECONDS)

    async def _end_executor(self) -> None:
        """Wait for the threads of the loop, but not for one that hangs, such as in a name look-up."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.loop.shutdown_default_executor(), END_SECONDS)


class LoopHost:
    """The loop on which everything of one manager runs; settled by `move_in`, left by `move_out`."""

    def __init__(self) -> None:
        self._thread: LoopThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process_id = 0

    def move_in(self, *, own_loop: bool) -> None:
        """Live on the running loop, or, with `own_loop`, on a new one in a thread."""
        self._process_id = os.getpid()
        if own_loop:
            self._thread = LoopThread()
        self._loop = self._thread.loop if self._thread is not None else asyncio.get_running_loop()

    def move_out(self) -> bool:
        """End the loop, if it is one of our own, and tell whether it was."""
        thread, self._thread, self._loop = self._thread, None, None
        if thread is not None:
            thread.stop()
        return thread is not None

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked off: who lives here is in its parent."""
        return self._loop is not None and self._process_id != os.getpid()

    @property
    def is_left(self) -> bool:
        """Whether nobody lives here: not yet, or not any more."""
        return self._loop is None

    async def bring(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await `work()` at home, from whichever loop is running."""
        if self._loop is None or self._loop is asyncio.get_running_loop():
            return await work()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self._loop))

    def wait(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work()` at home and wait for it, from a thread that runs no loop of ours."""
        if self._loop is None:
            raise RuntimeError("there is no home to run this on")
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result()

    def tell(self, work: Callable[[], None]) -> None:
        """Call `work()` at home, before anything that is brought there later."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if self._loop is None or self._loop is here:
            work()
        else:
            self._loop.call_soon_threadsafe(work)
