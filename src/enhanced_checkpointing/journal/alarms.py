"""What an operator is told of the journal while it is used: that it fills, and that its disk takes nothing."""

from __future__ import annotations

from enhanced_checkpointing.journal.refusals import reason
from enhanced_checkpointing.observability.events import Notice, Telemetry

LEVELS = (0.5, 0.8)
"""How full the journal is when it is told: the share of its capacity."""


class Alarms:
    """Tells each change once."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._level = 0
        self.error: str | None = None
        """Why the disk does not take what it is given; None: it does."""

    def tell_fill(self, size: int, capacity: int) -> None:
        """How many bytes of its capacity the journal holds of what this process accepted."""
        fill = size / capacity
        before, self._level = self._level, sum(fill >= level for level in LEVELS)
        if self._level > before:
            grade = "ERROR" if self._level == len(LEVELS) else "WARNING"
            what = f"the journal holds {size:,} of {capacity:,} bytes ({fill:.0%})"
            self._telemetry.emit(Notice(grade, f"{what}; when it is full, writes are refused"))

    def tell_disk(self, error: OSError | None) -> None:
        """How the newest write to the disk has ended."""
        before, self.error = self.error, reason(error) if error is not None else None
        if before is None and self.error is not None:
            what = f"the journal cannot be written ({self.error}): in an outage, writes would be refused"
            self._telemetry.emit(Notice("ERROR", what))
        elif before is not None and self.error is None:
            self._telemetry.emit(Notice("INFO", "the journal can be written again"))

    def tell_lost(self, operations: int) -> None:
        what = f"somebody has removed the files of the journal: {operations} operations that were acknowledged live "
        what += "only in this process until they are drained"
        self._telemetry.emit(Notice("ERROR", f"{what}. What is acknowledged from now on goes to new files"))
