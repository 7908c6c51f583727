"""Where the time of one call goes: a lone `aput` to PostgreSQL, stage by stage, as the clock sees it."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import iscoroutinefunction
from typing import Any
from unittest.mock import patch

from benchmarks.laboratory import LOOPBACK, Laboratory, Result, Table
from benchmarks.workload import Conversation, State
from enhanced_checkpointing.backends.postgres import backend as postgres
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.saver import read_path as engine
from enhanced_checkpointing.standby.cache import Standby

CALLS = 2_000
QUICK_CALLS = 20
WARM_UP = 20

WATCHED: dict[str, tuple[object, str]] = {
    "accept": (engine, "accept_put"),
    "guard": (Guard, "wait"),  # what a caller who is used to be alone does
    "backend": (postgres.PostgresBackend, "apply_batch"),
    "rows": (postgres, "statements"),
    "server": (postgres, "execute"),
    "warm": (Standby, "keep"),
}
"""The functions that are timed, with all that they call."""


def stages(call: float, inside: Mapping[str, float]) -> dict[str, float]:
    """The parts of one call that do not overlap, in the order in which they come, from the times of what is watched."""
    return {
        "the values become bytes, once": inside["accept"],
        "the way in and out, alone: telemetry, order, room": call - inside["accept"] - inside["guard"] - inside["warm"],
        "guard: deadline, breaker, a task of its own": inside["guard"] - inside["backend"],
        "rows and statement": inside["rows"],
        "a connection from the pool, and back": inside["backend"] - inside["rows"] - inside["server"],
        "to the server, its commit, and back": inside["server"],
        "the warm copy": inside["warm"],
    }


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The seconds spent in each watched function since the dictionary was cleared."""
    spent: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for name, (owner, attribute) in WATCHED.items():
            stack.enter_context(patch.object(owner, attribute, _timed(getattr(owner, attribute), name, spent)))
        yield spent


def _timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    async def wait(*arguments: Any, **options: Any) -> Any:
        started_at = time.perf_counter()
        try:
            return await function(*arguments, **options)
        finally:
            spent[name] += time.perf_counter() - started_at

    def run(*arguments: Any, **options: Any) -> Any:
        started_at = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[name] += time.perf_counter() - started_at

    return wait if iscoroutinefunction(function) else run


async def measure(laboratory: Laboratory) -> Result:
    count = QUICK_CALLS if laboratory.quick else CALLS
    laboratory.say("the stages of one call")
    times: dict[str, list[float]] = defaultdict(list)
    async with laboratory.postgres_pair(LOOPBACK) as (pair, _):
        conversation = Conversation(State())
        config = conversation.config
        with watched() as spent:
            for number, step in enumerate(conversation.prepare(WARM_UP + count)):
                spent.clear()
                started_at = time.perf_counter()
                config = await pair.ours.aput(config, step.checkpoint, step.metadata, step.new_versions)
                call = time.perf_counter() - started_at
                if number >= WARM_UP:
                    times["the whole call"].append(call)
                    for name, seconds in stages(call, spent).items():
                        times[name].append(seconds)
    medians = {name: 1e6 * statistics.median(values) for name, values in times.items()}
    whole = medians["the whole call"]
    rows = [(name, f"{value:,.0f}", f"{value / whole:.0%}") for name, value in medians.items()]
    note = "Medians over the calls, so that the parts do not add up exactly; watching them costs some microseconds."
    title = "Where the time of one put goes, PostgreSQL on loopback, one caller"
    return Result([Table(title, ("stage", "µs", "share"), rows, note)])
