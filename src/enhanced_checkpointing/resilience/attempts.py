"""One try of one call: what the backend tells of it, and what whoever watches it knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from enhanced_checkpointing.resilience.breaker import Ticket
from enhanced_checkpointing.resilience.deadline import Deadline, Wake
from enhanced_checkpointing.resilience.failures import CallFailed

T = TypeVar("T")


@dataclass(slots=True)
class Attempt:
    """One try of one call. The backend tells it what to cut when the attempt is left behind.

    `subjects` are the threads the call is about; `writes` whether a late commit would change data.
    """

    operation: str
    subjects: Collection[str]
    writes: bool
    clock: Callable[[], float]
    sever: Callable[[], None] | None = None
    wake: Wake | None = None
    """Ends the wait of whoever watches this attempt."""
    held_at: float | None = None
    """When the attempt first got hold of a connection: what it waited before was our own queue."""
    launch: Callable[[], None] | None = None
    """Gives an attempt without a task to the thread that makes it."""
    tells: bool = False
    """Whether it is sure to wake whoever watches it, however it ends."""

    def hold(self, sever: Callable[[], None]) -> None:
        self.sever = sever
        if self.held_at is None:
            self.held_at = self.clock()

    def let_go(self) -> None:
        self.sever = None

    def watched(self, wake: Wake) -> bool:
        """Somebody waits for the attempt; says if it is sure to call `wake`. One without a task goes to its thread only
        now, when there is nothing left to do here: a thread that wakes up while this one is busy must sleep once
        more."""
        self.wake = wake
        if self.launch is not None:
            launch, self.launch = self.launch, None
            launch()
        return self.tells

    def over(self) -> None:
        """The attempt has ended: the last thing it does, which spares its watcher a turn of the event loop."""
        if self.wake is not None:
            self.wake()


class Answer(asyncio.Future[None]):
    """The end of an attempt that a thread makes, without a task on the event loop."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__()
        self._attempt = attempt
        attempt.tells = True

    def set_result(self, result: None) -> None:
        self._attempt.let_go()
        super().set_result(result)
        self._attempt.over()

    def set_exception(self, error: type[BaseException] | BaseException) -> None:
        self._attempt.let_go()
        super().set_exception(error)
        self._attempt.over()

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._attempt.over()
        return cancelled


Lone = Callable[[Attempt], Answer | None]
"""Prepares an attempt that needs no task, if that is possible now."""


@dataclass(slots=True)
class Begun(Generic[T]):
    """An attempt that is under way; whoever watches it learns how it ends, and may watch again."""

    attempt: Attempt
    deadline: Deadline
    ticket: Ticket
    task: asyncio.Future[T]
    """The attempt itself, where it has a task, or the answer that will come."""
    half: float
    """What is left of the deadline when half of the time that there was has gone by."""
    began_at: float
    """The clock's time, stalls not counted."""
    asked_at: float
    """The clock's time."""
    failed: CallFailed | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody cancels it: the event loop as it ends, or for a moment it itself."""
        task = self.task
        return task.cancelled() or (isinstance(task, asyncio.Task) and task.cancelling() > 0)

    @property
    def has_task(self) -> bool:
        return isinstance(self.task, asyncio.Task)

    def when_over(self, then: Callable[[], None]) -> None:
        """Call `then` once, when the attempt has ended or its time has."""

        def once(_: object = None) -> None:
            late.cancel()
            self.task.remove_done_callback(once)
            then()

        late = asyncio.get_running_loop().call_later(self.deadline.remaining(), once)
        self.task.add_done_callback(once)


current_attempt: ContextVar[Attempt | None] = ContextVar("current_attempt", default=None)
