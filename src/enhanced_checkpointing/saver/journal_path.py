"""How calls that the primary did not take get into the journal, and from there into the standby."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from enhanced_checkpointing.errors import quoted
from enhanced_checkpointing.journal.api import UNKNOWN, Appending, BaseHead, Journal
from enhanced_checkpointing.observability.events import FailedOver
from enhanced_checkpointing.operations import DeleteThread, Operation, PutWrites
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import NOT_STORED, unavailable
from enhanced_checkpointing.saver.core import Call, Core

LEAST_FOR_THE_JOURNAL = 0.05
LATEST_FOR_THE_JOURNAL = 0.08
"""Seconds that the journal gets in any case, and after the deadline at which it gets none: so late may a call return.
Without the second, each one behind a disk that hangs would be later than the one in front of it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call that is to be journaled, and why."""

    call: Call
    reason: str


class JournalPath:
    """Journals calls. Without a journal it refuses them."""

    def __init__(self, core: Core) -> None:
        self._backend, self._breaker, self._standby = core.backend, core.breaker, core.standby
        self._newcomers, self._others = core.new_threads, core.others
        self._telemetry, self._clock = core.telemetry, core.clock
        self._journal = core.journal if core.config.on_outage == "journal" else None
        self.journaled = 0
        """Operations journaled so far."""
        self.on_journaled: Callable[[], None] = lambda: None
        """Called after every journaled operation; set by whoever drains."""

    @property
    def possible(self) -> bool:
        """Whether there is a journal."""
        return self._journal is not None

    async def settle(self, waiting: Sequence[Waiting]) -> None:
        """Journal calls, those of one thread in their order, and tell each caller."""
        threads: dict[str, list[Waiting]] = {}
        for each in waiting:
            threads.setdefault(each.call.thread_id, []).append(each)
        at_once: list[Waiting] = []
        in_turns = []
        for runs in ([*_runs(of_thread)] for of_thread in threads.values()):
            if len(runs) == 1:
                at_once += runs[0]
            else:
                in_turns.append(self._one_after_the_other(runs))
        try:
            await both(self._at_once(at_once), in_turns)
        except BaseException as error:  # the loop ends: nobody is left waiting
            for each in waiting:
                each.call.refuse(error)
            raise

    async def _one_after_the_other(self, runs: Sequence[Sequence[Waiting]]) -> None:
        for run in runs:
            await self._at_once(run)

    async def _at_once(self, waiting: Sequence[Waiting]) -> None:
        """Journal calls of which none grows from another: they are on their way before the first is waited for."""
        sent: list[tuple[Deadline, Waiting, Appending]] = []
        queued: list[tuple[Deadline, Waiting]] = []
        behind: set[str] = set()
        for each in waiting:
            operation = each.call.operation
            try:
                deadline, journal = self._admit(each.call)
                appending = None
                if operation.thread_id not in behind:
                    appending = journal.begin(operation, self._base_head(operation))
            except Exception as error:  # noqa: BLE001  # it is the caller's
                _tell(each.call, error)
                continue
            if appending is not None:
                sent.append((deadline, each, appending))
            else:
                behind.add(operation.thread_id)
                queued.append((deadline, each))
        await both(self._all_stored(sent), [self._append(*one) for one in queued])

    async def _all_stored(self, sent: Sequence[tuple[Deadline, Waiting, Appending]]) -> None:
        """Wait for each until its deadline; the earliest first, so that nobody is late for another."""
        for deadline, each, appending in sorted(sent, key=lambda one: one[0].remaining()):
            try:
                await appending.stored(deadline)
                self._acknowledge(each)
            except Exception as error:  # noqa: BLE001  # it is the caller's
                _tell(each.call, error)

    async def _append(self, deadline: Deadline, each: Waiting) -> None:
        """Wait for one's turn and for room, too."""
        operation = each.call.operation
        assert self._journal is not None
        try:
            await self._journal.append(operation, self._base_head(operation), deadline)
            self._acknowledge(each)
        except Exception as error:  # noqa: BLE001  # it is the caller's
            _tell(each.call, error)

    def _admit(self, call: Call) -> tuple[Deadline, Journal]:
        """The time that the journal has for a call, if that may be journaled."""
        operation = call.operation
        what = f"{operation.name} on thread {quoted(operation.thread_id)}"
        if self._journal is None:
            raise unavailable(f"{what} was not accepted", NOT_STORED)
        left = LATEST_FOR_THE_JOURNAL - call.deadline.overdue()
        if left <= 0:
            raise unavailable(f"{what} did not get its turn in time", NOT_STORED)
        try:
            self._backend.check(operation)
        except Exception as error:  # whatever the primary would raise for the caller's data
            call.scope.outcome, call.scope.error_type = "refused", type(error).__name__
            raise
        self._newcomers.admit(operation.thread_id, outage=self._breaker.is_open)
        if call.deadline.remaining() < LEAST_FOR_THE_JOURNAL:
            return Deadline(self._clock, min(left, LEAST_FOR_THE_JOURNAL)), self._journal
        return call.deadline, self._journal

    def _base_head(self, operation: Operation) -> BaseHead:
        """What an operation grows from. Who deletes a thread means all of it, also what was taken for nothing."""
        if isinstance(operation, DeleteThread) and (
            self._newcomers.presumes(operation.thread_id)
            or (self._others is not None and not self._others.known.is_current(operation.thread_id))
        ):
            return UNKNOWN
        return self._standby.base_head(operation)

    def _acknowledge(self, each: Waiting) -> None:
        """The journal first, then the standby."""
        self.journaled += 1
        self._telemetry.emit(FailedOver(self._backend.name, each.call.operation.name, each.reason))
        self._standby.keep(each.call.operation)
        if self._others is not None:
            self._others.known.note(each.call.thread_id, is_all=isinstance(each.call.operation, DeleteThread))
        self.on_journaled()
        each.call.acknowledge("journaled")


def _tell(call: Call, error: Exception) -> None:
    """Whatever goes wrong with a call is told to its caller, and to nobody else."""
    if call.scope.outcome != "refused":
        call.scope.outcome = "unavailable"
    call.refuse(error)


def _runs(waiting: Sequence[Waiting]) -> Iterator[list[Waiting]]:
    """What may be appended at the same time: a put moves the head that the next operation grows from."""
    run: list[Waiting] = []
    for each in waiting:
        run.append(each)
        if not isinstance(each.call.operation, PutWrites):
            yield run
            run = []
    if run:
        yield run


async def both(first: Awaitable[None], others: Sequence[Awaitable[None]]) -> None:
    """At the same time, begun in this order; without a task where there is only the first."""
    if others:
        await asyncio.gather(first, *others)
    else:
        await first
