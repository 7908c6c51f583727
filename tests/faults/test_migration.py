"""Threads that are moved between databases are the same there, through LangGraph's own savers."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph

from enhanced_checkpointing import create_memory_checkpointer
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.threads.migrate import Mover, Orders, Outcome, migrate, thread_of_backend
from tests.support.checkpointer import opened, postgres, saver_of, sqlite
from tests.support.exact import exact
from tests.support.graphs import GRAPHS, Durability, GraphCase, run_case
from tests.support.threads import (
    Saver,
    Step,
    backend_of,
    bare_postgres,
    bare_sqlite,
    shown,
    threads,
    write_thread,
)

CASES = pytest.mark.parametrize("case", GRAPHS.values(), ids=GRAPHS)


@dataclass
class Places:
    """Backends of all kinds, each with a bare saver that looks at the same."""

    sqlite: Backend
    postgres: Backend
    memory: Backend
    back: Backend
    savers: dict[str, Saver]

    async def around(self, thread_id: str) -> None:
        """Move a thread from SQLite to PostgreSQL, from there to memory, and from there to another SQLite."""
        way = [self.sqlite, self.postgres, self.memory, self.back]
        for source, target in itertools.pairwise(way):
            report = await Mover(target, Orders()).move(thread_of_backend(source, thread_id))
            assert report.outcome is Outcome.COPIED, report.reasons


@asynccontextmanager
async def places(database_url: str, folder: Path) -> AsyncIterator[Places]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        memory = await enter(backend_of(create_memory_checkpointer()))
        yield Places(
            await enter(backend_of(sqlite(folder / "source.sqlite", deadline=10.0))),
            await enter(backend_of(postgres(database_url, deadline=10.0))),
            memory,
            await enter(backend_of(sqlite(folder / "back.sqlite", deadline=10.0))),
            {
                "sqlite": await enter(bare_sqlite(folder / "source.sqlite")),
                "postgres": await enter(bare_postgres(database_url)),
                "memory": memory.saver,
                "back": await enter(bare_sqlite(folder / "back.sqlite")),
            },
        )


async def operations(backend: Backend, thread_id: str) -> list[Operation]:
    return [operation async for chunk in backend.read_thread(thread_id) for operation in chunk]


@CASES
@pytest.mark.parametrize("durability", ["sync", "exit"])
async def test_thread_of_every_kind_of_graph_is_the_same_after_the_way_around(
    case: GraphCase, durability: Durability, database_url: str, tmp_path: Path
) -> None:
    async with places(database_url, tmp_path) as found:
        result = await run_case(case, found.savers["sqlite"], "thread", durability=durability)
        await found.around("thread")
        seen = {name: await shown(saver, "thread") for name, saver in found.savers.items()}
        assert seen["back"] == seen["sqlite"]
        if case.name != "delta_channel":  # whose snapshots PostgreSQL and memory show at later checkpoints too
            assert seen["postgres"] == seen["memory"] == seen["sqlite"]
        for name, saver in found.savers.items():
            graph = case.builder().compile(checkpointer=saver)
            state = await graph.aget_state({"configurable": {"thread_id": "thread"}}, subgraphs=True)
            assert state.values == result, name


@CASES
async def test_thread_that_postgresql_wrote_goes_on_in_sqlite_as_it_would_have_there(
    case: GraphCase, database_url: str, tmp_path: Path
) -> None:
    """The other way around: what the official saver wrote there, delta channels and interrupts among it."""
    half = GraphCase(case.name, case.builder, case.turns[:1])
    async with places(database_url, tmp_path) as found:
        await run_case(half, found.savers["postgres"], "thread")
        assert (await migrate(found.postgres, found.back)).complete
        rest = GraphCase(case.name, case.builder, case.turns[1:])
        ended = [await run_case(rest, found.savers[name], "thread") for name in ("postgres", "back")]
        assert ended[0] == ended[1]


def test_odd_threads_are_the_same_after_the_way_around(database_url: str, tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        found = runner.run(stack.enter_async_context(places(database_url, tmp_path)))
        count = 0

        async def check(name: str, namespaces: dict[str, list[Step]]) -> None:
            thread_id = f"{name}-{count}"
            await write_thread(found.savers["sqlite"], thread_id, namespaces)
            await found.around(thread_id)
            seen = {name: await shown(saver, thread_id) for name, saver in found.savers.items()}
            for name, other in seen.items():
                assert other == seen["sqlite"], name
            read = [await operations(backend, thread_id) for backend in (found.sqlite, found.back)]
            assert read[0] == read[1]

        @settings(max_examples=20, deadline=None, suppress_health_check=[*HealthCheck])
        @given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5), threads)
        def examples(name: str, namespaces: dict[str, list[Step]]) -> None:
            nonlocal count
            count += 1
            runner.run(check(name, namespaces))

        try:
            examples()
        finally:
            runner.run(stack.aclose())


class Kept(TypedDict, total=False):
    odd: Any
    count: int


def counting() -> StateGraph[Any]:
    """Leaves one channel alone and counts in the other."""
    graph: StateGraph[Any] = StateGraph(Kept)
    graph.add_node("count", lambda state: {"count": state.get("count", 0) + 1})
    graph.add_edge(START, "count")
    return graph


@pytest.mark.parametrize("odd", ["nul \0", math.nan, math.inf, -math.inf, "half \ud800"], ids=repr)
async def test_value_that_jsonb_cannot_hold_fails_no_run_and_the_bare_saver_reads_it(
    odd: object, database_url: str, tmp_path: Path
) -> None:
    serializer = JsonPlusSerializer()
    kept = serializer.loads_typed(serializer.dumps_typed(odd))  # for half of a character it writes a question mark
    async with (
        opened(sqlite(tmp_path / "source.sqlite")) as from_sqlite,
        opened(postgres(database_url)) as on_postgres,
        bare_postgres(database_url) as bare,
    ):
        ours, begun = (counting().compile(checkpointer=saver_of(one)) for one in (on_postgres, from_sqlite))
        moved, own = (RunnableConfig(configurable={"thread_id": name}) for name in ("moved", "own"))
        await begun.ainvoke({"odd": odd}, moved)
        assert (await migrate(from_sqlite.components.backend, on_postgres.components.backend)).complete
        await ours.ainvoke({"odd": odd}, own)
        for thread, turns in ((moved, 3), (own, 3)):
            for _ in range(2):
                await ours.ainvoke({"count": (await ours.aget_state(thread)).values["count"]}, thread)
            for saver in (saver_of(on_postgres), bare):
                found = await saver.aget_tuple(thread)
                assert found is not None
                assert exact(found.checkpoint["channel_values"]["odd"]) == exact(kept)
                assert found.checkpoint["channel_values"]["count"] == turns
            await ours.ainvoke({"odd": "even"}, thread)  # the bare saver cannot put what it has read again
            ended = await counting().compile(checkpointer=bare).ainvoke({"count": 0}, thread)
            assert ended == {"odd": "even", "count": 1}
            assert (await ours.ainvoke({"count": 1}, thread)) == {"odd": "even", "count": 2}
