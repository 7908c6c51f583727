"""What the ways of reads, writes and maintenance calls share: built once, and changed by none of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.observability.events import OperationScope, Telemetry
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.resilience.attempts import Begun
from enhanced_checkpointing.resilience.breaker import Breaker, Clock
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.saver.other_workers import OtherWorkers
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.standby.cache import NewThreads, Standby


@dataclass(frozen=True, kw_only=True)
class Core:
    """One of each."""

    config: CheckpointerConfig
    backend: Backend
    guard: Guard
    breaker: Breaker
    journal: Journal | None
    standby: Standby
    serializer: SharingSerializer
    telemetry: Telemetry
    clock: Clock = time.monotonic
    wall_clock: Clock = time.time

    @cached_property
    def others(self) -> OtherWorkers | None:
        """The other workers of the journal's directory; None: there can be none."""
        workers = self.journal.workers if self.journal is not None else None
        return OtherWorkers(workers, self.breaker) if workers is not None else None

    @cached_property
    def new_threads(self) -> NewThreads:
        """The rules for threads that may start in an outage."""
        return NewThreads(
            self.standby,
            start_fresh=self.config.on_unknown_thread == "start_fresh",
            wall_clock=self.wall_clock,
            held=self.journal.holds if self.journal is not None else lambda _: False,
            begins=self.others.known.begins if self.others is not None else lambda thread_id, age: True,
        )

    def deadline(self) -> Deadline:
        """The end of a call that begins now."""
        return Deadline(self.clock, self.config.deadline)


class Call:
    """A write on its way, what is told of it, and the caller who waits until it has `ended`.

    `unheard` hears of a refusal that no caller waits for any more. Written out, as a dataclass with a field that
    follows from another takes two calls to make.
    """

    __slots__ = ("begun", "deadline", "ended", "operation", "scope", "thread_id", "unheard")

    def __init__(
        self,
        operation: Operation,
        scope: OperationScope,
        deadline: Deadline,
        ended: asyncio.Future[None],
        unheard: Callable[[Operation], None] = lambda _: None,
    ) -> None:
        self.operation = operation
        self.thread_id = operation.thread_id
        self.scope = scope
        self.deadline = deadline
        self.ended = ended
        self.unheard = unheard
        self.begun: Begun[None] | None = None
        """What it began at the primary, when it did that by itself."""

    def acknowledge(self, outcome: str) -> None:
        self.scope.outcome = outcome
        if not self.ended.done():
            self.ended.set_result(None)

    def refuse(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            self.ended.cancel()
        elif not self.ended.done():
            self.ended.set_exception(error)
        elif self.ended.cancelled():
            self.unheard(self.operation)
