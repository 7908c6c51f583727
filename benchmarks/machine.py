"""What the figures were measured on: nothing that names the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib.metadata import version

from psycopg import AsyncConnection

LIBRARIES = (
    *("langgraph", "langgraph-checkpoint", "langgraph-checkpoint-postgres", "langgraph-checkpoint-sqlite"),
    *("psycopg", "psycopg-pool", "aiosqlite", "enhanced-checkpointing"),
)


def describe(server_version: str, round_trips: dict[str, float]) -> list[tuple[str, str]]:
    """Names and values; the round trips in seconds."""
    cores = len(os.sched_getaffinity(0))
    measured = ", ".join(f"{way}: {1000 * seconds:.2f} ms" for way, seconds in round_trips.items())
    return [
        ("machine", f"{cores} cores that the callers, the server and the delaying proxy share, {platform.machine()}"),
        ("system", f"{platform.system()}, Python {platform.python_version()}"),
        ("PostgreSQL", f"{server_version} on the same machine with its defaults, fsync on"),
        ("round trip", f"{measured} (median of `SELECT 1`)"),
        ("libraries", ", ".join(f"{name} {version(name)}" for name in LIBRARIES)),
    ]


async def server_version(url: str) -> str:
    async with await AsyncConnection.connect(url) as connection:
        row = await (await connection.execute("SHOW server_version")).fetchone()
    return str(row[0]) if row else "unknown"


async def round_trip(url: str, count: int = 200) -> float:
    """Seconds of one empty question."""
    times = []
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        for _ in range(count):
            started_at = time.perf_counter()
            await connection.execute("SELECT 1")
            times.append(time.perf_counter() - started_at)
    return statistics.median(times)
