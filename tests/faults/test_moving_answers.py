"""Threads that wait for answers, moved more than once: whose answers are newer is told from what LangGraph stored."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, interrupt

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.listing import COMPLETED, FAILED, THREAD_STATUS, TOUCHED_AT
from enhanced_checkpointing.threads.exchange import export_threads, import_threads
from enhanced_checkpointing.threads.migrate import Orders, Tally, migrate
from tests.support.author import Author
from tests.support.checkpointer import postgres, sqlite
from tests.support.threads import Saver, backend_of, bare_postgres, bare_sqlite, shown

QUESTIONS = 3
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

Make = Callable[[BaseCheckpointSaver[Any]], Pregel[Any, Any, Any, Any]]


def ask(state: MessagesState) -> dict[str, Any]:
    return {"messages": [("ai", f"answers {[interrupt(f'question {number}') for number in range(QUESTIONS)]}")]}


def node(saver: BaseCheckpointSaver[Any]) -> Pregel[Any, Any, Any, Any]:
    return StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile(checkpointer=saver)


def subgraph(saver: BaseCheckpointSaver[Any]) -> Pregel[Any, Any, Any, Any]:
    inner = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile()
    return StateGraph(MessagesState).add_node("inner", inner).add_edge(START, "inner").compile(checkpointer=saver)


def lasting_subgraph(saver: BaseCheckpointSaver[Any]) -> Pregel[Any, Any, Any, Any]:
    inner = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile(checkpointer=True)
    return StateGraph(MessagesState).add_node("inner", inner).add_edge(START, "inner").compile(checkpointer=saver)


def subgraph_of_steps(saver: BaseCheckpointSaver[Any]) -> Pregel[Any, Any, Any, Any]:
    inner = StateGraph(MessagesState)
    names = [f"ask {number}" for number in range(QUESTIONS)]
    for name in names:
        inner.add_node(name, lambda state, name=name: {"messages": [("ai", interrupt(name))]})
    for before, name in zip([START, *names], names, strict=False):
        inner.add_edge(before, name)
    outer = StateGraph(MessagesState).add_node("inner", inner.compile()).add_edge(START, "inner")
    return outer.compile(checkpointer=saver)


def tasks(saver: BaseCheckpointSaver[Any]) -> Pregel[Any, Any, Any, Any]:
    @task
    async def asked() -> str:
        return str(interrupt("question"))

    @entrypoint(checkpointer=saver)
    async def graph(_: Any) -> list[str]:
        return [await asked(), interrupt("sure?"), interrupt("and?")]

    return graph


GRAPHS: tuple[Make, ...] = (node, subgraph, lasting_subgraph, subgraph_of_steps, tasks)


@asynccontextmanager
async def sides(folder: Path, url: str | None) -> AsyncIterator[tuple[Saver, Backend, Saver, Backend]]:
    """Source and target, each with LangGraph's own saver, with which the application goes on there."""
    config = sqlite(folder / "source.sqlite", deadline=10.0)
    other = postgres(url, deadline=10.0) if url else sqlite(folder / "target.sqlite", deadline=10.0)
    async with backend_of(config) as source, backend_of(other) as target:
        bare = bare_postgres(url) if url else bare_sqlite(folder / "target.sqlite")
        async with bare_sqlite(folder / "source.sqlite") as one, bare as two:
            yield one, source, two, target


async def answer(graph: Pregel[Any, Any, Any, Any], thread_id: str, count: int, *, by: str) -> None:
    """Begin a thread, or go on with it, until so many questions are answered."""
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    if not (await graph.aget_state(config)).created_at:
        await graph.ainvoke({"messages": [("user", "go")]}, config)
    for number in range(count):
        await graph.ainvoke(Command(resume=f"{number} {by}"), config)


def outcomes(tally: Tally) -> dict[str, int]:
    return {outcome.value: count for outcome, count in tally.outcomes.items()}


@pytest.mark.parametrize("make", GRAPHS)
async def test_whoever_answered_meanwhile_keeps_the_answers(make: Make, tmp_path: Path) -> None:
    """For all numbers of answers before the first move, and on each side between that and the second one."""
    ways = [way for way in product(range(QUESTIONS + 1), repeat=3) if way[0] + max(way[1:]) <= QUESTIONS]
    async with sides(tmp_path, None) as (one, source, two, target):
        for before, here, there in ways:
            await answer(make(one), f"{before} {here} {there}", before, by="before")
        assert outcomes(await migrate(source, target)) == {"copied": len(ways)}
        for before, here, there in ways:
            await answer(make(one), f"{before} {here} {there}", here, by="in the source")
            await answer(make(two), f"{before} {here} {there}", there, by="in the target")
        kept = {thread_id: await shown(two, thread_id) for thread_id in (f"{b} {h} {t}" for b, h, t in ways)}
        tally = await migrate(source, target)
        refused = {f"{before} {here} {there}" for before, here, there in ways if there}
        assert {problem.thread_id for problem in tally.problems} == refused
        assert outcomes(tally)["refused"] == len(refused)
        assert outcomes(tally)["completed"] == sum(bool(here) and not there for _, here, there in ways)
        for thread_id, was in kept.items():
            expected = was if thread_id in refused else await shown(one, thread_id)
            assert await shown(two, thread_id) == expected, thread_id
        again = await migrate(source, target)
        assert outcomes(again) == {"refused": len(refused), "equal": len(ways) - len(refused)}


async def test_answers_in_postgresql_are_kept_and_those_of_the_source_are_brought_there(
    database_url: str, tmp_path: Path
) -> None:
    async with sides(tmp_path, database_url) as (one, source, two, target):
        for thread_id in ("asked here", "asked there"):
            await answer(node(one), thread_id, 1, by="before")
        await migrate(source, target)
        await answer(node(one), "asked here", 1, by="in the source")
        await answer(node(two), "asked there", 1, by="in the target")
        kept = await shown(two, "asked there")
        tally = await migrate(source, target)
        assert outcomes(tally) == {"completed": 1, "refused": 1}
        assert "the target may have gone on by itself" in tally.problems[0].reasons[-1]
        assert await shown(two, "asked there") == kept
        assert await shown(two, "asked here") == await shown(one, "asked here")
        assert outcomes(await migrate(source, target, Orders(overwrite=True))) == {"equal": 1, "replaced": 1}
        assert await shown(two, "asked there") == await shown(one, "asked there")


async def test_import_keeps_the_answers_of_the_target(tmp_path: Path) -> None:
    async with sides(tmp_path, None) as (one, source, two, target):
        await answer(node(one), "thread", 1, by="before")
        exported = io.BytesIO()
        await export_threads(source, exported, tell=lambda _: None)
        assert outcomes(await import_threads(io.BytesIO(exported.getvalue()), target, Orders())) == {"copied": 1}
        await answer(node(two), "thread", 1, by="in the target")
        kept = await shown(two, "thread")
        assert outcomes(await import_threads(io.BytesIO(exported.getvalue()), target, Orders())) == {"refused": 1}
        assert await shown(two, "thread") == kept


async def test_newer_mark_is_brought_and_that_of_the_target_is_kept(tmp_path: Path) -> None:
    later = NOW + timedelta(hours=1)
    completed = {THREAD_STATUS: COMPLETED, TOUCHED_AT: NOW.isoformat()}
    async with sides(tmp_path, None) as (_, source, _, target):
        for thread_id in ("here", "there", "both"):
            await source.apply(Author(thread_id).put({"log": [1]}))
        await migrate(source, target)
        await source.annotate("here", completed)
        await target.annotate("there", completed)
        await source.annotate("both", completed)
        await target.annotate("both", {THREAD_STATUS: FAILED, TOUCHED_AT: later.isoformat()})
        tally = await migrate(source, target)
        assert outcomes(tally) == {"completed": 1, "refused": 2}
        heads = {head.thread_id: head.metadata for head in await target.describe(["here", "there", "both"])}
        assert [heads[one][THREAD_STATUS] for one in ("here", "there", "both")] == [COMPLETED, COMPLETED, FAILED]
