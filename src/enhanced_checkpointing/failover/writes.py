"""How a write is settled: gathered with others, at the primary or in the journal, in its thread's turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from enhanced_checkpointing.backends.contract import Backend
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import redact
from enhanced_checkpointing.failover.alarms import alarm
from enhanced_checkpointing.failover.explanations import NOT_STORED, explained, unavailable
from enhanced_checkpointing.failover.newcomers import Newcomers
from enhanced_checkpointing.failover.routes import Route, Verdict, after_failed_write, route_of
from enhanced_checkpointing.failover.standby import Standby
from enhanced_checkpointing.journal.contract import Journal
from enhanced_checkpointing.operations import Operation, PutWrites, payload_size
from enhanced_checkpointing.resilience.breaker import Breaker, Clock
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failure_kinds import CallFailed
from enhanced_checkpointing.resilience.group_commit import GroupCommit
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.telemetry.events import FailedOver, Notice, OperationScope, Telemetry

BATCH = 128
BATCH_BYTES = 4 * 1024 * 1024
"""Operations, and bytes of them, that are committed together; more do not go faster (docs/performance.md)."""

LOOK_EVERY = 0.05
"""Seconds between looks at what waits while all lanes are taken; with a journal, whose time is spared, a look in a
twentieth of the deadline is enough."""

FOR_THE_JOURNAL = 0.1
"""The share of its deadline that a write keeps for the journal: the primary is not waited for, or tried, in it."""

LEAST_FOR_THE_JOURNAL = 0.05
LATEST_FOR_THE_JOURNAL = 0.08
"""Seconds that the journal gets in any case, and after the deadline at which it gets none: so late may a call return.
Without the second, each one behind a disk that hangs would be later than the one in front of it."""


@dataclass(slots=True, eq=False)
class Call:
    """One write on its way, what is told of it, and the caller who waits until it has `ended`."""

    operation: Operation
    scope: OperationScope
    deadline: Deadline
    ended: asyncio.Future[None]

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


class Writes:
    """Settles the writes of one manager."""

    def __init__(
        self,
        *,
        config: CheckpointerConfig,
        backend: Backend,
        guard: Guard,
        breaker: Breaker,
        journal: Journal | None,
        standby: Standby,
        newcomers: Newcomers,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._config = config
        self._backend = backend
        self._guard = guard
        self._breaker = breaker
        self._journal = journal
        self._standby = standby
        self._newcomers = newcomers
        self._telemetry = telemetry
        self._clock = clock
        self.gathered: GroupCommit[Call] = GroupCommit(
            self._send,
            key=lambda call: call.thread_id,
            weight=lambda call: payload_size(call.operation),
            lanes=backend.lanes,
            limit=BATCH if backend.lanes else 1,
            max_weight=BATCH_BYTES,
            urgent=self._has_no_time,
            look_every=config.deadline / 20 if self._may_journal else LOOK_EVERY,
            patience=config.deadline / 4,
        )
        self.journaled = 0
        """Operations journaled so far."""
        self.at_primary = 0
        """Writes that are with the primary now."""
        self.on_journaled: Callable[[], None] = lambda: None
        """Called after every journaled operation; set by whoever drains."""

    async def settle(self, operation: Operation) -> None:
        """Return when an operation is acknowledged. A caller who is cancelled goes; it is settled all the same.

        Raises:
            CheckpointUnavailableError: neither the primary nor the journal took it.
            JournalFullError: it was to be journaled, and there was no room.
            Exception: what the primary's saver raises for data that it cannot take.
        """
        scope = OperationScope(operation.name, self._backend.name, operation.thread_id, outcome="cancelled")
        with self._telemetry.operation(scope):
            deadline = Deadline(self._clock, self._config.deadline)
            call = Call(operation, scope, deadline, asyncio.get_running_loop().create_future())
            if self._backend.never_waits() and self.route(call.thread_id) is Route.PRIMARY:
                await self._settle_at_once(call)
            else:
                self.gathered.submit(call)
            await call.ended

    async def _settle_at_once(self, call: Call) -> None:
        """Without a task: nothing can come in between while nothing is waited for."""
        if call.thread_id in self.gathered or await self._try_primary([call]):
            self.gathered.submit(call)

    def route(self, thread_id: str) -> Route:
        held = self._journal is not None and self._journal.holds(thread_id)
        return route_of(breaker_open=self._breaker.is_open, journal_holds=held)

    @property
    def _may_journal(self) -> bool:
        return self._journal is not None and self._config.on_outage == "journal"

    @property
    def _spared(self) -> float:
        return FOR_THE_JOURNAL * self._config.deadline if self._may_journal else 0.0

    # At the primary

    async def _send(self, batch: Sequence[Call]) -> Coroutine[Any, Any, None] | None:
        """Get a batch to the primary, as far as that may be asked; what it does not take is left to be journaled."""
        passed = self._passed_by(batch)
        trying = [call for call in batch if call not in passed]
        if not trying:
            return self._journal_all([*passed.items()])
        # Begun now: the attempt of the others may take longer than these may wait.
        aside = [asyncio.create_task(self._journal_all([*passed.items()]), name="journal")] if passed else []
        try:
            to_journal = await self._try_primary(trying)
        except BaseException as error:
            for call in trying:
                call.refuse(error)
            raise
        return self._journal_rest(aside, to_journal) if aside or to_journal else None

    async def _try_primary(self, calls: Sequence[Call]) -> list[tuple[Call, str]]:
        """Have the primary take calls; returns what is to be journaled, and why."""
        failed = await self._commit(calls)
        if len(failed) < len(calls):
            self._newcomers.contact()
        to_journal: list[tuple[Call, str]] = []
        for call in calls:
            if call not in failed:
                self._keep_warm(call.operation)
                call.acknowledge("primary")
            elif self._is_to_be_journaled(call, failed[call]):
                to_journal.append((call, redact(failed[call])))
        return to_journal

    def _passed_by(self, batch: Sequence[Call]) -> dict[Call, str]:
        """What of a batch must not be tried at the primary, or has no time for it: a thread's calls go together."""
        reasons: dict[str, str] = {}
        for call in batch:
            route = self.route(call.thread_id)
            call.scope.route = route.value
            if route is Route.JOURNAL:
                reasons[call.thread_id] = "the primary is not available"
            elif self._has_no_time(call):
                reasons[call.thread_id] = "the calls before it took its time"
        return {call: reasons[call.thread_id] for call in batch if call.thread_id in reasons}

    def _has_no_time(self, call: Call) -> bool:
        """Whether what is left of a call's time is for the journal: for a try at the primary it is too little."""
        return call.deadline.remaining() <= 2 * self._spared

    async def _commit(self, calls: Sequence[Call]) -> dict[Call, CallFailed]:
        """Commit calls as one step; where one of them is at fault, the others without it. Returns what failed."""
        failed: dict[Call, CallFailed] = {}
        held: dict[str, CallFailed] = {}
        pieces = [calls]
        while pieces:
            piece = pieces.pop()
            failed |= {call: held[call.thread_id] for call in piece if call.thread_id in held}
            piece = [call for call in piece if call.thread_id not in held]
            error = await self._commit_piece(piece, calls) if piece else None
            if error is None:
                continue
            if error.at_fault and len(piece) > 1:
                half = len(piece) // 2
                pieces += [piece[half:], piece[:half]]
                continue
            alarm(self._telemetry, self._backend.name, error)
            failed |= dict.fromkeys(piece, error)
            if not error.at_fault:  # nothing of these threads may reach the primary before it
                held |= dict.fromkeys((call.thread_id for call in piece), error)
        return failed

    async def _commit_piece(self, calls: Sequence[Call], batch: Sequence[Call]) -> CallFailed | None:
        # Of all of them: a piece must not take the time of those that come after it.
        deadline = min((call.deadline for call in batch), key=Deadline.remaining).sparing(self._spared)
        self.at_primary += len(calls)
        try:
            await self._guard.call(
                calls[0].operation.name,
                lambda: self._backend.apply_batch([call.operation for call in calls]),
                deadline=deadline,
                subjects={call.thread_id for call in calls},
                writes=True,
            )
        except CallFailed as failed:
            return failed
        finally:
            self.at_primary -= len(calls)
            if deadline.stalled:
                for call in (*batch, *self.gathered.waiting()):
                    call.deadline.forgive(deadline)
        return None

    def _is_to_be_journaled(self, call: Call, failed: CallFailed) -> bool:
        """Whether a call that failed goes on to the journal; its caller is told if not."""
        call.scope.error_type = type(failed.error).__name__
        verdict = after_failed_write(failed.kind, may_journal=self._may_journal)
        if verdict is Verdict.JOURNAL:
            return True
        call.scope.outcome = "refused" if verdict is Verdict.RAISE else "unavailable"
        call.refuse(explained(failed, f"{call.operation.name} on thread {call.thread_id!r} failed"))
        return False

    # In the journal

    async def _journal_rest(self, aside: Sequence[Awaitable[None]], waiting: Sequence[tuple[Call, str]]) -> None:
        await asyncio.gather(*aside, self._journal_all(waiting))

    async def _journal_all(self, waiting: Sequence[tuple[Call, str]]) -> None:
        """Journal calls, those of one thread in their order."""
        threads: dict[str, list[tuple[Call, str]]] = {}
        for call, reason in waiting:
            threads.setdefault(call.thread_id, []).append((call, reason))
        await _all([self._journal_thread(calls) for calls in threads.values()])

    async def _journal_thread(self, waiting: Sequence[tuple[Call, str]]) -> None:
        for run in _runs(waiting):
            await _all([self._journal_call(call, reason) for call, reason in run])

    async def _journal_call(self, call: Call, reason: str) -> None:
        call.scope.outcome = "unavailable"
        try:
            await self._append(call, reason)
        except BaseException as error:
            call.refuse(error)
            if not isinstance(error, Exception):
                raise
        else:
            call.acknowledge("journaled")

    async def _append(self, call: Call, reason: str) -> None:
        """The journal first, then the standby."""
        operation, deadline = call.operation, call.deadline
        if self._journal is None or not self._may_journal:
            raise unavailable(f"{operation.name} on thread {operation.thread_id!r} was not accepted", NOT_STORED)
        left = LATEST_FOR_THE_JOURNAL - deadline.overdue()
        if left <= 0:
            what = f"{operation.name} on thread {operation.thread_id!r} did not get its turn in time"
            raise unavailable(what, NOT_STORED)
        try:
            self._backend.check(operation)
        except Exception as error:  # whatever the primary would raise for the caller's data
            call.scope.outcome, call.scope.error_type = "refused", type(error).__name__
            raise
        self._newcomers.admit(operation.thread_id, outage=self._breaker.is_open)
        if deadline.remaining() < LEAST_FOR_THE_JOURNAL:
            deadline = Deadline(self._clock, min(left, LEAST_FOR_THE_JOURNAL))
        await self._journal.append(operation, self._standby.base_head(operation), deadline)
        self.journaled += 1
        self._telemetry.emit(FailedOver(self._backend.name, operation.name, reason))
        self._keep_warm(operation)
        self.on_journaled()

    def _keep_warm(self, operation: Operation) -> None:
        """Let the standby have what is stored. What it cannot hold makes the thread cold, and no write fail."""
        try:
            self._standby.apply(operation)
        except Exception as error:  # noqa: BLE001  # whatever a serializer raises for what the primary could take
            self._standby.forget(operation.thread_id)
            what = f"thread {operation.thread_id!r} cannot be kept warm ({redact(error)}): in an outage it is not read"
            self._telemetry.emit(Notice("WARNING", what))


def _runs(waiting: Sequence[tuple[Call, str]]) -> Iterator[list[tuple[Call, str]]]:
    """What may be appended at the same time: a put moves the head that the next operation grows from."""
    run: list[tuple[Call, str]] = []
    for call, reason in waiting:
        run.append((call, reason))
        if not isinstance(call.operation, PutWrites):
            yield run
            run = []
    if run:
        yield run


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all of this at the same time, begun in this order; a single one without a task of its own."""
    if len(work) == 1:
        await work[0]
    else:
        await asyncio.gather(*work)
