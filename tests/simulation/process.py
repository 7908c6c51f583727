"""One life of our process: everything assembled as the manager does it, on virtual time, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

from enhanced_checkpointing.config import create_memory_checkpointer
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.failover.engine import Engine
from enhanced_checkpointing.failover.maintenance import Maintenance
from enhanced_checkpointing.failover.saver import saver_class_for
from enhanced_checkpointing.failover.standby import Standby
from enhanced_checkpointing.failover.sync_bridge import LoopBridge
from enhanced_checkpointing.journal.durable_journal import DurableJournal
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.resilience.breaker import Breaker, BreakerSettings
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.upkeep import life
from enhanced_checkpointing.upkeep.canary import Canary
from enhanced_checkpointing.upkeep.heir import Heir
from enhanced_checkpointing.upkeep.outages import Counts, Outages
from enhanced_checkpointing.upkeep.parts import Parts
from enhanced_checkpointing.upkeep.prober import Prober
from enhanced_checkpointing.upkeep.reconciler import Reconciler
from tests.simulation.disk import SimulatedDisk, SimulatedWorker
from tests.simulation.platter import Platter
from tests.simulation.primary import ComparingBackend, SimulatedBackend
from tests.simulation.server import Server, describe
from tests.simulation.trace import Trace
from tests.simulation.world import VirtualLoop, World

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
        self._parts: Parts | None = None

    @property
    def parts(self) -> Parts:
        assert self._parts is not None
        return self._parts

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
        """What `EnhancedCheckpointerManager._open` does, in the same order."""
        config, world, stack, clock = self.config, self.world, self.stack, self.world.clock
        telemetry, serializer, backend = Trace(world), SharingSerializer(), self.backend
        backend.serializer = serializer
        await backend.open()
        breaker_settings = BreakerSettings(failures_in_row=config.breaker_failures, slow_after=config.deadline / 2)
        breaker = Breaker(clock, breaker_settings, self._breaker_moved)
        guard = Guard(
            backend.name,
            breaker=breaker,
            classify=backend.classify,
            saturated=backend.saturated,
            telemetry=telemetry,
            retries=config.retries,
        )
        stack.push_async_callback(guard.settle, life.SETTLE_SECONDS)
        journal = DurableJournal(
            self.disk,
            capacity=config.journal_max_bytes,
            serializer=serializer,
            telemetry=telemetry,
            home=backend.home(),
            run=self.worker,
            wall_clock=world.wall_clock,
            make_random=lambda: f"{world.random.getrandbits(64):016x}",
        )
        await journal.open()
        stack.push_async_callback(journal.close)
        canary = Canary(journal, telemetry, clock, config.deadline)
        stack.push_async_callback(canary.close)
        standby = Standby(serializer, config.standby_max_bytes, pinned=journal.holds)
        await life.warm_from(journal, standby)
        engine = Engine(
            config=config,
            backend=backend,
            guard=guard,
            breaker=breaker,
            journal=journal,
            standby=standby,
            serializer=serializer,
            telemetry=telemetry,
            clock=clock,
            wall_clock=world.wall_clock,
        )
        stack.push_async_callback(engine.close, config.deadline + life.SETTLE_SECONDS)
        maintenance = Maintenance(
            backend=backend,
            guard=guard,
            breaker=breaker,
            standby=standby,
            engine=engine,
            telemetry=telemetry,
            deadline=config.deadline,
            clock=clock,
        )
        bridge = LoopBridge(self.loop)
        stack.callback(bridge.close)
        outages = Outages(backend.name, telemetry, lambda: Counts(0, 0, 0, 0), clock)
        reconciler = Reconciler(
            config=config,
            backend=backend,
            guard=guard,
            breaker=breaker,
            journal=journal,
            standby=standby,
            serializer=serializer,
            telemetry=telemetry,
            on_drained=outages.drained,
            on_quarantined=engine.estranged.add,
            clock=clock,
        )
        stack.push_async_callback(reconciler.close)
        engine.journaling.on_journaled, engine.drain_first = reconciler.wake, reconciler.drain_first
        heir = Heir(journal, standby, clock, config.deadline, undrained=reconciler.undrained, wake=reconciler.wake)
        stack.push_async_callback(heir.close)
        prober = Prober(
            config=config,
            backend=backend,
            guard=guard,
            breaker=breaker,
            telemetry=telemetry,
            on_contact=engine.newcomers.contact,
            besides=[canary.check, heir.look],
            clock=clock,
            jitter=world.random.random,
        )
        stack.push_async_callback(prober.close)
        guard.on_doubt = prober.doubt
        self._parts = Parts(
            loop=self.loop,
            backend=backend,
            breaker=breaker,
            guard=guard,
            journal=journal,
            canary=canary,
            standby=standby,
            engine=engine,
            bridge=bridge,
            saver=saver_class_for(backend.saver_type())(engine, maintenance, bridge, serializer),
            prober=prober,
            reconciler=reconciler,
            outages=outages,
        )
        await life.first_contact(self._parts, require_primary=False)
        for name, run in (("prober", prober.run), ("reconciler", reconciler.run)):
            self.background[name] = asyncio.create_task(run(), name=name)
            self.background[name].add_done_callback(self._background_ended)

    async def close(self, drain_seconds: float) -> bool:
        """What the manager does at its end; True if everything was drained."""
        self.parts.bridge.close()
        await self.parts.engine.close(self.config.deadline + life.SETTLE_SECONDS)
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
        if self._parts is None:
            return
        if opened:
            self._parts.outages.opened(reason)
            self._parts.prober.hurry()
        elif self._parts.reconciler is not None:
            self._parts.outages.recovered(self.journal.status().pending)
            self._parts.reconciler.wake()

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not self.dead and not task.cancelled():
            self.world.problem(f"the {task.get_name()} ended: {task.exception()!r}")

    def _unforeseen(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.dead:
            self.world.problem(f"unforeseen: {context['message']}: {context.get('exception')!r}")
