"""The engine: the rules by which one call goes to the primary, the journal or the standby.

It decides through the pure functions of `routes`, and acts through the guard and the standby; `writes` settles what
changes something.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    CheckpointTuple,
    DeltaChannelHistory,
)

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.errors import CheckpointUnavailableError, quoted
from enhanced_checkpointing.observability.events import OperationScope
from enhanced_checkpointing.operations import (
    asks_for_thread,
    checkpoint_id_of,
    thread_of,
)
from enhanced_checkpointing.resilience.breaker import Clock
from enhanced_checkpointing.resilience.cooperative import collected
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import (
    CallFailed,
    FailureKind,
    alarm,
    cold,
    explained,
    not_warm,
)
from enhanced_checkpointing.saver.core import Core
from enhanced_checkpointing.saver.routes import (
    Route,
    Verdict,
    after_failed_read,
)
from enhanced_checkpointing.saver.write_path import WritePath

T = TypeVar("T")

FOR_THE_READ = 0.1
"""The share of its deadline that must be left of a read, when its thread is drained, to ask the primary."""

QUIET_GLANCE = 0.005
"""Seconds between looks at whether a thread has writes on their way."""

CANNOT_SERVE = (FailureKind.OUTAGE, FailureKind.CONFIGURATION)
"""What the primary said, not what its silence may mean."""

MOST_READS = 100_000
"""Threads that are remembered; those that were read the longest ago are forgotten first."""


class Reads:
    """Remembers the last read of each thread. `wall_clock` gives seconds since 1970."""

    def __init__(self, wall_clock: Clock) -> None:
        self._wall_clock = wall_clock
        self._at: dict[str, float] = {}

    def note(self, thread_id: str) -> None:
        self._at.pop(thread_id, None)  # so that it comes last
        self._at[thread_id] = self._wall_clock()
        if len(self._at) > MOST_READS:
            del self._at[next(iter(self._at))]

    def at(self, thread_id: str) -> datetime | None:
        seconds = self._at.get(thread_id)
        return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None

    def all(self) -> Mapping[str, datetime]:
        """All that are remembered, as of now."""
        return {thread_id: datetime.fromtimestamp(seconds, UTC) for thread_id, seconds in self._at.items()}

    def forget(self, thread_id: str, read_at: datetime) -> None:
        """Forget a read that was dealt with, unless there has been another one."""
        if self.at(thread_id) == read_at:
            del self._at[thread_id]


class Engine:
    """Serves the calls of one manager. All methods run on the manager's event loop."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.others, self.newcomers = core.others, core.new_threads
        self._backend, self._guard, self._breaker = core.backend, core.guard, core.breaker
        self._journal, self._standby, self._telemetry = core.journal, core.standby, core.telemetry
        self.writes = WritePath(core)
        self.journaling = self.writes.journaling
        waits = type(core.backend).never_waits is Backend.never_waits
        self._never_waits = None if waits else core.backend.never_waits
        self._reading = 0
        """Reads that are with the primary now."""
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

    def promise_new(self, thread_id: str) -> None:
        """The application says that a thread does not exist yet."""
        self._standby.note_empty(thread_id, "")
        if self.others is not None:
            self.others.known.know(thread_id, self.others.known.stamp(thread_id))

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
            deadline = self.core.deadline()
            if self.others is not None and self.others.hold(thread_id):
                await self._let_others_go(scope, thread_id, deadline)
            route = self.writes.route(thread_id)
            if route is Route.JOURNAL and not self._breaker.is_open and await self.drain_first(thread_id, deadline):
                # What was in the journal is warm: it answers where the drain left no time to ask the primary.
                route = Route.PRIMARY if deadline.remaining() > FOR_THE_READ * deadline.seconds else route
            scope.route = route.value
            if route is Route.JOURNAL:
                return self._ask_standby(scope, thread_id, standby, None)
            if self._never_waits is not None and self._never_waits():
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
        deadline = self.core.deadline()
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
