"""Compares two copies of a thread as they are read, and says what that means for the target's. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

from enhanced_checkpointing.threads.contents import Count, Entry, Write
from enhanced_checkpointing.threads.precedence import Evidence, Open, judge

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
    """Of writes without a checkpoint none is unknown: nobody could have gone on from there."""
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
