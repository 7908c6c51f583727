"""What can be read while the primary cannot: FAULTS rows 33, 40 and 44."""

from __future__ import annotations

import operator
import secrets
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypedDict
from uuid import UUID

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Durability, interrupt

from enhanced_checkpointing import CheckpointUnavailableError, EnhancedCheckpointerManager
from tests.support.checkpointer import opened, postgres, recovered, saver_of, switched
from tests.support.checkpoints import Thread
from tests.support.graphs import GRAPHS, run_case


async def test_fresh_process_raises_for_a_cold_thread_and_never_answers_none(database_url: str, tmp_path: Path) -> None:
    async with opened(postgres(database_url)) as earlier:
        await Thread(saver_of(earlier), "cold").put()
    async with switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary:
        saver = saver_of(primary.manager)
        await primary.off()
        config: RunnableConfig = {"configurable": {"thread_id": "cold", "checkpoint_ns": ""}}
        with pytest.raises(CheckpointUnavailableError, match="'cold'"):
            await saver.aget_tuple(config)
        with pytest.raises(CheckpointUnavailableError, match="'cold'"):
            [found async for found in saver.alist(config)]
        with pytest.raises(CheckpointUnavailableError, match="'cold'"):
            await saver.aget_delta_channel_history(config=config, channels=["log"])
        await primary.on()
        await recovered(primary.manager)
        assert await saver.aget_tuple(config) is not None


async def test_threads_that_are_known_to_be_new_start_in_an_outage(database_url: str, tmp_path: Path) -> None:
    case = GRAPHS["subgraph"]
    async with switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary:
        manager = primary.manager
        saver = saver_of(manager)
        assert await saver.aget_tuple({"configurable": {"thread_id": "seen-empty", "checkpoint_ns": ""}}) is None
        await primary.off()
        declared = manager.create_thread_config("declared", new=True)["configurable"]["thread_id"]
        young = str(uuid6())
        results = [await run_case(case, saver, thread_id) for thread_id in ("seen-empty", declared, young)]
        assert results[0] == results[1] == results[2]
        await primary.on()
        await recovered(manager)
        for thread_id in ("seen-empty", declared, young):
            assert await saver.aget_tuple({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}) is not None


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def nested_calls(checkpointer: BaseCheckpointSaver[str]) -> Any:
    """Two quick steps, then a subgraph with a subgraph in it, then a node that calls two subgraphs by itself."""
    inner = StateGraph(Log).add_node("in", lambda _: {"log": ["inner"]}).add_edge(START, "in").compile()
    middle = StateGraph(Log).add_node("before", lambda _: {"log": ["middle"]}).add_node("inner", inner)
    middle_graph = middle.add_edge(START, "before").add_edge("before", "inner").compile()

    async def two_calls(_: Log) -> Log:
        answers = [await inner.ainvoke({"log": [name]}) for name in ("first", "second")]
        return {"log": [line for answer in answers for line in answer["log"]]}

    graph = StateGraph(Log)
    graph.add_node("one", lambda _: {"log": ["one"]}).add_node("two", lambda _: {"log": ["two"]})
    graph.add_node("middle", middle_graph)
    graph.add_node("calls", RunnableLambda(two_calls))
    for start, end in pairwise((START, "one", "two", "middle", "calls")):
        graph.add_edge(start, end)
    return graph.compile(checkpointer=checkpointer)


@pytest.mark.parametrize("durability", ["async", "exit", "sync"])
@pytest.mark.parametrize("seen", ["in a turn", "by a look"])
async def test_subgraphs_of_a_thread_that_an_earlier_process_began_are_called_in_an_outage(
    durability: Durability, seen: str, database_url: str, tmp_path: Path
) -> None:
    config: RunnableConfig = {"configurable": {"thread_id": "begun"}}
    twin, turns = nested_calls(InMemorySaver()), 5 if seen == "in a turn" else 4
    for turn in range(turns):
        expected = await twin.ainvoke({"log": [str(turn)]}, config)
    async with opened(postgres(database_url)) as earlier:
        await nested_calls(saver_of(earlier)).ainvoke({"log": ["0"]}, config)
    async with switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary:
        graph = nested_calls(saver_of(primary.manager))
        if seen == "in a turn":
            await graph.ainvoke({"log": ["1"]}, config, durability=durability)
        else:
            await graph.aget_state(config)
        await primary.off()
        for turn in range(turns - 3, turns):
            found = await graph.ainvoke({"log": [str(turn)]}, config, durability=durability)
        assert found == expected
        await primary.on()
        await recovered(primary.manager)
        assert primary.manager.health_status["divergences"]["count"] == 0
        assert (await graph.aget_state(config)).values == expected


async def test_subgraph_that_another_process_went_on_with_is_not_taken_for_new(
    database_url: str, tmp_path: Path
) -> None:
    paid: list[str] = []
    steps = (
        StateGraph(Log)
        .add_node("pay", lambda _: paid.append("paid"))
        .add_node("ask", lambda _: {"log": [interrupt("sure?")]})
    )
    graph = StateGraph(Log).add_node("sub", steps.add_edge(START, "pay").add_edge("pay", "ask").compile())
    graph.add_edge(START, "sub")
    config: RunnableConfig = {"configurable": {"thread_id": "shared"}}
    async with (
        switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary,
        opened(postgres(database_url)) as other,
    ):
        ours = graph.compile(checkpointer=saver_of(primary.manager), interrupt_before=["sub"])
        await ours.ainvoke({"log": ["go"]}, config)
        await graph.compile(checkpointer=saver_of(other)).ainvoke(None, config)
        assert [asked.value for asked in (await ours.aget_state(config)).interrupts] == ["sure?"]
        await primary.off()
        with pytest.raises(CheckpointUnavailableError, match="sub:"):
            await ours.ainvoke(Command(resume="yes"), config)
        assert paid == ["paid"]
        await primary.on()
        await recovered(primary.manager)
        assert (await ours.ainvoke(Command(resume="yes"), config))["log"] == ["go", "go", "yes"]
        assert paid == ["paid"]


async def test_thread_id_older_than_the_last_contact_is_not_taken_for_new(database_url: str, tmp_path: Path) -> None:
    old = str(uuid6())
    async with switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary:
        await Thread(saver_of(primary.manager), "contact").put()
        await primary.off()
        with pytest.raises(CheckpointUnavailableError):
            await saver_of(primary.manager).aget_tuple({"configurable": {"thread_id": old, "checkpoint_ns": ""}})


async def test_history_of_a_thread_that_began_here_is_complete_in_an_outage(database_url: str, tmp_path: Path) -> None:
    async with switched("postgres", database_url, tmp_path) as primary:
        saver = saver_of(primary.manager)
        thread = Thread(saver, "whole")
        assert await saver.aget_tuple(thread.config) is None  # as LangGraph does before its first put
        for _ in range(3):
            await thread.put()
        healthy = [found.checkpoint for found in await thread.stored()]
        await primary.off()
        await thread.put()
        assert [found.checkpoint for found in await thread.stored()][:3] == healthy
        assert await thread.stored_ids() == thread.ids
        limited = [found async for found in saver.alist(thread.config, limit=2)]
        assert [found.checkpoint["id"] for found in limited] == thread.ids[:-3:-1]


async def test_history_that_is_partly_warm_is_refused_as_a_whole(database_url: str, tmp_path: Path) -> None:
    async with opened(postgres(database_url)) as earlier:
        thread = Thread(saver_of(earlier), "part")
        for _ in range(4):
            await thread.put()
    async with switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary:
        saver = saver_of(primary.manager)
        head = await saver.aget_tuple(thread.config)
        assert head is not None
        second: RunnableConfig = {"configurable": {**thread.config["configurable"], "checkpoint_id": thread.ids[1]}}
        assert await saver.aget_tuple(second) is not None
        await primary.off()
        assert (await saver.aget_tuple(thread.config)) == head
        again = await saver.aget_tuple(second)
        assert again is not None
        assert again.checkpoint["channel_values"] == {"count": [1], "profile": ["Ada"]}
        with pytest.raises(CheckpointUnavailableError, match="history"):
            [found async for found in saver.alist(thread.config)]
        third: RunnableConfig = {"configurable": {**thread.config["configurable"], "checkpoint_id": thread.ids[2]}}
        with pytest.raises(CheckpointUnavailableError):
            await saver.aget_tuple(third)


async def test_time_travel_read_does_not_pass_for_the_newest_checkpoint(database_url: str, tmp_path: Path) -> None:
    async with opened(postgres(database_url)) as earlier:
        thread = Thread(saver_of(earlier), "travelled")
        for _ in range(3):
            await thread.put()
    async with switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary:
        saver = saver_of(primary.manager)
        first: RunnableConfig = {"configurable": {**thread.config["configurable"], "checkpoint_id": thread.ids[0]}}
        assert await saver.aget_tuple(first) is not None
        await primary.off()
        with pytest.raises(CheckpointUnavailableError):
            await saver.aget_tuple(thread.config)


async def test_delta_channels_are_answered_from_a_whole_chain_or_not_at_all(database_url: str, tmp_path: Path) -> None:
    if "delta_channel" not in GRAPHS:
        pytest.skip("this LangGraph has no delta channels")  # the lowest supported version
    case = GRAPHS["delta_channel"]
    async with opened(postgres(database_url)) as earlier:
        await run_case(case, saver_of(earlier), "delta")
    async with switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary:
        saver = saver_of(primary.manager)
        config: RunnableConfig = {"configurable": {"thread_id": "delta", "checkpoint_ns": ""}}
        head = await saver.aget_tuple(config)
        assert head is not None
        channels = [name for name in head.checkpoint["channel_versions"] if name == "log"]
        await primary.off()
        with pytest.raises(CheckpointUnavailableError, match="log"):
            await saver.aget_delta_channel_history(config=head.config, channels=channels)
        await primary.on()
        await recovered(primary.manager)
        healthy = await saver.aget_delta_channel_history(config=head.config, channels=channels)
        await primary.off()
        assert await saver.aget_delta_channel_history(config=head.config, channels=channels) == healthy
        graph = case.builder().compile(checkpointer=saver)
        await graph.ainvoke(case.turns[0], {"configurable": {"thread_id": "delta"}})
        during = await graph.aget_state({"configurable": {"thread_id": "delta"}})
        await primary.on()
        await recovered(primary.manager)
        assert (await graph.aget_state({"configurable": {"thread_id": "delta"}})).values == during.values


async def test_read_that_is_late_on_a_healthy_server_never_answers_none(database_url: str) -> None:
    async with opened(postgres(database_url)) as earlier:
        thread = Thread(saver_of(earlier), "locked")
        await thread.put()
    async with opened(postgres(database_url, on_unknown_thread="start_fresh", probe_interval=60.0)) as manager:
        with psycopg.connect(database_url) as locker:
            locker.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(CheckpointUnavailableError):
                await saver_of(manager).aget_tuple(thread.config)
            with pytest.raises(CheckpointUnavailableError):
                await _history(manager, thread)
        await recovered(manager)
        found = await saver_of(manager).aget_tuple(thread.config)
        assert found is not None
        assert found.checkpoint["id"] == thread.ids[-1]


async def _history(manager: EnhancedCheckpointerManager, thread: Thread) -> list[CheckpointTuple]:
    if manager.components.breaker.is_open:
        raise CheckpointUnavailableError("by now this is an outage, in which start_fresh is what was asked for")
    return [found async for found in saver_of(manager).alist(thread.config)]


async def test_history_is_not_taken_for_whole_after_another_process_wrote_to_it(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary,
        opened(postgres(database_url)) as another,
    ):
        saver = saver_of(primary.manager)
        thread = Thread(saver_of(another), "shared")
        assert await saver.aget_tuple(thread.config) is None
        for _ in range(3):
            await thread.put()
        head = await saver.aget_tuple(thread.config)
        assert head is not None
        await primary.off()
        assert await saver.aget_tuple(thread.config) == head
        with pytest.raises(CheckpointUnavailableError, match="history"):
            [found async for found in saver.alist(thread.config)]
        second: RunnableConfig = {"configurable": {**thread.config["configurable"], "checkpoint_id": thread.ids[1]}}
        with pytest.raises(CheckpointUnavailableError):
            await saver.aget_tuple(second)


async def test_read_in_an_outage_shows_what_this_process_knows_and_not_what_another_one_wrote_since(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary,
        opened(postgres(database_url)) as another,
    ):
        ours, theirs = Thread(saver_of(primary.manager), "shared"), Thread(saver_of(another), "shared")
        await ours.put()
        theirs.go_on_from(ours)
        await theirs.put()
        await primary.off()
        await ours.timed_get()
        await primary.on()
        await recovered(primary.manager)
        ours.go_on_from(theirs)
        await ours.timed_get()


async def test_writes_that_another_process_added_and_we_read_are_warm(database_url: str, tmp_path: Path) -> None:
    async with (
        switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary,
        opened(postgres(database_url)) as another,
    ):
        thread = Thread(saver_of(primary.manager), "resumed")
        await thread.put()
        config: RunnableConfig = {"configurable": {**thread.config["configurable"], "checkpoint_id": thread.ids[-1]}}
        await saver_of(primary.manager).aput_writes(config, [("__interrupt__", "pay?")], "task")
        await saver_of(another).aput_writes(config, [("__resume__", "yes")], "task")
        await saver_of(another).aput_writes(config, [("count", "paid")], "task")
        healthy = await saver_of(primary.manager).aget_tuple(thread.config)
        assert healthy is not None
        assert healthy.pending_writes is not None
        assert {channel for _, channel, _ in healthy.pending_writes} == {"__interrupt__", "__resume__", "count"}
        await primary.off()
        outage = await saver_of(primary.manager).aget_tuple(thread.config)
        assert outage is not None
        assert sorted(outage.pending_writes or []) == sorted(healthy.pending_writes)


async def test_listing_of_all_threads_needs_the_primary(database_url: str, tmp_path: Path) -> None:
    async with switched("postgres", database_url, tmp_path) as primary:
        manager = primary.manager
        await Thread(saver_of(manager), "one").put(user_id="ada")
        await Thread(saver_of(manager), "two").put(user_id="grace")
        assert [thread["thread_id"] for thread in await manager.list_threads(user_id="ada")] == ["one"]
        assert [thread["thread_id"] for thread in await manager.list_threads()] == ["two", "one"]
        await primary.off()
        await Thread(saver_of(manager), "three").put()
        with pytest.raises(CheckpointUnavailableError, match="all threads"):
            await manager.list_threads()
        with pytest.raises(CheckpointUnavailableError, match="Prune of threads one needs the primary"):
            await saver_of(manager).aprune(["one"])


async def test_clock_that_jumps_back_makes_nothing_go_backwards(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    async with switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary:
        saver = saver_of(primary.manager)
        thread = Thread(saver, "clock")
        await thread.put()
        old = str(uuid6())
        await thread.put()
        monkeypatch.setattr(time, "time", lambda: real() - 7200)
        monkeypatch.setattr(time, "time_ns", lambda: int((real() - 7200) * 1e9))
        await thread.put()  # a contact at a time before the last
        await primary.off()
        for _ in range(3):
            await thread.timed_put()
            await thread.timed_get()
        with pytest.raises(CheckpointUnavailableError):
            await saver.aget_tuple({"configurable": {"thread_id": old, "checkpoint_ns": ""}})
        await primary.on()
        await recovered(primary.manager)
        await thread.timed_get()
        assert await thread.stored_ids() == thread.ids
        assert manager_age(primary.manager.health_status) >= 0
    async with opened(postgres(database_url)) as restarted:
        again = Thread(saver_of(restarted), "clock")
        again.ids = thread.ids
        found = await saver_of(restarted).aget_tuple(again.config)
        assert found is not None
        assert found.checkpoint["id"] == thread.ids[-1]


def manager_age(status: dict[str, object]) -> float:
    journal = status["journal"]
    assert isinstance(journal, dict)
    return float(journal["oldest_age_seconds"])


def uuid7_of(seconds: float) -> str:
    """A UUIDv7 that says it was made at this time."""
    high = (int(seconds * 1000) << 16) | 0x7000 | secrets.randbits(12)
    return str(UUID(int=(high << 64) | (0b10 << 62) | secrets.randbits(62)))


async def test_id_from_the_future_does_not_prove_a_thread_to_be_new(database_url: str, tmp_path: Path) -> None:
    ahead = uuid7_of(time.time() + 120)
    async with opened(postgres(database_url)) as earlier:
        await Thread(saver_of(earlier), ahead).put()
    async with switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary:
        await primary.off()
        with pytest.raises(CheckpointUnavailableError):
            await saver_of(primary.manager).aget_tuple({"configurable": {"thread_id": ahead, "checkpoint_ns": ""}})


async def test_thread_that_was_taken_for_new_is_not_taken_for_whole_once_the_primary_can_be_asked(
    database_url: str, tmp_path: Path
) -> None:
    async with opened(postgres(database_url)) as earlier:
        before = Thread(saver_of(earlier), "known")
        for _ in range(3):
            await before.put()
    config: RunnableConfig = {"configurable": {"thread_id": "known", "checkpoint_ns": ""}}
    async with switched("postgres", database_url, tmp_path, on_unknown_thread="start_fresh") as primary:
        saver = saver_of(primary.manager)
        await primary.off()
        assert await saver.aget_tuple(config) is None  # allowed, and documented
        await primary.on()
        await recovered(primary.manager)
        written = Thread(saver, "known")
        written.ids = list(before.ids)
        await written.put()
        assert len(await written.stored_ids()) == 4
        await primary.off()
        with pytest.raises(CheckpointUnavailableError):
            await written.stored_ids()


async def test_thread_of_which_only_a_subgraph_has_a_checkpoint_is_not_taken_for_empty(
    database_url: str, tmp_path: Path
) -> None:
    """What a process left that died before the root graph stored anything, as it does last with durability="exit"."""
    root: RunnableConfig = {"configurable": {"thread_id": "half", "checkpoint_ns": ""}}
    notebook: RunnableConfig = {"configurable": {"thread_id": "half", "checkpoint_ns": "notebook"}}
    checkpoint = {**empty_checkpoint(), "id": str(uuid6())}
    async with opened(postgres(database_url)) as earlier:
        await saver_of(earlier).aput(notebook, checkpoint, {}, {})  # type: ignore[arg-type]  # a TypedDict, merged
    async with switched("postgres", database_url, tmp_path, on_unknown_thread="raise") as primary:
        saver = saver_of(primary.manager)
        assert await saver.aget_tuple(root) is None
        await primary.off()
        assert await saver.aget_tuple(root) is None
        with pytest.raises(CheckpointUnavailableError):
            await saver.aget_tuple(notebook)
        await primary.on()
        await recovered(primary.manager)
        assert await saver.aget_tuple(notebook) is not None
