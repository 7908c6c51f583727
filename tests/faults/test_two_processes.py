"""What another process did is never answered wrongly in an outage, nor undone after it: FAULTS rows 33, 39 and 40."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base.id import uuid6
from langgraph.types import Command, interrupt

from enhanced_checkpointing import CheckpointNotFoundError, CheckpointUnavailableError
from tests.support.checkpointer import opened, postgres, recovered, saver_of
from tests.support.fault_proxy import FaultProxy
from tests.support.two_processes import CONFIG, Log, log_of, off, one_node, two_processes

LATE = 0.3
"""Seconds that two calls may be late: 0.1 s of each are promised, the rest is for other work on the machine."""


def says(saver: Any) -> Any:
    return one_node("say", lambda _: {"log": ["said"]}).compile(checkpointer=saver)


async def history_of(graph: Any) -> list[Any]:
    return [found async for found in graph.aget_state_history(CONFIG)]


async def test_thread_that_was_read_as_deleted_does_not_come_back_in_an_outage(
    database_url: str, tmp_path: Path
) -> None:
    async with two_processes(tmp_path, database_url) as (primary, other):
        ours, theirs = says(saver_of(primary.manager)), says(saver_of(other))
        for how in ("by a look", "by its history"):
            await ours.ainvoke({"log": ["secret"]}, CONFIG)
            await saver_of(other).adelete_thread("shared")
            if how == "by a look":
                assert await log_of(ours) == []
            else:
                assert await history_of(ours) == []
            await off(primary)
            if how == "by a look":
                assert await log_of(ours) == []
                await ours.ainvoke({"log": ["new"]}, CONFIG)
            else:
                with pytest.raises(CheckpointUnavailableError):
                    await log_of(ours)
            await primary.on()
            await recovered(primary.manager)
            assert await log_of(theirs) == (["new", "said"] if how == "by a look" else [])


@pytest.mark.parametrize("unknown", ["start_fresh", "young"])
async def test_thread_that_was_only_taken_for_new_is_deleted_if_an_outage_is_when_that_is_asked(
    unknown: str, database_url: str, tmp_path: Path
) -> None:
    setting = "start_fresh" if unknown == "start_fresh" else "raise"
    async with two_processes(tmp_path, database_url, on_unknown_thread=setting) as (primary, other):
        thread_id = "theirs"
        await off(primary)
        if unknown == "young":
            thread_id = str(uuid6())
        config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
        theirs = says(saver_of(other))
        await theirs.ainvoke({"log": ["secret"]}, config)
        assert await primary.manager.delete_thread(thread_id) is True
        await primary.on()
        await recovered(primary.manager)
        assert await log_of(theirs, config) == []


async def test_checkpoint_of_another_process_is_not_answered_none_in_an_outage(
    database_url: str, tmp_path: Path
) -> None:
    async with two_processes(tmp_path, database_url) as (primary, other):
        ours, theirs = says(saver_of(primary.manager)), says(saver_of(other))
        await ours.ainvoke({"log": ["ours"]}, CONFIG)
        await theirs.ainvoke({"log": ["theirs"]}, CONFIG)
        link = (await theirs.aget_state(CONFIG)).config
        await off(primary)
        with pytest.raises(CheckpointUnavailableError):
            await saver_of(primary.manager).aget_tuple(link)


async def test_what_a_history_showed_does_not_go_backwards_in_an_outage(database_url: str, tmp_path: Path) -> None:
    async with two_processes(tmp_path, database_url) as (primary, other):
        ours, theirs = says(saver_of(primary.manager)), says(saver_of(other))
        await ours.ainvoke({"log": ["ours"]}, CONFIG)
        await theirs.ainvoke({"log": ["theirs"]}, CONFIG)
        shown = await history_of(ours)
        await off(primary)
        assert await log_of(ours) == shown[0].values["log"] == ["ours", "said", "theirs", "said"]
        with pytest.raises(CheckpointUnavailableError):
            await history_of(ours)


async def test_history_that_another_process_pruned_is_not_taken_for_whole(database_url: str, tmp_path: Path) -> None:
    async with two_processes(tmp_path, database_url) as (primary, other):
        ours = says(saver_of(primary.manager))
        await ours.ainvoke({"log": ["ours"]}, CONFIG)
        await other.prune(["shared"])
        assert len(await history_of(ours)) == 1
        await ours.ainvoke({"log": ["again"]}, CONFIG)
        await off(primary)
        assert await log_of(ours) == ["ours", "said", "again", "said"]
        with pytest.raises(CheckpointUnavailableError):
            await history_of(ours)


async def test_mark_of_an_outage_brings_no_deleted_thread_back(database_url: str, tmp_path: Path) -> None:
    async with two_processes(tmp_path, database_url) as (primary, other):
        ours, theirs = says(saver_of(primary.manager)), says(saver_of(other))
        await ours.ainvoke({"log": ["secret"]}, CONFIG)
        await off(primary)
        await primary.manager.mark_completed("shared")
        await other.delete_thread("shared")
        await primary.on()
        await recovered(primary.manager)
        assert await log_of(theirs) == await log_of(ours) == []
        assert primary.manager.health_status["divergences"]["count"] == 0


async def test_mark_of_an_outage_beside_a_deletion_of_ours_brings_nothing_back(
    database_url: str, tmp_path: Path
) -> None:
    async with two_processes(tmp_path, database_url) as (primary, other):
        ours, theirs = says(saver_of(primary.manager)), says(saver_of(other))
        await ours.ainvoke({"log": ["secret"]}, CONFIG)
        await off(primary)
        deleted, marked = await asyncio.gather(
            saver_of(primary.manager).adelete_thread("shared"),
            primary.manager.mark_completed("shared"),
            return_exceptions=True,
        )
        assert (deleted, type(marked)) == (None, CheckpointNotFoundError)
        await primary.on()
        await recovered(primary.manager)
        assert await log_of(theirs) == []


@pytest.mark.parametrize("on_divergence", ["newest_wins", "quarantine"])
async def test_mark_of_an_outage_is_no_branch(on_divergence: str, database_url: str, tmp_path: Path) -> None:
    async with two_processes(tmp_path, database_url, on_divergence=on_divergence) as (primary, other):
        ours, theirs = says(saver_of(primary.manager)), says(saver_of(other))
        await ours.ainvoke({"log": ["ours"]}, CONFIG)
        await off(primary)
        await primary.manager.mark_completed("shared")
        await theirs.ainvoke({"log": ["theirs"]}, CONFIG)
        await primary.on()
        await recovered(primary.manager)
        assert primary.manager.health_status["divergences"]["count"] == 0
        assert [found["thread_id"] for found in await other.list_threads()] == ["shared"]
        assert await log_of(ours) == await log_of(theirs) == ["ours", "said", "theirs", "said"]
        assert [found["status"] for found in await other.list_threads()] == ["active"], "it has gone on"


async def test_thread_that_was_copied_or_touched_is_warm_as_it_was(database_url: str, tmp_path: Path) -> None:
    async with two_processes(tmp_path, database_url) as (primary, _):
        ours = says(saver_of(primary.manager))
        await ours.ainvoke({"log": ["ours"]}, CONFIG)
        await primary.manager.copy_thread("shared", "copy")
        await primary.manager.mark_completed("shared")
        await off(primary)
        assert (await ours.aget_state(CONFIG)).metadata["thread_status"] == "completed"
        assert len(await history_of(ours)) == 3
        assert (await ours.ainvoke({"log": ["on"]}, CONFIG))["log"] == ["ours", "said", "on", "said"]


async def test_run_of_a_young_thread_goes_on_in_a_second_outage(database_url: str, tmp_path: Path) -> None:
    async with two_processes(tmp_path, database_url) as (primary, other):
        ours, theirs = (
            one_node("ask", lambda _: {"log": [interrupt("go on?")]}).compile(checkpointer=saver_of(manager))
            for manager in (primary.manager, other)
        )
        await off(primary)
        config: RunnableConfig = {"configurable": {"thread_id": str(uuid6())}}
        await ours.ainvoke({"log": ["young"]}, config)
        await primary.on()
        await recovered(primary.manager)
        await off(primary)
        assert (await ours.ainvoke(Command(resume="yes"), config))["log"] == ["young", "yes"]
        with pytest.raises(CheckpointUnavailableError):  # nobody has looked whether this is all
            [found async for found in ours.aget_state_history(config)]
        await primary.on()
        await recovered(primary.manager)
        assert await log_of(theirs, config) == ["young", "yes"]


async def test_large_thread_is_warm_with_its_newest_checkpoint_if_not_with_its_history(tmp_path: Path) -> None:
    async with two_processes(tmp_path, standby_max_bytes=1_500_000) as (primary, _):

        def grows(state: Log) -> Log:
            return {"log": ["x" * 300_000]}

        ours = one_node("grow", grows).compile(checkpointer=saver_of(primary.manager))
        for turn in range(3):
            await ours.ainvoke({"log": []}, CONFIG)
            found = primary.manager.components.standby.get_tuple({"configurable": {"thread_id": "shared"}})
            assert found is not None
            assert len(found.checkpoint["channel_values"]["log"]) == turn + 1
        await off(primary)
        assert len((await ours.ainvoke({"log": []}, CONFIG))["log"]) == 4
        with pytest.raises(CheckpointUnavailableError):
            await history_of(ours)


async def test_mark_takes_two_deadlines_at_most(database_url: str) -> None:
    parts = urlsplit(database_url)
    async with (
        FaultProxy(str(parts.hostname), parts.port or 5432) as proxy,
        opened(postgres(proxy.url(database_url), deadline=0.5)) as manager,
        opened(postgres(database_url)) as other,
    ):
        await says(saver_of(manager)).ainvoke({"log": ["ours"]}, CONFIG)
        proxy.black_hole()
        began_at = time.monotonic()
        await manager.mark_completed("shared")
        assert time.monotonic() - began_at < 2 * 0.5 + LATE
        proxy.forward()
        await recovered(manager)
        assert [found["status"] for found in await other.list_threads()] == ["completed"]
