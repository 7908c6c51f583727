"""The way of a write: by itself or gathered with others to the primary, or, if that cannot be, to the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.errors import quoted, redact
from enhanced_checkpointing.identifiers import is_old
from enhanced_checkpointing.observability.events import OperationScope
from enhanced_checkpointing.operations import (
    DeleteThread,
    Operation,
    accept_put,
    accept_writes,
    payload_size,
    snapshots_in,
    thread_of,
)
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import CallFailed, alarm, explained, unavailable
from enhanced_checkpointing.resilience.group_commit import GroupCommit, Lane
from enhanced_checkpointing.saver.core import Call, Core
from enhanced_checkpointing.saver.journal_path import JournalPath, Waiting, both
from enhanced_checkpointing.saver.routes import Route, Verdict, after_failed_write, route_of
from enhanced_checkpointing.serialization import plain_metadata, without_objects

NOT_AVAILABLE = "the primary is not available"

BATCH = 128
BATCH_BYTES = 4 * 1024 * 1024
"""Operations, and bytes of them, that are committed together at most."""

LOOK_EVERY = 0.05
"""Seconds between looks at what waits while all lanes are taken; with a journal, whose time is spared, a look in a
twentieth of the deadline is enough."""

FOR_THE_JOURNAL, SECONDS_FOR_THE_JOURNAL, MOST_FOR_THE_JOURNAL = 0.1, 0.3, 1 / 3
"""The share of its deadline that a write keeps for the journal, in which the primary is not waited for; at least so
many seconds, as the sync of a busy disk was seen to take a quarter of one, but never more than the last share."""

FOR_A_TRY = 0.1
"""The share of its deadline in which it is not worth while to begin with the primary."""


def seconds_for_the_journal(deadline: float) -> float:
    """What a write keeps for the journal of a deadline of so many seconds."""
    return max(FOR_THE_JOURNAL * deadline, min(SECONDS_FOR_THE_JOURNAL, MOST_FOR_THE_JOURNAL * deadline))


class WritePath:
    """Settles the writes of one manager. All methods run on its event loop."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._backend, self._guard, self._breaker = core.backend, core.guard, core.breaker
        self._journal, self._standby, self._others = core.journal, core.standby, core.others
        self._telemetry, self._clock, self._seconds = core.telemetry, core.clock, core.config.deadline
        waits = type(core.backend).never_waits is Backend.never_waits
        self._never_waits = None if waits else core.backend.never_waits
        """Asked of a backend for which it may be so, and of no other."""
        self.journaling = JournalPath(core)
        journals = self.journaling.possible
        self._spared = seconds_for_the_journal(self._seconds) if journals else 0.0
        self._too_late = self._spared + FOR_A_TRY * self._seconds if journals else 0.0
        self.gathered: GroupCommit[Call] = GroupCommit(
            self._send,
            key=attrgetter("thread_id"),
            weight=_weight,
            lanes=core.backend.lanes,
            limit=BATCH if core.backend.lanes else 1,
            max_weight=BATCH_BYTES,
            urgent=self._has_no_time,
            look_every=self._seconds / 20 if journals else LOOK_EVERY,
            patience=self._seconds / 4,
        )
        self.at_primary = 0
        """Writes that are with the primary now."""
        self.quarantined: set[str] = set()
        """Threads whose branch was put into quarantine: the primary lacks the values that a running graph builds on."""

    async def put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, versions: ChannelVersions
    ) -> RunnableConfig:
        at_once = self._never_waits is not None and self._never_waits()
        put = accept_put(
            config,
            checkpoint,
            metadata,
            versions,
            freeze=self._backend.freeze,
            known_blob=self._backend.blob if at_once else self._standby.blob,
            form_of=self._backend.form_of_metadata,
        )
        if not at_once:  # else nothing is kept warm
            self._standby.note_own(put)
        # As an old one, the thread may have been deleted by another process after it was read here.
        if put.thread_id in self.quarantined or is_old(put.parent_checkpoint_id, self._core.wall_clock()):
            put = put.complete()
        try:
            await self.settle(put)
        except Exception:  # as with writes, below
            self._standby.note_refused(put)
            raise
        return put.stored_config()

    async def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> None:
        operation = accept_writes(config, writes, task_id, task_path, serializer=self._core.serializer)
        if self._never_waits is None or not self._never_waits():
            self._standby.note_own(operation)
        try:
            await self.settle(operation)
        except Exception:  # it is not known whether it is stored; of a caller who is cancelled, `Call` tells
            self._standby.note_refused(operation)
            raise

    async def delete_thread(self, thread_id: str) -> None:
        if self._journal is not None and self._journal.is_frozen(thread_id):
            what = f"thread {quoted(thread_id)} is frozen: the journal has what the primary refused, or what is damaged"
            raise unavailable(what, "It was not deleted, as nothing of it is written until that is mended.")
        await self.settle(DeleteThread(thread_id))

    async def settle(self, operation: Operation) -> None:
        """Return when an operation is acknowledged. A caller who is cancelled goes; it is settled all the same.

        The route is decided here: in an outage a write goes on to the journal, and waits for no lane to the primary.

        Raises:
            CheckpointUnavailableError: neither the primary nor the journal took it.
            JournalFullError: it was to be journaled, and there was no room.
            Exception: what the primary's saver raises for data that it cannot take.
        """
        thread_id = operation.thread_id
        scope = OperationScope(operation.name, self._backend.name, thread_id, outcome="cancelled")
        with self._telemetry.operation(scope):
            if self._never_waits is not None and self._never_waits() and await self._settled_at_once(operation, scope):
                return
            deadline = Deadline(self._clock, self._seconds)
            if self._others is not None and self._others.hold(thread_id):
                await self._let_others_go(operation, scope, deadline)
            ended = asyncio.get_running_loop().create_future()
            call = Call(operation, scope, deadline, ended, self._standby.note_refused)
            if self.route(thread_id) is Route.JOURNAL:
                self.gathered.submit(call, needs_lane=False)
            elif not self.gathered.may_enter(thread_id):
                self.gathered.submit(call)
            elif await self._went_straight(call):
                return
            await call.ended

    async def annotate(self, found: CheckpointTuple, changes: Mapping[str, Any]) -> None:
        """Journal a change of the metadata of a checkpoint that was read `without_objects`, which must not be put
        again: it is drained in its turn, at once where the primary is there. All of the checkpoint is journaled, for
        processes of an older release.

        Raises:
            CheckpointUnavailableError, JournalFullError: the journal did not take it.
        """
        config = found.parent_config or {"configurable": {"thread_id": thread_of(found.config), "checkpoint_ns": ""}}
        metadata = {**plain_metadata(found.metadata, self._core.serializer), **changes}
        with without_objects():
            put = accept_put(
                config,
                found.checkpoint,
                cast("CheckpointMetadata", metadata),
                {},
                freeze=self._backend.freeze,
                known_blob=self._standby.blob,
                form_of=self._backend.form_of_metadata,
            )
        snapshots = snapshots_in(found.checkpoint["channel_values"])
        put = replace(put, snapshot_channels=snapshots, live_values=None, annotated=tuple(sorted(changes)))
        scope = OperationScope(put.name, self._backend.name, put.thread_id, outcome="cancelled")
        with self._telemetry.operation(scope):
            deadline = self._core.deadline()
            if self._others is not None and self._others.hold(put.thread_id):
                await self._let_others_go(put, scope, deadline)
            ended = asyncio.get_running_loop().create_future()
            call = Call(put, scope, deadline, ended, self._standby.note_refused)
            scope.route = Route.JOURNAL.value
            await self.journaling.settle([Waiting(call, NOT_AVAILABLE)])
            await call.ended

    async def _let_others_go(self, operation: Operation, scope: OperationScope, deadline: Deadline) -> None:
        """Wait while another worker's journal holds the thread. If that has gone on with it, this would be a branch."""
        assert self._others is not None
        thread_id = operation.thread_id
        if self._journal is not None and self._journal.holds(thread_id):
            return  # so does ours: it is a branch already, and found when it is drained
        await self._others.let_go(thread_id, deadline)
        if self._journal is not None and self._journal.holds(thread_id):
            return  # an ended worker's, which was taken over: this goes behind it
        scope.outcome = "unavailable"
        self._others.refuse(thread_id, grows=not isinstance(operation, DeleteThread))
        scope.outcome = "cancelled"

    async def _settled_at_once(self, operation: Operation, scope: OperationScope) -> bool:
        """Without a task and a deadline: nothing comes in between while nothing is waited for."""
        if self.route(operation.thread_id) is not Route.PRIMARY or operation.thread_id in self.gathered:
            return False
        try:
            await self._backend.apply(operation)
        except Exception:  # noqa: BLE001  # it is done once more, with all that is done about failures
            return False
        scope.route, scope.outcome = Route.PRIMARY.value, "primary"
        self._core.new_threads.contact()
        return True  # a primary that is asked without waiting for anything has no need of a warm copy

    async def _went_straight(self, call: Call) -> bool:
        """Try a lone call without a batch, in its caller's task. False: it is with the others, which do all the rest:
        try again, journal it, go on without a caller who was cancelled."""
        lane = self.gathered.enter(call)
        deadline = call.deadline.sparing(self._spared)
        run = partial(self._backend.apply_batch, [call.operation])
        call.scope.route = Route.PRIMARY.value
        self.at_primary += 1
        try:
            call.begun = self._guard.begin(
                call.operation.name,
                run,
                deadline=deadline,
                subjects=(call.thread_id,),
                lone=partial(self._backend.lone, call.operation),
            )
            await self._guard.wait(call.begun)
            self._core.new_threads.contact()
            self._taken(call)
        except asyncio.CancelledError:
            call.ended.cancel()  # nobody waits to be told
            asyncio.get_running_loop().call_soon(self._go_on_without_caller, call, lane)
            raise
        except CallFailed:
            self.gathered.finish(call, lane)
            return False
        except BaseException:
            self.gathered.leave(call, lane)
            raise
        finally:
            self.at_primary -= 1
            if deadline.stalled:
                self._forgive(deadline)
        self.gathered.leave(call, lane)
        return True

    def _go_on_without_caller(self, call: Call, lane: Lane) -> None:
        """A turn later, as it may be both: that the loop ends, which cancels everything, or that a driver has cancelled
        its own work for a moment, by a time limit of its own. Only then is there somebody to watch."""
        begun = call.begun
        if begun is None or begun.is_cancelled:
            self.gathered.leave(call, lane)
        elif begun.has_task:
            self.gathered.finish(call, lane)
        else:  # nobody cancels what has no task; so nothing is begun here that the end of the loop would meet
            begun.when_over(lambda: self.gathered.finish(call, lane))

    def route(self, thread_id: str) -> Route:
        held = self._journal is not None and self._journal.holds(thread_id)
        return route_of(breaker_open=self._breaker.is_open, journal_holds=held)

    # At the primary

    async def _send(self, batch: Sequence[Call]) -> Coroutine[Any, Any, None] | None:
        """Get a batch to the primary, as far as that may be asked; what it does not take is left to be journaled."""
        passed = self._passed_by(batch)
        trying = [call for call in batch if call.thread_id not in passed]
        aside = [Waiting(call, passed[call.thread_id]) for call in batch if call.thread_id in passed]
        if not trying:
            return self.journaling.settle(aside)
        # Begun now: the attempt of the others may take longer than these may wait.
        beside = asyncio.create_task(self.journaling.settle(aside), name="journal") if aside else None
        try:
            failed = await self._try_primary(trying)
        except BaseException as error:
            for call in trying:
                call.refuse(error)
            raise
        if beside is not None:
            return both(self.journaling.settle(failed), [beside])
        return self.journaling.settle(failed) if failed else None

    async def _try_primary(self, calls: Sequence[Call]) -> list[Waiting]:
        """Have the primary take calls; returns what is to be journaled, and why."""
        failed = await self._commit(calls)
        if len(failed) < len(calls):
            self._core.new_threads.contact()
        to_journal: list[Waiting] = []
        for call in calls:
            if call not in failed:
                self._taken(call)
            elif self._is_to_be_journaled(call, failed[call]):
                to_journal.append(Waiting(call, redact(failed[call])))
        return to_journal

    def _taken(self, call: Call) -> None:
        """The primary has a call."""
        self._standby.keep(call.operation)
        if self._others is not None:
            self._others.known.note(call.thread_id, is_all=isinstance(call.operation, DeleteThread))
        call.acknowledge("primary")

    def _passed_by(self, batch: Sequence[Call]) -> dict[str, str]:
        """The threads of a batch that must not be tried at the primary, or have a call without time for it; and why."""
        reasons: dict[str, str] = {}
        if self._all_may_pass(batch):
            return reasons
        for call in batch:
            if call.begun is not None:
                continue  # it has been tried
            route = self.route(call.thread_id)
            call.scope.route = route.value
            if route is Route.JOURNAL:
                reasons[call.thread_id] = NOT_AVAILABLE
            elif self._has_no_time(call):
                reasons[call.thread_id] = "the calls before it took its time"
        return reasons

    def _all_may_pass(self, batch: Sequence[Call]) -> bool:
        """Whether no call of a batch has anything in its way, which is seen at a fraction of the cost."""
        if self._breaker.is_open or self._is_too_late(Deadline.first([call.deadline for call in batch])):
            return False
        if self._journal is not None:
            holds = self._journal.holds
            for call in batch:
                if holds(call.thread_id):
                    return False
        return True

    def _has_no_time(self, call: Call) -> bool:
        """Whether what is left of a call's time is for the journal: for a try at the primary it is too little."""
        return self._is_too_late(call.deadline)

    def _is_too_late(self, deadline: Deadline) -> bool:
        return deadline.remaining() <= self._too_late

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
        deadline = Deadline.first([call.deadline for call in batch]).sparing(self._spared)
        begun = calls[0].begun if len(calls) == 1 else None
        if begun is not None:
            deadline = begun.deadline
        self.at_primary += len(calls)
        try:
            await self._guard.call(
                calls[0].operation.name,
                lambda: self._backend.apply_batch([call.operation for call in calls]),
                deadline=deadline,
                subjects={call.thread_id for call in calls},
                writes=True,
                begun=begun,
            )
        except CallFailed as failed:
            return failed
        finally:
            self.at_primary -= len(calls)
            if deadline.stalled:
                self._forgive(deadline, batch)
        return None

    def _forgive(self, deadline: Deadline, batch: Sequence[Call] = ()) -> None:
        """Take what the event loop stood still off the time of all who waited meanwhile."""
        for call in (*batch, *self.gathered.waiting()):
            call.deadline.forgive(deadline)

    def _is_to_be_journaled(self, call: Call, failed: CallFailed) -> bool:
        """Whether a call that failed goes on to the journal; its caller is told if not."""
        call.scope.error_type = type(failed.error).__name__
        verdict = after_failed_write(failed.kind, may_journal=self.journaling.possible)
        if verdict is Verdict.JOURNAL:
            return True
        call.scope.outcome = "refused" if verdict is Verdict.RAISE else "unavailable"
        call.refuse(explained(failed, f"{call.operation.name} on thread {quoted(call.thread_id)} failed"))
        return False


def _weight(call: Call) -> int:
    return payload_size(call.operation)
