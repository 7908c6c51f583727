"""What it costs that a thread has an owner: writes of 64 callers for the application, and in the name of a user."""

from __future__ import annotations

from typing import Any, cast

from langchain_core.runnables import RunnableConfig

from benchmarks.laboratory import LOOPBACK, Laboratory, Result, Table
from benchmarks.rounds import compare
from benchmarks.workload import Saver, State, writing

CALLERS = 64
QUICK_CALLERS = 4


class ForUser:
    """A saver as a graph uses it whose config has these keys."""

    def __init__(self, saver: Saver, **keys: str) -> None:
        self._saver, self._keys = saver, keys

    def _with(self, config: RunnableConfig) -> RunnableConfig:
        return {**config, "configurable": {**config["configurable"], **self._keys}}

    async def aput(self, config: RunnableConfig, *rest: Any) -> Any:
        return await self._saver.aput(self._with(config), *rest)

    async def aput_writes(self, config: RunnableConfig, *rest: Any) -> None:
        await self._saver.aput_writes(self._with(config), *rest)


async def measure(laboratory: Laboratory) -> Result:
    callers = QUICK_CALLERS if laboratory.quick else CALLERS
    laboratory.say("owners")
    async with laboratory.postgres_pair(LOOPBACK) as (pair, _):
        keys = pair.manager.create_thread_config("any", user_id="ada")["configurable"]
        without = cast("Saver", ForUser(pair.ours, user_id="ada"))
        owned = cast("Saver", ForUser(pair.ours, **{name: key for name, key in keys.items() if name != "thread_id"}))
        comparison = await compare(
            writing(without, callers, State()), writing(owned, callers, State()), laboratory.pace
        )
    cpu = [side.cpu_per_thousand for side in (comparison.bare, comparison.ours)]
    rows = [
        (
            str(callers),
            *(f"{side.per_second:,.0f}" for side in (comparison.bare, comparison.ours)),
            *map("{:.2f}".format, cpu),
        )
    ]
    columns = ("callers", "without owner per s", "with owner per s", "CPU s per 1,000 without", "CPU s per 1,000 with")
    table = Table("Writes to PostgreSQL of threads without and with an owner", columns, rows)
    return Result([table], {"owners/cpu": cpu[1] / cpu[0]})
