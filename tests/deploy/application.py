"""An application whose PostgreSQL goes away and comes back, and that keeps what it shows Prometheus at each moment.

`python -m tests.deploy.application URL FOLDER` asks its parent for the faults, see tests/support/application_faults.py,
and writes `FOLDER/<moment>.sdk.txt`, made by OpenTelemetry's SDK, and `FOLDER/<moment>.served.txt`, as /metrics serves.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
from langgraph.graph.state import CompiledStateGraph
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest

from enhanced_checkpointing import CheckpointUnavailableError, EnhancedCheckpointerManager
from enhanced_checkpointing.serving import checkpointing_app
from enhanced_checkpointing.threads.retention import RetentionPolicy
from tests.support.checkpointer import eventually, postgres, saver_of
from tests.support.graphs import GRAPHS
from tests.support.retention import let_pass

REGISTRY = CollectorRegistry()


class Conversations:
    """The graph under test, one turn of a thread at a time."""

    def __init__(self, manager: EnhancedCheckpointerManager) -> None:
        self._manager = manager
        self._graph: CompiledStateGraph[Any] = (
            GRAPHS["counting_chain"].builder().compile(checkpointer=saver_of(manager))
        )

    async def turn(self, thread: str, *, new: bool = False) -> None:
        await self._graph.ainvoke({"question": "why"}, self._manager.create_thread_config(thread, new=new))

    async def look_at(self, thread: str) -> None:
        await self._graph.aget_state(self._manager.create_thread_config(thread))


def ask(fault: str) -> None:
    """Have the parent make a fault, and wait until it is there."""
    print(fault, flush=True)  # noqa: T201  # the way to the parent
    assert sys.stdin.readline()


async def run(url: str, folder: Path) -> None:
    async with EnhancedCheckpointerManager(postgres(url, retries=5, on_unknown_thread="raise")) as manager:
        transport = httpx.ASGITransport(checkpointing_app(manager))
        client = httpx.AsyncClient(transport=transport, base_url="http://application")

        async def keep(moment: str) -> None:
            served = await client.get("/metrics")
            (folder / f"{moment}.sdk.txt").write_bytes(generate_latest(REGISTRY))
            (folder / f"{moment}.served.txt").write_text(served.raise_for_status().text)

        conversations = Conversations(manager)
        await conversations.turn("healthy")
        await keep("healthy")
        ask("terminate")
        await conversations.turn("shared")
        ask("cut")
        await conversations.turn("shared")
        await conversations.turn("refused", new=True)
        await conversations.look_at("shared")
        try:
            await conversations.look_at("never seen here")
        except CheckpointUnavailableError:
            await keep("outage")
        ask("diverge")
        ask("heal")
        await eventually(lambda: manager.health_status["primary_healthy"])
        await manager.wait_drained(10.0)
        let_pass(manager, 1)
        assert (await manager.run_retention(RetentionPolicy(keep=1))).pruned
        await keep("after")


if __name__ == "__main__":
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader(registry=REGISTRY)]))
    asyncio.run(run(sys.argv[1], Path(sys.argv[2])))
