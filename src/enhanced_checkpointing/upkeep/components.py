"""Everything that is open between a manager's start and its end, in the order in which it is opened."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from enhanced_checkpointing.audit import Notes
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.recovery.drain import Reconciler
from enhanced_checkpointing.recovery.outages import Outages
from enhanced_checkpointing.recovery.prober import JournalCheck, Prober
from enhanced_checkpointing.resilience.breaker import Breaker
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.saver.event_loop import LoopBridge
from enhanced_checkpointing.saver.read_path import Engine
from enhanced_checkpointing.saver.saver import FailoverSaver
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.threads.methods import ThreadComponents
from enhanced_checkpointing.threads.sweeper import RetentionScheduler, Sweeper


@dataclass(frozen=True, slots=True)
class Components:
    """One of each; without a journal there is nothing to reconcile, and by default nothing is retired."""

    loop: asyncio.AbstractEventLoop
    backend: Backend
    breaker: Breaker
    guard: Guard
    journal: Journal | None
    journal_check: JournalCheck | None
    standby: Standby
    engine: Engine
    bridge: LoopBridge
    saver: FailoverSaver
    threads: ThreadComponents
    prober: Prober
    reconciler: Reconciler | None
    outages: Outages
    sweeper: Sweeper
    scheduler: RetentionScheduler | None
    note: Notes
