"""The engine's rules where no fault of a real database leads: every kind of failure of a read, and what is live."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from enhanced_checkpointing.backends.memory.backend import MemoryBackend
from enhanced_checkpointing.errors import CheckpointCorruptionError, CheckpointUnavailableError
from enhanced_checkpointing.observability.events import ConfigurationFault, Notice
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import FailureKind
from enhanced_checkpointing.saver.read_path import Reads
from tests.support.author import config_of
from tests.support.engine_setting import Setting, Wrong, turns

pytestmark = pytest.mark.virtual_time


ASKED = config_of("a")


async def test_damaged_data_is_raised_and_an_operator_is_told() -> None:
    setting = Setting()
    setting.backend.wrong = Wrong(FailureKind.CORRUPTION)
    with pytest.raises(CheckpointCorruptionError, match="stored data is damaged"):
        await setting.engine.get_tuple(ASKED)
    with pytest.raises(CheckpointCorruptionError):
        await setting.put()
    assert [notice.level for notice in setting.recorder.of(Notice)] == ["ERROR", "ERROR"]
    assert setting.pending == 0
    assert not setting.breaker.is_open


async def test_fault_of_the_caller_is_raised_as_it_is() -> None:
    setting = Setting()
    setting.backend.wrong = Wrong(FailureKind.DATA)
    with pytest.raises(Wrong):
        await setting.put()
    with pytest.raises(Wrong):
        await setting.engine.list(ASKED, None, None, None)
    assert setting.pending == 0


@pytest.mark.parametrize(("fix", "said"), [("Grant it.", "Grant it."), ("", "Ask the server's log.")])
async def test_setting_that_went_wrong_is_journaled_and_an_operator_is_told_the_fix(fix: str, said: str) -> None:
    setting = Setting()
    await setting.engine.get_tuple(ASKED)
    setting.backend.wrong = Wrong(FailureKind.CONFIGURATION, fix)
    await setting.put()
    assert setting.pending == 1
    (fault,) = setting.recorder.of(ConfigurationFault)
    assert fault.fix == said
    assert not setting.breaker.is_open


async def test_saturated_pool_refuses_a_read_and_journals_a_write() -> None:
    setting = Setting()
    await setting.put()
    setting.backend.wrong = Wrong(FailureKind.SATURATED)
    with pytest.raises(CheckpointUnavailableError, match="CHECKPOINT_POOL_MAX_SIZE"):
        await setting.engine.get_tuple(ASKED)
    assert setting.recorder.outcomes()[-1] == ("a", "unavailable")
    await setting.put()
    assert setting.pending == 1


async def test_thread_that_is_held_is_not_read_from_the_primary_while_nobody_drains() -> None:
    setting = Setting()
    await setting.engine.get_tuple(ASKED)
    setting.backend.wrong = Wrong(FailureKind.TRANSIENT)
    await setting.put()
    setting.backend.wrong = None
    assert not setting.breaker.is_open
    found = await setting.engine.get_tuple(ASKED)
    assert found is not None
    assert found.checkpoint["id"] == setting.author("a").head
    assert list(setting.engine.waiting_threads()) == ["a"]


async def test_delta_history_comes_from_the_primary() -> None:
    setting = Setting()
    await setting.put()
    history = await setting.engine.delta_history(config_of("a", checkpoint_id=setting.author("a").head), ["n"])
    assert set(history) == {"n"}


async def test_reads_and_writes_that_are_with_the_primary_are_live_calls() -> None:
    setting, gate = Setting(), asyncio.Event()
    setting.backend.gate = gate
    reading = asyncio.Event()

    async def slow(question: object) -> tuple[None, bool]:
        reading.set()
        await gate.wait()
        return None, False

    setting.backend.ask = slow  # type: ignore[method-assign]  # a read that takes a while
    callers = await setting.begin_puts("a", "b", "c")
    callers.append(asyncio.ensure_future(setting.engine.get_tuple(ASKED)))  # type: ignore[arg-type]  # returns a tuple
    await reading.wait()
    assert setting.engine.live_calls() == 4
    gate.set()
    await asyncio.gather(*callers)
    assert setting.engine.live_calls() == 0


async def test_calls_that_failed_are_not_live() -> None:
    setting = Setting()
    setting.backend.wrong = Wrong(FailureKind.DATA)
    with pytest.raises(Wrong):
        await setting.put()
    with pytest.raises(Wrong):
        await setting.engine.get_tuple(ASKED)
    assert setting.engine.live_calls() == 0


async def test_history_of_a_thread_comes_from_the_warm_copy_in_an_outage() -> None:
    setting = Setting()
    await setting.know("a")
    await setting.put()
    await setting.put()
    setting.backend.wrong = Wrong(FailureKind.OUTAGE)
    with pytest.raises(CheckpointUnavailableError):
        await setting.engine.list(config_of("never seen"), None, None, None)
    assert setting.breaker.is_open
    found = await setting.engine.list(ASKED, None, None, 1)
    assert [each.checkpoint["id"] for each in found] == [setting.author("a").head]
    assert setting.recorder.outcomes()[-2:] == [("never seen", "unavailable"), ("a", "standby")]


@pytest.mark.parametrize("kind", [None, FailureKind.TRANSIENT])
async def test_cold_thread_that_cannot_be_read_is_said_to_be_cold(kind: FailureKind | None) -> None:
    setting = Setting()
    await setting.put()
    setting.standby.forget("a")
    if kind is None:
        setting.breaker.trip("down")
    else:
        setting.backend.wrong = Wrong(kind)
    with pytest.raises(
        CheckpointUnavailableError, match=r"cannot be read.*Nothing is lost; this is not 'not found'"
    ) as told:
        await setting.engine.get_tuple(ASKED)
    assert told.value.__cause__ is setting.backend.wrong
    assert setting.recorder.outcomes()[-1] == ("a", "unavailable")


async def test_deleted_thread_is_gone_at_the_primary_and_known_to_be_empty() -> None:
    setting = Setting()
    await setting.put()
    await setting.engine.writes.delete_thread("a")
    setting.breaker.trip("down")
    assert await setting.engine.get_tuple(ASKED) is None
    assert setting.backend.stored == ["a1", "a!"]


async def to_be_drained(*, in_time: bool) -> Setting:
    """The thread `a` is in the journal; its drain brings nothing to the primary, and takes all of the time if asked."""
    setting = Setting()
    await setting.know("a")
    setting.breaker.trip("down")
    await setting.put()
    setting.breaker.close()

    async def drain(thread_id: str, deadline: Deadline) -> bool:
        await setting.journal.mark_applied(setting.journal.entries(thread_id))
        if not in_time:
            deadline.excuse(-deadline.remaining())
        return True

    setting.engine.drain_first = drain
    return setting


async def test_read_drains_its_thread_first_and_then_asks_the_primary() -> None:
    setting = await to_be_drained(in_time=True)
    assert await setting.engine.get_tuple(ASKED) is None
    assert [scope.route for scope in setting.recorder.scopes] == ["journal", "primary"]


async def test_read_that_the_drain_left_no_time_is_answered_by_what_was_in_the_journal() -> None:
    setting = await to_be_drained(in_time=False)
    found = await setting.engine.get_tuple(ASKED)
    assert found is not None
    assert found.checkpoint["id"] == setting.author("a").head
    assert setting.recorder.scopes[-1].route == "journal"


async def test_answer_that_was_overtaken_by_a_write_is_not_kept() -> None:
    setting = Setting()
    gate, ask = asyncio.Event(), setting.backend.ask

    async def slow(question: object) -> object:
        answer = await ask(question)
        await gate.wait()
        return answer

    setting.backend.ask = slow  # type: ignore[method-assign]  # the answer is on its way for a while
    await setting.put()
    setting.standby.forget("a")
    reading = asyncio.ensure_future(setting.engine.get_tuple(ASKED))
    await asyncio.sleep(0.01)
    await setting.engine.writes.delete_thread("a")
    setting.standby.forget("a")
    gate.set()
    assert await reading is not None, "it was so when the primary was asked"
    assert not setting.standby.knows("a")


async def test_put_of_a_thread_in_quarantine_carries_all_its_values() -> None:
    """The primary lacks those of the branch that the running graph goes on from."""
    setting = Setting()
    author = setting.author("a")
    author.put({"profile": ["Ada"], "n": [1]})
    made = author.put({"profile": ["Ada"], "n": [2]})
    assert set(made.new_versions) == {"n"}
    setting.engine.writes.quarantined.add("a")
    await setting.engine.writes.put(
        made.config(), made.checkpoint(made.live_values or {}), made.metadata, made.new_versions
    )
    found = await setting.backend.saver.aget_tuple(ASKED)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"profile": ["Ada"], "n": [2]}


async def test_writes_of_a_task_reach_the_primary() -> None:
    setting = Setting()
    await setting.put()
    at = config_of("a", checkpoint_id=setting.author("a").head)
    await setting.engine.writes.put_writes(at, [("n", 1)], "task", "")
    assert setting.backend.stored == ["a1", "task"]


async def test_history_of_a_thread_comes_from_the_primary() -> None:
    setting = Setting()
    await setting.put()
    first = setting.author("a").head
    await setting.put()
    found = await setting.engine.list(ASKED, None, None, None)
    assert [each.checkpoint["id"] for each in found] == [setting.author("a").head, first]


async def test_thread_that_is_frozen_is_not_deleted_and_its_caller_is_told() -> None:
    setting = Setting()
    await setting.know("a")
    setting.breaker.trip("down")
    await setting.put()
    assert list(setting.engine.held_threads()) == ["a"]
    (entry,) = setting.journal.entries("a")
    await setting.journal.dead_letter(entry, "refused")
    with pytest.raises(CheckpointUnavailableError, match=r"'a' is frozen.*It was not deleted"):
        await setting.engine.writes.delete_thread("a")
    assert setting.pending == 0
    assert list(setting.engine.held_threads()) == ["a"]
    assert list(setting.engine.waiting_threads()) == []


async def test_engine_without_a_journal_has_no_thread_that_waits() -> None:
    setting = Setting(with_journal=False)
    assert list(setting.engine.waiting_threads()) == list(setting.engine.held_threads()) == []


async def test_question_that_memory_cannot_answer_is_told_as_any_other() -> None:
    setting = Setting(backend=MemoryBackend)
    await setting.put()
    storage = setting.any_backend.saver.storage["a"][""]  # type: ignore[attr-defined]
    checkpoint_id, (_, *others) = storage.popitem()
    storage[checkpoint_id] = (("unknown", b""), *others)
    with pytest.raises(NotImplementedError):
        await setting.engine.get_tuple(config_of("a"))
    assert setting.recorder.outcomes()[-1] == ("a", "error")


async def test_subgraph_whose_parent_checkpoint_is_still_on_its_way_to_the_journal_is_known_to_be_new() -> None:
    """With `durability="async"` it is read at once. The thread is one that another process began."""
    setting = Setting()
    await setting.put()
    setting.standby.forget("a")
    assert await setting.engine.get_tuple(config_of("a")) is not None
    setting.breaker.trip("by a test")
    setting.journal.gates["a"] = asyncio.Event()
    made = setting.next_put("a")
    putting = asyncio.ensure_future(
        setting.engine.writes.put(
            made.config(), made.checkpoint(made.live_values or {}), made.metadata, made.new_versions
        )
    )
    await turns()
    asked = config_of("a", "worker:1")
    asked["configurable"]["checkpoint_map"] = {"": made.checkpoint_id}
    assert await setting.engine.get_tuple(asked) is None
    asked = config_of("a", "worker:2")
    asked["configurable"]["checkpoint_map"] = {"": "another"}
    with pytest.raises(CheckpointUnavailableError):
        await setting.engine.get_tuple(asked)
    setting.journal.gates["a"].set()
    await putting


async def test_writes_of_ours_that_are_refused_are_somebody_else_s_where_they_are_found() -> None:
    setting = Setting()
    await setting.put()
    at = config_of("a", checkpoint_id=setting.author("a").head)
    setting.backend.wrong = Wrong(FailureKind.DATA)
    with pytest.raises(Wrong):
        await setting.engine.writes.put_writes(at, [("n", 1)], "task", "")
    assert not setting.standby._threads["a"].authorship._on_their_way


async def test_checkpoint_that_is_annotated_has_its_new_metadata_and_else_what_it_had() -> None:
    setting = Setting()
    for _ in range(2):
        await setting.put("a")
    found = await setting.engine.get_tuple(ASKED)
    assert found is not None
    marked = found._replace(metadata={**found.metadata, "mark": "done"})  # type: ignore[typeddict-unknown-key]
    await setting.engine.writes.annotate(found, {"mark": "done"})
    assert await setting.engine.get_tuple(ASKED) == marked


async def test_first_checkpoint_of_a_thread_is_annotated_as_one_without_a_parent() -> None:
    setting = Setting()
    await setting.put("a")
    found = await setting.engine.get_tuple(ASKED)
    assert found is not None
    await setting.engine.writes.annotate(found, {})
    assert await setting.engine.get_tuple(ASKED) == found


async def test_reads_are_noted_where_somebody_wants_to_know() -> None:
    setting = Setting()
    await setting.engine.get_tuple(ASKED)
    setting.engine.reads = Reads(lambda: 5.0)
    assert setting.engine.reads.at("a") is None
    await setting.engine.get_tuple(ASKED)
    assert setting.engine.reads.at("a") == datetime.fromtimestamp(5, UTC)


async def test_quiet_is_a_thread_without_writes_on_their_way_or_after_a_deadline() -> None:
    setting, gate = Setting(), asyncio.Event()
    setting.backend.gate = gate
    callers = await setting.begin_puts("a")
    quiet, other = asyncio.ensure_future(setting.engine.quiet("a")), asyncio.ensure_future(setting.engine.quiet("b"))
    await asyncio.sleep(0.02)
    assert (quiet.done(), other.done()) == (False, True)
    gate.set()
    await asyncio.gather(*callers, quiet)
    setting.backend.gate = asyncio.Event()
    callers = await setting.begin_puts("a")
    await setting.engine.quiet("a")
    setting.backend.gate.set()
    await asyncio.gather(*callers, return_exceptions=True)


async def test_checkpoint_of_ours_that_is_refused_is_not_ours() -> None:
    setting = Setting()
    await setting.put()
    setting.backend.wrong = Wrong(FailureKind.DATA)
    with pytest.raises(Wrong):
        await setting.put()
    assert len(setting.standby._threads["a"].authorship.own) == 1
