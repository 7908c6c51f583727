"""How a manager starts and ends: one task holds all that is open, so that opening and closing may happen in different
tasks; the first contact with the primary; the last chance to drain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Generic, TypeVar

from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import (
    CheckpointCorruptionError,
    CheckpointerConfigurationError,
    CheckpointerError,
    CheckpointUnavailableError,
    redact,
)
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.observability.events import Notice, Telemetry
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import CallFailed, FailureKind
from enhanced_checkpointing.upkeep.components import Components

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
            except Exception as error:  # noqa: BLE001  # an unforeseen error must not end the checkpointer with it
                self._telemetry.emit(
                    Notice(
                        "ERROR",
                        f"The {name} of the checkpointer ended unexpectedly ({type(error).__name__}: {redact(error)}) "
                        "and is started again. No data is lost by this; please report it.",
                    )
                )
            await asyncio.sleep(RESTART_SECONDS)


SETTLE_SECONDS = 2.0
"""How long attempts left behind, and companions, are waited for at the end."""


async def first_contact(parts: Components, *, require_primary: bool) -> None:
    """Set up and probe for the first time: a wrong setting ends the start, a database that is down does not.

    Raises:
        CheckpointerConfigurationError: waiting does not mend it.
        CheckpointCorruptionError: stored data is damaged.
        CheckpointUnavailableError: the primary is down, and `require_primary`.
    """
    try:
        await parts.prober.prove()
    except CallFailed as failed:
        if failed.kind in (FailureKind.CONFIGURATION, FailureKind.DATA, FailureKind.CORRUPTION) or require_primary:
            raise _refusal(parts.backend.name, failed) from None
        parts.breaker.trip(redact(failed.error))


def _refusal(backend: str, failed: CallFailed) -> CheckpointerError:
    if isinstance(failed.error, CheckpointerError):
        return failed.error
    what = f"The {backend} primary cannot be used: {redact(failed.error)}"
    if failed.kind is FailureKind.CORRUPTION:
        return CheckpointCorruptionError(f"{what}. Stored data is damaged: restore it from a backup.")
    if failed.kind in (FailureKind.CONFIGURATION, FailureKind.DATA):
        fix = failed.failure.fix or "Waiting does not mend this: see the message."
        return CheckpointerConfigurationError(f"{what}. {fix} Nothing was stored.")
    return CheckpointUnavailableError(
        f"{what}. CHECKPOINT_REQUIRE_PRIMARY=true forbids starting without it. Nothing was stored."
    )


async def last_drain(parts: Components, config: CheckpointerConfig) -> None:
    """Refuse new calls, let those under way end, and drain for as long as `shutdown_grace` allows."""
    parts.bridge.close()
    await parts.engine.close(config.deadline + SETTLE_SECONDS)
    if parts.reconciler is None or parts.journal is None or not parts.journal.status().pending:
        return
    deadline = Deadline(time.monotonic, config.shutdown_grace)
    if parts.breaker.is_open:
        probing = asyncio.ensure_future(parts.prober.probe())
        if not await deadline.wait_for(probing):
            probing.cancel()
    await parts.reconciler.wait_drained(deadline.remaining())


def tell_backlog(journal: Journal, telemetry: Telemetry) -> None:
    """Say how much stays in the journal at the end, and what becomes of it."""
    pending = journal.status().pending + journal.status().dead_letters
    if pending and journal.durable:
        fate = "They stay in the journal, and the next start drains them."
        telemetry.emit(Notice("WARNING", f"Stopped with {pending} acknowledged operations not in the primary. {fate}"))
    elif pending:
        fate = "The journal is in memory, so they are lost."
        telemetry.emit(Notice("ERROR", f"Stopped with {pending} acknowledged operations not in the primary. {fate}"))
