"""The process that is killed: it runs graphs without pause, and when it starts it finishes what was cut off."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import StateSnapshot

from enhanced_checkpointing import CheckpointUnavailableError, EnhancedCheckpointerManager, create_postgres_checkpointer
from enhanced_checkpointing.observability.events import Broadcast
from tests.chaos.measuring import LedgerSink, measured, watch_loop
from tests.chaos.plan import Ledger, Progress, Run, WorkerOptions, progress_of, run_of
from tests.support.graphs import on_node

LANES = 6
"""Runs at a time."""
LONGEST_NODE = 0.15
"""Seconds that a node works at most, so that faults come in mid-run."""
SECONDS_TO_DRAIN = 60.0


class Conversation:
    """Says all turns of a run to its graph, from where the run stands."""

    def __init__(
        self,
        run: Run,
        saver: BaseCheckpointSaver[str],
        config: RunnableConfig,
        ledger: Ledger,
        progress: Progress | None,
    ) -> None:
        self._run = run
        self._graph = run.case.builder().compile(checkpointer=saver)
        self._config = config
        self._ledger = ledger
        self._progress = progress or Progress()
        self._cold = progress is not None
        """Begun by a process that was killed: what it stored may be out of this one's reach until the outage ends."""

    async def finish(self) -> None:
        """Say every turn that was not said, waiting for what is out of reach.

        Raises:
            Exception: whatever a graph that needs nothing cold raises; then the promise is broken.
        """
        on_node.set(self._pause_in_thread if self._run.caller == "thread" else self._pause)
        for number in range(max(self._progress.turn, 0), len(self._run.case.turns)):
            await self._say_patiently(number)

    async def _say_patiently(self, number: int) -> None:
        while True:
            try:
                whole = await self._say(number)
                self._cold = self._cold and not whole
                return
            except CheckpointUnavailableError:
                if not self._cold:
                    raise
            self._ledger.note("waited", run=self._run.number)
            await asyncio.sleep(0.2)

    async def _say(self, number: int) -> bool:
        """Begin the turn, or begin it again if nothing of it was stored, or go on with what was.

        Tells whether all of it was said by this process, which has seen all that the next turn needs then: what a
        stateful subgraph remembers, too.
        """
        state = await self._state()
        head = state.config["configurable"].get("checkpoint_id")
        if self._progress.turn != number:
            self._ledger.note("turn", run=self._run.number, turn=number, head=head)
            self._progress = Progress(number, head)
        if head == self._progress.head:
            await self._invoke(self._run.case.turns[number])
            return True
        if state.tasks and not any(task.interrupts for task in state.tasks):
            # Not `state.next`: that is empty too where all tasks of a step are done and the step itself is not.
            await self._invoke(None)
        return False

    async def _state(self) -> StateSnapshot:
        if self._run.caller == "thread":
            return await asyncio.to_thread(self._graph.get_state, self._config)
        return await self._graph.aget_state(self._config)

    async def _invoke(self, said: Any) -> None:
        durability = self._run.durability
        if self._run.caller == "thread":
            await asyncio.to_thread(self._graph.invoke, said, self._config, durability=durability)
        else:
            await self._graph.ainvoke(said, self._config, durability=durability)

    async def _pause(self, _: str) -> None:
        await asyncio.sleep(random.uniform(0, LONGEST_NODE))

    def _pause_in_thread(self, _: str) -> None:
        time.sleep(random.uniform(0, LONGEST_NODE))


class Worker:
    """Runs a few conversations at a time until it is told to stop; then it finishes them and drains."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._begun_before = progress_of(options.ledger)
        self._ledger = Ledger(options.ledger)
        self._stop = asyncio.Event()
        self._numbers = self._runs_to_do()

    async def work(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        watch = asyncio.create_task(watch_loop(self._ledger))
        async with self._manager() as manager:
            self._ledger.note("started", process=os.getpid(), at=time.monotonic())
            saver = measured(manager, self._ledger)
            async with asyncio.TaskGroup() as group:
                for _ in range(LANES):
                    group.create_task(self._lane(manager, saver))
            drained = await manager.wait_drained(SECONDS_TO_DRAIN)
            self._ledger.note("ended", drained=drained, journal=manager.health_status["journal"])
        watch.cancel()

    def _manager(self) -> EnhancedCheckpointerManager:
        options = self._options
        config = create_postgres_checkpointer(
            options.url,
            deadline=options.deadline,
            probe_interval=1.0,
            probe_backoff_min=0.2,
            probe_backoff_max=1.0,
            on_unknown_thread="raise",  # a thread of the process before must not look new
            journal="durable",
            journal_dir=os.path.join(options.folder, "journal"),
        )
        manager = EnhancedCheckpointerManager(config)
        manager._telemetry = Broadcast([manager._telemetry, LedgerSink(self._ledger)])
        return manager

    def _runs_to_do(self) -> Iterator[int]:
        yield from (number for number, progress in self._begun_before.items() if not progress.ended)
        number = len(self._begun_before)
        while not self._stop.is_set():
            yield number
            number += 1

    async def _lane(self, manager: EnhancedCheckpointerManager, saver: BaseCheckpointSaver[str]) -> None:
        for number in self._numbers:
            run = run_of(self._options.seed, number)
            progress = self._begun_before.get(number)
            if progress is None:
                self._ledger.note("begun", run=number)
            config = manager.create_thread_config(run.thread_id, new=progress is None)
            try:
                await Conversation(run, saver, config, self._ledger, progress).finish()
            except Exception:  # noqa: BLE001  # whatever it is, it is counted as a failed run and shown
                self._ledger.note("failed", run=number, error=traceback.format_exc(), at=time.monotonic())
            else:
                self._ledger.note("done", run=number)


async def main() -> None:
    await Worker(WorkerOptions(**json.loads(sys.argv[1]))).work()


if __name__ == "__main__":
    asyncio.run(main())
