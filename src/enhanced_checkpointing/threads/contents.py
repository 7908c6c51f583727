"""What a thread consists of, told apart so that two copies of it can be compared as they are read. Pure.

Values are compared by their bytes, documents by what they say: PostgreSQL orders the keys of a document in its own way
and writes large floats without a point.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from langgraph.checkpoint.base import WRITES_IDX_MAP, writes_sort_key

from enhanced_checkpointing.backends.reading import Chunks
from enhanced_checkpointing.backends.stored_values import LARGEST_EXACT, comparable
from enhanced_checkpointing.operations import Operation, Put, PutWrites
from enhanced_checkpointing.serialization import SharingSerializer

MARK_BYTES = 16
EXAMPLES = 5
"""So many differences of a thread are named, all are counted."""

_PERHAPS_CHANGED = re.compile(r"\de\+|-0\.0")
"""What a number may look like that PostgreSQL gives back as another one."""

Mark = bytes
"""A short stand-in for a value: the same for the same value, and for no other that anybody will ever meet."""


@dataclass(frozen=True, slots=True)
class Write:
    """One pending write."""

    task_path: str
    task_id: str
    index: int
    channel: str
    value: Mark


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint with its pending writes in the order in which a saver shows them; or the writes alone."""

    checkpoint_ns: str
    checkpoint_id: str
    checkpoint: Mark | None
    writes: Sequence[Write]

    @property
    def place(self) -> tuple[bool, bytes, bytes]:
        """Where the entry comes in the order in which threads are read."""
        return self.checkpoint is None, self.checkpoint_ns.encode(), self.checkpoint_id.encode()

    def shown(self, *, everything: bool) -> tuple[Any, ...]:
        """What must be the same in a copy; without `everything`, what any saver shows of it."""
        if everything:
            return self.checkpoint, tuple(self.writes)
        return self.checkpoint, tuple((write.task_id, write.channel, write.value) for write in self.writes)


@dataclass(slots=True)
class Count:
    """How much a thread holds."""

    checkpoints: int = 0
    writes: int = 0

    def add(self, entry: Entry) -> None:
        self.checkpoints += entry.checkpoint is not None
        self.writes += len(entry.writes)

    def __str__(self) -> str:
        ends = "s" * (self.checkpoints != 1), "s" * (self.writes != 1)
        return f"{self.checkpoints} checkpoint{ends[0]} and {self.writes} write{ends[1]}"


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
    """Entries that both have, with something else in them."""
    examples: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not (self.missing or self.unknown or self.changed)

    def note(self, entry: Entry, what: str) -> None:
        if len(self.examples) < EXAMPLES:
            kind = "checkpoint" if entry.checkpoint is not None else "writes of the missing checkpoint"
            within = f" in {entry.checkpoint_ns!r}" * bool(entry.checkpoint_ns)
            self.examples.append(f"{kind} {entry.checkpoint_id}{within} {what}")


class Gathering:
    """Gathers operations, in the order in which threads are read, into entries."""

    def __init__(self, serializer: SharingSerializer) -> None:
        self._serializer = serializer
        self._place: tuple[str, str] | None = None
        self._checkpoint: Mark | None = None
        self._writes: dict[tuple[str, int], Write] = {}

    def add(self, operation: Operation) -> Entry | None:
        """Take an operation; returns the entry before, if this begins another one."""
        assert isinstance(operation, (Put, PutWrites))
        place = operation.checkpoint_ns, operation.checkpoint_id
        finished = self.end() if place != self._place else None
        self._place = place
        if isinstance(operation, Put):
            self._checkpoint = _mark_of(operation, self._serializer)
        else:
            self._add_writes(operation)
        return finished

    def end(self) -> Entry | None:
        """The entry that was begun last, if there is one."""
        if self._place is None:
            return None
        ordered = sorted(self._writes.values(), key=lambda one: writes_sort_key(one.task_path, one.task_id, one.index))
        entry = Entry(*self._place, self._checkpoint, ordered)
        self._place, self._checkpoint, self._writes = None, None, {}
        return entry

    def _add_writes(self, operation: PutWrites) -> None:
        """As a saver does it: what is there stays, unless all writes are of special channels."""
        replaces = all(channel in WRITES_IDX_MAP for channel, _ in operation.writes)
        for position, (channel, value) in enumerate(operation.writes):
            index = WRITES_IDX_MAP.get(channel, position)
            if replaces or (operation.task_id, index) not in self._writes:
                mark = blake2b(comparable(value, self._serializer), digest_size=MARK_BYTES).digest()
                write = Write(operation.task_path, operation.task_id, index, channel, mark)
                self._writes[operation.task_id, index] = write


class Digest:
    """Of the entries of a thread: the same for equal copies."""

    def __init__(self, *, everything: bool) -> None:
        self._everything = everything
        self._hash = blake2b(digest_size=MARK_BYTES)
        self.count = Count()

    def add(self, entry: Entry | None) -> None:
        if entry is None or (entry.checkpoint is None and not self._everything):
            return
        self.count.add(entry)
        self._hash.update(repr((entry.place, entry.shown(everything=self._everything))).encode())

    def value(self) -> bytes:
        return self._hash.digest()


async def entries(chunks: Chunks, serializer: SharingSerializer) -> AsyncGenerator[Entry, None]:
    """The entries of a thread, one at a time."""
    gathering = Gathering(serializer)
    async with aclosing(chunks):
        async for chunk in chunks:
            for operation in chunk:
                if (entry := gathering.add(operation)) is not None:
                    yield entry
    if (entry := gathering.end()) is not None:
        yield entry


async def compare(
    source: AsyncGenerator[Entry, None], target: AsyncGenerator[Entry, None], *, everything: bool
) -> Comparison:
    """Compare two copies of a thread as they are read, side by side; neither is held as a whole."""
    found = Comparison()
    async with aclosing(_wanted(source, everything)) as ours, aclosing(_wanted(target, everything)) as theirs:
        one, other = await anext(ours, None), await anext(theirs, None)
        while one is not None or other is not None:
            if other is None or (one is not None and one.place < other.place):
                assert one is not None
                found.source.add(one)
                found.missing += 1
                found.note(one, "is missing in the target")
                one = await anext(ours, None)
            elif one is None or other.place < one.place:
                found.target.add(other)
                _note_unknown(found, other)
                other = await anext(theirs, None)
            else:
                found.source.add(one)
                found.target.add(other)
                _compare_entries(found, one, other, everything=everything)
                one, other = await anext(ours, None), await anext(theirs, None)
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


def _compare_entries(found: Comparison, one: Entry, other: Entry, *, everything: bool) -> None:
    if one.shown(everything=everything) == other.shown(everything=everything):
        return
    more = Counter(_names(other.writes)) - Counter(_names(one.writes))
    if more:
        found.unknown += more.total()
        found.note(other, f"has {more.total()} writes in the target that the source does not have")
    else:
        found.changed += 1
        what = "differs" if one.checkpoint != other.checkpoint else "has other writes"
        found.note(other, f"{what} in the target")


def _names(writes: Iterable[Write]) -> Iterable[tuple[str, str]]:
    return ((write.task_id, write.channel) for write in writes)


def _mark_of(put: Put, serializer: SharingSerializer) -> Mark:
    marked = blake2b(digest_size=MARK_BYTES)
    described = {"parent": put.parent_checkpoint_id, "skeleton": put.skeleton, "metadata": put.metadata}
    marked.update(_canonical(described).encode())
    for channel in sorted(put.values):
        value = comparable(put.values[channel], serializer)
        marked.update(f"{channel!r} {len(value)} ".encode())
        marked.update(value)
    return marked.digest()


def _canonical(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, default=repr)
    return json.dumps(_plain(document), sort_keys=True, default=repr) if _PERHAPS_CHANGED.search(text) else text


def _plain(document: Any) -> Any:
    """A document with the numbers that come back from PostgreSQL."""
    if isinstance(document, Mapping):
        return {key: _plain(part) for key, part in document.items()}
    if isinstance(document, (list, tuple)):
        return [_plain(part) for part in document]
    if isinstance(document, float) and document.is_integer():
        return int(document) if abs(document) >= LARGEST_EXACT else abs(document) if document == 0 else document
    return document
