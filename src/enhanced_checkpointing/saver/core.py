"""What the ways of reads, writes and maintenance calls share: built once, and changed by none of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

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
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.standby.new_threads import NewThreads


@dataclass(frozen=True, slots=True)
class Core:
    """One of each. `others` are the other workers of the journal's directory; None: there can be none."""

    config: CheckpointerConfig
    backend: Backend
    guard: Guard
    breaker: Breaker
    journal: Journal | None
    standby: Standby
    serializer: SharingSerializer
    telemetry: Telemetry
    new_threads: NewThreads
    others: OtherWorkers | None
    clock: Clock = time.monotonic
    wall_clock: Clock = time.time

    @classmethod
    def of(
        cls,
        *,
        config: CheckpointerConfig,
        backend: Backend,
        guard: Guard,
        breaker: Breaker,
        journal: Journal | None,
        standby: Standby,
        serializer: SharingSerializer,
        telemetry: Telemetry,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
    ) -> Core:
        """With the rules for new threads, and the other workers, that follow from these."""
        workers = journal.workers if journal is not None else None
        new_threads = NewThreads(
            standby,
            start_fresh=config.on_unknown_thread == "start_fresh",
            wall_clock=wall_clock,
            held=journal.holds if journal is not None else lambda _: False,
            begins=workers.begins if workers is not None else lambda thread_id, age: True,
        )
        others = OtherWorkers(workers, breaker) if workers is not None else None
        return cls(
            config,
            backend,
            guard,
            breaker,
            journal,
            standby,
            serializer,
            telemetry,
            new_threads,
            others,
            clock,
            wall_clock,
        )

    def deadline(self) -> Deadline:
        """The end of a call that begins now."""
        return Deadline(self.clock, self.config.deadline)


@dataclass(slots=True, eq=False)
class Call:
    """A write on its way, what is told of it, and the caller who waits until it has `ended`."""

    operation: Operation
    scope: OperationScope
    deadline: Deadline
    ended: asyncio.Future[None]
    unheard: Callable[[Operation], None] = lambda _: None
    """Hears of a refusal that no caller waits for any more."""
    begun: Begun[None] | None = None
    """What it began at the primary, when it did that by itself."""

    @property
    def thread_id(self) -> str:
        return self.operation.thread_id

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
