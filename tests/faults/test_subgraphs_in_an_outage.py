"""Subgraphs in an outage: those of our own steps are called, those that another process went on with are not run twice.

FAULTS row 33, with two processes on one SQLite file.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda
from langgraph.func import task
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Durability, interrupt

from enhanced_checkpointing import CheckpointUnavailableError
from tests.support.checkpointer import Switched, opened, recovered, saver_of, sqlite
from tests.support.two_processes import CONFIG, Log, log_of, off, one_node, questions, two_processes


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
    fields: dict[str, Any] = {"on_outage": "raise", "deadline": 0.5} if refused else {}
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


class Questions:
    """A subgraph that asks for an address, then whether to cancel, and pays in between, which is to happen once."""

    def __init__(self) -> None:
        self.paid = 0

    def graph(self, saver: Any, **options: Any) -> Any:
        steps = one_node("ask", lambda _: {"log": [interrupt("address?")]})
        steps.add_node("pay", RunnableLambda(self._pay))
        steps.add_node("confirm", lambda _: {"log": [interrupt("cancel?")]})
        steps.add_edge("ask", "pay").add_edge("pay", "confirm")
        return one_node("order", steps.compile(**options)).compile(checkpointer=saver)

    def _pay(self, _: Log) -> Log:
        self.paid += 1
        return {"log": ["paid"]}


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_answer_in_an_outage_never_goes_to_a_question_that_another_process_has_answered(
    durability: Durability, tmp_path: Path
) -> None:
    order = Questions()
    async with two_processes(tmp_path) as (primary, other):
        ours, theirs = order.graph(saver_of(primary.manager)), order.graph(saver_of(other))
        await ours.ainvoke({"log": ["go"]}, CONFIG, durability=durability)
        await theirs.ainvoke(Command(resume="Elm Street"), CONFIG)
        assert await questions(ours) == ["cancel?"]
        await off(primary)
        with pytest.raises(CheckpointUnavailableError):
            await ours.ainvoke(Command(resume="no"), CONFIG, durability=durability)
        assert order.paid == 1
        await primary.on()
        await recovered(primary.manager)
        await ours.ainvoke(Command(resume="no"), CONFIG)
        assert (await log_of(theirs), order.paid) == (["go", "go", "Elm Street", "paid", "no"], 1)


async def test_subgraph_with_a_memory_that_another_process_went_on_with_is_not_shown_as_it_was(tmp_path: Path) -> None:
    def remembering(saver: Any) -> Any:
        say: Any = RunnableLambda(lambda state: {"log": [f"turn {len(state['log'])}"]})
        inner = one_node("say", say).compile(checkpointer=True)
        calls = one_node("inner", lambda _: {"log": inner.invoke({"log": ["said"]})["log"][-1:]})
        return calls.compile(checkpointer=saver)

    async with two_processes(tmp_path) as (primary, other):
        ours, theirs = remembering(saver_of(primary.manager)), remembering(saver_of(other))
        await ours.ainvoke({"log": []}, CONFIG)
        await theirs.ainvoke({"log": []}, CONFIG)
        assert await log_of(ours) == ["turn 1", "turn 3"]
        await off(primary)
        with pytest.raises(CheckpointUnavailableError):
            await ours.ainvoke({"log": []}, CONFIG)
        await primary.on()
        await recovered(primary.manager)
        await ours.ainvoke({"log": []}, CONFIG)
        assert await log_of(theirs) == ["turn 1", "turn 3", "turn 5"]


async def test_subgraph_beside_a_task_that_another_process_ran_is_not_taken_for_new(tmp_path: Path) -> None:
    """Both tasks are of one step: whoever ran one of them may have begun with the other."""
    shop = Shop()
    paying = asyncio.Event()

    async def pays_and_hangs(_: Log) -> Log:
        shop.paid += 1
        paying.set()
        await asyncio.sleep(60)
        return {}

    def both(saver: Any, **options: Any) -> Any:
        graph = one_node("before", lambda _: {"log": ["before"]})
        graph.add_node("shop", one_node("pay", pays_and_hangs).compile())
        graph.add_node("beside", lambda _: {"log": ["beside"]})
        return graph.add_edge("before", "shop").add_edge("before", "beside").compile(checkpointer=saver, **options)

    async with two_processes(tmp_path) as (primary, other):
        ours = both(saver_of(primary.manager), interrupt_after=["before"])
        await ours.ainvoke({"log": []}, CONFIG)
        run = asyncio.create_task(both(saver_of(other)).ainvoke(None, CONFIG))
        await paying.wait()
        done = [""]
        while done != ["beside"]:
            await asyncio.sleep(0.01)
            done = [task.name for task in (await ours.aget_state(CONFIG)).tasks if task.result]
        await off(primary)
        await assert_not_run_twice(ours, shop, primary, None)
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await run
