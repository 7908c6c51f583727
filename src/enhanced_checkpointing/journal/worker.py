"""A thread of the journal's own: a disk that hangs holds up nobody else, not even the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

Job = Callable[[], None]
Run = Callable[[Callable[[], T]], Awaitable[T]]


class Worker:
    """Runs one piece of work after another. Made on the event loop that waits for them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # A daemon: a process may end although its disk never answers.
        self._thread = threading.Thread(target=self._work, name="checkpoint journal", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """The result of `work`, which runs when all earlier work has ended."""
        future: asyncio.Future[T] = self._loop.create_future()

        def job() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001  # it belongs to whoever waits for the future
                self._tell(_fail, future, error)
            else:
                self._tell(_succeed, future, result)

        self._jobs.put(job)
        return future

    def close(self) -> None:
        """Take no more work; the thread ends when it has done what it was given."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _tell(self, tell: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(tell, *arguments)


def _succeed(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
