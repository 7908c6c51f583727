"""No call of ours holds the event loop for longer than a moment, however much a thread or the journal holds."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint
from langgraph.checkpoint.base.id import uuid6

from tests.support.checkpointer import recovered, saver_of, switched
from tests.support.loop_holds import LoopHolds

pytestmark = pytest.mark.alone
"""Beside other tests a core does less in the same processor time."""

MOMENT = 0.05
"""Seconds."""

CHECKPOINTS, CALLERS = 5_000, 32
THREADS = int(os.environ.get("TEST_DRAINED_THREADS", "2000"))
"""Threads that wait when the outage ends; 20,000 were tried so, too."""


async def put_chain(saver: BaseCheckpointSaver[str], thread_id: str, count: int) -> None:
    """A long thread, in a few commits."""
    config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    puts = []
    version = None
    for step in range(count):
        version = saver.get_next_version(version, None)
        checkpoint = Checkpoint(
            v=4,
            id=str(uuid6(clock_seq=step)),
            ts="2026-01-01T00:00:00+00:00",
            channel_values={"messages": [("human", f"turn {step}")] * 5},
            channel_versions={"messages": version},
            versions_seen={"reply": {"messages": version}},
            updated_channels=None,
        )
        puts.append(saver.aput(config, checkpoint, {"source": "loop", "step": step}, {"messages": version}))
        config = {"configurable": {**config["configurable"], "checkpoint_id": checkpoint["id"]}}
    for at in range(0, count, CALLERS):
        await asyncio.gather(*puts[at : at + CALLERS])


@pytest.mark.parametrize("backend", ["memory", "sqlite", "postgres"])
async def test_a_long_history_does_not_hold_the_loop(backend: str, database_url: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"deadline": 30.0, "standby_max_bytes": 2**30, "breaker_failures": 1}
    asked: RunnableConfig = {"configurable": {"thread_id": "long", "checkpoint_ns": ""}}
    async with switched(backend, database_url, tmp_path / "long.sqlite", **fields) as switch:
        saver = saver_of(switch.manager)
        assert await saver.aget_tuple(asked) is None
        await put_chain(saver, "long", CHECKPOINTS)

        async def listed() -> tuple[int, float]:
            async with LoopHolds() as holds:
                count = len([found async for found in saver.alist(asked)])
            return count, holds.longest

        healthy = await listed()
        await switch.off()
        await put_chain(saver, "another", 5)
        outage = await listed()
        assert switch.manager.health_status["overall_status"] != "healthy"
        await switch.on()
        await recovered(switch.manager)
    for count, longest in (healthy, outage):
        assert count == CHECKPOINTS
        assert longest < MOMENT


async def test_draining_many_threads_does_not_hold_the_loop(database_url: str, tmp_path: Path) -> None:
    async with switched("postgres", database_url, tmp_path / "none", deadline=30.0, breaker_failures=1) as switch:
        saver = saver_of(switch.manager)
        await switch.off()
        async with LoopHolds() as journaling:
            for _ in range(0, THREADS, CALLERS):
                await asyncio.gather(*(put_chain(saver, str(uuid6()), 1) for _ in range(CALLERS)))
        async with LoopHolds() as draining:
            await switch.on()
            await recovered(switch.manager, 100.0)
    assert journaling.longest < MOMENT
    assert draining.longest < MOMENT
