"""Which threads are kept, which go, which lose their old checkpoints, and what a sweep of all came to. Pure.

A thread that waits for a human is never touched, however old. What it waits for is in its newest checkpoint, in
LangGraph's own words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, TASKS

from enhanced_checkpointing.backends.listing import (
    ACTIVE,
    COMPLETED,
    FAILED,
    TOUCHED_AT,
    ThreadHead,
    status_of,
    time_of,
)
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import quoted
from enhanced_checkpointing.resilience.breaker import Clock
from enhanced_checkpointing.serialization import Opaque, argument_of

YOUNG = timedelta(minutes=1)
"""A thread of which the newest checkpoint is younger may be in the middle of a run."""
TOUCH_SHARE = 10
"""A read is written down when this part of the thread's time has passed since the last one was: seldom enough to cost
next to nothing, often enough that no thread in use is near its end."""

START, BRANCH, JOIN = "__start__", "branch:to:", "join:"
"""What LangGraph calls the channels that trigger a node: `join:a+b:c` triggers c after a and b."""

WORKFLOW = ("__end__", "__previous__", TASKS)
"""Channels of functional workflows, and of graphs that only send."""


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long threads are kept after they were last used, in days by their status, and how much of each."""

    active_days: float = 7.0
    completed_days: float = 30.0
    failed_days: float = 3.0
    keep: int | None = None
    """The newest checkpoints of each namespace that stay of a thread that is kept; None: all."""
    refresh_on_read: bool = False
    """Whether reading a thread counts as using it."""

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep must be at least 1, but is {self.keep}: a thread without checkpoints is none")
        if min(self.active_days, self.completed_days, self.failed_days) < 0:
            raise ValueError("a thread cannot be kept for less than 0 days")

    def days(self, status: str) -> float:
        return {ACTIVE: self.active_days, COMPLETED: self.completed_days, FAILED: self.failed_days}[status]

    def time_of(self, status: str) -> timedelta:
        return timedelta(days=self.days(status))


def policy_of(config: CheckpointerConfig) -> RetentionPolicy:
    """What the settings say."""
    return RetentionPolicy(
        config.retention_active_days,
        config.retention_completed_days,
        config.retention_failed_days,
        config.retention_keep,
        config.retention_refresh_on_read,
    )


@dataclass(frozen=True, slots=True)
class ThreadState:
    """What else is known of a thread, besides its newest checkpoint."""

    journaled: bool = False
    """Whether our journal holds anything of it."""
    unfinished: str | None = None
    """What it waits for; None: nothing, or it was not looked at yet."""
    read_at: datetime | None = None
    """When this process last read it."""


@dataclass(frozen=True, slots=True)
class Keep:
    reason: str


@dataclass(frozen=True, slots=True)
class Delete:
    reason: str


@dataclass(frozen=True, slots=True)
class Prune:
    keep: int
    reason: str


Decision = Keep | Delete | Prune

IN_JOURNAL = Keep("the journal holds something of it")
AGELESS = Keep("its checkpoints do not tell their age")
YOUNG_ONE = Keep("its newest checkpoint is younger than a minute")
IN_USE = Keep("this process has just read it")
GONE_ON = Keep("it has been written to since it was looked at")
UNREADABLE = Keep("its metadata cannot be read")
NO_ROOT = Keep("it has no checkpoint of its root graph")
"""Nobody knows then what it waits for."""


def decide(head: ThreadHead, state: ThreadState, policy: RetentionPolicy, now: datetime) -> Decision:
    """What is to become of a thread."""
    if state.journaled:
        return IN_JOURNAL
    if head.unreadable is not None:
        return UNREADABLE
    if head.updated_at is None:
        return AGELESS
    if now - head.updated_at < YOUNG:
        return YOUNG_ONE
    if state.read_at is not None and now - state.read_at < YOUNG:
        return IN_USE
    status = status_of(head.metadata)
    if now - _last_use(head, state, policy) > policy.time_of(status):
        decision: Decision = Delete(f"{status}, and not used for {policy.days(status):g} days")
    elif policy.keep is not None and head.checkpoints > policy.keep:
        decision = Prune(policy.keep, f"it has more than {policy.keep} checkpoints")
    else:
        return Keep(f"{status}, and used in the last {policy.days(status):g} days")
    return decision if state.unfinished is None else Keep(state.unfinished)


def decide_again(
    head: ThreadHead, found: CheckpointTuple | None, state: ThreadState, policy: RetentionPolicy, now: datetime
) -> Decision:
    """What is to become of a thread of which the newest root checkpoint has been read after its head was."""
    if found is None:
        return NO_ROOT
    checkpoint_id = found.checkpoint["id"]
    if checkpoint_id != head.checkpoint_id:
        return GONE_ON
    updated_at = head.updated_at or time_of(checkpoint_id, found.checkpoint.get("ts"))
    newest = replace(head, metadata=dict(found.metadata), updated_at=updated_at)
    return decide(newest, replace(state, unfinished=unfinished(found)), policy, now)


def wants_touch(head: ThreadHead, read_at: datetime, policy: RetentionPolicy) -> bool:
    """Whether a read is to be written into the thread, so that others know of it."""
    if head.updated_at is None or head.unreadable is not None:
        return False
    known = max(filter(None, (head.updated_at, touched_at(head.metadata))))
    return read_at - known > policy.time_of(status_of(head.metadata)) / TOUCH_SHARE


def touched_at(metadata: Mapping[str, Any]) -> datetime | None:
    """When a thread was last said to be in use."""
    try:
        told = datetime.fromisoformat(str(metadata[TOUCHED_AT]))
    except (KeyError, ValueError):
        return None
    return told if told.tzinfo is not None else None


def is_interrupted(found: CheckpointTuple) -> bool:
    """Whether a thread may still go on from its newest root checkpoint: it asks a human something, or
    stopped before a node that was to run."""
    return unfinished(found) is not None


def unfinished(found: CheckpointTuple) -> str | None:
    """What a thread waits for, as a reason to keep it; None: nothing.

    A question is always waited for. A node that has not run counts unless it failed, or the thread is marked as failed:
    nothing else tells a breakpoint from a run that died. Where that is not known, the thread waits unless it is marked.
    """
    if not isinstance(found.checkpoint, dict):
        return "its checkpoint cannot be read without making objects of it"
    channels = {channel for _, channel, _ in found.pending_writes or ()}
    if INTERRUPT in channels:
        return "it waits at an interrupt"
    if ERROR in channels or status_of(found.metadata) == FAILED:
        return None
    if _is_triggered(found):
        return "a node of it was triggered and has not run"
    if status_of(found.metadata) != COMPLETED and not _is_of_known_kind(found) and _is_anything_unseen(found):
        return "it may wait, as its graph is not of a known kind; it goes if it is marked"
    return None


def _is_triggered(found: CheckpointTuple) -> bool:
    values, versions = found.checkpoint["channel_values"], found.checkpoint["channel_versions"]
    if values.get(TASKS) or found.checkpoint.get("pending_sends"):
        return True
    ran = {node: seen for node, seen in found.checkpoint["versions_seen"].items() if node != INTERRUPT}
    triggers = {(node, channel) for node, seen in ran.items() for channel in seen}
    for channel in values:
        if channel == START or channel.startswith(BRANCH):
            triggers.add((channel.removeprefix(BRANCH), channel))
        elif channel.startswith(JOIN):
            triggers.add((channel.rpartition(":")[2], channel))
    # Versions of an old thread may be numbers and texts: these have no order, but a channel's never comes back.
    return any(
        channel in values
        and versions.get(channel) != ran.get(node, {}).get(channel)
        and _is_complete(channel, values[channel])
        for node, channel in triggers
    )


def _is_of_known_kind(found: CheckpointTuple) -> bool:
    """Whether the channels that trigger nodes can be told by their names: in what LangGraph 1 compiles of a StateGraph,
    and in functional workflows. They cannot in graphs of older releases, and in those made of `Pregel` itself."""
    return any(channel in WORKFLOW or channel.startswith(BRANCH) for channel in found.checkpoint["channel_versions"])


def _is_anything_unseen(found: CheckpointTuple) -> bool:
    """Whether a channel has a value that no node has seen: it may be for one that has not run yet. LangGraph notes at
    least that there was an input: where not even that is seen, no graph made the checkpoint, and none goes on."""
    versions, seen_by = found.checkpoint["channel_versions"], found.checkpoint["versions_seen"]
    return bool(seen_by) and any(
        all(seen.get(channel) != versions.get(channel) for node, seen in seen_by.items() if node != INTERRUPT)
        for channel in found.checkpoint["channel_values"]
    )


def _is_complete(channel: str, value: Any) -> bool:
    """Whether a channel triggers its node; one that waits for several nodes holds the names of those that came."""
    if not channel.startswith(JOIN):
        return True
    arrived = value[0] if isinstance(value, (tuple, list)) and value else value
    if isinstance(arrived, Opaque):
        arrived = argument_of(arrived)
    if not isinstance(arrived, (set, frozenset, list)):
        return True
    awaited = channel.removeprefix(JOIN).rpartition(":")[0]
    return len("+".join(map(str, arrived))) == len(awaited)


def _last_use(head: ThreadHead, state: ThreadState, policy: RetentionPolicy) -> datetime:
    read_at = state.read_at if policy.refresh_on_read else None
    return max(filter(None, (head.updated_at, touched_at(head.metadata), read_at)))


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
    """How many checkpoints went, and about how many bytes; what pruning would free is not known."""
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
