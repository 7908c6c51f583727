"""Subgraphs in an outage: those of our own steps are called, those that another process went on with are not run twice.

FAULTS row 33, with two processes on one SQLite file.
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.func import task
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Durability, interrupt

from enhanced_checkpointing import CheckpointUnavailableError, EnhancedCheckpointerManager
from tests.support.checkpointer import Switched, opened, recovered, saver_of, sqlite, switched

CONFIG: RunnableConfig = {"configurable": {"thread_id": "shared"}}


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


class Shop:
    """A subgraph that pays, which is to happen once, and then asks or fails."""

    def __init__(self) -> None:
        self.paid = 0
        self.check_is_down = self.ship_is_down = False

    def graph(self) -> Any:
        steps = one_node("pay", RunnableLambda(self._pay))
        steps.add_node("ship", RunnableLambda(self._ship))
        return steps.add_edge("pay", "ship").compile()

    def _pay(self, _: Log) -> Log:
        self.paid += 1
        return {"log": ["paid"]}

    def _ship(self, _: Log) -> Log:
        if self.ship_is_down:
            raise RuntimeError("ship is down")
        return {"log": [interrupt("ship?")]}


def one_node(name: str, node: Any) -> StateGraph[Any]:
    graph: StateGraph[Any] = StateGraph(Log)
    graph.add_node(name, node)
    graph.add_edge(START, name)
    return graph


@asynccontextmanager
async def two_processes(path: Path, **fields: Any) -> AsyncIterator[tuple[Switched, EnhancedCheckpointerManager]]:
    """Ours, whose primary can be switched off, and another one."""
    async with (
        switched("sqlite", "", path / "shared.sqlite", on_unknown_thread="raise", **fields) as ours,
        opened(sqlite(path / "shared.sqlite")) as other,
    ):
        yield ours, other


async def off(primary: Switched) -> None:
    await primary.off()
    primary.manager._opened.breaker.trip("by a test")


async def questions(graph: Any) -> list[Any]:
    return [asked.value for asked in (await graph.aget_state(CONFIG)).interrupts]


async def assert_not_run_twice(ours: Any, shop: Shop, primary: Switched, answer: Command[Any] | None) -> None:
    """In an outage what we know of is refused, and after it, it goes on where the other process was."""
    with pytest.raises(CheckpointUnavailableError, match="no checkpoint of namespace"):
        await ours.ainvoke(answer, CONFIG)
    assert shop.paid == 1
    await primary.on()
    await recovered(primary.manager)


async def test_nested_subgraph_that_another_process_went_on_with_is_not_run_twice(tmp_path: Path) -> None:
    shop = Shop()

    def outer(saver: Any, **options: Any) -> Any:
        middle: StateGraph[Any] = StateGraph(Log)
        middle.add_node("one", lambda _: {"log": ["one"]})
        middle.add_node("shop", shop.graph())
        middle.add_edge(START, "one").add_edge("one", "shop")
        return one_node("middle", middle.compile(**options)).compile(checkpointer=saver)

    async with two_processes(tmp_path) as (primary, other):
        ours = outer(saver_of(primary.manager), interrupt_before=["shop"])
        await ours.ainvoke({"log": ["go"]}, CONFIG)
        await outer(saver_of(other)).ainvoke(None, CONFIG)
        assert await questions(ours) == ["ship?"]
        await off(primary)
        assert await questions(ours) == ["ship?"]
        await assert_not_run_twice(ours, shop, primary, Command(resume="yes"))


@pytest.mark.parametrize("refused", [False, True])
async def test_node_that_another_process_tried_again_is_not_run_twice(refused: bool, tmp_path: Path) -> None:
    """With `refused`, that our own attempt had failed could not be stored."""
    shop = Shop()
    shop.check_is_down = shop.ship_is_down = True

    async def check_and_shop(_: Log) -> Log:
        if shop.check_is_down:
            raise RuntimeError("check is down")
        answer: Log = await shop.graph().ainvoke({"log": []})
        return answer

    graph = one_node("work", RunnableLambda(check_and_shop))
    fields = {"on_outage": "raise", "deadline": 0.5} if refused else {}
    async with two_processes(tmp_path, **fields) as (primary, other):
        ours, theirs = (graph.compile(checkpointer=saver_of(manager)) for manager in (primary.manager, other))
        if refused:
            await ours.ainvoke({"log": ["go"]}, CONFIG, interrupt_before=["work"])
            await off(primary)
        with pytest.raises((RuntimeError, CheckpointUnavailableError)):
            await ours.ainvoke(None if refused else {"log": ["go"]}, CONFIG)
        if refused:
            await primary.on()
            await recovered(primary.manager)
        shop.check_is_down = False
        with pytest.raises(RuntimeError, match="ship is down"):
            await theirs.ainvoke(None, CONFIG)
        for outage in (False, True):  # the newest error is told, also where it took the place of ours
            if outage:
                await off(primary)
            (tried,) = (await ours.aget_state(CONFIG)).tasks
            assert "ship is down" in str(tried.error)
        await assert_not_run_twice(ours, shop, primary, None)


async def test_question_that_another_process_was_asked_since_is_the_one_that_is_shown(tmp_path: Path) -> None:
    shop = Shop()

    async def ask_and_shop(_: Log) -> Log:
        interrupt("name?")
        interrupt("pay?")
        answer: Log = await shop.graph().ainvoke({"log": []})
        return answer

    graph = one_node("work", RunnableLambda(ask_and_shop))
    async with two_processes(tmp_path) as (primary, other):
        ours, theirs = (graph.compile(checkpointer=saver_of(manager)) for manager in (primary.manager, other))
        await ours.ainvoke({"log": ["go"]}, CONFIG)
        await ours.ainvoke(Command(resume="Ada"), CONFIG)
        assert await questions(ours) == ["pay?"]
        await theirs.ainvoke(Command(resume="yes"), CONFIG)
        assert await questions(ours) == ["ship?"]
        await off(primary)
        assert await questions(ours) == ["ship?"]
        await assert_not_run_twice(ours, shop, primary, Command(resume="do not"))
        assert (await ours.ainvoke(Command(resume="do not"), CONFIG))["log"] == ["go", "paid", "do not"]


@pytest.mark.parametrize("durability", ["async", "exit", "sync"])
async def test_subgraph_that_a_task_calls_is_called_in_an_outage(durability: Durability, tmp_path: Path) -> None:
    leaf = one_node("leaf", lambda _: {"log": ["leaf"]}).compile()

    @task
    async def call(word: str) -> Any:
        return await leaf.ainvoke({"log": [word]})

    async def work(_: Log) -> Any:
        return await call("called")

    graph = one_node("one", lambda _: {"log": ["one"]})
    graph.add_node("two", lambda _: {"log": ["two"]})
    graph.add_node("work", RunnableLambda(work))
    graph.add_edge("one", "two").add_edge("two", "work")
    async with opened(sqlite(tmp_path / "shared.sqlite")) as earlier:
        begun = (await graph.compile(checkpointer=saver_of(earlier)).ainvoke({"log": ["0"]}, CONFIG))["log"]
    async with two_processes(tmp_path) as (primary, _):
        ours = graph.compile(checkpointer=saver_of(primary.manager))
        await ours.aget_state(CONFIG)
        await off(primary)
        answer = await ours.ainvoke({"log": ["1"]}, CONFIG, durability=durability)
        assert answer["log"] == [*begun, "1", *begun[1:]]
        await primary.on()
        await recovered(primary.manager)


async def test_time_travel_to_a_step_of_our_own_calls_its_subgraph_anew_in_an_outage(tmp_path: Path) -> None:
    leaf = one_node("leaf", lambda _: {"log": ["leaf"]}).compile()
    async with opened(sqlite(tmp_path / "shared.sqlite")) as earlier:
        await one_node("work", leaf).compile(checkpointer=saver_of(earlier)).ainvoke({"log": ["0"]}, CONFIG)
    async with two_processes(tmp_path) as (primary, _):
        ours = one_node("work", leaf).compile(checkpointer=saver_of(primary.manager))
        stopped = await ours.ainvoke({"log": ["1"]}, CONFIG, interrupt_before=["work"])
        before = (await ours.aget_state(CONFIG)).config
        await off(primary)
        answer = await ours.ainvoke(None, CONFIG)
        assert answer["log"] == [*stopped["log"], *stopped["log"], "leaf"]
        assert (await ours.ainvoke(None, before))["log"] == answer["log"]
        await primary.on()
        await recovered(primary.manager)
