"""The guard around every call of one backend: deadline, retries, breaker.

An attempt runs as a task of its own. When it is late, the caller goes on and the attempt is abandoned: what it holds
(a connection) is cut, never waited for. This is the only way to bound a caller: cancelling a database driver waits
for the server that does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, NoReturn, TypeVar

from tenacity import AsyncRetrying, RetryCallState, wait_random_exponential

from enhanced_checkpointing.errors import redact
from enhanced_checkpointing.observability.events import AttemptAbandoned, RetryScheduled, Telemetry
from enhanced_checkpointing.resilience.attempts import Attempt, Begun, Lone, current_attempt
from enhanced_checkpointing.resilience.breaker import Breaker, Ticket
from enhanced_checkpointing.resilience.deadline import Alarm, Deadline
from enhanced_checkpointing.resilience.failures import (
    BREAKER_FAILURES,
    CallFailed,
    Classify,
    Failure,
    FailureKind,
)

T = TypeVar("T")

NO_GENERATION = -1
"""The generation of an outcome that never counts."""

SEVER_GRACE = 1.0
"""Seconds that a cut or cancelled attempt has to end by itself before it is pushed once more."""


class RetryBudget:
    """A bound on retries as a share of calls, so that an outage does not triple the load on what is left.

    Every call earns a tenth of a retry; at most `most` are saved up. A retry without one saved is not made.
    """

    def __init__(self, most: float = 10.0, per_call: float = 0.1) -> None:
        self._most = most
        self._per_call = per_call
        self._saved = most

    def earn(self) -> None:
        self._saved = min(self._most, self._saved + self._per_call)

    def spend(self) -> bool:
        """Take one retry from the budget; False if none is left."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


class Guard:
    """Deadline, retries and breaker around the calls of one backend.

    `saturated()` tells whether all connections are busy with our own calls; `abandoned_limit` attempts left behind and
    not yet ended open the breaker.
    """

    def __init__(
        self,
        backend: str,
        *,
        breaker: Breaker,
        classify: Classify,
        saturated: Callable[[], bool],
        telemetry: Telemetry,
        retries: int = 2,
        abandoned_limit: int = 8,
    ) -> None:
        self._backend = backend
        self._breaker = breaker
        self._classify = classify
        self._saturated = saturated
        self._telemetry = telemetry
        self._retries = retries
        self._abandoned_limit = abandoned_limit
        self._abandoned: set[asyncio.Future[Any]] = set()
        self._hanging = 0
        """How many of them hang on the backend; the others waited in our own queues."""
        self._budget = RetryBudget()
        self._alarm = Alarm()
        self._last_answer = float("-inf")
        """The clock's time when the backend last answered anybody."""
        self.on_doubt: Callable[[], None] = lambda: None
        """Called when a call has heard nothing for half its time, and nobody else has: whether that is the backend, or
        one connection, is to be found out before the time is over."""

    @property
    def outstanding(self) -> int:
        """Attempts left behind that have not ended yet."""
        return len(self._abandoned)

    async def call(
        self,
        operation: str,
        run: Callable[[], Awaitable[T]],
        *,
        deadline: Deadline,
        subjects: Collection[str] = (),
        writes: bool = False,
        patient: bool = False,
        begun: Begun[T] | None = None,
    ) -> T:
        """Run `run()` within `deadline`, repeating it where that is safe and worth it.

        A `patient` call may rightly be slow, such as a long listing: its slowness does not move the breaker. What was
        `begun` already is the first attempt.

        Raises:
            CallFailed: it did not succeed; its kind says what that means for the data.
        """

        if begun is None:
            self._budget.earn()
            begun = self._begin(Attempt(operation, subjects, writes, deadline.now), run, deadline)
        try:
            return await self._watch(begun, patient=patient)
        except CallFailed as failed:
            if not self._may_repeat(failed, 1):
                raise
        attempts: list[Begun[T]] = [begun]  # its failure is the first that the retrying sees: healthy calls need none

        async def attempt() -> T:
            if not attempts:
                attempts.append(self._begin(Attempt(operation, subjects, writes, deadline.now), run, deadline))
            return await self._watch(attempts.pop(), patient=patient)

        return await self._retrying(operation, deadline)(attempt)

    def begin(
        self,
        operation: str,
        run: Callable[[], Awaitable[None]],
        *,
        deadline: Deadline,
        subjects: Collection[str],
        lone: Lone | None = None,
    ) -> Begun[None]:
        """Begin a write, for a caller who does no more than `wait` for it, and leaves all else to a later `call`.

        `lone` spares it a task, where it can.

        Raises:
            CallFailed: the breaker is open.
        """
        self._budget.earn()
        return self._begin(Attempt(operation, subjects, True, deadline.now), run, deadline, lone=lone)

    async def wait(self, begun: Begun[None]) -> None:
        """Wait for what was begun, once, within its deadline. A caller who is cancelled leaves it to go on.

        Raises:
            CallFailed: it did not succeed.
        """
        if begun.failed is not None:
            raise begun.failed
        try:
            await self._end_of(begun, patient=False, stays=True)
        except CallFailed as failed:
            begun.failed = failed
            raise

    async def settle(self, seconds: float) -> None:
        """Wait up to `seconds` for the attempts left behind to end, then cancel what is left of them."""
        if self._abandoned:
            _, pending = await asyncio.wait(set(self._abandoned), timeout=seconds)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending, timeout=seconds)

    def _retrying(self, operation: str, deadline: Deadline) -> AsyncRetrying:
        """Full jitter, within the number of retries, the deadline and the budget."""

        def failure(state: RetryCallState) -> CallFailed | None:
            error = state.outcome.exception() if state.outcome is not None else None
            return error if isinstance(error, CallFailed) else None

        def is_worth_it(state: RetryCallState) -> bool:
            failed = failure(state)
            return failed is not None and self._may_repeat(failed, state.attempt_number)

        def is_over(state: RetryCallState) -> bool:
            if state.attempt_number > self._retries or state.upcoming_sleep >= deadline.remaining():
                return True
            return not self._budget.spend()

        def announce(state: RetryCallState) -> None:
            failed = failure(state)
            name = type(failed.error).__name__ if failed is not None else "unknown"
            self._telemetry.emit(
                RetryScheduled(operation, self._backend, state.attempt_number, state.upcoming_sleep, name)
            )

        return AsyncRetrying(
            retry=is_worth_it,
            stop=is_over,
            wait=wait_random_exponential(multiplier=0.02, max=1.0),
            before_sleep=announce,
            reraise=True,
        )

    def _may_repeat(self, failed: CallFailed, attempts_made: int) -> bool:
        if not failed.admitted or failed.timed_out or self._breaker.is_open or self._retries == 0:
            return False
        if failed.kind is FailureKind.TRANSIENT:
            return True
        # A connection that was lost may have done its work. Applying the same operation again is harmless, so one
        # more try on another connection spares the journal a connection that a firewall cut while it was idle.
        return failed.kind is FailureKind.UNKNOWN and attempts_made == 1

    async def once(
        self, operation: str, run: Callable[[], Awaitable[T]], *, deadline: Deadline, counts: bool = False
    ) -> T:
        """Run `run()` once within `deadline`, whether the breaker is open or not: for probes and maintenance.

        With `counts`, the outcome moves a closed breaker as that of a live call does.

        Raises:
            CallFailed: it did not succeed.
        """
        ticket = (self._breaker.admit() if counts else None) or Ticket(NO_GENERATION)
        begun = self._begin(Attempt(operation, (), False, deadline.now), run, deadline, ticket=ticket)
        return await self._watch(begun, patient=False)

    def _begin(
        self,
        attempt: Attempt,
        run: Callable[[], Awaitable[T]],
        deadline: Deadline,
        *,
        ticket: Ticket | None = None,
        lone: Lone | None = None,
    ) -> Begun[T]:
        """Begin an attempt, with the breaker's permission unless it has a `ticket`."""
        ticket = ticket or self._breaker.admit()
        if ticket is None:
            refused = ConnectionRefusedError(f"the {self._backend} primary is not called while its breaker is open")
            raise CallFailed(Failure(FailureKind.OUTAGE, refused), admitted=False)
        asked_at, left = deadline.now_and_left()
        task: asyncio.Future[Any] | None = lone(attempt) if lone is not None else None
        if task is None:
            task = asyncio.create_task(self._run(attempt, run), name=f"checkpoint attempt: {attempt.operation}")
        return Begun(attempt, deadline, ticket, task, left / 2, asked_at - deadline.stalled, asked_at)

    async def _watch(self, begun: Begun[T], *, patient: bool) -> T:
        """The result of what was begun."""
        if begun.failed is None:
            try:
                return await self._end_of(begun, patient=patient, stays=False)
            except CallFailed as failed:
                begun.failed = failed
        raise begun.failed

    async def _end_of(self, begun: Begun[T], *, patient: bool, stays: bool) -> T:
        """The result of what was begun; if its watcher is cancelled it `stays`, or is left behind."""
        task, attempt, deadline = begun.task, begun.attempt, begun.deadline
        try:
            doubt = partial(self._doubt, begun)
            in_time = await deadline.wait_for(task, attempt.watched, begun.half, doubt, self._alarm)
        except asyncio.CancelledError:
            if not stays:
                self._leave(task, attempt, cut=attempt.writes)
            raise
        if not in_time:
            kept_us_waiting = deadline.now() - (attempt.held_at or begun.began_at)
            silent = self._last_answer <= begun.asked_at
            ours = (attempt.held_at is None and not silent) or kept_us_waiting < deadline.seconds / 2
            self._leave(task, attempt, cut=True)
            if not ours and not task.done():
                self._hanging += 1
                task.add_done_callback(self._hangs_no_more)
            waited = deadline.now() - begun.began_at
            self._telemetry.emit(AttemptAbandoned(attempt.operation, self._backend, waited, len(self._abandoned)))
            self._late(begun.ticket, attempt, waited, ours=ours, silent=silent, patient=patient)
        if task.cancelled():
            raise asyncio.CancelledError
        error = task.exception()
        if error is None:
            self._last_answer = deadline.time()
            served_in = 0.0 if patient else deadline.now() - (attempt.held_at or begun.began_at)
            self._breaker.succeeded(begun.ticket, served_in)
            return task.result()
        failed = self._failed(begun.ticket, error)
        if failed.failure.answered:
            self._last_answer = deadline.time()
        raise failed from error

    def _doubt(self, begun: Begun[Any]) -> None:
        """Half the time is over. Only calls about threads doubt: a probe is what doubts are settled by."""
        if begun.attempt.subjects and self._last_answer <= begun.asked_at and not self._breaker.is_open:
            self.on_doubt()

    def _failed(self, ticket: Ticket, error: BaseException) -> CallFailed:
        failure = self._classify(error)
        if failure.kind in BREAKER_FAILURES:
            self._breaker.failed(ticket, _brief(error), definite=failure.kind is FailureKind.OUTAGE)
        return CallFailed(failure)

    @staticmethod
    async def _run(attempt: Attempt, run: Callable[[], Awaitable[T]]) -> T:
        current_attempt.set(attempt)
        try:
            return await run()
        finally:
            attempt.over()

    def _late(
        self, ticket: Ticket, attempt: Attempt, waited: float, *, ours: bool, silent: bool, patient: bool
    ) -> NoReturn:
        """Say what a late attempt means. If most of the time went by in `ours`, our own queues, the backend is not to
        blame. If it was `silent` to everybody for that long, no call waits like this one again; if it answered others
        meanwhile, one connection hangs, and that counts as one failure.

        Only where others were answered on every connection that there may be is the queue our own doing. Where a
        connection could not be made in time, or nobody was answered, nobody knows: a read gets the warm copy."""
        if attempt.held_at is None and not silent and not self._breaker.is_open and self._saturated():
            busy = TimeoutError(f"all connections were busy with our own calls for {waited:.1f} s")
            raise CallFailed(Failure(FailureKind.SATURATED, busy), timed_out=True)
        late = TimeoutError(f"no answer within {waited:.2f} s")
        if not ours and (silent or not patient):
            self._breaker.failed(ticket, _brief(late), definite=silent)
        if self._hanging >= self._abandoned_limit:
            self._breaker.trip(f"{self._hanging} calls hang")
        raise CallFailed(Failure(FailureKind.UNKNOWN, late), timed_out=True)

    def _leave(self, task: asyncio.Future[T], attempt: Attempt, *, cut: bool) -> None:
        """Leave an attempt behind. Cutting its connection ends it at once; cancelling would wait for the server."""
        if task.done():
            return
        self._abandoned.add(task)
        task.add_done_callback(self._ended)
        if cut and attempt.sever is not None:
            attempt.sever()
        else:
            task.cancel()

        def push() -> None:
            if not cut and attempt.sever is not None:
                attempt.sever()
            else:
                task.cancel()

        handle = asyncio.get_running_loop().call_later(SEVER_GRACE, push)
        task.add_done_callback(lambda _: handle.cancel())

    def _hangs_no_more(self, _: asyncio.Future[T]) -> None:
        self._hanging -= 1

    def _ended(self, task: asyncio.Future[T]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the caller was told of the lateness, how the attempt ended matters to nobody


def _brief(error: BaseException) -> str:
    text = redact(error).strip()
    first_line = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
