"""The engine's rules where no fault of a real database leads: every kind of failure, and no journal."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from enhanced_checkpointing.backends.contract import classify_by_type
from enhanced_checkpointing.backends.memory import MemoryBackend
from enhanced_checkpointing.config import create_memory_checkpointer
from enhanced_checkpointing.errors import CheckpointCorruptionError, CheckpointUnavailableError
from enhanced_checkpointing.failover.engine import Engine
from enhanced_checkpointing.failover.standby import Standby
from enhanced_checkpointing.journal.memory_journal import MemoryJournal
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.resilience.breaker import Breaker, BreakerSettings
from enhanced_checkpointing.resilience.failure_kinds import Failure, FailureKind
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.telemetry.events import ConfigurationFault, Notice
from tests.support.author import Author, config_of
from tests.support.recorder import Recorder


class Wrong(Exception):
    """An error whose kind a test chooses."""

    def __init__(self, kind: FailureKind, fix: str = "") -> None:
        super().__init__(f"it is {kind.name}")
        self.kind = kind
        self.fix = fix


class WrongBackend(MemoryBackend):
    """Memory that raises what it is told to, and can be kept waiting."""

    wrong: Wrong | None = None
    gate: asyncio.Event | None = None

    async def apply(self, operation: Operation) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.wrong is not None:
            raise self.wrong
        await super().apply(operation)

    async def ask(self, question: Any) -> Any:
        if self.wrong is not None:
            raise self.wrong
        return await super().ask(question)

    def classify(self, error: BaseException) -> Failure:
        if isinstance(error, Wrong):
            return Failure(error.kind, error, answered=True, fix=error.fix)
        return classify_by_type(error)


class Setting:
    """An engine with everything that it works on."""

    def __init__(self, *, with_journal: bool = True, **fields: Any) -> None:
        config = create_memory_checkpointer(**{"deadline": 0.3, "retries": 0, "on_unknown_thread": "raise", **fields})
        self.serializer = SharingSerializer()
        self.backend = WrongBackend(config, self.serializer)
        self.recorder = Recorder()
        self.breaker = Breaker(time.monotonic, BreakerSettings(), lambda opened, reason: None)
        self.journal = MemoryJournal(1_000_000) if with_journal else None
        self.standby = Standby(self.serializer, 1_000_000, lambda _: False)
        guard = Guard(
            "memory",
            breaker=self.breaker,
            classify=self.backend.classify,
            saturated=self.backend.saturated,
            telemetry=self.recorder,
            retries=0,
        )
        self.engine = Engine(
            config=config,
            backend=self.backend,
            guard=guard,
            breaker=self.breaker,
            journal=self.journal,
            standby=self.standby,
            serializer=self.serializer,
            telemetry=self.recorder,
        )
        self.author = Author("a", serializer=self.serializer)

    async def put(self) -> None:
        made = self.author.put({"n": [self.author.head]})
        await self.engine.put(made.config(), made.checkpoint(made.live_values or {}), made.metadata, made.new_versions)

    @property
    def pending(self) -> int:
        return self.journal.status().pending if self.journal is not None else 0


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
    await setting.put()
    assert setting.pending == 1


@pytest.mark.parametrize("with_journal", [False, True])
async def test_write_of_an_outage_is_refused_where_it_may_not_be_journaled(with_journal: bool) -> None:
    setting = Setting(with_journal=with_journal, on_outage="raise")
    setting.breaker.trip("down")
    with pytest.raises(CheckpointUnavailableError, match="was not accepted"):
        await setting.put()
    assert setting.pending == 0
    assert list(setting.engine.waiting_threads()) == []


async def test_failed_write_is_refused_where_it_may_not_be_journaled() -> None:
    setting = Setting(with_journal=False)
    setting.backend.wrong = Wrong(FailureKind.OUTAGE)
    with pytest.raises(CheckpointUnavailableError):
        await setting.put()


async def test_what_the_standby_cannot_hold_is_written_all_the_same() -> None:
    setting = Setting()

    def cannot(operation: Operation) -> None:
        raise TypeError("Integer exceeds 64-bit range")

    setting.standby.apply = cannot  # type: ignore[method-assign]  # as for a number that JSON takes, and msgpack does not
    await setting.put()
    assert (await setting.backend.saver.aget_tuple(ASKED)) is not None
    assert not setting.standby.knows("a")
    (notice,) = setting.recorder.of(Notice)
    assert "cannot be kept warm" in notice.message


async def test_write_that_is_cancelled_is_settled_all_the_same_and_waited_for_at_the_end() -> None:
    setting = Setting()
    setting.backend.gate = asyncio.Event()
    writing = asyncio.ensure_future(setting.put())
    await asyncio.sleep(0.01)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    closing = asyncio.ensure_future(setting.engine.close(1.0))
    await asyncio.sleep(0.01)
    assert not closing.done()
    setting.backend.gate.set()
    await closing
    assert (await setting.engine.get_tuple(ASKED)) is not None
    await setting.engine.close(1.0)


async def test_thread_that_is_held_is_not_read_from_the_primary_while_nobody_drains() -> None:
    setting = Setting()
    await setting.engine.get_tuple(ASKED)
    setting.backend.wrong = Wrong(FailureKind.TRANSIENT)
    await setting.put()
    setting.backend.wrong = None
    assert not setting.breaker.is_open
    found = await setting.engine.get_tuple(ASKED)
    assert found is not None
    assert found.checkpoint["id"] == setting.author.head
    assert list(setting.engine.waiting_threads()) == ["a"]


async def test_delta_history_comes_from_the_primary() -> None:
    setting = Setting()
    await setting.put()
    history = await setting.engine.delta_history(config_of("a", checkpoint_id=setting.author.head), ["n"])
    assert set(history) == {"n"}


async def test_write_under_way_when_the_loop_ends_is_no_error_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    setting = Setting()
    setting.backend.gate = asyncio.Event()
    writing = asyncio.ensure_future(setting.put())
    await asyncio.sleep(0.01)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()  # as asyncio.run() does
    with pytest.raises(asyncio.CancelledError):
        await writing
    await asyncio.sleep(0.01)
    assert caplog.records == []
