"""The saver under chaos: as it is, but each call is timed and each acknowledgement is written down."""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, ChannelVersions, Checkpoint
from langgraph.checkpoint.base import CheckpointMetadata as Metadata

from enhanced_checkpointing import EnhancedCheckpointerManager
from enhanced_checkpointing.observability.events import (
    DeadLettered,
    Diverged,
    Event,
    FailedOver,
    Notice,
    OperationScope,
    OutageEnded,
    PrimaryRecovered,
    ThreadDrained,
)
from enhanced_checkpointing.saver.event_loop import LoopBridge
from enhanced_checkpointing.saver.saver import FailoverSaver
from tests.chaos.plan import Ledger

T = TypeVar("T")
P = ParamSpec("P")

TICK = 0.02
"""Seconds between two looks at the event loop; it stood still when a look comes as much too late."""


async def watch_loop(ledger: Ledger) -> None:
    """Note whenever the event loop stands still, so that a late call can be told from a busy machine; end with who
    started this process, as nobody else would stop it."""
    parent = os.getppid()
    while os.getppid() == parent:
        due = time.monotonic() + TICK
        await asyncio.sleep(TICK)
        if (now := time.monotonic()) > due + TICK:
            ledger.note("stall", since=due, until=now)
    os._exit(1)


class TimedBridge(LoopBridge):
    """Every call of the saver crosses the bridge, so here each is timed as its caller sees it."""

    def __init__(self, bridge: LoopBridge, ledger: Ledger, deadline: float) -> None:
        self._bridge = bridge
        self.here = None  # so that every call comes this way
        self._ledger = ledger
        self._worst = deadline / 4
        self._deadline = deadline

    async def bring(self, call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **named: P.kwargs) -> T:
        with self._timed():
            return await self._bridge.bring(call, *args, **named)

    def wait(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with self._timed():
            return self._bridge.wait(call)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        since = time.monotonic()
        try:
            yield
        finally:
            until = time.monotonic()
            if until - since > min(self._worst, self._deadline):
                self._worst = max(self._worst, until - since)
                self._ledger.note("slow", since=since, until=until)


class AcknowledgingSaver(FailoverSaver):
    """Writes down what was acknowledged before its caller goes on."""

    ledger: Ledger

    async def aput(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: Metadata, new_versions: ChannelVersions
    ) -> RunnableConfig:
        stored = await super().aput(config, checkpoint, metadata, new_versions)
        place = stored["configurable"]
        key = [place["checkpoint_ns"], place["checkpoint_id"]]
        self.ledger.note("acknowledged", thread=place["thread_id"], table="checkpoints", keys=[key])
        return stored

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await super().aput_writes(config, writes, task_id, task_path)
        place = config["configurable"]
        write = [place.get("checkpoint_ns", ""), place["checkpoint_id"], task_id]
        keys = [[*write, WRITES_IDX_MAP.get(channel, number)] for number, (channel, _) in enumerate(writes)]
        self.ledger.note("acknowledged", thread=place["thread_id"], table="checkpoint_writes", keys=keys)


def measured(manager: EnhancedCheckpointerManager, ledger: Ledger) -> BaseCheckpointSaver[str]:
    """The manager's saver, measured. Its class keeps every method, as LangGraph looks at which ones there are."""
    saver = copy.copy(manager.get_checkpointer())
    assert isinstance(saver, FailoverSaver)
    saver._bridge = TimedBridge(saver._bridge, ledger, manager.config.deadline)
    saver.__class__ = type("MeasuredSaver", (AcknowledgingSaver, type(saver)), {"ledger": ledger})
    return saver


class LedgerSink:
    """Telemetry that notes how outages went."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._recovered_at = 0.0

    def operation(self, scope: OperationScope) -> AbstractContextManager[object]:
        return nullcontext()

    def emit(self, event: Event) -> None:
        match event:
            case FailedOver():
                self._ledger.note("journaled")
            case ThreadDrained(operations=operations):
                self._ledger.note("drained", operations=operations)
            case DeadLettered(error=text) | Notice(level="ERROR" | "CRITICAL", message=text):
                self._ledger.note("alarm", text=text)
            case Diverged(thread_id=thread_id):
                self._ledger.note("diverged", thread=thread_id)
            case PrimaryRecovered():
                self._recovered_at = time.monotonic()
            case OutageEnded(outage_seconds=seconds, drained=drained):
                draining = time.monotonic() - self._recovered_at
                self._ledger.note("outage", seconds=seconds, drained=drained, draining=draining)

    def observe(self, gauges: object) -> None:
        """Nothing reads gauges here."""

    def close(self) -> None:
        """Nothing is open."""
