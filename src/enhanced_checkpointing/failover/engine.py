"""The engine: the rules by which one call goes to the primary, the journal or the standby.

It decides through the pure functions of `routes`, and acts through the guard, the journal and the standby. A write is
settled by a task of its own, so that a caller who is cancelled leaves no half-done operation behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)

from enhanced_checkpointing.backends.contract import Backend
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointUnavailableError, redact
from enhanced_checkpointing.failover.explanations import NOT_STORED, cold, explained, unavailable
from enhanced_checkpointing.failover.newcomers import Newcomers
from enhanced_checkpointing.failover.routes import (
    Lanes,
    Route,
    Verdict,
    after_failed_read,
    after_failed_write,
    route_of,
)
from enhanced_checkpointing.failover.standby import Standby
from enhanced_checkpointing.journal.contract import Journal
from enhanced_checkpointing.operations import DeleteThread, Operation, accept_put, accept_writes, thread_of
from enhanced_checkpointing.resilience.breaker import Breaker, Clock
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failure_kinds import CallFailed, FailureKind
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.telemetry.events import ConfigurationFault, FailedOver, Notice, OperationScope, Telemetry

T = TypeVar("T")


CANNOT_SERVE = (FailureKind.OUTAGE, FailureKind.CONFIGURATION)
"""What the primary said, not what its silence may mean."""

FOR_THE_JOURNAL = 0.1
"""The share of its deadline that a write keeps for the journal: the primary is not waited for, or tried, in it."""

LEAST_FOR_THE_JOURNAL = 0.05
"""Seconds that the journal gets in any case; with what `HAND_OVER_SECONDS` may add, a call may be 0.1 s late."""


class Engine:
    """Serves the calls of one manager. All methods run on the manager's event loop."""

    def __init__(
        self,
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
    ) -> None:
        self._config = config
        self._backend = backend
        self._guard = guard
        self._breaker = breaker
        self._journal = journal
        self._standby = standby
        self._serializer = serializer
        self._telemetry = telemetry
        self._clock = clock
        self._settling: set[asyncio.Task[None]] = set()
        self.newcomers = Newcomers(
            standby,
            start_fresh=config.on_unknown_thread == "start_fresh",
            wall_clock=wall_clock,
            held=journal.holds if journal is not None else lambda _: False,
        )
        self.lanes = Lanes()
        self.journaled = 0
        """Operations journaled so far."""
        self.at_primary = 0
        """Live calls that are with the primary now."""
        self.estranged: set[str] = set()
        """Threads whose branch was put into quarantine: the primary lacks the values that a running graph builds on."""
        self.on_journaled: Callable[[], None] = lambda: None
        """Called after every journaled operation; set by whoever drains."""
        self.drain_first: Callable[[str, Deadline], Awaitable[bool]] = _nobody_drains
        """Drains one thread ahead of the others and tells whether it is drained; set by whoever drains."""

    # What LangGraph asks for

    async def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self._read(
            "get",
            config,
            primary=lambda saver: saver.aget_tuple(config),
            standby=lambda: self._standby.get_tuple(config),
            keep=lambda found: self._standby.warm(config, found),
        )

    async def list(
        self,
        config: RunnableConfig,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Sequence[CheckpointTuple]:
        async def fetch(saver: BaseCheckpointSaver[Any]) -> Sequence[CheckpointTuple]:
            return [found async for found in saver.alist(config, filter=filter, before=before, limit=limit)]

        return await self._read(
            "list",
            config,
            primary=fetch,
            standby=lambda: self._standby.history(config, filter, before, limit),
            keep=lambda _: None,
        )

    async def delta_history(self, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, DeltaChannelHistory]:
        return await self._read(
            "get",
            config,
            primary=lambda saver: saver.aget_delta_channel_history(config=config, channels=channels),
            standby=lambda: self._standby.delta_history(config, channels),
            keep=lambda found: self._standby.warm_history(config, found),
        )

    async def put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, versions: ChannelVersions
    ) -> RunnableConfig:
        put = accept_put(
            config,
            checkpoint,
            metadata,
            versions,
            serializer=self._serializer,
            known_blob=self._standby.blob,
        )
        await self._write(put.complete() if put.thread_id in self.estranged else put)
        return put.stored_config()

    async def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> None:
        await self._write(accept_writes(config, writes, task_id, task_path, serializer=self._serializer))

    async def delete_thread(self, thread_id: str) -> None:
        await self._write(DeleteThread(thread_id))

    # Reading

    async def _read(
        self,
        operation: str,
        config: RunnableConfig,
        *,
        primary: Callable[[BaseCheckpointSaver[Any]], Awaitable[T]],
        standby: Callable[[], T],
        keep: Callable[[T], None],
    ) -> T:
        thread_id = thread_of(config)
        scope = OperationScope(operation, self._backend.name, thread_id)
        with self._telemetry.operation(scope):
            deadline = self._new_deadline()
            route = self._route(thread_id)
            if route is Route.JOURNAL and not self._breaker.is_open and await self.drain_first(thread_id, deadline):
                route = Route.PRIMARY
            scope.route = route.value
            if route is Route.JOURNAL:
                return self._ask_standby(scope, thread_id, standby, None)
            watch = self._standby.watch(thread_id)
            failed: CallFailed | None = None
            self.at_primary += 1
            try:
                found = await self._guard.call(
                    operation,
                    lambda: self._backend.ask(primary),
                    deadline=deadline,
                    subject=thread_id,
                    patient=operation == "list",
                )
            except CallFailed as caught:
                failed = caught
            finally:
                self.at_primary -= 1
            if failed is not None:
                return self._after_failed_read(scope, thread_id, failed, standby)
            scope.outcome = "primary"
            self.newcomers.contact()
            if not watch.is_stale:  # nothing was dropped while the answer was on its way
                keep(found)
            return found

    def _after_failed_read(
        self, scope: OperationScope, thread_id: str, failed: CallFailed, standby: Callable[[], T]
    ) -> T:
        scope.error_type = type(failed.error).__name__
        verdict = after_failed_read(failed.kind)
        if verdict is Verdict.JOURNAL:
            self._alarm(failed)
            return self._ask_standby(scope, thread_id, standby, failed)
        if verdict is Verdict.UNAVAILABLE:
            scope.outcome = "unavailable"
        raise self._explained(failed, f"thread {thread_id!r} cannot be read")

    def _ask_standby(
        self, scope: OperationScope, thread_id: str, standby: Callable[[], T], failed: CallFailed | None
    ) -> T:
        self.newcomers.admit(thread_id, outage=failed is None or failed.kind in CANNOT_SERVE)
        try:
            answer = standby()
        except CheckpointUnavailableError as error:
            scope.outcome = "unavailable"
            raise cold(thread_id, error, failed) from (failed.error if failed is not None else None)
        scope.outcome = "standby"
        return answer

    # Writing

    async def _write(self, operation: Operation) -> None:
        scope = OperationScope(operation.name, self._backend.name, operation.thread_id, outcome="cancelled")
        with self._telemetry.operation(scope):
            deadline = self._new_deadline()
            await self._finish(self._settle(operation, scope, deadline), operation.name)

    async def _finish(self, settling: Coroutine[Any, Any, None], name: str) -> None:
        """Wait for a write to be settled. A caller who is cancelled goes; the operation is settled all the same."""
        ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(_tell(settling, ended), name=f"settle {name}")
        self._settling.add(task)
        task.add_done_callback(self._settled)
        error = await ended
        if error is not None:
            raise error

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the caller got it from the task, or went away

    async def _settle(self, operation: Operation, scope: OperationScope, deadline: Deadline) -> None:
        """Get one operation to the primary or into the journal, in its thread's turn, or raise."""
        try:
            async with self.lanes.turn(operation.thread_id, deadline):
                route = self._route(operation.thread_id)
                scope.route = route.value
                if route is Route.PRIMARY and self._may_journal and deadline.remaining() <= 2 * self._spared:
                    reason = "the earlier calls of its thread took its time"
                    await self._journal_operation(operation, scope, reason, deadline)
                elif route is Route.PRIMARY:
                    failed = await self._try_primary(operation, deadline)
                    if failed is not None:
                        await self._after_failed_write(operation, scope, failed, deadline)
                        return
                    scope.outcome = "primary"
                    self.newcomers.contact()
                    self._keep_warm(operation)
                else:
                    await self._journal_operation(operation, scope, "the primary is not available", deadline)
        except TimeoutError as error:
            scope.outcome = "unavailable"
            raise unavailable(
                f"{operation.name} on thread {operation.thread_id!r} did not get its turn in time",
                "Nothing was written by this call.",
            ) from error

    async def _try_primary(self, operation: Operation, deadline: Deadline) -> CallFailed | None:
        self.at_primary += 1
        try:
            await self._guard.call(
                operation.name,
                lambda: self._backend.apply(operation),
                deadline=deadline.sparing(self._spared) if self._may_journal else deadline,
                subject=operation.thread_id,
                writes=True,
            )
        except CallFailed as failed:
            return failed
        finally:
            self.at_primary -= 1
        return None

    async def _after_failed_write(
        self, operation: Operation, scope: OperationScope, failed: CallFailed, deadline: Deadline
    ) -> None:
        scope.error_type = type(failed.error).__name__
        verdict = after_failed_write(failed.kind, may_journal=self._may_journal)
        if verdict is Verdict.JOURNAL:
            self._alarm(failed)
            await self._journal_operation(operation, scope, redact(failed), deadline)
            return
        scope.outcome = "refused" if verdict is Verdict.RAISE else "unavailable"
        raise self._explained(failed, f"{operation.name} on thread {operation.thread_id!r} failed")

    async def _journal_operation(
        self, operation: Operation, scope: OperationScope, reason: str, deadline: Deadline
    ) -> None:
        """Acknowledge an operation by journaling it: the journal first, then the standby."""
        if self._journal is None or not self._may_journal:
            scope.outcome = "unavailable"
            raise unavailable(f"{operation.name} on thread {operation.thread_id!r} was not accepted", NOT_STORED)
        self.newcomers.admit(operation.thread_id, outage=self._breaker.is_open)
        scope.outcome = "unavailable"
        if deadline.remaining() < LEAST_FOR_THE_JOURNAL:
            deadline = Deadline(self._clock, LEAST_FOR_THE_JOURNAL)
        await self._journal.append(operation, self._standby.base_head(operation), deadline)
        self.journaled += 1
        scope.outcome = "journaled"
        self._telemetry.emit(FailedOver(self._backend.name, operation.name, reason))
        self._keep_warm(operation)
        self.on_journaled()

    def _keep_warm(self, operation: Operation) -> None:
        """Let the standby have what was acknowledged. What it cannot hold makes the thread cold, and no write fail."""
        try:
            self._standby.apply(operation)
        except Exception as error:  # noqa: BLE001  # whatever a serializer raises for what the primary could take
            self._standby.forget(operation.thread_id)
            what = f"thread {operation.thread_id!r} cannot be kept warm ({redact(error)}): in an outage it is not read"
            self._telemetry.emit(Notice("WARNING", what))

    # What is known, and said

    @property
    def _may_journal(self) -> bool:
        return self._journal is not None and self._config.on_outage == "journal"

    @property
    def _spared(self) -> float:
        return FOR_THE_JOURNAL * self._config.deadline

    def _route(self, thread_id: str) -> Route:
        held = self._journal is not None and self._journal.holds(thread_id)
        return route_of(breaker_open=self._breaker.is_open, journal_holds=held)

    def waiting_threads(self) -> Sequence[str]:
        """The threads that wait to be drained, oldest first."""
        return self._journal.waiting_threads() if self._journal is not None else ()

    def _new_deadline(self) -> Deadline:
        return Deadline(self._clock, self._config.deadline)

    def _explained(self, failed: CallFailed, what: str) -> BaseException:
        self._alarm(failed)
        return explained(failed, what)

    def _alarm(self, failed: CallFailed) -> None:
        """Tell an operator of what waiting does not mend."""
        if failed.kind is FailureKind.CORRUPTION:
            self._telemetry.emit(Notice("ERROR", f"Stored checkpoints are damaged: {redact(failed.error)}"))
        if failed.kind is FailureKind.CONFIGURATION:
            self._telemetry.emit(
                ConfigurationFault(
                    self._backend.name, redact(failed.error), failed.failure.fix or "Ask the server's log."
                )
            )

    async def close(self, seconds: float) -> None:
        """Wait up to `seconds` for writes under way to be settled."""
        if self._settling:
            await asyncio.wait(set(self._settling), timeout=seconds)


async def _nobody_drains(thread_id: str, deadline: Deadline) -> bool:
    return False


async def _tell(settling: Coroutine[Any, Any, None], ended: asyncio.Future[BaseException | None]) -> None:
    """Tell a waiting caller how a write was settled, one turn of the event loop before the task itself could."""
    error: BaseException | None = None
    try:
        await settling
    except BaseException as raised:
        error = raised
        raise
    finally:
        if not ended.done():
            ended.set_result(error)
