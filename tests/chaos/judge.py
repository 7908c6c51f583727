"""Holds what is in the database against what was acknowledged, and against the same runs without faults.

Three things must hold, the weaker ones for what was cut off:

1. Every row whose write was acknowledged is there, in every run.
2. A run that no SIGKILL hit left exactly the rows of its twin: a bare official saver on a database that never failed.
3. A run that was cut off left, from its head back to its root, its twin's checkpoints: as many, with the same step,
   source, values and next nodes; and nothing is interrupted that was answered. Beside that chain it may have more rows
   than its twin, and not the same ones, since a process that dies may have sent a write that nobody was told of: a
   checkpoint beside the chain where a turn was begun again, writes of a node that ran twice, a subgraph's namespace
   under a checkpoint that was given up. With durability "async" LangGraph does not wait for the writes of a step
   before the next checkpoint, so these may be missing in an older checkpoint: they are held by 1, not by 3.
   Of `stateful_subgraph` the counts and words that come out of the subgraph's memory are left out: LangGraph itself
   gives that memory a turn's note not at all, or twice, when it is cut off between a write of the subgraph and one of
   the graph around it. `test_cut_off_memory_of_a_subgraph_is_langgraphs_doing` shows it on a bare saver in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg import sql
from psycopg.rows import dict_row

from tests.chaos.plan import Run, run_of
from tests.chaos.tally import Tally
from tests.chaos.twins import twin_of
from tests.support.comparison import KEYS, Dump, Row, assert_equal_dumps

KEYS_OF_ACKNOWLEDGED = {
    "checkpoints": ("checkpoint_ns", "checkpoint_id"),
    "checkpoint_writes": ("checkpoint_ns", "checkpoint_id", "task_id", "idx"),
}


class Judge:
    """Compares the database at `url` with what a tally says, and with the twins in the database at `twin_url`."""

    def __init__(self, url: str, twin_url: str, seed: int) -> None:
        self._url = url
        self._twin_url = twin_url
        self._seed = seed

    def lost(self, tally: Tally) -> dict[str, int]:
        """By thread, how many rows are missing that were acknowledged."""
        missing: dict[str, int] = {}
        with _connected(self._url) as connection:
            for thread_id, tables in tally.acknowledged.items():
                for table, columns in KEYS_OF_ACKNOWLEDGED.items():
                    there = {tuple(row[column] for column in columns) for row in _rows(connection, table, thread_id)}
                    if gone := tables[table] - there:
                        missing[thread_id] = missing.get(thread_id, 0) + len(gone)
        return missing

    def differing(self, tally: Tally) -> dict[str, str]:
        """By thread, the first difference from its twin."""
        found: dict[str, str] = {}
        with _connected(self._url) as actual, _connected(self._twin_url) as twins:
            for run in (run_of(self._seed, number) for number in sorted(tally.done)):
                twin = twin_of(run)
                try:
                    if run.number in tally.disturbed:
                        _assert_equal_chains(_chain(actual, run, run.thread_id), _chain(twins, run, twin))
                    else:
                        assert_equal_dumps(_dump(actual, run.thread_id), _dump(twins, twin))
                except AssertionError as difference:
                    found[run.thread_id] = str(difference)
        return found


@contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection[Row]]:
    with psycopg.connect(url, autocommit=True, prepare_threshold=0, row_factory=dict_row) as connection:
        yield connection


def _rows(connection: psycopg.Connection[Row], table: str, thread_id: str) -> list[Row]:
    query = sql.SQL("SELECT * FROM {} WHERE thread_id = %s").format(sql.Identifier(table))
    return connection.execute(query, [thread_id]).fetchall()


def _dump(connection: psycopg.Connection[Row], thread_id: str) -> Dump:
    """All rows of one thread, which is called the same in each dump."""
    dump: Dump = {}
    for table in KEYS:
        dump[table] = []
        for row in _rows(connection, table, thread_id):
            if "blob" in row and row["blob"] is not None:
                row["blob"] = JsonPlusSerializer().loads_typed((row["type"], bytes(row["blob"])))
            if "blob" in row:
                row["value"] = row.pop("blob")
            dump[table].append({**row, "thread_id": "thread"})
    return dump


def _chain(connection: psycopg.Connection[Any], run: Run, thread_id: str) -> list[dict[str, Any]]:
    """What the bare saver finds, from the head of a thread back to its root.

    Without the checkpoints in which a run with `durability="exit"` stopped on an error, since a read was out of reach
    after a restart: LangGraph stores one there, and goes on from it.
    """
    graph = run.case.builder().compile(checkpointer=PostgresSaver(connection))
    chain: list[dict[str, Any]] = []
    config: RunnableConfig | None = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    while config:
        state = graph.get_state(config)
        values = _without_memory(state.values) if run.case.name == "stateful_subgraph" else state.values
        step = {"values": values, "next": state.next, "at": (state.metadata or {}).get("step")}
        step |= {"source": (state.metadata or {}).get("source")}
        interrupts = [interrupt.value for task in state.tasks for interrupt in task.interrupts]
        if not chain:
            step["interrupts"] = interrupts
        if not (chain and run.durability == "exit" and state.next and not interrupts):
            chain.append(step)
        config = state.parent_config
    return chain


def _without_memory(values: dict[str, Any]) -> dict[str, Any]:
    """Who spoke, but nothing that a stateful subgraph remembered. What was asked is part of that: a graph whose read of
    its subgraph's checkpoint raised, and that goes on later, takes the subgraph for finished, and the question from it;
    with every saver."""
    spoken = [entry.partition(":")[0] for entry in values.get("log", [])]
    return {"log": spoken, "summarised": "summary" in values}


def _assert_equal_chains(actual: list[dict[str, Any]], twin: list[dict[str, Any]]) -> None:
    for back, (ours, theirs) in enumerate(zip(actual, twin, strict=False)):
        assert ours == theirs, f"{back} before the head there is {ours}; the twin has {theirs}"
    assert len(actual) == len(twin), f"from head to root there are {len(actual)} checkpoints; the twin has {len(twin)}"
