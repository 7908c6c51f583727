"""The two ends of a manager's life: the first contact with the primary, and the last chance to drain."""

from __future__ import annotations

import asyncio
import time

from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import (
    CheckpointCorruptionError,
    CheckpointerConfigurationError,
    CheckpointerError,
    CheckpointUnavailableError,
    redact,
)
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.observability.events import Notice, Telemetry
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.failures import CallFailed, FailureKind
from enhanced_checkpointing.upkeep.components import Components

SETTLE_SECONDS = 2.0
"""How long attempts left behind, and companions, are waited for at the end."""


async def first_contact(parts: Components, *, require_primary: bool) -> None:
    """Set up and probe for the first time: a wrong setting ends the start, a database that is down does not.

    Raises:
        CheckpointerConfigurationError: waiting does not mend it.
        CheckpointCorruptionError: stored data is damaged.
        CheckpointUnavailableError: the primary is down, and `require_primary`.
    """
    try:
        await parts.prober.prove()
    except CallFailed as failed:
        if failed.kind in (FailureKind.CONFIGURATION, FailureKind.DATA, FailureKind.CORRUPTION) or require_primary:
            raise _refusal(parts.backend.name, failed) from None
        parts.breaker.trip(redact(failed.error))


def _refusal(backend: str, failed: CallFailed) -> CheckpointerError:
    if isinstance(failed.error, CheckpointerError):
        return failed.error
    what = f"The {backend} primary cannot be used: {redact(failed.error)}"
    if failed.kind is FailureKind.CORRUPTION:
        return CheckpointCorruptionError(f"{what}. Stored data is damaged: restore it from a backup.")
    if failed.kind in (FailureKind.CONFIGURATION, FailureKind.DATA):
        fix = failed.failure.fix or "Waiting does not mend this: see the message."
        return CheckpointerConfigurationError(f"{what}. {fix} Nothing was stored.")
    return CheckpointUnavailableError(
        f"{what}. CHECKPOINT_REQUIRE_PRIMARY=true forbids starting without it. Nothing was stored."
    )


async def last_drain(parts: Components, config: CheckpointerConfig) -> None:
    """Refuse new calls, let those under way end, and drain for as long as `shutdown_grace` allows."""
    parts.bridge.close()
    await parts.engine.close(config.deadline + SETTLE_SECONDS)
    if parts.reconciler is None or parts.journal is None or not parts.journal.status().pending:
        return
    deadline = Deadline(time.monotonic, config.shutdown_grace)
    if parts.breaker.is_open:
        probing = asyncio.ensure_future(parts.prober.probe())
        if not await deadline.wait_for(probing):
            probing.cancel()
    await parts.reconciler.wait_drained(deadline.remaining())


def tell_backlog(journal: Journal, telemetry: Telemetry) -> None:
    """Say how much stays in the journal at the end, and what becomes of it."""
    pending = journal.status().pending + journal.status().dead_letters
    if pending and journal.durable:
        fate = "They stay in the journal, and the next start drains them."
        telemetry.emit(Notice("WARNING", f"Stopped with {pending} acknowledged operations not in the primary. {fate}"))
    elif pending:
        fate = "The journal is in memory, so they are lost."
        telemetry.emit(Notice("ERROR", f"Stopped with {pending} acknowledged operations not in the primary. {fate}"))
