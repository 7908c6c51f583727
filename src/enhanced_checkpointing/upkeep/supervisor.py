"""One task that holds an exit stack and a task group, so that opening and closing may happen in different tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Generic, TypeVar

from enhanced_checkpointing.errors import redact
from enhanced_checkpointing.observability.events import Notice, Telemetry

T = TypeVar("T")

RESTART_SECONDS = 1.0
"""Pause before background work that ended with an unforeseen error is started again."""


class Supervisor(Generic[T]):
    """Opens something with `open_all(stack)`, keeps `background(opened)` running, and closes all when told to.

    `before_closing(opened)` runs once the end was asked for, while the background still works.
    """

    def __init__(
        self,
        *,
        open_all: Callable[[AsyncExitStack], Awaitable[T]],
        background: Callable[[T], dict[str, Callable[[], Awaitable[None]]]],
        before_closing: Callable[[T], Awaitable[None]],
        telemetry: Telemetry,
    ) -> None:
        self._open_all = open_all
        self._background = background
        self._before_closing = before_closing
        self._telemetry = telemetry
        self._end_asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_ending(self) -> bool:
        """Whether the end was asked for."""
        return self._end_asked.is_set()

    async def start(self) -> T:
        """Open everything and return it. If that fails, or the caller is cancelled, nothing stays open."""
        opened: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise(opened), name="checkpointer supervisor")
        either: set[asyncio.Future[T] | asyncio.Future[None]] = {self._task, opened}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait({self._task})
            raise
        if not opened.done():
            self._task.result()  # raises what went wrong
        return opened.result()

    async def end(self) -> None:
        """Close everything and wait until that is done; any number of callers may wait."""
        self._end_asked.set()
        if self._task is not None:
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.result()

    async def _supervise(self, opened: asyncio.Future[T]) -> None:
        async with AsyncExitStack() as stack:
            everything = await self._open_all(stack)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._keep_running(name, run), name=f"checkpointer {name}")
                    for name, run in self._background(everything).items()
                ]
                opened.set_result(everything)
                await self._end_asked.wait()
                await self._before_closing(everything)
                for task in tasks:
                    task.cancel()

    async def _keep_running(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await run()
            except Exception as error:  # noqa: BLE001  # an error nobody foresaw must not end the checkpointer with it
                self._telemetry.emit(
                    Notice(
                        "ERROR",
                        f"The {name} of the checkpointer ended unexpectedly ({type(error).__name__}: {redact(error)}) "
                        "and is started again. No data is lost by this; please report it.",
                    )
                )
            await asyncio.sleep(RESTART_SECONDS)
