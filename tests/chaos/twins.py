"""The runs without faults: every kind once, on bare official savers. A process of its own: see `PYTHONHASHSEED`."""

from __future__ import annotations

import asyncio
import sys

from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from tests.chaos.plan import Run, all_kinds
from tests.support.graphs import run_case, run_case_sync

SAME_ORDER = {"PYTHONHASHSEED": "0"}
"""The environment of whoever runs graphs to be compared: LangGraph keeps a node's edges in a set of strings, so the
order of the writes that follow them is another one in each process."""


def twin_of(run: Run) -> str:
    """The thread of this run's twin."""
    return f"twin-{run.kind}"


async def run_twins(url: str) -> None:
    """Run every kind once on the database at `url`."""
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        await saver.setup()
        for run in all_kinds():
            if run.caller == "task":
                await run_case(run.case, saver, twin_of(run), durability=run.durability)
    with PostgresSaver.from_conn_string(url) as saver:
        for run in all_kinds():
            if run.caller == "thread":
                run_case_sync(run.case, saver, twin_of(run), durability=run.durability)


if __name__ == "__main__":
    asyncio.run(run_twins(sys.argv[1]))
