"""Calls that wait for what another worker of the journal directory holds, or are refused."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.journal.api import UNKNOWN
from enhanced_checkpointing.journal.codec import encode
from enhanced_checkpointing.journal.disk import RealDisk
from enhanced_checkpointing.operations import DeleteThread
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.serialization import SharingSerializer
from tests.support.author import Author, config_of
from tests.support.engine_setting import Setting
from tests.unit.test_workers import Directory


@pytest.mark.virtual_time
async def test_thread_that_the_application_calls_new_is_known(tmp_path: Path) -> None:
    workers = Directory(tmp_path).new()
    Setting(workers=workers).engine.promise_new("a")
    assert workers.is_current("a")
    alone = Setting()
    alone.engine.promise_new("a")
    assert await alone.engine.get_tuple(config_of("a")) is None


@pytest.mark.virtual_time
async def test_thread_that_is_taken_over_while_another_worker_holds_it_is_not_known(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    ours, theirs = directory.new(), directory.new()
    theirs.hold("a")
    theirs.note("a")
    ours.took_over("a")
    assert not ours.is_current("a")


def test_file_that_cannot_be_mapped_is_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="mmap"):
        RealDisk(tmp_path).share("empty", 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_metadata_that_would_have_to_be_pickled_is_not_journaled() -> None:
    serializer = SharingSerializer(JsonPlusSerializer(pickle_fallback=True))
    made = Author("a").put({})
    made.metadata["odd"] = complex(1, 2)  # type: ignore[typeddict-unknown-key]  # whatever an application gives
    with pytest.raises(TypeError, match="pickled"):
        encode(made, UNKNOWN, serializer)


@pytest.mark.virtual_time
async def test_calls_wait_for_another_worker_and_are_refused_at_their_deadline(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    ours, theirs = directory.new(), directory.new()
    setting = Setting(workers=ours)
    await setting.know("a")
    await setting.put()
    found = await setting.engine.get_tuple(config_of("a"))
    assert found is not None
    theirs.hold("a")
    with pytest.raises(CheckpointUnavailableError, match="has in its journal"):
        await setting.put()
    with pytest.raises(CheckpointUnavailableError, match="has in its journal"):
        await setting.engine.writes.annotate(found, {"thread_status": "failed"})
    with pytest.raises(CheckpointUnavailableError, match="has in its journal"):
        await setting.engine.get_tuple(config_of("a"))
    with pytest.raises(CheckpointUnavailableError, match="has in its journal"):
        await setting.engine.writes.settle(DeleteThread("a"))
    assert [outcome for _, outcome in setting.recorder.outcomes()][-4:] == ["unavailable"] * 4
    theirs.release("a")
    await setting.engine.get_tuple(config_of("a"))
    await setting.put()
    assert setting.pending == 0


@pytest.mark.virtual_time
async def test_call_goes_on_when_the_other_worker_has_let_go_meanwhile(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    ours, theirs = directory.new(), directory.new()
    setting = Setting(workers=ours)
    await setting.know("a")
    theirs.hold("a")
    others = setting.engine.others
    assert others is not None

    async def take_over(deadline: Deadline) -> None:
        theirs.release("a")

    others.take_over = take_over
    await setting.put()
    theirs.hold("a")
    await setting.engine.get_tuple(config_of("a"))
    assert setting.pending == 0


@pytest.mark.virtual_time
async def test_write_to_a_thread_that_this_journal_holds_or_takes_over_goes_behind_it(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    ours, theirs = directory.new(), directory.new()
    setting = Setting(workers=ours)
    await setting.know("a", "b")
    others = setting.engine.others
    assert others is not None

    async def take_over(deadline: Deadline) -> None:
        if not setting.journal.holds("b"):
            await setting.journal.append(setting.next_put("b"), None, deadline)

    others.take_over = take_over
    theirs.hold("b")
    await setting.put("b")
    assert setting.journal.holds("b")
    await setting.put("b")
    assert len(setting.journaled("b")) == 3


@pytest.mark.virtual_time
async def test_calls_that_wait_for_another_worker_are_refused_when_the_manager_ends(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    ours, theirs = directory.new(), directory.new()
    setting = Setting(workers=ours)
    await setting.know("a")
    others = setting.engine.others
    assert others is not None
    theirs.know("b", theirs.stamp("b"))
    others.changed(["b"])
    assert not theirs.is_current("b"), "a maintenance call has changed it"
    await others.close()
    theirs.hold("a")
    reading = asyncio.create_task(setting.engine.get_tuple(config_of("a")))
    await asyncio.sleep(0.01)
    await others.close()
    with pytest.raises(CheckpointUnavailableError, match="has in its journal"):
        await reading
