"""Calls that only the primary can answer: copying, pruning, deleting by run, and listing across threads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.errors import MOST_SHOWN, listed, shortened
from enhanced_checkpointing.observability.events import OperationScope
from enhanced_checkpointing.resilience.cooperative import collected
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import CallFailed, explained, unavailable
from enhanced_checkpointing.saver.read_path import Engine

T = TypeVar("T")

PATIENCE = 12
"""How many ordinary deadlines a maintenance call may take: pruning a long thread is slow, and rightly so."""


class Maintenance:
    """Raises in an outage. Slow calls are its nature, so none of them moves the breaker.

    `changed` hears which threads were changed, or None for any.
    """

    def __init__(self, engine: Engine, *, changed: Callable[[Sequence[str] | None], None] = lambda _: None) -> None:
        core = engine.core
        self._engine = engine
        self._backend, self._guard, self._breaker = core.backend, core.guard, core.breaker
        self._standby, self._telemetry, self._clock = core.standby, core.telemetry, core.clock
        self._seconds = core.config.deadline
        self._changed = changed

    async def change(
        self,
        operation: str,
        thread_ids: Sequence[str] | None,
        question: Callable[[Backend], Awaitable[T]],
        *,
        source: str | None = None,
    ) -> T:
        """Have the primary change these threads, or any thread for None, behind the back of the standby, which then
        forgets them; the thread `source` is only read for it.

        Raises:
            CheckpointUnavailableError: there is an outage, or one of the threads is not drained yet, or frozen.
        """
        attempted = False

        async def attempt(backend: Backend) -> T:
            nonlocal attempted
            attempted = True
            return await question(backend)

        try:
            concerned = thread_ids if thread_ids is None or source is None else [source, *thread_ids]
            return await self.ask(operation, concerned, attempt, frozen=True)
        finally:
            if attempted:  # or else what is warm is still right, and in an outage it is all there is
                self._standby.forget_all(thread_ids)
                self._changed(thread_ids)
                if self._engine.others is not None:
                    self._engine.others.changed(thread_ids)

    async def list(
        self, filter: dict[str, Any] | None, before: RunnableConfig | None, limit: int | None
    ) -> Sequence[CheckpointTuple]:
        """The checkpoints of all threads that match.

        Raises:
            CheckpointUnavailableError: there is an outage, or a thread is not drained yet.
        """

        async def fetch(saver: BaseCheckpointSaver[Any]) -> Sequence[CheckpointTuple]:
            return await collected(saver.alist(None, filter=filter, before=before, limit=limit))

        return await self.ask("list", None, lambda backend: backend.ask(fetch), frozen=False)

    async def ask(
        self,
        operation: str,
        thread_ids: Sequence[str] | None,
        question: Callable[[Backend], Awaitable[T]],
        *,
        frozen: bool,
        patience: int = PATIENCE,
    ) -> T:
        """Ask the primary about these threads, or about all for None; `frozen` threads count as not drained, or do not.
        It takes as many ordinary deadlines at most as there is `patience`.

        Raises:
            CheckpointUnavailableError: there is an outage, or one of the threads is not drained yet.
        """
        scope = OperationScope(operation, self._backend.name, None)
        about = f"threads {listed(shortened(one, MOST_SHOWN) for one in thread_ids)}" if thread_ids else "all threads"
        with self._telemetry.operation(scope):
            deadline = Deadline(self._clock, patience * self._seconds)
            let_go = await self._others_let_go(thread_ids, frozen=frozen)
            held = self._engine.held_threads() if frozen else self._engine.waiting_threads()
            waiting = [thread for thread in held if thread_ids is None or thread in thread_ids]
            drained = [await self._engine.drain_first(thread, deadline) for thread in waiting]
            if self._breaker.is_open or not (let_go and all(drained)):
                scope.outcome = "unavailable"
                raise unavailable(f"{operation} of {about} needs the primary", "Nothing was changed; try later.")
            failed: CallFailed | None = None
            try:
                answer = await self._guard.once(operation, lambda: question(self._backend), deadline=deadline)
            except CallFailed as caught:
                failed = caught
            if failed is not None:
                raise explained(failed, f"{operation} of {about} did not succeed")
            scope.outcome = "primary"
            self._engine.newcomers.contact()  # a thread that was just copied is there, however young its id is
            return answer

    async def _others_let_go(self, thread_ids: Sequence[str] | None, *, frozen: bool) -> bool:
        """Whether no journal of another worker holds any of these threads, after an ordinary deadline at most."""
        if (others := self._engine.others) is None:
            return True
        deadline = Deadline(self._clock, self._seconds)
        threads: Sequence[str | None] = [None] if thread_ids is None else thread_ids
        return all([await others.let_go(thread_id, deadline, frozen=frozen) for thread_id in threads])
