"""Whole runs of LangGraph: a graph of five trivial nodes, three of them in parallel, on a new thread each time."""

from __future__ import annotations

import operator
import time
import uuid
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from benchmarks.laboratory import WAYS, Laboratory, Result, Table
from benchmarks.rounds import Pace, compare
from benchmarks.workload import Caller, Saver, Work
from benchmarks.writes import TIMING, away, timing

AT_A_TIME = (1, 64)
QUICK_AT_A_TIME = (1, 8)
BRANCHES = ("left", "middle", "right")
PACE = Pace(rounds=15, seconds=0.5, patience=45.0)
"""More than for single calls: a round of 64 runs is one go, and a whole graph leaves much to chance."""

STEPS_LOGGED = 2 + len(BRANCHES)


class Log(TypedDict):
    """Every node adds its line."""

    log: Annotated[list[str], operator.add]


Graph = CompiledStateGraph[Any, Any, Any, Any]


async def _node(state: Log) -> dict[str, Any]:
    return {"log": ["done"]}


def graph_of(saver: Saver) -> Graph:
    builder: StateGraph[Any, Any, Any, Any] = StateGraph(Log)
    for name in ("split", *BRANCHES, "join"):
        builder.add_node(name, _node)
    builder.add_edge(START, "split")
    for name in BRANCHES:
        builder.add_edge("split", name)
    builder.add_edge(list(BRANCHES), "join")
    builder.add_edge("join", END)
    return builder.compile(checkpointer=saver)


def running(saver: Saver, at_a_time: int) -> Work:
    graph = graph_of(saver)

    def prepare(repeats: int) -> list[Caller]:
        return [_runner(graph, repeats) for _ in range(at_a_time)]

    return prepare


def _runner(graph: Graph, repeats: int) -> Caller:
    async def call(seconds: list[float]) -> None:
        for _ in range(repeats):
            started_at = time.perf_counter()
            found = await graph.ainvoke({"log": []}, {"configurable": {"thread_id": str(uuid.uuid4())}})
            seconds.append(time.perf_counter() - started_at)
            if len(found["log"]) != STEPS_LOGGED:
                raise RuntimeError(f"the run is not what it should be: {found}")

    return call


async def measure(laboratory: Laboratory) -> Result:
    result, rows = Result(), []
    for way in WAYS:
        for count in QUICK_AT_A_TIME if laboratory.quick else AT_A_TIME:
            laboratory.say(f"LangGraph runs, {way}, {count} at a time")
            async with laboratory.postgres_pair(way) as (pair, _):
                works = running(pair.bare, count), running(pair.ours, count)
                comparison = await compare(*works, laboratory.pace if laboratory.quick else PACE)
            rows.append((f"{away(way)}, {count}", *timing(comparison)))
            result.figures[f"graphs/{way}/{count}/ratio"] = comparison.ratio
            result.figures[f"graphs/{way}/{count}/our_per_second"] = comparison.ours.per_second
    title = f"Whole runs of LangGraph on PostgreSQL: {STEPS_LOGGED} trivial nodes, {len(BRANCHES)} of them in parallel"
    result.tables.append(Table(title, ("runs at a time", *TIMING), rows))
    return result
