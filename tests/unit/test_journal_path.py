"""How calls get into the journal: which go together, who waits for whom, and what each caller is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from enhanced_checkpointing.errors import CheckpointUnavailableError, JournalFullError
from enhanced_checkpointing.journal.api import UNKNOWN, Appending, BaseHead
from enhanced_checkpointing.journal.memory import MemoryJournal
from enhanced_checkpointing.observability.events import OperationScope
from enhanced_checkpointing.operations import DeleteThread, Operation
from enhanced_checkpointing.resilience.breaker import Breaker, BreakerSettings
from enhanced_checkpointing.resilience.deadline import TICK, Deadline
from enhanced_checkpointing.saver.core import Call
from enhanced_checkpointing.saver.journal_path import JournalPath, Waiting
from enhanced_checkpointing.standby.cache import Standby
from tests.support.author import config_of
from tests.support.engine_setting import Primary, label
from tests.support.engine_setting import Setting as EngineSetting
from tests.support.virtual_time import now

pytestmark = pytest.mark.virtual_time


class Refused(Exception):
    """What a disk, or a serializer, says."""


class GatedJournal(MemoryJournal):
    """Stores what was begun when its gate is opened, or fails it."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.begun: list[tuple[str, BaseHead]] = []
        self.gates: dict[str, asyncio.Future[None]] = {}
        """By label: what is not here is stored at once."""
        self.refused: set[str] = set()

    def begin(self, operation: Operation, base_head: BaseHead) -> Appending | None:
        if label(operation) in self.refused:
            raise Refused
        appending = super().begin(operation, base_head)
        if appending is not None:
            self.begun.append((label(operation), base_head))
            appending.ended = self.gates.get(label(operation), appending.ended)
        return appending


class Setting:
    """Calls on a journal, in an outage. The labels are those of an engine's setting."""

    def __init__(self, capacity: int = 1_000_000) -> None:
        made = EngineSetting()
        self.next_put, self.writes = made.next_put, made.writes
        self.recorder, self.backend = made.recorder, made.backend
        self.journal = GatedJournal(capacity)
        self.standby = Standby(made.serializer, 1_000_000, self.journal.holds)
        breaker = Breaker(now, BreakerSettings(), lambda opened, reason: None)
        breaker.trip("down")
        self.journaling = JournalPath(
            replace(
                made.engine.core,
                breaker=breaker,
                journal=self.journal,
                standby=self.standby,
                config=made.engine.core.config.with_overrides(on_unknown_thread="start_fresh"),
            )
        )

    def call(self, operation: Operation, seconds: float = 0.3) -> Call:
        scope = OperationScope(operation.name, Primary.name, operation.thread_id)
        return Call(operation, scope, Deadline(now, seconds), asyncio.get_running_loop().create_future())

    def gate(self, *labels: str) -> None:
        for name in labels:
            self.journal.gates[name] = asyncio.get_running_loop().create_future()

    def settle(self, *calls: Call) -> asyncio.Task[None]:
        return asyncio.ensure_future(self.journaling.settle([Waiting(call, "down") for call in calls]))

    def begun(self) -> list[str]:
        return [name for name, _ in self.journal.begun]


async def told(*calls: Call) -> list[BaseException | None]:
    return await asyncio.gather(*(call.ended for call in calls), return_exceptions=True)


async def test_calls_of_several_threads_are_on_their_way_before_the_first_is_waited_for() -> None:
    setting = Setting()
    calls = [setting.call(setting.next_put(name)) for name in "abc"]
    setting.gate("a1", "b1", "c1")
    settling = setting.settle(*calls)
    await asyncio.sleep(0.01)
    assert setting.begun() == ["a1", "b1", "c1"]
    assert not any(call.ended.done() for call in calls)
    for gate in setting.journal.gates.values():
        gate.set_result(None)
    await settling
    assert [call.scope.outcome for call in calls] == ["journaled"] * 3
    assert setting.journaling.journaled == 3
    assert all(setting.standby.knows(name) for name in "abc")


async def test_operation_that_grows_from_a_put_waits_until_that_is_stored() -> None:
    setting = Setting()
    first, writes, second = setting.next_put("a"), setting.writes("a", "task"), setting.next_put("a")
    other = setting.next_put("b")
    setting.gate("a1")
    calls = [setting.call(operation) for operation in (first, writes, second, other)]
    settling = setting.settle(*calls)
    await asyncio.sleep(0.01)
    assert setting.begun() == ["b1", "a1"]
    assert calls[3].ended.done(), "others do not wait for it"
    setting.journal.gates["a1"].set_result(None)
    await settling
    assert setting.journal.begun[2:] == [("task", first.checkpoint_id), ("a2", first.checkpoint_id)]


async def test_who_deletes_a_thread_that_was_only_taken_for_empty_means_all_of_it() -> None:
    setting = Setting()
    calls = [setting.call(DeleteThread("presumed"))]
    await setting.settle(*calls)
    setting.standby.note_empty("looked at", "")
    calls = [setting.call(DeleteThread("looked at"))]
    await setting.settle(*calls)
    assert [base_head for _, base_head in setting.journal.begun] == [UNKNOWN, None]


async def test_each_waits_until_its_own_deadline_and_not_for_the_one_in_front() -> None:
    setting = Setting()
    patient, hasty = setting.call(setting.next_put("a"), 0.3), setting.call(setting.next_put("b"), 0.1)
    setting.gate("a1", "b1")
    started_at = now()
    settling = setting.settle(patient, hasty)
    (late,) = await told(hasty)
    assert now() - started_at == pytest.approx(0.1, abs=1.01 * TICK)
    assert isinstance(late, CheckpointUnavailableError)
    assert "did not answer in time" in str(late)
    assert hasty.scope.outcome == "unavailable"
    setting.journal.gates["a1"].set_result(None)
    await settling
    assert await told(patient) == [None]


async def test_error_of_one_is_told_to_its_caller_alone() -> None:
    setting = Setting()
    calls = [setting.call(setting.next_put(name)) for name in "abcd"]
    setting.journal.refused.add("b1")
    setting.gate("c1")
    setting.journal.gates["c1"].set_exception(Refused())
    await setting.settle(*calls)
    assert [type(error) for error in await told(*calls)] == [type(None), Refused, Refused, type(None)]
    assert [call.scope.outcome for call in calls] == ["journaled", "unavailable", "unavailable", "journaled"]
    assert setting.standby.get_tuple(config_of("c")) is None


async def test_what_the_primary_would_refuse_is_refused() -> None:
    setting = Setting()
    call = setting.call(setting.next_put("a"))

    def check(operation: Operation) -> None:
        raise Refused

    setting.backend.check = check  # type: ignore[method-assign]
    await setting.settle(call)
    assert isinstance((await told(call))[0], Refused)
    assert (call.scope.outcome, call.scope.error_type) == ("refused", "Refused")
    assert setting.begun() == []


async def test_call_that_has_to_wait_for_room_keeps_its_place_in_its_thread_and_holds_nobody_else_up() -> None:
    """The journal is full for a moment: the writes of a wait, and those behind them do not pass by."""
    setting = Setting()
    setting.next_put("a")
    writes = [setting.writes("a", f"task-{number}") for number in range(3)]
    calls = [setting.call(operation) for operation in (writes[0], writes[1], writes[2], setting.next_put("b"))]
    begin, full = setting.journal.begin, iter([False, True, False, False])

    def begin_unless_full(operation: Operation, base_head: BaseHead) -> Appending | None:
        return None if next(full) else begin(operation, base_head)

    setting.journal.begin = begin_unless_full  # type: ignore[method-assign]
    await setting.settle(*calls)
    assert await told(*calls) == [None] * 4
    stored = [setting.journal._operations[entry.sequence] for entry in setting.journal.entries("a")]
    assert stored == writes
    assert setting.begun() == ["task-0", "b1"]


async def test_call_that_finds_no_room_in_time_is_told_so() -> None:
    setting = Setting(capacity=10)
    call = setting.call(setting.next_put("a"), 0.05)
    await setting.settle(call)
    assert isinstance((await told(call))[0], JournalFullError)
    assert call.scope.outcome == "unavailable"


async def test_caller_who_has_gone_is_journaled_all_the_same() -> None:
    setting = Setting()
    call = setting.call(setting.next_put("a"))
    call.ended.cancel()
    await setting.settle(call)
    assert call.scope.outcome == "journaled"
    assert len(setting.journal.entries("a")) == 1


@pytest.mark.parametrize("turn", ["first", "second"])
async def test_nobody_is_left_waiting_when_the_journaling_is_cancelled(turn: str) -> None:
    setting = Setting()
    calls = [setting.call(setting.next_put(name)) for name in "aab"]
    setting.gate("a1" if turn == "first" else "a2")
    settling = setting.settle(*calls)
    await asyncio.sleep(0.01)
    settling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await settling
    assert [type(error) for error in await told(*calls[:2])] == [
        asyncio.CancelledError if turn == "first" else type(None),
        asyncio.CancelledError,
    ]
