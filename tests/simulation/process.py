"""One life of our process: everything assembled as the manager does it, on virtual time, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

from enhanced_checkpointing.config import create_memory_checkpointer
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.journal.durable import DurableJournal
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.upkeep import lifecycle
from enhanced_checkpointing.upkeep.assembly import Nature, assemble, background
from enhanced_checkpointing.upkeep.components import Components
from tests.simulation.disk import SimulatedDisk, SimulatedWorker
from tests.simulation.platter import Platter
from tests.simulation.primary import ComparingBackend, SimulatedBackend
from tests.simulation.server import Server, describe
from tests.simulation.trace import Trace
from tests.simulation.world import World
from tests.support.virtual_time import VirtualLoop

GRACE = 2.0
"""Seconds for which a process that is stopped tries to drain."""


class Process:
    """Lives on a loop of its own, over a disk and a primary that outlive it."""

    def __init__(
        self, world: World, server: Server, platter: Platter, settings: dict[str, Any], *, compares_heads: bool
    ) -> None:
        self.world = world
        self.loop = VirtualLoop(world)
        self.loop.set_exception_handler(self._unforeseen)
        self.disk = SimulatedDisk(world, platter)
        self.config = create_memory_checkpointer(**settings)
        kind = ComparingBackend if compares_heads else SimulatedBackend
        self.backend = kind(self.config, world, server, self._watch)
        self.stack = AsyncExitStack()
        self.worker = SimulatedWorker(world, platter)
        self.background: dict[str, asyncio.Task[None]] = {}
        self.dead = False
        self._components: Components | None = None

    @property
    def parts(self) -> Components:
        assert self._components is not None
        return self._components

    @property
    def journal(self) -> DurableJournal:
        assert isinstance(self.parts.journal, DurableJournal)
        return self.parts.journal

    async def open(self) -> bool:
        """Open everything; False if the journal cannot be read, which ends a start."""
        try:
            await self._assemble()
        except CheckpointerConfigurationError as error:
            self.world.note(f"the start is refused: {error}")
            await self.stack.aclose()
            if self.disk.open_files:
                self.world.problem(f"K: a start that was refused leaves {len(self.disk.open_files)} files open")
            return False
        return True

    async def _assemble(self) -> None:
        """What `EnhancedCheckpointerManager._open` does, on a disk and a primary that are simulated."""
        world, telemetry, serializer = self.world, Trace(self.world), SharingSerializer()
        self.backend.serializer = serializer
        await self.backend.open()
        journal = DurableJournal(
            self.disk,
            capacity=self.config.journal_max_bytes,
            serializer=serializer,
            telemetry=telemetry,
            home=self.backend.database_id(),
            run=self.worker,
            wall_clock=world.wall_clock,
            clock=world.clock,
            make_random=lambda: f"{world.random.getrandbits(64):016x}",
        )
        await journal.open()
        self.stack.push_async_callback(journal.close)
        self._components = await assemble(
            self.stack,
            config=self.config,
            backend=self.backend,
            journal=journal,
            serializer=serializer,
            telemetry=telemetry,
            nature=Nature(world.clock, world.wall_clock, world.random.random),
            watch=self._breaker_moved,
        )
        await lifecycle.first_contact(self._components, require_primary=False)
        for name, run in background(self._components).items():
            self.background[name] = asyncio.ensure_future(run())
            self.background[name].set_name(name)
            self.background[name].add_done_callback(self._background_ended)

    async def close(self, drain_seconds: float) -> bool:
        """What the manager does at its end; True if everything was drained."""
        self.parts.bridge.close()
        await self.parts.engine.close(self.config.deadline + lifecycle.SETTLE_SECONDS)
        assert self.parts.reconciler is not None
        drained = await self.parts.reconciler.wait_drained(drain_seconds)
        for task in self.background.values():
            task.cancel()
        await asyncio.wait(self.background.values())
        await self.stack.aclose()
        return drained

    def left_behind(self) -> Iterator[str]:
        """Invariant K: what a process that was closed should not have any more, but for a disk that does not answer."""
        if self.worker.busy_until > self.world.now:
            return
        tasks = [task.get_name() for task in asyncio.all_tasks(self.loop) if task is not asyncio.current_task()]
        if tasks:
            yield f"K: tasks are left: {sorted(tasks)}"
        if self.disk.open_files:
            yield f"K: {len(self.disk.open_files)} files are left open"
        if len(self.parts.engine.writes.gathered) or self.parts.guard.outstanding:
            yield f"K: {len(self.parts.engine.writes.gathered)} lanes, {self.parts.guard.outstanding} attempts are left"

    def die(self) -> None:
        """All that runs ends where it is; what its code does on the way out does not reach the world."""
        self.dead = True
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is meant to be destroyed
            coroutine = task.get_coro()
            assert coroutine is not None
            with suppress(BaseException):  # of code that nobody runs any more
                coroutine.close()
        self.loop.close()

    def _watch(self, operation: Operation) -> None:
        if self.journal.holds(operation.thread_id):
            self.world.problem(f"O: a live call applied {describe(operation)} although the journal holds its thread")

    def _breaker_moved(self, opened: bool, reason: str) -> None:
        self.world.note(f"breaker {'opened' if opened else 'closed'}: {reason}")
        if not opened and asyncio.current_task() is not self.background.get("prober"):
            self.world.problem("the breaker was closed by somebody else than the prober")

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not self.dead and not task.cancelled():
            self.world.problem(f"the {task.get_name()} ended: {task.exception()!r}")

    def _unforeseen(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.dead:
            self.world.problem(f"unforeseen: {context['message']}: {context.get('exception')!r}")
