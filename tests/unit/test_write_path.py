"""How writes are settled together: at the primary, in the journal, or not at all; and in which order."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from enhanced_checkpointing.backends.memory.backend import MemoryBackend
from enhanced_checkpointing.errors import CheckpointCorruptionError, CheckpointUnavailableError, JournalFullError
from enhanced_checkpointing.observability.events import ConfigurationFault, FailedOver, Notice, OperationScope
from enhanced_checkpointing.operations import DeleteThread, Operation, frozen_size
from enhanced_checkpointing.resilience import group_commit
from enhanced_checkpointing.resilience.deadline import TICK, Deadline
from enhanced_checkpointing.resilience.failures import FailureKind
from enhanced_checkpointing.saver import journal_path as journaling
from enhanced_checkpointing.saver import write_path as writes
from enhanced_checkpointing.saver.core import Call
from enhanced_checkpointing.testing import FakeClock
from tests.support.author import config_of
from tests.support.engine_setting import THREAD, Primary, Setting, Wrong, answers_by_a_thread, turns
from tests.support.virtual_time import now

pytestmark = pytest.mark.virtual_time


NOT_AT_FAULT = [kind for kind in FailureKind if kind not in (FailureKind.DATA, FailureKind.CORRUPTION)]


class MovableClock(FakeClock):
    """Real time, and more when it is told to."""

    def __call__(self) -> float:
        return now() + super().__call__()


async def occupied(setting: Setting, thread_id: str = "x") -> tuple[asyncio.Task[None], asyncio.Event]:
    """A write that keeps the one lane until the event is set, so that what comes next goes together."""
    gate = setting.backend.gate = asyncio.Event()
    (first,) = await setting.begin_puts(thread_id)
    await turns()
    setting.backend.gate = None
    return first, gate


async def results(callers: Sequence[asyncio.Task[None]]) -> list[BaseException | None]:
    async with asyncio.timeout(5):
        return await asyncio.gather(*callers, return_exceptions=True)


@contextmanager
def tasks_made() -> Iterator[list[str]]:
    """What the tasks run that are made meanwhile."""
    made: list[str] = []
    loop = asyncio.get_running_loop()

    def note(loop: asyncio.AbstractEventLoop, coroutine: Any, **parts: Any) -> asyncio.Task[Any]:
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **parts)

    loop.set_task_factory(note)
    try:
        yield made
    finally:
        loop.set_task_factory(None)


# Together


async def test_writes_that_come_while_one_is_on_its_way_are_committed_together() -> None:
    setting = Setting()
    first, gate = await occupied(setting)
    callers = [*await setting.begin_puts("a", "b"), *await setting.begin(setting.writes("a", "a:w"), DeleteThread("c"))]
    await turns()
    assert setting.backend.asked == [["x1"]]
    gate.set()
    assert await results([first, *callers]) == [None] * 5
    assert setting.backend.asked == [["x1"], ["a1", "a:w", "b1", "c!"]]
    assert setting.recorder.outcomes() == [(name, "primary") for name in ("x", "a", "b", "a", "c")]
    assert {scope.route for scope in setting.recorder.scopes} == {"primary"}
    for thread_id in "ab":
        found = await setting.engine.get_tuple(config_of(thread_id))
        assert found is not None
        assert setting.standby.knows(thread_id)


async def test_lone_write_is_with_the_primary_after_one_turn_of_the_loop() -> None:
    setting = Setting()
    gate = setting.backend.gate = asyncio.Event()
    callers = await setting.begin_puts("a")
    for _ in range(2):  # the batch, and its attempt
        await asyncio.sleep(0)
    assert setting.backend.asked == [["a1"]]
    gate.set()
    await results(callers)


async def test_batches_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "BATCH", 3)
    setting = Setting()
    assert await results(await setting.begin_puts(*"abcde")) == [None] * 5
    assert setting.backend.asked == [["a1", "b1", "c1"], ["d1", "e1"]]


async def test_batches_are_not_heavier_than_one_operation_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "BATCH_BYTES", 1000)
    setting = Setting()
    for thread_id in "pqr":
        await setting.put(thread_id)
    heavy = [setting.author(thread_id).writes(("n", [600 * "x"]), task_id=f"{thread_id}:w") for thread_id in "pqr"]
    setting.backend.asked.clear()
    await results(await setting.begin(*heavy))
    assert setting.backend.asked == [["p:w", "q:w"], ["r:w"]]


async def test_backend_without_lanes_gets_each_write_by_itself_and_all_threads_at_once() -> None:
    class OneByOne(Primary):
        lanes = 0

    setting = Setting(backend=OneByOne)
    gate = setting.backend.gate = asyncio.Event()
    callers = await setting.begin_puts("a", "b", "a", "c")
    await turns()
    assert setting.backend.asked == [["a1"], ["b1"], ["c1"]]
    gate.set()
    assert await results(callers) == [None] * 4
    assert setting.backend.asked == [["a1"], ["b1"], ["c1"], ["a2"]]


async def test_primary_that_took_anything_was_in_contact_and_one_that_took_nothing_was_not() -> None:
    setting, contacts = Setting(), list[int]()
    setting.engine.newcomers.contact = lambda: contacts.append(1)  # type: ignore[method-assign]  # counts
    setting.backend.at_fault = {"a1": Wrong(FailureKind.DATA)}
    await results(await setting.begin_puts("a", "b"))
    assert len(contacts) == 1
    setting.backend.wrong = Wrong(FailureKind.DATA)
    await results(await setting.begin_puts("a", "b"))
    assert len(contacts) == 1
    setting.breaker.trip("down")
    await results(await setting.begin_puts("b"))
    assert len(contacts) == 1


# One at fault


async def test_operation_at_fault_fails_alone_and_the_others_are_committed_in_few_steps() -> None:
    setting = Setting()
    fault = Wrong(FailureKind.DATA)
    setting.backend.at_fault = {"f1": fault}
    told = await results(await setting.begin_puts(*"abcdefgh"))
    assert told == [None] * 5 + [fault] + [None] * 2
    assert told[5] is fault, "the caller gets it as the saver raised it"
    assert setting.backend.stored == [f"{name}1" for name in "abcdegh"]
    assert [len(asked) for asked in setting.backend.asked] == [8, 4, 4, 2, 1, 1, 2]
    assert [outcome for _, outcome in setting.recorder.outcomes()] == ["primary"] * 5 + ["refused"] + ["primary"] * 2
    assert setting.recorder.scopes[5].error_type == "Wrong"
    assert setting.pending == 0
    assert not setting.breaker.is_open


async def test_every_operation_at_fault_is_told_its_own_error() -> None:
    setting = Setting()
    setting.backend.at_fault = {"a1": ValueError("of a"), "d1": ValueError("of d")}
    told = await results(await setting.begin_puts(*"abcd"))
    assert [str(error) for error in told] == ["of a", "None", "None", "of d"]
    assert setting.backend.stored == ["b1", "c1"]


async def test_what_comes_after_an_operation_at_fault_of_its_thread_is_committed_in_its_order() -> None:
    """As with the bare saver, whose caller is told, and goes on or does not."""
    setting = Setting()
    setting.backend.at_fault = {"a2": Wrong(FailureKind.DATA)}
    told = await results(await setting.begin_puts("a", "a", "a", "b", "a"))
    assert [error is None for error in told] == [True, False, True, True, True]
    assert setting.backend.stored == ["a1", "a3", "a4", "b1"]


async def test_damaged_data_is_told_to_its_caller_and_once_to_an_operator() -> None:
    setting = Setting()
    setting.backend.at_fault = {"b1": Wrong(FailureKind.CORRUPTION)}
    told = await results(await setting.begin_puts("a", "b", "c", "d"))
    assert [type(error) for error in told if error is not None] == [CheckpointCorruptionError]
    (notice,) = setting.recorder.of(Notice)
    assert (notice.level, "hunter2" in notice.message) == ("ERROR", False)
    assert setting.backend.stored == ["a1", "c1", "d1"]


async def test_operation_at_fault_by_itself_is_asked_once() -> None:
    setting = Setting()
    setting.backend.wrong = Wrong(FailureKind.DATA)
    assert await results(await setting.begin_puts("a")) == [setting.backend.wrong]
    assert setting.backend.asked == [["a1"]]


# Into the journal


@pytest.mark.parametrize("kind", NOT_AT_FAULT)
async def test_batch_that_the_primary_does_not_take_is_journaled_in_its_order(kind: FailureKind) -> None:
    setting, told = Setting(), list[int]()
    setting.engine.journaling.on_journaled = lambda: told.append(setting.pending)
    await setting.know("a", "b")
    setting.backend.wrong = Wrong(kind)
    puts = [setting.next_put(thread_id) for thread_id in "abaa"]
    assert await results(await setting.begin(*puts, DeleteThread("b"))) == [None] * 5
    assert len(setting.backend.asked) == 1, "what is not at fault is not looked for"
    assert (setting.journaled("a"), setting.journaled("b")) == (["a1", "a2", "a3"], ["b1", "b!"])
    assert setting.engine.journaling.journaled == len(told) == 5
    assert setting.recorder.outcomes() == [(name, "journaled") for name in ("a", "b", "a", "a", "b")]
    assert {scope.error_type for scope in setting.recorder.scopes} == {"Wrong"}
    failed_over = setting.recorder.of(FailedOver)
    assert {(event.backend, event.reason) for event in failed_over} == {
        ("memory", f"{kind.value}: Wrong: it is {kind.name}, password=***")
    }
    assert len(setting.recorder.of(ConfigurationFault)) == (kind is FailureKind.CONFIGURATION)
    assert setting.standby.knows("a")


async def test_each_record_grows_from_the_one_before_it() -> None:
    setting = Setting()
    await setting.put()
    head = setting.author("a").head
    setting.breaker.trip("down")
    first, second = setting.next_put("a"), setting.next_put("a")
    await results(await setting.begin(first, second))
    assert setting.journal.base_heads == [head, first.checkpoint_id]


async def test_open_breaker_journals_without_calling_the_primary() -> None:
    setting = Setting()
    await setting.know("a")
    setting.breaker.trip("down")
    await results(await setting.begin_puts("a"))
    assert setting.backend.asked == []
    assert setting.journaled("a") == ["a1"]
    assert [scope.route for scope in setting.recorder.scopes] == ["journal"]
    assert [event.reason for event in setting.recorder.of(FailedOver)] == ["the primary is not available"]


async def test_nothing_of_a_thread_reaches_the_primary_after_what_was_journaled_of_it() -> None:
    """a1 fails while a2 and b1 wait: they go out together, but only b1 to the primary."""
    setting = Setting()
    gate = setting.backend.gate = asyncio.Event()
    setting.backend.answers = [Wrong(FailureKind.TRANSIENT)]
    callers = await setting.begin_puts("a")
    await turns()
    callers += await setting.begin_puts("a", "b")
    gate.set()
    assert await results(callers) == [None] * 3
    assert setting.backend.asked == [["a1"], ["b1"]]
    assert setting.journaled("a") == ["a1", "a2"]


async def test_nothing_of_a_thread_is_tried_while_one_of_it_is_on_its_way_to_the_journal() -> None:
    setting = Setting()
    gate = setting.journal.gates["a"] = asyncio.Event()
    setting.backend.answers = [Wrong(FailureKind.TRANSIENT)]
    callers = await setting.begin_puts("a")
    await turns()
    assert setting.journal.begun == ["a1"]
    assert not setting.journal.holds("a"), "the journal does not know of it yet"
    callers += await setting.begin_puts("a", "b")
    await turns()
    assert setting.backend.asked == [["a1"], ["b1"]], "and the lane is free"
    gate.set()
    assert await results(callers) == [None] * 3
    assert setting.backend.asked == [["a1"], ["b1"]]
    assert setting.journaled("a") == ["a1", "a2"]


async def test_pieces_of_a_thread_behind_one_that_goes_to_the_journal_follow_it_there() -> None:
    """c1 is at fault, so the batch is split; then the primary is lost for a moment."""
    setting = Setting()
    setting.backend.at_fault = {"c1": Wrong(FailureKind.DATA)}
    setting.backend.answers = [None, Wrong(FailureKind.UNKNOWN), None]
    callers = await setting.begin_puts("a", "a", "a", "a", "b", "c")
    told = await results(callers)
    assert [error is None for error in told] == [True] * 5 + [False]
    assert setting.backend.asked[:2] == [["a1", "a2", "a3", "a4", "b1", "c1"], ["a1", "a2", "a3"]]
    assert setting.backend.asked[2:] == [["b1", "c1"], ["b1"], ["c1"]]
    assert setting.journaled("a") == ["a1", "a2", "a3", "a4"]
    assert setting.backend.stored == ["b1"]


async def test_piece_of_which_nothing_may_be_tried_is_no_step_of_its_own() -> None:
    setting = Setting()
    setting.backend.answers = [Wrong(FailureKind.DATA), Wrong(FailureKind.TRANSIENT)]
    assert await results(await setting.begin_puts("a", "a", "a", "a")) == [None] * 4
    assert setting.backend.asked == [["a1", "a2", "a3", "a4"], ["a1", "a2"]]
    assert setting.journaled("a") == ["a1", "a2", "a3", "a4"]


async def test_write_of_an_outage_goes_to_the_journal_and_waits_for_no_lane_to_the_primary() -> None:
    setting = Setting()
    await setting.put()
    first, gate = await occupied(setting)
    waiting = await setting.begin(setting.writes("a", "a:v"))
    await turns()
    setting.breaker.trip("down")
    began_at = now()
    others = await setting.begin(setting.writes("a", "a:w"), setting.next_put("a"))
    assert await results([*waiting, *others]) == [None] * 3
    assert now() == began_at, "the write that hangs has the only lane"
    assert setting.journal.begun == ["a:v", "a:w", "a2"], "in their order, the one that waited for the lane before"
    assert not first.done()
    gate.set()
    assert await results([first]) == [None]


async def test_writes_of_a_step_are_appended_together_and_a_put_ends_them() -> None:
    """The put moves the head that the next ones grow from; the writes do not."""
    setting = Setting()
    await setting.put()
    head = setting.author("a").head
    setting.breaker.trip("down")
    gate = setting.journal.gates["a"] = asyncio.Event()
    operations: list[Operation] = [setting.writes("a", "a:v"), setting.writes("a", "a:w"), setting.next_put("a")]
    operations += [setting.writes("a", "a:x"), setting.writes("a", "a:y")]
    callers = await setting.begin(*operations)
    await turns()
    assert setting.journal.begun == ["a:v", "a:w", "a2"]
    gate.set()
    assert await results(callers) == [None] * 5
    assert setting.journal.begun[3:] == ["a:x", "a:y"]
    assert setting.journaled("a") == ["a:v", "a:w", "a2", "a:x", "a:y"]
    assert setting.journal.base_heads == [head] * 3 + [setting.author("a").head] * 2


async def test_threads_of_a_batch_are_journaled_at_the_same_time() -> None:
    setting = Setting()
    await setting.know("a", "b")
    setting.breaker.trip("down")
    gate = setting.journal.gates["a"] = asyncio.Event()
    slow, quick = await setting.begin_puts("a", "b")
    async with asyncio.timeout(1):
        await quick
    assert not slow.done()
    gate.set()
    await slow


async def test_other_threads_go_on_while_one_waits_for_room_in_the_journal() -> None:
    setting = Setting(deadline=1.0)
    await setting.know("a")
    first = setting.next_put("a")
    setting.journal._index.capacity = frozen_size(first) + 100
    setting.backend.answers = [Wrong(FailureKind.TRANSIENT)]
    await results(await setting.begin(first))
    waiting = await setting.begin_puts("a")
    await turns()
    started_at = now()
    assert await results(await setting.begin_puts("b", "c")) == [None] * 2
    assert now() - started_at < 0.5
    assert not waiting[0].done()
    await setting.journal.mark_applied(setting.journal.entries("a"))
    assert await results(waiting) == [None]
    assert setting.journaled("a") == ["a2"]


# Nowhere


async def test_what_the_journal_cannot_take_is_told_to_each_caller() -> None:
    setting = Setting(deadline=0.1, capacity=100)
    await setting.know("a", "b")
    setting.breaker.trip("down")
    told = await results(await setting.begin_puts("a", "b"))
    assert [type(error) for error in told] == [JournalFullError] * 2
    assert setting.recorder.outcomes() == [("a", "unavailable"), ("b", "unavailable")]
    assert setting.engine.journaling.journaled == 0
    assert setting.recorder.of(FailedOver) == []
    assert await setting.engine.get_tuple(config_of("a")) is None, "the warm copy has nothing of it either"


@pytest.mark.parametrize("with_journal", [False, True])
async def test_write_of_an_outage_is_refused_where_it_may_not_be_journaled(with_journal: bool) -> None:
    setting = Setting(with_journal=with_journal, on_outage="raise")
    setting.breaker.trip("down")
    with pytest.raises(CheckpointUnavailableError, match="was not accepted"):
        await setting.put()
    assert setting.pending == 0
    assert setting.recorder.outcomes() == [("a", "unavailable")]


@pytest.mark.parametrize("with_journal", [False, True])
async def test_failed_write_is_refused_where_it_may_not_be_journaled(with_journal: bool) -> None:
    setting = Setting(with_journal=with_journal, on_outage="raise")
    setting.backend.wrong = Wrong(FailureKind.TRANSIENT)
    told = await results(await setting.begin_puts("a", "b"))
    assert [type(error) for error in told] == [CheckpointUnavailableError] * 2
    assert "put on thread 'b' failed" in str(told[1]).lower()
    assert setting.recorder.outcomes() == [("a", "unavailable"), ("b", "unavailable")]


class Unforeseen(Exception):
    """What nobody expected."""


async def test_error_that_nobody_foresaw_reaches_every_caller_and_their_threads_go_on() -> None:
    setting = Setting()
    contact = setting.engine.newcomers.contact

    def fails() -> None:
        raise Unforeseen

    setting.engine.newcomers.contact = fails  # type: ignore[method-assign]  # anything of ours
    told = await results(await setting.begin_puts("a", "b", "a"))
    assert [type(error) for error in told] == [Unforeseen] * 3
    setting.engine.newcomers.contact = contact  # type: ignore[method-assign]  # mended
    assert await results(await setting.begin_puts("a", "b")) == [None] * 2


async def test_error_of_one_append_that_nobody_foresaw_is_told_to_its_caller_alone() -> None:
    setting = Setting()
    await setting.know("a", "b")
    setting.breaker.trip("down")
    append = setting.journal.append

    async def fails(operation: Operation, *arguments: Any) -> Any:
        if operation.thread_id == "a":
            raise Unforeseen
        return await append(operation, *arguments)

    setting.journal.append = fails  # type: ignore[method-assign, assignment]  # as for what a serializer cannot take
    told = await results(await setting.begin_puts("a", "b"))
    assert [type(error) for error in told] == [Unforeseen, type(None)]


@pytest.mark.parametrize("failing", ["breaker", "call"])
async def test_what_the_primary_would_refuse_is_refused_in_an_outage_too(failing: str) -> None:
    setting = Setting()
    await setting.know("a", "b")
    error = ValueError("no database stores this")

    def check(operation: Operation) -> None:
        if operation.thread_id == "a":
            raise error

    setting.backend.check = check  # type: ignore[method-assign]  # as a real database's
    setting.backend.wrong = Wrong(FailureKind.OUTAGE)
    if failing == "breaker":
        setting.breaker.trip("down")
    assert await results(await setting.begin_puts("a", "b")) == [error, None]
    assert setting.journal.begun == ["b1"]
    assert setting.recorder.outcomes() == [("a", "refused"), ("b", "journaled")]
    assert setting.recorder.scopes[0].error_type == "ValueError"


async def test_what_the_standby_cannot_hold_is_written_all_the_same() -> None:
    setting = Setting()

    def cannot(operation: Operation) -> None:
        raise TypeError("Integer exceeds 64-bit range")

    setting.standby.apply = cannot  # type: ignore[method-assign]  # as for a number that JSON takes, and msgpack does not
    await setting.put()
    assert (await setting.backend.saver.aget_tuple(config_of("a"))) is not None
    assert not setting.standby.knows("a")
    (notice,) = setting.recorder.of(Notice)
    assert "cannot be kept warm" in notice.message


# In time


@pytest.mark.parametrize(("deadline", "kept"), [(0.3, 0.1), (0.9, 0.3), (2.0, 0.3), (5.0, 0.5), (60.0, 6.0)])
def test_journal_is_left_the_time_that_a_busy_disk_needs(deadline: float, kept: float) -> None:
    assert writes.seconds_for_the_journal(deadline) == pytest.approx(kept)


async def test_batch_has_the_time_of_the_call_in_it_that_has_the_least() -> None:
    """x goes on until 0.1 s; then a, which came with it, and b, which came later, are tried together."""
    setting = Setting(deadline=0.6)
    await setting.know("a", "b")
    first, gate = await occupied(setting)
    started_at = now()
    early = await setting.begin_puts("a")
    await asyncio.sleep(0.1)
    late = await setting.begin_puts("b")
    setting.backend.gate = asyncio.Event()
    gate.set()
    assert await results([first, *early, *late]) == [None] * 3
    assert setting.backend.asked == [["x1"], ["a1", "b1"]]
    assert now() - started_at == pytest.approx(0.4, abs=1.01 * TICK), "and a third of so little is kept for the journal"
    assert (setting.journaled("a"), setting.journaled("b")) == (["a1"], ["b1"])


async def test_call_whose_thread_was_busy_does_not_wait_for_younger_calls_that_hang_in_all_lanes() -> None:
    setting = Setting(deadline=1.0)
    await setting.know("a", "b")
    setting.backend.gate = asyncio.Event()  # never opened
    first = await setting.begin_puts("a")
    await asyncio.sleep(0.2)
    second = await setting.begin_puts("a")
    called_at = now()
    await asyncio.sleep(0.6)
    younger = await setting.begin_puts("b")
    assert await results([*first, *second]) == [None, None]
    assert now() - called_at < 1.0 + 1.01 * TICK
    assert setting.journaled("a") == ["a1", "a2"]
    assert await results(younger) == [None]


@pytest.mark.parametrize(("spent", "tried"), [(3.9, True), (4.1, False)])
async def test_call_whose_time_was_taken_by_earlier_ones_is_journaled_without_trying(spent: float, tried: bool) -> None:
    """Of 5 s, the primary gets none of the last second: half of it is the journal's, the other would not suffice."""
    clock = FakeClock()
    setting = Setting(deadline=5.0, clock=clock)
    callers = await setting.begin_puts("a")
    clock.advance(spent)
    assert await results(callers) == [None]
    assert setting.backend.asked == ([["a1"]] if tried else [])
    assert setting.journaled("a") == ([] if tried else ["a1"])
    reasons = [event.reason for event in setting.recorder.of(FailedOver)]
    assert reasons == ([] if tried else ["the calls before it took its time"])


async def test_calls_behind_one_without_time_do_not_overtake_it() -> None:
    clock = FakeClock()
    setting = Setting(deadline=5.0, clock=clock)
    callers = [asyncio.ensure_future(setting.engine.writes.settle(setting.next_put("a")))]
    await asyncio.sleep(0)
    clock.advance(4.1)
    for thread_id in "ab":  # they come before the batch is made up
        operation = setting.next_put(thread_id)
        setting.engine.writes.gathered.submit(call := new_call(setting, operation, clock))
        callers.append(asyncio.ensure_future(_wait(call)))
    assert await results(callers) == [None] * 3
    assert setting.backend.asked == [["b1"]]
    assert setting.journaled("a") == ["a1", "a2"]


def new_call(setting: Setting, operation: Operation, clock: FakeClock) -> Call:
    scope = OperationScope(operation.name, "memory", operation.thread_id)
    ended = asyncio.get_running_loop().create_future()
    return Call(operation, scope, Deadline(clock, 5.0), ended)


async def _wait(call: Call) -> None:
    await call.ended


@pytest.mark.parametrize(("spent", "tried"), [(4.9, True), (5.0, False)])
async def test_without_a_journal_a_call_without_time_is_refused(spent: float, tried: bool) -> None:
    clock = FakeClock()
    setting = Setting(deadline=5.0, clock=clock, with_journal=False)
    callers = await setting.begin_puts("a")
    clock.advance(spent)
    (told,) = await results(callers)
    assert setting.backend.asked == ([["a1"]] if tried else [])
    assert type(told) is (type(None) if tried else CheckpointUnavailableError)


@pytest.mark.parametrize("left", [0.049, 0.001, 0.0, -0.029])
async def test_call_with_hardly_any_time_left_still_has_a_moment_for_the_journal(left: float) -> None:
    clock = FakeClock()
    setting = Setting(deadline=5.0, clock=clock)
    callers = await setting.begin_puts("a")
    clock.advance(5.0 - left)
    assert await results(callers) == [None]
    assert setting.journal.seconds == [pytest.approx(journaling.LEAST_FOR_THE_JOURNAL)]


async def test_call_that_is_late_already_does_not_get_much_later() -> None:
    clock = FakeClock()
    setting = Setting(deadline=5.0, clock=clock)
    callers = await setting.begin_puts("a")
    clock.advance(5.06)
    assert await results(callers) == [None]
    assert setting.journal.seconds == [pytest.approx(0.02)]


async def test_call_whose_time_was_over_a_moment_ago_is_refused() -> None:
    """Else each one behind a disk that hangs would be later than the one in front of it."""
    clock = FakeClock()
    setting = Setting(deadline=5.0, clock=clock)
    callers = await setting.begin_puts("a")
    clock.advance(5.0 + journaling.LATEST_FOR_THE_JOURNAL + 0.001)
    (told,) = await results(callers)
    assert isinstance(told, CheckpointUnavailableError)
    assert "did not get its turn in time" in str(told)
    assert (setting.journal.begun, setting.backend.asked) == ([], [])
    assert setting.recorder.outcomes() == [("a", "unavailable")]


async def test_what_the_primary_left_of_its_time_is_the_journals() -> None:
    clock = FakeClock()
    setting = Setting(deadline=5.0, clock=clock)
    await setting.know("a")
    setting.breaker.trip("down")
    callers = await setting.begin_puts("a")
    clock.advance(1.0)
    await results(callers)
    assert setting.journal.seconds == [4.0]


async def test_standstill_of_the_loop_is_not_charged_to_those_who_wait() -> None:
    clock = MovableClock()
    setting = Setting(deadline=2.0, clock=clock)
    first, gate = await occupied(setting)
    waiting = await setting.begin_puts("a")
    clock.advance(10.0)
    gate.set()
    assert await results([first, *waiting]) == [None] * 2
    assert setting.backend.stored == ["x1", "a1"], "the primary had no time to answer, and is not passed by"


async def test_standstill_that_two_batches_met_is_excused_once() -> None:
    class TwoLanes(Primary):
        lanes = 2

    clock = MovableClock()
    setting = Setting(backend=TwoLanes, deadline=2.0, clock=clock)
    gate = setting.backend.gate = asyncio.Event()
    callers = await setting.begin_puts("x")
    await turns()
    callers += await setting.begin_puts("y")
    await turns()
    callers += await setting.begin_puts("x", "y")
    setting.backend.gate = asyncio.Event()
    waiting = list(setting.engine.writes.gathered.waiting())
    clock.advance(10.0)
    gate.set()
    await turns()
    assert setting.backend.asked == [["x1"], ["y1"], ["x2", "y2"]]
    assert all(1.0 < call.deadline.remaining() <= 2.0 for call in waiting)
    setting.backend.gate.set()
    await results(callers)


async def test_standstill_of_the_loop_is_not_charged_to_any_call_of_a_batch() -> None:
    """What is left to each is for the journal."""
    clock = MovableClock()
    setting = Setting(deadline=2.0, clock=clock)
    await setting.know("a", "b", "c")
    gate = setting.backend.gate = asyncio.Event()
    setting.backend.wrong = Wrong(FailureKind.TRANSIENT)
    callers = await setting.begin_puts("a", "b", "c")
    await turns()
    clock.advance(10.0)
    gate.set()
    assert await results(callers) == [None] * 3
    assert all(1.0 < seconds <= 2.0 for seconds in setting.journal.seconds), setting.journal.seconds


async def test_calls_are_bounded_whatever_waits_for_the_lane_and_for_room() -> None:
    """The primary hangs and the journal is full: nobody is later than a tenth of a second, in the quietest of three."""
    assert min([await latest_of_six() for _ in range(3)]) < 0.1


async def latest_of_six() -> float:
    """How much later than its deadline the latest of six calls returns."""
    setting = Setting(deadline=0.4, capacity=100)
    await setting.know("a", "b", "c")
    setting.backend.gate = asyncio.Event()
    late: list[float] = []

    async def timed(operation: Operation) -> None:
        started_at = now()
        with pytest.raises((JournalFullError, CheckpointUnavailableError)):
            await setting.engine.writes.settle(operation)
        late.append(now() - started_at - 0.4)

    async with asyncio.timeout(10):
        await asyncio.gather(*(timed(setting.next_put(thread_id)) for thread_id in "abcabc"))
    return max(late)


# Cancelled


async def test_write_that_is_cancelled_is_settled_all_the_same_and_waited_for_at_the_end() -> None:
    setting = Setting()
    gate = setting.backend.gate = asyncio.Event()
    writing, other = await setting.begin_puts("a", "b")
    await turns()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert setting.recorder.outcomes()[0] == ("a", "cancelled")
    closing = asyncio.ensure_future(setting.engine.close(1.0))
    await turns()
    assert not closing.done()
    gate.set()
    await closing
    await other
    assert setting.backend.stored == ["a1", "b1"]
    await setting.engine.close(1.0)


async def test_write_that_is_cancelled_before_it_was_sent_is_settled_all_the_same() -> None:
    setting = Setting()
    first, gate = await occupied(setting)
    (waiting,) = await setting.begin_puts("a")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    await first
    await setting.engine.close(1.0)
    assert setting.backend.stored == ["x1", "a1"]


@pytest.mark.parametrize("capacity", [1_000_000, 100])
async def test_write_that_is_cancelled_on_its_way_to_the_journal_is_settled_all_the_same(
    capacity: int, caplog: pytest.LogCaptureFixture
) -> None:
    setting = Setting(capacity=capacity, deadline=0.1)
    await setting.know("a")
    setting.breaker.trip("down")
    gate = setting.journal.gates["a"] = asyncio.Event()
    (writing,) = await setting.begin_puts("a")
    await turns()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    gate.set()
    await setting.engine.close(1.0)
    assert setting.journaled("a") == (["a1"] if capacity > 100 else [])
    assert caplog.records == []


@pytest.mark.parametrize("where", ["primary", "journal"])
async def test_write_under_way_when_the_loop_ends_is_no_error_of_its_own(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    setting = Setting()
    await setting.know("a", "b")
    if where == "journal":
        setting.breaker.trip("down")
    setting.backend.gate = asyncio.Event()
    setting.journal.gates = {"a": asyncio.Event(), "b": asyncio.Event()}
    callers = await setting.begin_puts("a", "b")
    await turns()
    threads = {task for task in asyncio.all_tasks() if task.get_name() == THREAD}
    for task in asyncio.all_tasks() - threads - {asyncio.current_task()}:
        task.cancel()  # as asyncio.run() does
    assert [type(error) for error in await results(callers)] == [asyncio.CancelledError] * 2
    await turns()
    assert caplog.records == []
    assert len(asyncio.all_tasks()) == 1


async def test_end_of_what_sends_a_batch_ends_its_callers_too() -> None:
    """Nobody waits for what nobody does any more."""
    setting = Setting()
    setting.backend.gate = asyncio.Event()
    callers = await setting.begin_puts("a", "b")
    await turns()
    (sending,) = setting.engine.writes.gathered._running
    sending.cancel()
    assert [type(error) for error in await results(callers)] == [asyncio.CancelledError] * 2


# Alone, in its caller's own task


@pytest.fixture
def straight_by_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds a lane free takes it himself."""
    monkeypatch.setattr(group_commit, "USED_TO_BE_ALONE", 0)


@pytest.fixture(params=["by a task", "by a thread of the backend"])
def straight(straight_by_a_task: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, and the backend may do without a task for it."""
    if request.param != "by a task":
        monkeypatch.setattr(Primary, "lone", answers_by_a_thread)


async def test_caller_who_is_used_to_be_alone_needs_one_task() -> None:
    setting = Setting()
    for _ in range(group_commit.USED_TO_BE_ALONE):
        await setting.put()
    with tasks_made() as made:
        await setting.put()
    assert made == ["Guard._run"]
    assert {scope.outcome for scope in setting.recorder.scopes} == {"primary"}
    assert setting.recorder.scopes[-1].route == "primary"
    found = await setting.engine.get_tuple(config_of("a"))
    assert found is not None
    assert setting.standby.base_head(setting.next_put("a")) == found.checkpoint["id"]


async def test_backend_that_needs_no_task_for_a_lone_write_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Primary, "lone", answers_by_a_thread)
    setting = Setting()
    for _ in range(group_commit.USED_TO_BE_ALONE):
        await setting.put()
    with tasks_made() as made:
        await setting.put()
    assert made == ["answers_by_a_thread.<locals>.work"]
    assert setting.backend.stored[-1] == f"a{group_commit.USED_TO_BE_ALONE + 1}"


@pytest.mark.usefixtures("straight")
@pytest.mark.parametrize("kind", NOT_AT_FAULT)
async def test_lone_write_that_the_primary_does_not_take_is_journaled(kind: FailureKind) -> None:
    setting = Setting()
    await setting.know("a")
    setting.backend.wrong = Wrong(kind)
    await setting.put()
    assert setting.backend.asked == [["a1"]]
    assert setting.journaled("a") == ["a1"]
    assert setting.recorder.outcomes()[-1] == ("a", "journaled")
    assert setting.recorder.scopes[-1].error_type == "Wrong"


@pytest.mark.usefixtures("straight")
async def test_lone_write_at_fault_is_refused_although_the_breaker_opened_meanwhile() -> None:
    """It has been tried: what came of that is told, and not what is true by now."""
    setting = Setting()
    await setting.know("a")
    gate = setting.backend.gate = asyncio.Event()
    setting.backend.wrong = Wrong(FailureKind.DATA)
    (caller,) = await setting.begin_puts("a")
    await turns()
    setting.breaker.trip("down")
    gate.set()
    (error,) = await results([caller])
    assert isinstance(error, Wrong)
    assert setting.pending == 0


@pytest.mark.usefixtures("straight")
async def test_lone_write_is_tried_again_like_any_other() -> None:
    setting = Setting(retries=2)
    setting.backend.answers = [Wrong(FailureKind.TRANSIENT), None]
    await setting.put()
    assert setting.backend.asked == [["a1"], ["a1"]]
    assert setting.pending == 0


@pytest.mark.usefixtures("straight")
async def test_lone_write_is_journaled_in_time_when_the_primary_hangs() -> None:
    setting = Setting()
    await setting.know("a")
    setting.backend.gate = asyncio.Event()
    started_at = now()
    await setting.put()
    assert now() - started_at < 0.4
    assert setting.journaled("a") == ["a1"]


@pytest.mark.usefixtures("straight")
@pytest.mark.parametrize("taken", [True, False])
async def test_lone_write_whose_caller_is_cancelled_is_settled_all_the_same(taken: bool) -> None:
    setting = Setting()
    await setting.know("a")
    gate = setting.backend.gate = asyncio.Event()
    if not taken:
        setting.backend.wrong = Wrong(FailureKind.OUTAGE)
    (caller,) = await setting.begin_puts("a")
    await turns()
    caller.cancel()
    assert [type(error) for error in await results([caller])] == [asyncio.CancelledError]
    assert setting.recorder.outcomes()[-1] == ("a", "cancelled")
    (behind,) = await setting.begin_puts("a")
    gate.set()
    assert await results([behind]) == [None]
    assert setting.backend.stored == (["a1", "a2"] if taken else [])
    assert setting.journaled("a") == ([] if taken else ["a1", "a2"])


@pytest.mark.usefixtures("straight")
async def test_refusal_of_a_lone_write_whose_caller_is_cancelled_is_an_error_of_nobody() -> None:
    setting, unforeseen = Setting(capacity=10), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unforeseen.append(context))
    await setting.know("a")
    gate = setting.backend.gate = asyncio.Event()
    setting.backend.wrong = Wrong(FailureKind.OUTAGE)
    (caller,) = await setting.begin_puts("a")
    await turns()
    caller.cancel()
    assert [type(error) for error in await results([caller])] == [asyncio.CancelledError]
    gate.set()
    await setting.engine.close(5.0)
    del caller
    gc.collect()
    assert unforeseen == []
    assert setting.pending == 0


class Shrugging(Primary):
    """Cancels its own work for a moment, as a driver's time limit does, and goes on."""

    async def apply_batch(self, operations: Sequence[Operation]) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.sleep(30 if self.gate is not None else 0)
        except asyncio.CancelledError:
            task.uncancel()
        await super().apply_batch(operations)


@pytest.mark.usefixtures("straight_by_a_task")
async def test_lone_write_that_is_cancelled_for_a_moment_together_with_its_caller_is_not_overtaken() -> None:
    setting = Setting(backend=Shrugging)
    await setting.know("a")
    gate = setting.backend.gate = asyncio.Event()
    (caller,) = await setting.begin_puts("a")
    await turns()
    (attempt,) = (task for task in asyncio.all_tasks() if task.get_name() == "checkpoint attempt: put")
    caller.cancel()
    attempt.cancel()
    assert [type(error) for error in await results([caller])] == [asyncio.CancelledError]
    setting.backend.gate, held = None, setting.backend.gate
    (deletion,) = await setting.begin(DeleteThread("a"))
    await turns()
    assert held is gate
    gate.set()
    assert await results([deletion]) == [None]
    assert setting.backend.stored == ["a1", "a!"]


@pytest.mark.usefixtures("straight")
async def test_error_of_a_lone_write_that_nobody_foresaw_keeps_nothing_back() -> None:
    setting = Setting()
    setting.backend.wrong = Wrong(FailureKind.OUTAGE)
    classify, setting.engine.writes._guard._classify = setting.engine.writes._guard._classify, _does_not_know
    with pytest.raises(ZeroDivisionError):
        await setting.put()
    assert not len(setting.engine.writes.gathered)
    setting.engine.writes._guard._classify = classify
    setting.backend.wrong = None
    await setting.put()
    assert setting.backend.stored == ["a2"]


def _does_not_know(error: BaseException) -> Any:
    raise ZeroDivisionError


@pytest.mark.usefixtures("straight")
async def test_lone_write_under_way_when_the_loop_ends_is_no_error_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    setting = Setting()
    await setting.know("a")
    setting.backend.gate = asyncio.Event()
    callers = await setting.begin_puts("a")
    await turns()
    threads = {task for task in asyncio.all_tasks() if task.get_name() == THREAD}
    for task in asyncio.all_tasks() - threads - {asyncio.current_task()}:
        task.cancel()  # as asyncio.run() does
    assert [type(error) for error in await results(callers)] == [asyncio.CancelledError]
    await turns()
    assert caplog.records == []
    assert asyncio.all_tasks() - threads == {asyncio.current_task()}
    assert len(setting.engine.writes.gathered) == len(threads)
    for thread in threads:
        thread.cancel()


@pytest.mark.usefixtures("straight")
async def test_lone_writes_are_live_calls_and_hold_up_the_end() -> None:
    setting = Setting()
    gate = setting.backend.gate = asyncio.Event()
    (caller,) = await setting.begin_puts("a")
    await turns()
    assert setting.engine.live_calls() == 1
    closing = asyncio.create_task(setting.engine.close(5.0))
    await turns()
    assert not closing.done()
    gate.set()
    assert await results([caller, closing]) == [None, None]
    assert setting.engine.live_calls() == 0


# Memory, which never waits


async def test_memory_is_written_without_a_task() -> None:
    setting = Setting(backend=MemoryBackend)
    with tasks_made() as made:
        await setting.put()
        await setting.engine.writes.settle(DeleteThread("b"))
        await setting.engine.get_tuple(config_of("a"))
    assert made == []
    assert setting.recorder.outcomes() == [("a", "primary"), ("b", "primary"), ("a", "primary")]


async def test_memory_is_not_written_before_what_is_under_way_of_the_thread() -> None:
    setting = Setting(backend=MemoryBackend)
    await setting.know("a", "b")
    gate = setting.journal.gates["a"] = asyncio.Event()
    setting.breaker.trip("down")
    callers = await setting.begin_puts("a")
    await turns()
    setting.breaker.close()
    assert not setting.journal.holds("a")
    callers += await setting.begin_puts("a", "b")
    await turns()
    assert [caller.done() for caller in callers] == [False, False, True]
    gate.set()
    assert await results(callers) == [None] * 3
    assert setting.journaled("a") == ["a1", "a2"]
    assert await setting.any_backend.saver.aget_tuple(config_of("a")) is None


async def test_thread_of_memory_that_is_held_goes_on_in_the_journal() -> None:
    setting = Setting(backend=MemoryBackend)
    await setting.know("a")
    setting.breaker.trip("down")
    await setting.put()
    setting.breaker.close()
    await setting.put()
    assert setting.journaled("a") == ["a1", "a2"]


@pytest.mark.parametrize("error", [TypeError("not serializable"), ConnectionRefusedError("down")])
async def test_memory_that_fails_is_treated_like_every_primary(error: Exception) -> None:
    setting = Setting(backend=MemoryBackend)
    await setting.know("a")

    async def fails(*_: Any) -> None:
        raise error

    setting.any_backend.saver.aput = fails  # type: ignore[method-assign, assignment]  # on this saver only
    (told,) = await results(await setting.begin_puts("a"))
    outage = isinstance(error, ConnectionRefusedError)
    assert told is (None if outage else error)
    assert setting.journaled("a") == (["a1"] if outage else [])
    assert setting.breaker.is_open is outage
    assert setting.recorder.outcomes() == [("a", "journaled" if outage else "refused")]


async def test_failure_of_memory_is_told_as_any_other() -> None:
    setting = Setting(backend=MemoryBackend)
    put = setting.next_put("a")
    bad = replace(put, metadata={**put.metadata, "made": object()})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(TypeError):
        await setting.engine.writes.settle(bad)
    assert setting.recorder.outcomes() == [("a", "refused")]
    assert setting.recorder.scopes[0].error_type == "TypeError"
    assert not setting.breaker.is_open
    await setting.engine.writes.settle(put)
    assert setting.recorder.outcomes()[1:] == [("a", "primary")]


async def test_memory_is_not_written_past_what_waits_in_the_journal() -> None:
    setting = Setting(backend=MemoryBackend)
    await setting.put()
    setting.breaker.trip("by a test")
    await setting.put()
    setting.breaker.close()
    await setting.put()
    assert setting.recorder.outcomes() == [("a", "primary"), ("a", "journaled"), ("a", "journaled")]
