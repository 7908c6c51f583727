"""Puts the parts of a checkpointer together, in order: the same for the manager and for the simulation."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from enhanced_checkpointing.audit import Notes
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.observability.events import Notice, Telemetry
from enhanced_checkpointing.recovery import orphans
from enhanced_checkpointing.recovery.divergence import APART
from enhanced_checkpointing.recovery.drain import Reconciler
from enhanced_checkpointing.recovery.orphans import Takeover
from enhanced_checkpointing.recovery.outages import Outages
from enhanced_checkpointing.recovery.prober import JournalCheck, Prober
from enhanced_checkpointing.resilience.breaker import Breaker, BreakerSettings, Clock
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.saver.core import Core
from enhanced_checkpointing.saver.event_loop import LoopBridge
from enhanced_checkpointing.saver.maintenance import Maintenance
from enhanced_checkpointing.saver.owner_check import OwnerCheck
from enhanced_checkpointing.saver.read_path import Engine, Reads
from enhanced_checkpointing.saver.saver import saver_class_for
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.threads.erased import ErasedThreads
from enhanced_checkpointing.threads.erasure import Erasure
from enhanced_checkpointing.threads.methods import ThreadComponents
from enhanced_checkpointing.threads.retention import policy_of
from enhanced_checkpointing.threads.sweeper import Marks, RetentionScheduler, Sweeper, UnreadableThreads
from enhanced_checkpointing.tombstones import Tombstones
from enhanced_checkpointing.upkeep import lifecycle
from enhanced_checkpointing.upkeep.components import Components


@dataclass(frozen=True, slots=True)
class Nature:
    """What the parts take from outside: time that never goes back, the time of day, and chance from 0 to 1."""

    clock: Clock = time.monotonic
    wall_clock: Clock = time.time
    chance: Callable[[], float] = random.random


async def assemble(
    stack: AsyncExitStack,
    *,
    config: CheckpointerConfig,
    backend: Backend,
    journal: Journal | None,
    serializer: SharingSerializer,
    telemetry: Telemetry,
    nature: Nature = Nature(),
    watch: Callable[[bool, str], None] = lambda opened, reason: None,
    note: Notes | None = None,
    tombstones: Tombstones | None = None,
) -> Components:
    """Put everything between LangGraph and an open backend and journal; the stack closes it in reverse.

    Nothing has asked the primary yet, and nothing runs in the background. `watch(opened, reason)` is told first when
    the breaker moves; `note` keeps the audit trail, `tombstones` what was erased.
    """

    def moved(opened: bool, reason: str) -> None:
        _breaker_moved(parts, watch, opened, reason)

    core = await _core(stack, config, backend, journal, serializer, telemetry, nature, moved)
    engine = Engine(core)
    stack.push_async_callback(engine.close, config.deadline + lifecycle.SETTLE_SECONDS)
    tombstones, note = tombstones or Tombstones(None, backend.database_id()), note or Notes()
    owners = OwnerCheck(engine, enforced=config.thread_ownership == "enforce", tombstones=tombstones)
    maintenance, bridge = Maintenance(engine, changed=owners.forget), LoopBridge(asyncio.get_running_loop())
    stack.callback(bridge.close)
    outages = Outages(backend.name, telemetry, lambda: parts.counts(), nature.clock)
    recovery = _recovery(stack, core, journal, engine, owners, outages) if journal is not None else None
    reconciler = recovery.reconciler if recovery is not None else None
    erased, erasure = _erasing(core, engine, owners, maintenance, tombstones, note, reconciler)
    of_journal = recovery.looks(erased) if recovery is not None else ()
    prober = _prober(stack, core, engine, nature, note, of_journal)
    marks = Marks(engine, maintenance, core.standby)
    sweeper = _sweeper(core, engine, maintenance, marks, note)
    saver = saver_class_for(backend.saver_type())(engine, owners, maintenance, bridge, serializer, note)
    parts = Components(
        loop=asyncio.get_running_loop(),
        backend=backend,
        breaker=core.breaker,
        guard=core.guard,
        journal=journal,
        journal_check=recovery.journal_check if recovery is not None else None,
        standby=core.standby,
        engine=engine,
        bridge=bridge,
        saver=saver,
        threads=ThreadComponents(
            saver, maintenance, bridge, marks, sweeper, owners, engine.newcomers.presumes, erasure
        ),
        prober=prober,
        reconciler=reconciler,
        outages=outages,
        sweeper=sweeper,
        scheduler=_scheduler(engine, sweeper, config, nature),
        note=note,
    )
    return parts


async def _core(
    stack: AsyncExitStack,
    config: CheckpointerConfig,
    backend: Backend,
    journal: Journal | None,
    serializer: SharingSerializer,
    telemetry: Telemetry,
    nature: Nature,
    breaker_moved: Callable[[bool, str], None],
) -> Core:
    settings = BreakerSettings(failures_in_row=config.breaker_failures, slow_after=config.deadline / 2)
    breaker = Breaker(nature.clock, settings, breaker_moved)
    guard = Guard(
        backend.name,
        breaker=breaker,
        classify=backend.classify,
        saturated=backend.saturated,
        telemetry=telemetry,
        retries=config.retries,
    )
    stack.push_async_callback(guard.settle, lifecycle.SETTLE_SECONDS)
    standby = Standby(
        serializer,
        config.standby_max_bytes,
        pinned=journal.holds if journal is not None else lambda _: False,
        warn=lambda what: telemetry.emit(Notice("WARNING", what)),
        write_that_stays=backend.write_that_stays,
    )
    if journal is not None:
        await orphans.warm_from(journal, standby)
    return Core(
        config=config,
        backend=backend,
        guard=guard,
        breaker=breaker,
        journal=journal,
        standby=standby,
        serializer=serializer,
        telemetry=telemetry,
        clock=nature.clock,
        wall_clock=nature.wall_clock,
    )


@dataclass(frozen=True, slots=True)
class _Recovery:
    """What there is with a journal only."""

    journal_check: JournalCheck
    reconciler: Reconciler
    takeover: Takeover

    def looks(self, erased: ErasedThreads) -> Sequence[Callable[[], Awaitable[None]]]:
        """What is done after each probe."""
        return self.journal_check.check, self.takeover.look, erased.look


def _recovery(
    stack: AsyncExitStack, core: Core, journal: Journal, engine: Engine, owners: OwnerCheck, outages: Outages
) -> _Recovery:
    def quarantined(thread_id: str) -> None:
        engine.writes.quarantined.add(thread_id)
        owners.forget([thread_id])

    seconds = core.config.deadline
    journal_check = JournalCheck(journal, core.telemetry, core.clock, seconds)
    stack.push_async_callback(journal_check.close)
    reconciler = Reconciler(
        core,
        journal,
        on_drained=outages.drained,
        on_quarantined=quarantined,
        on_thread_drained=engine.newcomers.drained,
        live_calls=engine.live_calls,
    )
    stack.push_async_callback(reconciler.close)
    engine.journaling.on_journaled, engine.drain_first = reconciler.wake, reconciler.drain_first
    takeover = Takeover(
        journal, core.standby, core.clock, seconds, undrained=reconciler.undrained, wake=reconciler.wake
    )
    stack.push_async_callback(takeover.close)
    if engine.others is not None:
        engine.others.take_over = takeover.take_over
        stack.push_async_callback(engine.others.close)
    return _Recovery(journal_check, reconciler, takeover)


def _erasing(
    core: Core,
    engine: Engine,
    owners: OwnerCheck,
    maintenance: Maintenance,
    tombstones: Tombstones,
    note: Notes,
    reconciler: Reconciler | None,
) -> tuple[ErasedThreads, Erasure]:
    config = core.config
    erased = ErasedThreads(
        tombstones,
        owners,
        core.standby,
        core.journal,
        undrained=reconciler.undrained if reconciler is not None else _nothing_drains,
        tell=lambda what: core.telemetry.emit(Notice("ERROR", what)),
        seconds=config.deadline,
    )
    if reconciler is not None and tombstones.directory is not None:
        reconciler.before_drain = erased.before_drain
    erasure = Erasure(
        maintenance,
        engine,
        owners,
        core.standby,
        core.journal,
        erased,
        note,
        database=core.backend.database_id(),
        apart=APART,
        seconds=config.deadline,
        patience=2 * max(config.probe_interval, config.probe_backoff_max),
    )
    return erased, erasure


async def _nothing_drains(_: str) -> None:
    """Without a journal no thread is being drained."""


def _prober(
    stack: AsyncExitStack,
    core: Core,
    engine: Engine,
    nature: Nature,
    note: Notes,
    of_journal: Sequence[Callable[[], Awaitable[None]]],
) -> Prober:
    deadline = core.config.deadline
    unreadable = UnreadableThreads(core.backend, core.guard, core.breaker, core.telemetry, core.clock, deadline)
    prober = Prober(
        config=core.config,
        backend=core.backend,
        guard=core.guard,
        breaker=core.breaker,
        telemetry=core.telemetry,
        on_contact=engine.newcomers.contact,
        besides=[unreadable.look, note.look, *of_journal],
        clock=core.clock,
        jitter=nature.chance,
    )
    stack.push_async_callback(prober.close)
    core.guard.on_doubt = prober.doubt
    return prober


def _sweeper(core: Core, engine: Engine, maintenance: Maintenance, marks: Marks, note: Notes) -> Sweeper:
    config = core.config
    return Sweeper(
        backend=core.backend,
        maintenance=maintenance,
        engine=engine,
        marks=marks,
        telemetry=core.telemetry,
        policy=policy_of(config),
        journal_dir=config.journal_dir if config.backend_name != "memory" else None,
        note=note,
        clock=core.clock,
    )


def _scheduler(
    engine: Engine, sweeper: Sweeper, config: CheckpointerConfig, nature: Nature
) -> RetentionScheduler | None:
    if config.retention != "on":
        return None
    engine.reads = Reads(nature.wall_clock)
    return RetentionScheduler(sweeper, config.retention_interval, chance=nature.chance)


def background(parts: Components) -> dict[str, Callable[[], Awaitable[None]]]:
    """What runs for as long as the parts are open, by name."""
    work: dict[str, Callable[[], Awaitable[None]]] = {"prober": parts.prober.run}
    if parts.reconciler is not None:
        work["reconciler"] = parts.reconciler.run
    if parts.scheduler is not None:
        work["retention"] = parts.scheduler.run
    return work


def _breaker_moved(parts: Components, watch: Callable[[bool, str], None], opened: bool, reason: str) -> None:
    watch(opened, reason)
    if opened:
        parts.outages.opened(reason)
        parts.prober.hurry()
        return
    parts.engine.newcomers.recovered()
    parts.outages.recovered(parts.journal.status().pending if parts.journal is not None else 0)
    if parts.reconciler is not None:
        parts.reconciler.wake()
    else:
        parts.outages.drained()
