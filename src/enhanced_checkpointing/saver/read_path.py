"""The engine: the rules by which one call goes to the primary, the journal or the standby.

It decides through the pure functions of `routes`, and acts through the guard and the standby; `writes` settles what
changes something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointUnavailableError, quoted
from enhanced_checkpointing.identifiers import is_old
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.observability.events import OperationScope, Telemetry
from enhanced_checkpointing.operations import (
    DeleteThread,
    Put,
    PutWrites,
    accept_put,
    accept_writes,
    asks_for_thread,
    checkpoint_id_of,
    snapshots_in,
    thread_of,
)
from enhanced_checkpointing.resilience.breaker import Breaker, Clock
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import (
    CallFailed,
    FailureKind,
    alarm,
    cold,
    explained,
    not_warm,
    unavailable,
)
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.resilience.turns import collected
from enhanced_checkpointing.saver.journal_path import Journaling
from enhanced_checkpointing.saver.other_workers import OtherWorkers
from enhanced_checkpointing.saver.reads import Reads
from enhanced_checkpointing.saver.routes import (
    Route,
    Verdict,
    after_failed_read,
)
from enhanced_checkpointing.saver.write_path import Writes
from enhanced_checkpointing.serialization import SharingSerializer, plain_metadata, without_objects
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.standby.new_threads import Newcomers

T = TypeVar("T")

FOR_THE_READ = 0.1
"""The share of its deadline that must be left of a read, when its thread is drained, to ask the primary."""

QUIET_GLANCE = 0.005
"""Seconds between looks at whether a thread has writes on their way."""

CANNOT_SERVE = (FailureKind.OUTAGE, FailureKind.CONFIGURATION)
"""What the primary said, not what its silence may mean."""


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
        self._wall_clock = wall_clock
        workers = journal.workers if journal is not None else None
        self.others = OtherWorkers(workers, breaker) if workers is not None else None
        self.newcomers = Newcomers(
            standby,
            start_fresh=config.on_unknown_thread == "start_fresh",
            wall_clock=wall_clock,
            held=journal.holds if journal is not None else lambda _: False,
            begins=workers.begins if workers is not None else lambda thread_id, age: True,
        )
        self.journaling = Journaling(
            backend=backend,
            breaker=breaker,
            journal=journal if config.on_outage == "journal" else None,
            standby=standby,
            newcomers=self.newcomers,
            others=self.others,
            telemetry=telemetry,
            clock=clock,
        )
        self.writes = Writes(
            config=config,
            backend=backend,
            guard=guard,
            breaker=breaker,
            journal=journal,
            standby=standby,
            newcomers=self.newcomers,
            journaling=self.journaling,
            others=self.others,
            telemetry=telemetry,
            clock=clock,
        )
        self._reading = 0
        """Reads that are with the primary now."""
        self.quarantined: set[str] = set()
        """Threads whose branch was put into quarantine: the primary lacks the values that a running graph builds on."""
        self.reads: Reads | None = None
        """Where reads are noted, if anybody wants to know."""
        self.drain_first: Callable[[str, Deadline], Awaitable[bool]] = _nobody_drains
        """Drains one thread ahead of the others and tells whether it is drained; set by whoever drains."""

    # What LangGraph asks for

    async def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        stamp = 0
        workers, thread_id = self.others.known if self.others is not None else None, thread_of(config)

        def ask() -> Awaitable[tuple[CheckpointTuple | None, bool]]:
            nonlocal stamp
            if workers is not None:
                stamp = workers.stamp(thread_id)
            return self._backend.get(config)

        def keep(answer: tuple[CheckpointTuple | None, bool]) -> None:
            found, holds_others = answer
            self._standby.warm(config, found, blank=not holds_others)
            # A subgraph's own checkpoint tells nothing of the graph that calls it.
            if workers is not None and asks_for_thread(config):
                workers.know(thread_id, stamp)

        found, _ = await self._read(
            "get",
            config,
            primary=ask,
            standby=lambda: (self._standby.get_tuple(config), False),
            keep=keep,
        )
        return found

    async def list(
        self,
        config: RunnableConfig,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Sequence[CheckpointTuple]:
        async def fetch(saver: BaseCheckpointSaver[Any]) -> Iterable[CheckpointTuple | None]:
            return await collected(saver.alist(config, filter=filter, before=before, limit=limit))

        newest = not filter and before is None and checkpoint_id_of(config) is None

        def keep(found: Iterable[CheckpointTuple | None]) -> None:
            assert isinstance(found, list)  # as the primary gave it
            self._standby.warm_listing(config, found, newest=newest, whole=newest and limit is None)

        answer = await self._read(
            "list",
            config,
            primary=lambda: self._backend.ask(fetch),
            standby=lambda: self._standby.history(config, self._backend.selection(filter, before, limit)),
            keep=keep,
        )
        return [
            found for found in (answer if isinstance(answer, list) else await collected(answer)) if found is not None
        ]

    async def delta_history(self, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, DeltaChannelHistory]:
        return await self._read(
            "get",
            config,
            primary=lambda: self._backend.ask(
                lambda saver: saver.aget_delta_channel_history(config=config, channels=channels)
            ),
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
            freeze=self._backend.freeze,
            known_blob=self._backend.blob if self._backend.never_waits() else self._standby.blob,
            form_of=self._backend.form_of_metadata,
        )
        self._note_own(put)
        # As an old one, the thread may have been deleted by another process after it was read here.
        lacking = put.thread_id in self.quarantined or is_old(put.parent_checkpoint_id, self._wall_clock())
        try:
            await self.writes.settle(put.complete() if lacking else put)
        except Exception:  # as with writes, below
            self._standby.note_refused(put)
            raise
        return put.stored_config()

    async def annotate(self, found: CheckpointTuple, changes: Mapping[str, Any]) -> None:
        """Change the metadata of a checkpoint, which was read `without_objects`, by way of the journal. All of it is
        journaled, for processes of an older release."""
        config = found.parent_config or {"configurable": {"thread_id": thread_of(found.config), "checkpoint_ns": ""}}
        metadata = {**plain_metadata(found.metadata, self._serializer), **changes}
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
        annotated = tuple(sorted(changes))
        await self.writes.annotate(replace(put, snapshot_channels=snapshots, live_values=None, annotated=annotated))

    async def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> None:
        operation = accept_writes(config, writes, task_id, task_path, serializer=self._serializer)
        self._note_own(operation)
        try:
            await self.writes.settle(operation)
        except Exception:  # it is not known whether it is stored; of a caller who is cancelled, `Call` tells
            self._standby.note_refused(operation)
            raise

    def _note_own(self, operation: Put | PutWrites) -> None:
        if not self._backend.never_waits():  # else nothing is kept warm
            self._standby.note_own(operation)

    def promise_new(self, thread_id: str) -> None:
        """The application says that a thread does not exist yet."""
        self._standby.note_empty(thread_id, "")
        if self.others is not None:
            self.others.known.know(thread_id, self.others.known.stamp(thread_id))

    async def delete_thread(self, thread_id: str) -> None:
        if self._journal is not None and self._journal.is_frozen(thread_id):
            what = f"thread {quoted(thread_id)} is frozen: the journal has what the primary refused, or what is damaged"
            raise unavailable(what, "It was not deleted, as nothing of it is written until that is mended.")
        await self.writes.settle(DeleteThread(thread_id))

    # Reading

    async def _read(
        self,
        operation: str,
        config: RunnableConfig,
        *,
        primary: Callable[[], Awaitable[T]],
        standby: Callable[[], T],
        keep: Callable[[T], None],
    ) -> T:
        thread_id = thread_of(config)
        if self.reads is not None:
            self.reads.note(thread_id)
        scope = OperationScope(operation, self._backend.name, thread_id)
        with self._telemetry.operation(scope):
            deadline = self._new_deadline()
            if self.others is not None and self.others.hold(thread_id):
                await self._let_others_go(scope, thread_id, deadline)
            route = self.writes.route(thread_id)
            if route is Route.JOURNAL and not self._breaker.is_open and await self.drain_first(thread_id, deadline):
                # What was in the journal is warm: it answers where the drain left no time to ask the primary.
                route = Route.PRIMARY if deadline.remaining() > FOR_THE_READ * deadline.seconds else route
            scope.route = route.value
            if route is Route.JOURNAL:
                return self._ask_standby(scope, thread_id, standby, None)
            if self._backend.never_waits():
                try:
                    found = await primary()
                except Exception:  # noqa: BLE001, S110  # it is asked once more, with all that is done about failures
                    pass
                else:
                    return self._answered(scope, found, _keep_nothing)  # no need of a warm copy
            watch = self._standby.watch(thread_id)
            failed: CallFailed | None = None
            self._reading += 1
            try:
                found = await self._guard.call(
                    operation,
                    primary,
                    deadline=deadline,
                    subjects=(thread_id,),
                    patient=operation == "list",
                )
            except CallFailed as caught:
                failed = caught
            finally:
                self._reading -= 1
            if failed is not None:
                return self._after_failed_read(scope, thread_id, failed, standby)
            # If anything was dropped while the answer was on its way, it is older than that.
            return self._answered(scope, found, keep if not watch.is_stale else _keep_nothing)

    async def _let_others_go(self, scope: OperationScope, thread_id: str, deadline: Deadline) -> None:
        assert self.others is not None
        if not await self.others.let_go(thread_id, deadline):
            scope.outcome = "unavailable"
            self.others.refuse(thread_id, grows=False)

    def _answered(self, scope: OperationScope, found: T, keep: Callable[[T], None]) -> T:
        scope.outcome = "primary"
        self.newcomers.contact()
        keep(found)
        return found

    def _after_failed_read(
        self, scope: OperationScope, thread_id: str, failed: CallFailed, standby: Callable[[], T]
    ) -> T:
        scope.error_type = type(failed.error).__name__
        verdict = after_failed_read(failed.kind)
        if verdict is Verdict.JOURNAL:
            alarm(self._telemetry, self._backend.name, failed)
            return self._ask_standby(scope, thread_id, standby, failed)
        if verdict is Verdict.UNAVAILABLE:
            scope.outcome = "unavailable"
        raise self._explained(failed, f"thread {quoted(thread_id)} cannot be read")

    def _ask_standby(
        self, scope: OperationScope, thread_id: str, standby: Callable[[], T], failed: CallFailed | None
    ) -> T:
        try:
            if self.others is not None:
                self.others.refuse(thread_id, grows=False)
            self.newcomers.admit(thread_id, outage=failed is None or failed.kind in CANNOT_SERVE)
            answer = standby()
            if self.others is not None:
                self.others.refuse(thread_id)
        except CheckpointUnavailableError as error:
            scope.outcome = "unavailable"
            raise cold(thread_id, error, failed) from (failed.error if failed is not None else None)
        scope.outcome = "standby"
        return answer

    def answer_of_unknown(self, thread_id: str) -> CheckpointUnavailableError | None:
        """What is answered in an outage of a thread that this process never saw; None: that there is none."""
        if not self._breaker.is_open or self.newcomers.would_admit(thread_id, outage=True):
            return None
        return cold(thread_id, not_warm(thread_id), None)

    async def quiet(self, thread_id: str) -> None:
        """Wait until no write of a thread is on its way, or for a deadline."""
        deadline = self._new_deadline()
        while thread_id in self.writes.gathered and deadline.remaining() > 0:  # noqa: ASYNC110  # nothing signals it
            await asyncio.sleep(QUIET_GLANCE)

    # What is known, and said

    def live_calls(self) -> int:
        """Live calls that are with the primary now."""
        return self._reading + self.writes.at_primary

    def waiting_threads(self) -> Sequence[str]:
        """The threads that wait to be drained, oldest first."""
        return self._journal.waiting_threads() if self._journal is not None else ()

    def held_threads(self) -> Sequence[str]:
        """The threads of which anything is in the journal, frozen ones included, oldest first."""
        return self._journal.held_threads() if self._journal is not None else ()

    def _new_deadline(self) -> Deadline:
        return Deadline(self._clock, self._config.deadline)

    def _explained(self, failed: CallFailed, what: str) -> BaseException:
        alarm(self._telemetry, self._backend.name, failed)
        return explained(failed, what)

    async def close(self, seconds: float) -> None:
        """Wait up to `seconds` for writes under way to be settled."""
        await self.writes.gathered.settle(seconds)


async def _nobody_drains(thread_id: str, deadline: Deadline) -> bool:
    return False


def _keep_nothing(_: object) -> None:
    """Leave the standby as it is."""
