"""What a sweep did, while it is under way and when it is over. Pure, but for the clock that it is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from enhanced_checkpointing.errors import quoted
from enhanced_checkpointing.resilience.breaker import Clock
from enhanced_checkpointing.threads.retention import RetentionPolicy

NAMED = 1000
"""Threads that a result names; all are counted."""


@dataclass(frozen=True, slots=True)
class Retired:
    """What became of a thread, or in a rehearsal would: "deleted", "pruned" or "failed", and why."""

    thread_id: str
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one look at all threads came to; in a rehearsal, what it would have."""

    dry_run: bool
    looked_at: int = 0
    deleted: int = 0
    pruned: int = 0
    failed: int = 0
    touched: int = 0
    """Threads that were read, which is written into them now."""
    checkpoints: int = 0
    size: int = 0
    """How many checkpoints went, and about how many bytes; of what would be pruned nobody knows."""
    kept: Mapping[str, int] = field(default_factory=dict)
    """Threads that were left as they are, by the reason."""
    retired: tuple[Retired, ...] = ()
    """The first `NAMED` others."""
    sole: bool = True
    """False: another process is at it, so nothing was done."""
    stopped: str | None = None
    """Why it did not come to the end; the next one goes on from there, or begins anew."""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every thread was looked at."""
        return self.sole and self.stopped is None


Tell = Callable[[Sweep], None]


class UnderWay:
    """A sweep that is not at its end."""

    def __init__(self, policy: RetentionPolicy, dry_run: bool, tell: Tell, clock: Clock) -> None:
        self.policy = policy
        self.dry_run = dry_run
        self.tell = tell
        self.looked_at = self.deleted = self.pruned = self.failed = self.touched = self.checkpoints = self.size = 0
        self.held_elsewhere: Collection[str] = ()
        """Threads that are in journals of other processes."""
        self.kept: Counter[str] = Counter()
        self.retired: list[Retired] = []
        self.sole = True
        self.stopped: str | None = None
        self._clock = clock
        self._begun = clock()

    def name(self, thread_id: str, outcome: str, reason: str) -> None:
        """Tell of a thread by name, while that is of use."""
        if len(self.retired) < NAMED:
            self.retired.append(Retired(thread_id, outcome, reason))

    def result(self) -> Sweep:
        return Sweep(
            dry_run=self.dry_run,
            looked_at=self.looked_at,
            deleted=self.deleted,
            pruned=self.pruned,
            failed=self.failed,
            touched=self.touched,
            checkpoints=self.checkpoints,
            size=self.size,
            kept=dict(self.kept),
            retired=tuple(self.retired),
            sole=self.sole,
            stopped=self.stopped,
            seconds=self._clock() - self._begun,
        )


def told(sweep: Sweep) -> str | None:
    """What an operator should read of it; None: nothing happened."""
    if not (sweep.deleted or sweep.pruned or sweep.failed or sweep.stopped):
        return None
    done = (
        f"retention looked at {sweep.looked_at} threads in {sweep.seconds:.1f} s: {sweep.deleted} deleted, "
        f"{sweep.pruned} pruned ({sweep.checkpoints} checkpoints, {sweep.size} bytes)"
    )
    if sweep.failed:
        done += f", {sweep.failed} could not be, the first of them: " + next(
            (f"{quoted(one.thread_id)} ({one.reason})" for one in sweep.retired if one.outcome == "failed"), "not named"
        )
    if sweep.stopped:
        done += f". It stopped early, and goes on later: {sweep.stopped}"
    return done
