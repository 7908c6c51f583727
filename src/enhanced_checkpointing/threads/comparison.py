"""Compares two copies of a thread as they are read: what differs, and which copy is the older one. Pure.

LangGraph replaces some writes in place: a question by the next one, an error, the newest answer of a run, and the list
of all answers that a task has got. Only that list tells which copy is older: the shorter one, if the other begins with
it. So the target's copy may be replaced only if every answer in it is in the source's lists, and what else was replaced
belongs to a task that has got further in the source. What a subgraph asks shows in the writes of the graph above
it, too, but its lists are its own: such a difference stays open until the subgraph's entries were read.

Where nothing tells, the copy counts as newer. That may be wrong: the last answer of a task that asked twice or more is
not in its list when it is done, so it may seem to wait yet if another task asks upon the same checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.serde.types import RESUME

from enhanced_checkpointing.threads.contents import Count, Entry, Label, Mark, Write

EXAMPLES = 5
"""So many differences of a thread are named, all are counted."""


@dataclass(slots=True)
class Comparison:
    """How the copy of a thread in the target differs from that in the source."""

    source: Count = field(default_factory=Count)
    target: Count = field(default_factory=Count)
    missing: int = 0
    """Entries that the target lacks."""
    unknown: int = 0
    """Checkpoints and writes that the source does not have."""
    changed: int = 0
    """Entries that both have, and of which the target's copy is surely the older one or a part."""
    contested: int = 0
    """Entries that both have, and of which the target's copy may be the newer one."""
    examples: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not (self.missing or self.unknown or self.changed or self.contested)

    def note(self, entry: Entry, what: str) -> None:
        if len(self.examples) < EXAMPLES:
            kind = "checkpoint" if entry.checkpoint is not None else "writes of the missing checkpoint"
            within = f" in {entry.checkpoint_ns!r}" * bool(entry.checkpoint_ns)
            self.examples.append(f"{kind} {entry.checkpoint_id}{within} {what}")


async def compare(
    source: AsyncGenerator[Entry, None], target: AsyncGenerator[Entry, None], *, everything: bool
) -> Comparison:
    """Compare two copies of a thread as they are read, side by side; neither is held as a whole."""
    found, evidence = Comparison(), Evidence()
    async with aclosing(_wanted(source, everything)) as ours, aclosing(_wanted(target, everything)) as theirs:
        one, other = await anext(ours, None), await anext(theirs, None)
        while one is not None or other is not None:
            if other is None or (one is not None and one.place < other.place):
                assert one is not None
                found.source.add(one)
                found.missing += 1
                found.note(one, "is missing in the target")
                evidence.add(one, None)
                one = await anext(ours, None)
            elif one is None or other.place < one.place:
                found.target.add(other)
                _note_unknown(found, other)
                other = await anext(theirs, None)
            else:
                found.source.add(one)
                found.target.add(other)
                evidence.add(one, other)
                if (doubt := _compare_entries(found, one, other, everything=everything)) is not None:
                    evidence.ask(other, doubt)
                one, other = await anext(ours, None), await anext(theirs, None)
    for entry, doubt in evidence.open:
        _settle(found, entry, is_older=evidence.explains(doubt))
    return found


async def _wanted(every: AsyncGenerator[Entry, None], everything: bool) -> AsyncGenerator[Entry, None]:
    async with aclosing(every):
        async for entry in every:
            if everything or entry.checkpoint is not None:
                yield entry


def _note_unknown(found: Comparison, entry: Entry) -> None:
    """Of writes without a checkpoint none is unknown: no run can go on from there."""
    if entry.checkpoint is None:
        found.changed += 1
        found.note(entry, "are in the target only")
    else:
        found.unknown += 1
        found.note(entry, "is in the target only")


def _compare_entries(found: Comparison, one: Entry, other: Entry, *, everything: bool) -> Open | None:
    """Count a difference; or say what has to be known of it first."""
    if one.shown(everything=everything) == other.shown(everything=everything):
        return None
    more = Counter(_names(other.writes)) - Counter(_names(one.writes))
    if more:
        found.unknown += more.total()
        found.note(other, f"has {more.total()} writes in the target that the source does not have")
        return None
    judged = judge(one, other, everything=everything)
    if isinstance(judged, Open):
        return judged
    _settle(found, other, is_older=judged)
    return None


def _settle(found: Comparison, entry: Entry, *, is_older: bool) -> None:
    if is_older:
        found.changed += 1
        found.note(entry, "is older in the target, or lacks something there")
    else:
        found.contested += 1
        found.note(entry, "differs in the target, and may be the newer one there")


def _names(writes: Iterable[Write]) -> Iterable[tuple[str, str]]:
    return ((write.task_id, write.channel) for write in writes)


RUN = "00000000-0000-0000-0000-000000000000"
"""The task under which LangGraph writes what comes from outside of all tasks."""
ANY = ""
"""Stands for every task: a subgraph that keeps its state does not tell which task called it."""

Key = tuple[str, str, int]
"""A write of an entry: its task, its channel, and how many there are of that before it."""


@dataclass(frozen=True, slots=True)
class Open:
    """What only the subgraphs of these tasks can explain: the newest answer, or a question or error of a task."""

    tasks: Collection[str]
    answer: Mark | None = None
    progress: bool = False


class Evidence:
    """What is open in a thread, and what the entries of subgraphs say of it, which are read after their callers'."""

    def __init__(self) -> None:
        self.open: list[tuple[Entry, Open]] = []
        self._wanted: set[str] = set()
        self._further: set[str] = set()
        self._taken: set[tuple[str, Mark]] = set()

    def ask(self, entry: Entry, doubt: Open) -> None:
        """Look out for what explains this."""
        self.open.append((entry, doubt))
        self._wanted |= {*doubt.tasks, ANY}

    def add(self, one: Entry, other: Entry | None) -> None:
        """Take in both copies of an entry that the source has."""
        callers = {*_callers(one.checkpoint_ns)} & self._wanted if one.checkpoint_ns else ()
        if not callers:
            return
        if other is None or _is_further(one, other):
            self._further.update(callers)
        if other is not None:
            self._taken.update((caller, answer) for answer in _taken(one, other) for caller in callers)

    def explains(self, doubt: Open) -> bool:
        """Whether the source has got further in one of these tasks, and its last answer there was taken."""
        tasks = {*doubt.tasks, ANY}
        if doubt.progress and not self._further & tasks:
            return False
        return doubt.answer is None or any((task, doubt.answer) in self._taken for task in tasks)


def judge(one: Entry, other: Entry, *, everything: bool) -> bool | Open:
    """Whether the target's copy `other` is surely the older one, or only a part of the source's; or what is open.

    The target has no write of a channel that the source does not have too. Without `everything`, the paths and the
    places of writes do not count.
    """
    if one.core != other.core or not (one.label == other.label or _is_newer(one.label, other.label)):
        return False
    ours, theirs = _by_key(one), _by_key(other)
    if everything and any(_place(ours[key]) != _place(write) for key, write in theirs.items()):
        return False
    changed = [(ours[key], write) for key, write in theirs.items() if ours[key].value != write.value]
    if any(not _may_be_replaced(own, write) for own, write in changed):
        return False
    answers = [write.value for _, write in changed if write.task_id == RUN and write.channel == RESUME]
    taken = {*_taken(one, other)}
    answer = next((each for each in answers if each not in taken), None)
    progress = any(write.channel != RESUME for _, write in changed) and not _is_further(one, other)
    if answer is None and not progress:
        return True
    return Open(frozenset(write.task_id for write in one.writes), answer, progress)


def _may_be_replaced(own: Write, write: Write) -> bool:
    """Whether nothing is lost by that, if the rest of the entry says that the source's is newer."""
    if write.channel not in WRITES_IDX_MAP:
        return False
    return write.channel != RESUME or write.task_id == RUN or _goes_on(own, write)


def _place(write: Write) -> tuple[str, int]:
    return write.task_path, write.index


def _goes_on(own: Write, write: Write) -> bool:
    """Whether the source's list of answers begins with the target's."""
    if own.answers is None or write.answers is None:
        return own.value == write.value
    return tuple(own.answers[: len(write.answers)]) == tuple(write.answers)


def _is_further(one: Entry, other: Entry) -> bool:
    """Whether the source has answers or results of a task that the target has not, and lacks none."""
    ours, theirs = _by_key(one), _by_key(other)
    if any(key not in theirs and key[0] != RUN for key in ours):
        return True
    lists = ((ours[key], write) for key, write in theirs.items() if key in ours and _is_list(write))
    return any(own.value != write.value and _goes_on(own, write) for own, write in lists)


def _taken(one: Entry, other: Entry) -> Iterator[Mark]:
    """The last answer of each task in the target, where the source has that and all before it."""
    ours = _by_key(one)
    for key, write in _by_key(other).items():
        if _is_list(write) and write.answers and key in ours and _goes_on(ours[key], write):
            yield write.answers[-1]


def _is_list(write: Write) -> bool:
    return write.channel == RESUME and write.task_id != RUN


def _by_key(entry: Entry) -> Mapping[Key, Write]:
    found: dict[Key, Write] = {}
    for write in entry.writes:
        count = 0
        while (key := (write.task_id, write.channel, count)) in found:
            count += 1
        found[key] = write
    return found


def _callers(checkpoint_ns: str) -> Iterator[str]:
    """The tasks within which a subgraph was called, as its namespace names them: `node:task|node:task`."""
    for part in checkpoint_ns.split("|"):
        _, named, task_id = part.rpartition(":")
        if named:
            yield task_id
        elif not part.isdigit():  # a number tells the calls of one task apart
            yield ANY


def _is_newer(label: Label, than: Label) -> bool:
    """Whether the source's copy was marked or used after the target's; a mark is never taken back in place."""
    if than.status is not None and label.status is None:
        return False
    at, before = _time(label.touched_at), _time(than.touched_at)
    if at is None or than.touched_at is None:
        return at is not None and than.status is None
    return before is not None and at > before


def _time(touched_at: Any) -> datetime | None:
    try:
        told = datetime.fromisoformat(touched_at)
    except (TypeError, ValueError):
        return None
    return told if told.tzinfo is not None else told.replace(tzinfo=UTC)
