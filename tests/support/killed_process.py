"""Kills a process again and again while it appends to the journal and while it replays it, and counts what is lost.

`python -m tests.support.killed_process POSTGRES_URL --kills 10000 --seed 1` prints a line of progress now and then, and
at the end what was killed, acknowledged, lost and wrong. Processes are forked from one that has everything imported,
so that a kill takes a tenth of a second, not the time of a start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from enhanced_checkpointing import CheckpointerConfig, create_postgres_checkpointer
from tests.support.checkpointer import FAST, opened, saver_of
from tests.support.checkpoints import Thread

THREADS = 8
"""Threads that one process writes at a time."""
DRAINED_EVERY = 50
"""Kills after which one process may drain to the end: what waits would grow, and each start with it."""
NOBODY = "postgresql://nobody@127.0.0.1:1/nowhere"
"""Nobody listens there: every write of this primary goes to the journal."""


@dataclass
class Tally:
    """What happened, and what the database lacks of it in the end."""

    seed: int
    killed_appending: int = 0
    killed_replaying: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    resurrected: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    frozen: int = 0


@dataclass
class Known:
    """What was acknowledged of the threads: their checkpoints in order, those of them that got writes, and which of the
    threads were deleted in the end."""

    checkpoints: dict[str, list[str]] = field(default_factory=dict)
    written: dict[str, list[str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)


def run(url: str, journal_dir: Path, kills: int, seed: int, tell: Callable[[str], None] = lambda _: None) -> Tally:
    """Kill `kills` processes, half of them while they append, half while they replay, then drain and compare."""
    random_, tally, known = random.Random(seed), Tally(seed), Known()
    in_process(drain_everything(config(url, journal_dir)))  # makes the tables
    told_at = time.monotonic()
    while (killed := tally.killed_appending + tally.killed_replaying) < kills:
        if killed % 10 < 5:
            lines = kill_after(random_.uniform(0.0, 0.06), append(config(NOBODY, journal_dir), f"{killed}"))
            note(lines, known)
            tally.killed_appending += 1
        else:
            kill_after(random_.uniform(0.0, 0.08), drain_everything(config(url, journal_dir)))
            tally.killed_replaying += 1
        if killed % DRAINED_EVERY == DRAINED_EVERY - 1:
            in_process(drain_everything(config(url, journal_dir)))
        if time.monotonic() - told_at > 5:
            told_at = time.monotonic()
            tell(f"{killed} of {kills} killed, {sum(map(len, known.checkpoints.values()))} acknowledged")
    tally.frozen = in_process(drain_everything(config(url, journal_dir)))
    compare(url, known, tally)
    return tally


def config(url: str, journal_dir: Path) -> CheckpointerConfig:
    fast: dict[str, Any] = {**FAST, "probe_backoff_min": 0.02, "journal_dir": journal_dir, "deadline": 5.0}
    fast["journal_adopt"] = "all"  # what appends has another database than what drains
    return create_postgres_checkpointer(url, environment="production", **fast)


async def append(settings: CheckpointerConfig, prefix: str) -> int:
    """Put checkpoints on some threads until somebody kills us, and say each one that was acknowledged."""
    async with opened(settings) as manager:
        say("ready")

        async def write(name: str) -> None:
            # Made by hand: the manager would give it a UUID, and a name tells more.
            thread_id = manager.create_thread_config(f"thread-{prefix}-{name}", new=True)["configurable"]["thread_id"]
            thread = Thread(saver_of(manager), thread_id)
            while True:
                for _ in range(3):
                    await thread.put()
                    say(f"put {thread_id} {thread.ids[-1]}")
                    await thread.put_writes("task")
                    say(f"write {thread_id} {thread.ids[-1]}")
                if name == "0":
                    await saver_of(manager).adelete_thread(thread_id)
                    say(f"delete {thread_id}")
                    return

        await asyncio.gather(*(write(str(number)) for number in range(THREADS)))
    return 0


async def drain_everything(settings: CheckpointerConfig) -> int:
    """Open the checkpointer, which drains what it finds; returns how many threads are frozen."""
    async with opened(settings) as manager:
        say("ready")
        await manager.wait_drained(60.0)
        return int(manager.health_status["journal"]["frozen_threads"])


def note(lines: list[str], known: Known) -> None:
    for line in lines:
        word, thread_id, *checkpoint_id = line.split()
        if word == "put":
            known.checkpoints.setdefault(thread_id, []).extend(checkpoint_id)
        elif word == "write":
            known.written.setdefault(thread_id, []).extend(checkpoint_id)
        else:
            known.deleted.add(thread_id)


WITHOUT_A_VALUE = """
SELECT thread_id, checkpoint_id
FROM checkpoints c, jsonb_each_text(c.checkpoint -> 'channel_versions') AS has(channel, version)
WHERE NOT EXISTS (SELECT FROM checkpoint_blobs b WHERE b.thread_id = c.thread_id
AND b.checkpoint_ns = c.checkpoint_ns AND b.channel = has.channel AND b.version = has.version)
"""
"""Checkpoints of which the value of a channel is missing."""


def compare(url: str, known: Known, tally: Tally) -> None:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT thread_id, checkpoint_id, parent_checkpoint_id FROM checkpoints ORDER BY thread_id, checkpoint_id"
        ).fetchall()
        written = set(connection.execute("SELECT thread_id, checkpoint_id FROM checkpoint_writes").fetchall())
        blobs = connection.execute("SELECT DISTINCT thread_id FROM checkpoint_blobs").fetchall()
        tally.lost += [f"{thread} {checkpoint}: a value" for thread, checkpoint in connection.execute(WITHOUT_A_VALUE)]
    stored: dict[str, list[tuple[str, str | None]]] = {}
    for thread_id, checkpoint_id, parent in rows:
        stored.setdefault(thread_id, []).append((checkpoint_id, parent))
    remains = {thread for thread, *_ in (*rows, *written, *blobs)}
    tally.resurrected += sorted(known.deleted & remains)
    for thread_id, ids in known.checkpoints.items():
        found = stored.get(thread_id, [])
        tally.acknowledged += len(ids) + len(known.written.get(thread_id, []))
        if thread_id in known.deleted:
            continue
        there = {checkpoint_id for checkpoint_id, _ in found}
        # The last deletion of a thread may have been stored without being acknowledged, as the process died meanwhile.
        if not thread_id.endswith("-0"):
            tally.lost += [f"{thread_id} {checkpoint_id}" for checkpoint_id in ids if checkpoint_id not in there]
            acknowledged = [(thread_id, checkpoint_id) for checkpoint_id in known.written.get(thread_id, [])]
            tally.lost += [
                f"{thread} {checkpoint}: a write"
                for thread, checkpoint in acknowledged
                if (thread, checkpoint) not in written
            ]
        parents = [None, *(checkpoint_id for checkpoint_id, _ in found)]
        if any(parent != before for (_, parent), before in zip(found, parents, strict=False)):
            tally.out_of_order.append(thread_id)


# Processes


def say(line: str) -> None:
    os.write(3, f"{line}\n".encode())


def in_process(work: Coroutine[Any, Any, int]) -> int:
    """Run `work` in a process of its own, to its end; returns its exit code."""
    pid, reading = start(work)
    while os.read(reading, 65_536):
        pass
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(seconds: float, work: Coroutine[Any, Any, int]) -> list[str]:
    """Run `work` in a process of its own, kill it so long after it is ready, and return the lines that it said."""
    pid, reading = start(work)
    said, ends_at = b"", time.monotonic() + 20.0
    while (left := ends_at - time.monotonic()) > 0:
        if not select.select([reading], [], [], left)[0]:
            break
        part = os.read(reading, 65_536)
        if not part:
            break
        if not said:
            ends_at = time.monotonic() + seconds
        said += part
    os.kill(pid, signal.SIGKILL)
    while part := os.read(reading, 65_536):
        said += part
    os.close(reading)
    os.waitpid(pid, 0)
    lines = said.decode().split("\n")[:-1]  # what comes after the last line end was cut off
    return [line for line in lines if line != "ready"]


def start(work: Coroutine[Any, Any, int]) -> tuple[int, int]:
    """Fork a process that runs `work` and says lines into the pipe whose reading end is returned."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        work.close()
        return pid, reading
    code = 70
    try:
        os.close(reading)
        os.dup2(writing, 3)
        code = asyncio.run(work)
    finally:
        os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--journal-dir", type=Path, default=Path(".checkpoints/journal"))
    given = parser.parse_args()
    tally = run(given.url, given.journal_dir, given.kills, given.seed, lambda line: print(line, file=sys.stderr))
    print(json.dumps(asdict(tally)))


if __name__ == "__main__":
    main()
