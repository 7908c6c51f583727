"""Watches whether the machine runs at all: a test of deadlines that fails while it stands still says nothing.

A process of its own sleeps and syncs a few bytes again and again, and notes when that took much longer than it should:
on a shared machine, somebody else has the processor or the disk then. It needs next to nothing, so that what the tests
themselves do does not hold it up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

LOOK_EVERY = 0.05
"""Seconds between two looks."""

STANDSTILL = 0.1
"""Seconds by which a look must be late to count: what a call may return after its deadline, which tests check."""

CALM = 3.0
"""Seconds without a standstill after which a test may be worth another try."""


class StandstillWatch:
    """A context-free watch: `start` it, ask it, `stop` it. `folder` is on the disk that is watched."""

    def __init__(self, folder: Path) -> None:
        self._notes = folder / "standstills"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._notes.touch()
        self._process = subprocess.Popen(
            [sys.executable, "-S", __file__, str(self._notes)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def longest_since(self, moment: float) -> float:
        """Seconds of the longest standstill that ended after this `time.monotonic()`; 0.0 without one."""
        notes = [line.split() for line in self._notes.read_text().splitlines()]
        return max((float(seconds) for ended_at, seconds in notes if float(ended_at) > moment), default=0.0)

    def wait_for_calm(self, at_most: float) -> None:
        """Wait until the machine has run for a while, but not longer than so many seconds."""
        give_up_at = time.monotonic() + at_most
        while time.monotonic() < give_up_at and self.longest_since(time.monotonic() - CALM):
            time.sleep(LOOK_EVERY)


def watch(notes: Path) -> None:
    """Note standstills until whoever started this has ended."""
    parent = os.getppid()
    with notes.with_suffix(".synced").open("wb", buffering=0) as synced, notes.open("a", buffering=1) as found:
        while os.getppid() == parent:
            began = time.monotonic()
            time.sleep(LOOK_EVERY)
            synced.write(b"still here")
            synced.seek(0)
            os.fsync(synced.fileno())
            now = time.monotonic()
            if (late := now - began - LOOK_EVERY) > STANDSTILL:
                found.write(f"{now} {late}\n")


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
