"""One write on its way, and the caller who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from enhanced_checkpointing.observability.events import OperationScope
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.resilience.attempts import Begun
from enhanced_checkpointing.resilience.deadline import Deadline


@dataclass(slots=True, eq=False)
class Call:
    """A write, what is told of it, and the caller who waits until it has `ended`."""

    operation: Operation
    scope: OperationScope
    deadline: Deadline
    ended: asyncio.Future[None]
    unheard: Callable[[Operation], None] = lambda _: None
    """Hears of a refusal that no caller waits for any more."""
    begun: Begun[None] | None = None
    """What it began at the primary, when it did that by itself."""
    thread_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.thread_id = self.operation.thread_id

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
