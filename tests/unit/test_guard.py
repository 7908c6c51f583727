"""Deadline, retries and breaker around one call, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from enhanced_checkpointing.observability.events import AttemptAbandoned, RetryScheduled
from enhanced_checkpointing.resilience import guard as guards
from enhanced_checkpointing.resilience.attempts import Answer, Attempt, Begun, current_attempt
from enhanced_checkpointing.resilience.breaker import Breaker, BreakerSettings
from enhanced_checkpointing.resilience.deadline import TICK, Deadline
from enhanced_checkpointing.resilience.failures import CallFailed, Failure, FailureKind
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.testing import FakeClock
from tests.support.recorder import Recorder
from tests.support.virtual_time import now

pytestmark = pytest.mark.virtual_time


class Fault(Exception):
    """An error that says itself what it means."""

    def __init__(self, kind: FailureKind, *, answered: bool = False) -> None:
        super().__init__(f"a {kind.value} fault\nsecond line")
        self.kind = kind
        self.answered = answered


def classify(error: BaseException) -> Failure:
    if isinstance(error, Fault):
        return Failure(error.kind, error, answered=error.answered)
    return Failure(FailureKind.DATA, error, answered=True)


class Setting:
    """A guard, its breaker and what was said; the breaker opens only for what is definite unless told otherwise."""

    def __init__(
        self,
        *,
        failures_in_row: int = 1000,
        retries: int = 2,
        abandoned_limit: int = 8,
        saturated: bool = False,
    ) -> None:
        self.reasons: list[str] = []
        self.recorder = Recorder()
        settings = BreakerSettings(failures_in_row=failures_in_row, failure_share=2.0)
        self.breaker = Breaker(now, settings, lambda _, reason: self.reasons.append(reason))
        self.guard = Guard(
            "test",
            breaker=self.breaker,
            classify=classify,
            saturated=lambda: saturated,
            telemetry=self.recorder,
            retries=retries,
            abandoned_limit=abandoned_limit,
        )

    async def call(self, run: Callable[[], Awaitable[str]], seconds: float = 2.0, *, writes: bool = False) -> str:
        deadline = Deadline(now, seconds)
        return await self.guard.call("put", run, deadline=deadline, subjects=("thread",), writes=writes)

    async def failure(self, run: Callable[[], Awaitable[str]], seconds: float = 2.0) -> CallFailed:
        with pytest.raises(CallFailed) as caught:
            await self.call(run, seconds)
        return caught.value

    async def late(self, run: Callable[[], Awaitable[str]] | None = None) -> CallFailed:
        return await self.failure(run or silence, 0.03)


class Script:
    """Answers call by call: raises what is an error, returns the rest; the last one is repeated."""

    def __init__(self, *answers: str | Exception) -> None:
        self._answers: Sequence[str | Exception] = answers
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        answer = self._answers[min(self.calls, len(self._answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def silence() -> str:
    await asyncio.sleep(30)
    return "too late"


async def answer() -> str:
    return "done"


def transient() -> Fault:
    return Fault(FailureKind.TRANSIENT)


async def test_result_comes_back_and_failures_before_it_are_forgotten() -> None:
    setting = Setting(failures_in_row=3, retries=0)
    for _ in range(2):
        await setting.failure(Script(transient()))
    assert await setting.call(answer) == "done"
    await setting.failure(Script(transient()))
    assert not setting.breaker.is_open


async def test_transient_failure_is_repeated_until_it_works() -> None:
    setting, script = Setting(), Script(transient(), transient(), "done")
    assert await setting.call(script) == "done"
    assert script.calls == 3
    retries = setting.recorder.of(RetryScheduled)
    assert [(retry.operation, retry.backend, retry.attempt, retry.error_type) for retry in retries] == [
        ("put", "test", 1, "Fault"),
        ("put", "test", 2, "Fault"),
    ]


@pytest.mark.parametrize("retries", [0, 1, 2])
async def test_no_more_retries_than_set(retries: int) -> None:
    setting, script = Setting(retries=retries), Script(transient())
    failed = await setting.failure(script)
    assert failed.kind is FailureKind.TRANSIENT
    assert script.calls == 1 + retries
    assert len(setting.recorder.of(RetryScheduled)) == retries


async def test_lost_connection_is_tried_once_more_and_not_twice() -> None:
    script = Script(Fault(FailureKind.UNKNOWN))
    await Setting(retries=5).failure(script)
    assert script.calls == 2


@pytest.mark.parametrize(
    "kind",
    [FailureKind.OUTAGE, FailureKind.SATURATED, FailureKind.CONFIGURATION, FailureKind.DATA, FailureKind.CORRUPTION],
)
async def test_what_repeating_does_not_help_is_not_repeated(kind: FailureKind) -> None:
    setting, script = Setting(), Script(Fault(kind))
    assert (await setting.failure(script)).kind is kind
    assert script.calls == 1
    assert setting.recorder.events == []


@pytest.mark.parametrize("kind", list(FailureKind))
async def test_only_faults_of_the_backend_move_the_breaker(kind: FailureKind) -> None:
    setting = Setting(failures_in_row=1, retries=0)
    await setting.failure(Script(Fault(kind)))
    speaks_against_it = kind in (FailureKind.TRANSIENT, FailureKind.UNKNOWN, FailureKind.OUTAGE)
    assert setting.breaker.is_open is speaks_against_it


async def test_outage_opens_the_breaker_at_once_with_the_first_line_as_reason() -> None:
    setting = Setting()
    await setting.failure(Script(Fault(FailureKind.OUTAGE)))
    assert setting.reasons == ["Fault: a outage fault"]


async def test_error_without_a_text_is_called_by_its_type() -> None:
    setting = Setting()
    setting.guard._classify = lambda error: Failure(FailureKind.OUTAGE, error)
    await setting.failure(Script(ConnectionResetError()))
    assert setting.reasons == ["ConnectionResetError"]


async def test_retry_stops_when_the_breaker_opened_meanwhile() -> None:
    setting, script = Setting(failures_in_row=2, retries=5), Script(transient())
    await setting.failure(script)
    assert script.calls == 2


async def test_open_breaker_refuses_without_calling() -> None:
    setting, script = Setting(), Script("done")
    setting.breaker.trip("down")
    failed = await setting.failure(script)
    assert (failed.admitted, failed.kind, script.calls) == (False, FailureKind.OUTAGE, 0)
    assert isinstance(failed.error, ConnectionRefusedError)


async def test_outage_does_not_triple_the_load() -> None:
    setting, script = Setting(), Script(transient())
    for _ in range(20):
        await setting.failure(script)
    assert 30 <= script.calls <= 20 + 10 + 2


async def test_retry_that_would_come_after_the_deadline_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    setting, clock = Setting(), FakeClock()
    monkeypatch.setattr("enhanced_checkpointing.resilience.deadline.STALL", 10.0)
    calls = 0

    async def slow() -> str:
        nonlocal calls
        calls += 1
        clock.advance(1.0)
        raise transient()

    with pytest.raises(CallFailed):
        await setting.guard.call("put", slow, deadline=Deadline(clock, 1.0))
    assert calls == 1
    assert setting.recorder.of(RetryScheduled) == []


async def test_late_call_is_unknown_and_not_repeated() -> None:
    setting = Setting()
    script_calls = 0

    async def hang() -> str:
        nonlocal script_calls
        script_calls += 1
        return await silence()

    failed = await setting.late(hang)
    assert (failed.kind, failed.timed_out, failed.admitted, script_calls) == (FailureKind.UNKNOWN, True, True, 1)
    assert isinstance(failed.error, TimeoutError)
    (abandoned,) = setting.recorder.of(AttemptAbandoned)
    assert (abandoned.operation, abandoned.backend, abandoned.outstanding) == ("put", "test", 1)
    assert 0.02 < abandoned.waited < 0.13


async def test_caller_is_bounded_although_the_attempt_ignores_its_cancellation() -> None:
    setting, released = Setting(), asyncio.Event()

    async def stubborn() -> str:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        return "at last"

    started_at = now()
    await setting.failure(stubborn, 0.05)
    assert now() - started_at == pytest.approx(0.05, abs=1.01 * TICK)
    assert setting.guard.outstanding == 1
    released.set()
    await setting.guard.settle(1.0)
    assert setting.guard.outstanding == 0


async def test_attempt_left_behind_that_fails_later_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    setting, cut = Setting(), asyncio.Event()

    async def query() -> str:
        attempt = current_attempt.get()
        assert attempt is not None
        attempt.hold(cut.set)
        await cut.wait()
        raise OSError("the connection was cut")

    await setting.late(query)
    assert cut.is_set()
    await setting.guard.settle(1.0)
    assert setting.guard.outstanding == 0
    assert caplog.records == []  # a "Task exception was never retrieved" would be one


class Query:
    """Waits on a connection that can be cut, and notes how it ended; `deaf`: a cut connection does not wake it."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.begun = asyncio.Event()
        self.log: list[str] = []
        self._cut: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._deaf = deaf

    async def __call__(self) -> str:
        attempt = current_attempt.get()
        assert attempt is not None
        attempt.hold(self._sever)
        self.begun.set()
        try:
            return await self._cut
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise

    def _sever(self) -> None:
        self.log.append("cut")
        if not self._deaf:
            self._cut.set_exception(OSError("cut"))


async def test_late_attempt_is_cut_and_never_cancelled_when_that_ends_it() -> None:
    setting, query = Setting(), Query()
    await setting.late(query)
    await setting.guard.settle(1.0)
    assert query.log == ["cut"]


async def test_late_attempt_that_does_not_notice_the_cut_is_cancelled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "SEVER_GRACE", 0.03)
    setting, query = Setting(), Query(deaf=True)
    await setting.late(query)
    assert query.log == ["cut"]
    assert setting.guard.outstanding == 1
    await asyncio.sleep(0.08)
    assert query.log == ["cut", "cancelled"]
    assert setting.guard.outstanding == 0


async def test_late_attempt_without_a_connection_is_cancelled() -> None:
    setting = Setting()
    await setting.late()
    await asyncio.sleep(0.005)
    assert setting.guard.outstanding == 0


@pytest.mark.parametrize(("writes", "log"), [(True, ["cut"]), (False, ["cancelled"])])
async def test_cancelled_caller_cuts_a_write_but_only_cancels_a_read(writes: bool, log: list[str]) -> None:
    setting, query = Setting(), Query()
    caller = asyncio.ensure_future(setting.call(query, writes=writes))
    await query.begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await setting.guard.settle(1.0)
    assert query.log == log
    assert setting.guard.outstanding == 0


async def test_cancelled_read_whose_server_does_not_answer_is_cut_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "SEVER_GRACE", 0.03)
    setting, cut = Setting(), asyncio.Event()

    async def read() -> str:
        attempt = current_attempt.get()
        assert attempt is not None
        attempt.hold(cut.set)
        while not cut.is_set():  # as psycopg does, which waits for its cancelled query
            try:
                await cut.wait()
            except asyncio.CancelledError:
                continue
        return "cut"

    caller = asyncio.ensure_future(setting.call(read))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not cut.is_set()
    await asyncio.sleep(0.08)
    assert cut.is_set()
    assert setting.guard.outstanding == 0


async def test_cancelled_before_the_attempt_ran_leaves_nothing_behind() -> None:
    setting = Setting()
    caller = asyncio.ensure_future(setting.call(silence))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await setting.guard.settle(1.0)
    assert setting.guard.outstanding == 0


async def test_caller_cancelled_just_as_the_attempt_ended_cuts_and_abandons_nothing() -> None:
    setting, gate, cut = Setting(), asyncio.Event(), []

    async def work() -> str:
        attempt = current_attempt.get()
        assert attempt is not None
        attempt.hold(lambda: cut.append("a connection that works"))
        await gate.wait()
        return "done"

    caller = asyncio.ensure_future(setting.call(work, writes=True))
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert setting.guard.outstanding == 0
    assert cut == []


async def test_call_that_waited_mostly_for_its_turn_does_not_speak_for_the_server() -> None:
    """It asked the server only in the last moment of its deadline; that is one failure, and not silence."""
    setting, clock = Setting(), FakeClock()
    deadline = Deadline(lambda: now() + clock(), 10.0)
    clock.advance(9.97)
    with pytest.raises(CallFailed) as caught:
        await setting.guard.call("put", silence, deadline=deadline)
    assert caught.value.timed_out
    assert not setting.breaker.is_open


async def test_cancellation_counts_neither_for_nor_against() -> None:
    setting = Setting(failures_in_row=1)
    caller = asyncio.ensure_future(setting.call(silence))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not setting.breaker.is_open


async def test_attempt_cancelled_from_inside_ends_as_cancelled() -> None:
    async def cancelled() -> str:
        raise asyncio.CancelledError

    setting = Setting(failures_in_row=1)
    with pytest.raises(asyncio.CancelledError):
        await setting.call(cancelled)
    assert not setting.breaker.is_open


async def test_silence_to_everybody_for_a_whole_deadline_opens_at_once() -> None:
    setting = Setting()
    await setting.late()
    assert setting.breaker.is_open
    assert setting.reasons[0].startswith("TimeoutError: no answer within 0.0")


@pytest.mark.parametrize("other", [answer, Script(Fault(FailureKind.DATA, answered=True))])
async def test_one_hanging_call_beside_answered_ones_is_one_failure(other: Callable[[], Awaitable[str]]) -> None:
    setting = Setting(failures_in_row=2)
    late = asyncio.ensure_future(setting.late())
    await asyncio.sleep(0.005)
    await asyncio.gather(setting.call(other), return_exceptions=True)
    await late
    assert not setting.breaker.is_open
    await setting.late()
    assert setting.breaker.is_open


async def test_call_that_hears_nothing_for_half_its_time_makes_the_guard_doubt_the_backend() -> None:
    setting = Setting(failures_in_row=2)
    doubts: list[float] = []

    def settle_by_asking() -> None:
        doubts.append(now())
        asyncio.get_running_loop().create_task(setting.call(answer))

    setting.guard.on_doubt = settle_by_asking
    started_at = now()
    with pytest.raises(CallFailed):
        await setting.call(silence, 0.1)
    assert len(doubts) == 1
    assert doubts[0] - started_at == pytest.approx(0.05, abs=1.01 * TICK)
    assert not setting.breaker.is_open, "the other call was answered"


@pytest.mark.parametrize("why", ["answered", "probe", "open", "quick"])
async def test_nothing_is_doubted_when_there_is_no_reason_to(why: str) -> None:
    setting = Setting(failures_in_row=1000)
    doubts: list[str] = []
    setting.guard.on_doubt = lambda: doubts.append(why)
    if why == "quick":
        await setting.call(answer, 0.02)
        await asyncio.sleep(0.03)
    else:
        deadline = Deadline(now, 0.05)
        subjects = () if why == "probe" else ("thread",)
        late = asyncio.ensure_future(setting.guard.call("get", silence, deadline=deadline, subjects=subjects))
        await asyncio.sleep(0.005)
        if why == "answered":
            await setting.call(answer)
        elif why == "open":
            setting.breaker.trip("seen by another")
        with pytest.raises(CallFailed):
            await late
    assert not doubts


async def test_refusal_without_an_answer_does_not_speak_for_the_server() -> None:
    setting = Setting()
    late = asyncio.ensure_future(setting.late())
    await asyncio.sleep(0.005)
    await setting.failure(Script(Fault(FailureKind.CONFIGURATION, answered=False)))
    await late
    assert setting.breaker.is_open


async def test_too_many_attempts_left_behind_open_the_breaker() -> None:
    setting = Setting(abandoned_limit=3)
    for count in range(1, 4):
        assert not setting.breaker.is_open
        late = asyncio.ensure_future(setting.failure(Query(deaf=True), 0.2))
        await asyncio.sleep(0.002)
        await setting.call(answer)
        await late
        assert setting.guard.outstanding == count
    assert setting.reasons == ["3 calls hang"]
    await setting.guard.settle(0.01)
    assert setting.guard.outstanding == 0


@pytest.mark.parametrize(
    ("saturated", "answered", "opened", "kind"),
    [
        (True, True, False, FailureKind.SATURATED),
        (False, True, False, FailureKind.UNKNOWN),  # no connection could be made in time: that is not our own load
        (True, False, False, FailureKind.UNKNOWN),  # nobody is answered: it is the backend that holds them all
        (True, True, True, FailureKind.UNKNOWN),
    ],
)
async def test_wait_for_a_connection_is_back_pressure_only_where_others_are_answered_on_all_there_may_be(
    saturated: bool, answered: bool, opened: bool, kind: FailureKind
) -> None:
    setting = Setting(failures_in_row=1, saturated=saturated)
    late = asyncio.ensure_future(setting.late())
    await asyncio.sleep(0.005)
    if answered:
        await setting.call(answer)
    if opened:
        setting.breaker.trip("seen by another")
    failed = await late
    assert (failed.kind, failed.timed_out) == (kind, True)
    assert setting.breaker.is_open == (opened or not answered)


async def test_call_that_had_a_connection_is_late_even_when_all_are_busy() -> None:
    setting = Setting(failures_in_row=1, saturated=True)
    failed = await setting.late(Query())
    assert failed.kind is FailureKind.UNKNOWN
    assert setting.breaker.is_open


async def test_connection_that_was_let_go_is_not_cut() -> None:
    setting, cut = Setting(), []

    async def query() -> str:
        attempt = current_attempt.get()
        assert attempt is not None
        attempt.hold(lambda: cut.append("somebody else's by now"))
        attempt.let_go()
        return await silence()

    assert (await setting.late(query)).kind is FailureKind.UNKNOWN
    await setting.guard.settle(1.0)
    assert cut == []


async def test_once_calls_an_open_primary_and_its_outcome_does_not_close_or_move_it() -> None:
    setting, script = Setting(failures_in_row=1), Script("done", Fault(FailureKind.OUTAGE))
    deadline = Deadline(now, 1.0)
    setting.breaker.trip("down")
    assert await setting.guard.once("probe", script, deadline=deadline, counts=True) == "done"
    assert setting.breaker.is_open
    setting.breaker.close()
    with pytest.raises(CallFailed):
        await setting.guard.once("setup", script, deadline=deadline)
    assert not setting.breaker.is_open


async def test_once_that_counts_opens_a_closed_breaker() -> None:
    setting = Setting(failures_in_row=1)
    with pytest.raises(CallFailed):
        await setting.guard.once("probe", Script(transient()), deadline=Deadline(now, 1.0), counts=True)
    assert setting.breaker.is_open


async def test_once_is_never_repeated() -> None:
    setting, script = Setting(), Script(transient(), "done")
    with pytest.raises(CallFailed):
        await setting.guard.once("probe", script, deadline=Deadline(now, 1.0))
    assert script.calls == 1


async def test_attempt_knows_what_it_is_for_and_its_caller_does_not() -> None:
    seen = []

    async def look() -> str:
        attempt = current_attempt.get()
        assert attempt is not None
        seen.append((attempt.operation, attempt.subjects, attempt.writes))
        return "done"

    await Setting().call(look, writes=True)
    assert seen == [("put", ("thread",), True)]
    assert current_attempt.get() is None


async def test_settle_cancels_what_does_not_end_in_time() -> None:
    setting, query = Setting(), Query(deaf=True)
    await setting.late(query)
    await setting.guard.settle(0.02)
    assert setting.guard.outstanding == 0
    assert query.log == ["cut", "cancelled"]


async def test_settle_with_nothing_left_behind_returns_at_once() -> None:
    started_at = now()
    await Setting().guard.settle(5.0)
    assert now() == started_at


# A backend that never waits


# What is begun by one and watched by another


def begun(setting: Setting, run: Callable[[], Awaitable[None]], seconds: float = 2.0) -> Begun[None]:
    return setting.guard.begin("put", run, deadline=Deadline(now, seconds), subjects=("thread",))


async def nothing() -> None:
    return None


async def test_what_was_begun_is_waited_for() -> None:
    setting = Setting()
    await setting.guard.wait(begun(setting, nothing))
    assert setting.guard.outstanding == 0


async def test_nothing_is_begun_while_the_breaker_is_open() -> None:
    setting = Setting()
    setting.breaker.trip("down")
    with pytest.raises(CallFailed) as caught:
        begun(setting, nothing)
    assert not caught.value.admitted


async def test_failure_of_what_was_begun_counts_once_however_many_watch_it() -> None:
    setting = Setting(failures_in_row=2, retries=0)

    async def fails() -> None:
        raise transient()

    one = begun(setting, fails)
    deadline = Deadline(now, 2.0)
    for _ in range(3):
        with pytest.raises(CallFailed):
            await setting.guard.wait(one)
        with pytest.raises(CallFailed):
            await setting.guard.call("put", nothing, deadline=deadline, writes=True, begun=one)
    assert not setting.breaker.is_open


async def test_what_was_begun_is_the_first_of_the_attempts_of_a_call() -> None:
    setting, calls = Setting(retries=1), list[str]()

    async def fails_first() -> None:
        calls.append("asked")
        if len(calls) == 1:
            raise transient()

    one = begun(setting, fails_first)
    deadline = Deadline(now, 2.0)
    await setting.guard.call("put", fails_first, deadline=deadline, writes=True, begun=one)
    assert calls == ["asked", "asked"]


async def test_what_was_begun_goes_on_without_a_caller_who_is_cancelled() -> None:
    setting, gate = Setting(), asyncio.Event()

    async def waits() -> None:
        await gate.wait()

    one = begun(setting, waits)
    waiting = asyncio.create_task(setting.guard.wait(one))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not one.is_cancelled
    assert setting.guard.outstanding == 0
    gate.set()
    await setting.guard.wait(one)


async def test_what_was_begun_is_left_behind_when_it_is_late() -> None:
    setting = Setting()

    async def hangs() -> None:
        await asyncio.sleep(30)

    one = begun(setting, hangs, 0.03)
    with pytest.raises(CallFailed) as caught:
        await setting.guard.wait(one)
    assert (caught.value.kind, caught.value.timed_out) == (FailureKind.UNKNOWN, True)
    assert setting.guard.outstanding == 1
    await setting.guard.settle(2.0)


async def test_what_the_end_of_the_loop_cancels_says_so() -> None:
    setting = Setting()
    one = begun(setting, nothing)
    one.task.cancel()
    assert one.is_cancelled
    with pytest.raises(asyncio.CancelledError):
        await setting.guard.wait(one)
    assert one.is_cancelled


# What needs no task


class Thread:
    """In place of a thread of the backend: makes an attempt when it is told to."""

    def __init__(self) -> None:
        self.launched = 0
        self.severed = 0

    def lone(self, attempt: Attempt) -> Answer:
        self.answer = Answer(attempt)

        def launch() -> None:
            self.launched += 1
            attempt.hold(self.sever)

        attempt.launch = launch
        return self.answer

    def sever(self) -> None:
        self.severed += 1
        self.answer.set_exception(ConnectionResetError("cut"))


def begun_by(setting: Setting, thread: Thread, seconds: float = 2.0) -> Begun[None]:
    deadline = Deadline(now, seconds)
    return setting.guard.begin("put", nothing, deadline=deadline, subjects=("thread",), lone=thread.lone)


async def test_attempt_without_a_task_is_launched_when_it_is_waited_for_and_only_once() -> None:
    setting, thread = Setting(), Thread()
    before = asyncio.all_tasks()
    one = begun_by(setting, thread)
    assert (asyncio.all_tasks(), thread.launched) == (before, 0)
    for _ in range(2):
        waiting = asyncio.create_task(setting.guard.wait(one))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert (thread.launched, one.is_cancelled, one.has_task) == (1, False, False)
    thread.answer.set_result(None)
    await setting.guard.wait(one)


async def test_answer_of_a_thread_wakes_its_caller_in_the_next_turn_of_the_loop() -> None:
    setting, thread = Setting(), Thread()
    waiting = asyncio.create_task(setting.guard.wait(begun_by(setting, thread)))
    await asyncio.sleep(0)
    thread.answer.set_result(None)
    await asyncio.sleep(0)
    assert waiting.done()


async def test_answer_that_is_cancelled_wakes_its_caller_too() -> None:
    setting, thread = Setting(), Thread()
    waiting = asyncio.create_task(setting.guard.wait(begun_by(setting, thread)))
    await asyncio.sleep(0)
    thread.answer.cancel()
    await asyncio.sleep(0)
    assert waiting.cancelled()


async def test_error_that_a_thread_answers_counts_as_any_other() -> None:
    setting, thread = Setting(failures_in_row=1, retries=0), Thread()
    waiting = asyncio.create_task(setting.guard.wait(begun_by(setting, thread)))
    await asyncio.sleep(0)
    thread.answer.set_exception(Fault(FailureKind.OUTAGE))
    with pytest.raises(CallFailed) as caught:
        await waiting
    assert caught.value.kind is FailureKind.OUTAGE
    assert setting.breaker.is_open


async def test_thread_that_does_not_answer_in_time_is_cut() -> None:
    setting, thread = Setting(), Thread()
    with pytest.raises(CallFailed) as caught:
        await setting.guard.wait(begun_by(setting, thread, 0.03))
    assert (caught.value.kind, caught.value.timed_out) == (FailureKind.UNKNOWN, True)
    assert thread.severed == 1
    await asyncio.sleep(0)
    assert setting.guard.outstanding == 0


async def test_thread_is_not_bothered_when_there_is_no_time_for_it() -> None:
    setting, thread = Setting(), Thread()
    with pytest.raises(CallFailed):
        await setting.guard.wait(begun_by(setting, thread, 0.0))
    assert (thread.launched, thread.severed) == (0, 0)


@pytest.mark.parametrize("answers", [True, False])
async def test_what_was_begun_is_over_when_it_has_ended_or_its_time_has(answers: bool) -> None:
    setting, thread, told = Setting(), Thread(), list[str]()
    one = begun_by(setting, thread, 0.05)
    one.when_over(lambda: told.append("over"))
    await asyncio.sleep(0.01)
    assert told == []
    if answers:
        thread.answer.set_result(None)
        await asyncio.sleep(0.01)
        assert told == ["over"]
    await asyncio.sleep(0.08)
    assert told == ["over"]


async def test_answer_in_the_moment_of_asking_is_no_sign_of_life_since() -> None:
    setting, doubts = Setting(), list[float]()
    setting.guard.on_doubt = lambda: doubts.append(now())
    assert await setting.call(answer) == "done"
    await setting.failure(silence, 0.1)
    assert len(doubts) == 1
    assert setting.breaker.is_open, "nobody has heard of it for that long"


async def test_half_of_the_time_without_a_word_raises_a_doubt_once() -> None:
    setting, thread, doubts = Setting(), Thread(), list[float]()
    setting.guard.on_doubt = lambda: doubts.append(now())
    began_at = now()
    waiting = asyncio.create_task(setting.guard.wait(begun_by(setting, thread, 0.2)))
    await asyncio.sleep(0.15)
    thread.answer.set_result(None)
    await waiting
    assert [moment - began_at for moment in doubts] == [pytest.approx(0.1, abs=1.01 * TICK)]
