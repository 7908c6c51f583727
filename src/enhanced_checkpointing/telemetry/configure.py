"""`configure_telemetry()` under its public name."""

from __future__ import annotations

from enhanced_checkpointing.observability.configure import configure_telemetry

__all__ = ["configure_telemetry"]
