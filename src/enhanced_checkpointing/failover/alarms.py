"""What an operator is told of a failed call, because waiting does not mend it."""

from __future__ import annotations

from enhanced_checkpointing.errors import redact
from enhanced_checkpointing.observability.events import ConfigurationFault, Notice, Telemetry
from enhanced_checkpointing.resilience.failure_kinds import CallFailed, FailureKind


def alarm(telemetry: Telemetry, backend: str, failed: CallFailed) -> None:
    """Tell of damaged data, and of a setting or privilege that is wrong; of nothing else."""
    if failed.kind is FailureKind.CORRUPTION:
        telemetry.emit(Notice("ERROR", f"Stored checkpoints are damaged: {redact(failed.error)}"))
    if failed.kind is FailureKind.CONFIGURATION:
        fix = failed.failure.fix or "Ask the server's log."
        telemetry.emit(ConfigurationFault(backend, redact(failed.error), fix))
