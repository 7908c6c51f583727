"""What a thread consists of, told apart so that two copies of it can be compared as they are read (`comparison`). Pure.

Values are compared by their bytes, documents by what they say: PostgreSQL orders the keys of a document in its own way
and writes large floats without a point.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from langgraph.checkpoint.base import WRITES_IDX_MAP, writes_sort_key
from langgraph.checkpoint.serde.types import RESUME

from enhanced_checkpointing.backends.listing import THREAD_STATUS, TOUCHED_AT
from enhanced_checkpointing.backends.reading import Chunks
from enhanced_checkpointing.backends.stored_values import LARGEST_EXACT, comparable, items_of
from enhanced_checkpointing.operations import Operation, Put, PutWrites
from enhanced_checkpointing.serialization import Serialized, SharingSerializer

MARK_BYTES = 16

_PERHAPS_CHANGED = re.compile(r"\de\+|-0\.0")
"""What a number may look like that PostgreSQL gives back as another one."""

Mark = bytes
"""A short stand-in for a value: the same for the same value, and in practice for no other."""


@dataclass(frozen=True, slots=True)
class Write:
    """One pending write."""

    task_path: str
    task_id: str
    index: int
    channel: str
    value: Mark
    answers: Sequence[Mark] | None = field(default=None, compare=False, repr=False)
    """The answers that a task has got so far, in their order; None where that is not what was written."""


@dataclass(frozen=True, slots=True)
class Label:
    """What `mark_completed` and the like put into the metadata of a checkpoint that is there already."""

    status: Any = None
    touched_at: Any = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint with its pending writes in the order in which a saver shows them; or the writes alone."""

    checkpoint_ns: str
    checkpoint_id: str
    checkpoint: Mark | None
    writes: Sequence[Write]
    core: Mark | None = None
    """Of the checkpoint without its label."""
    label: Label = Label()

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


class Gathering:
    """Gathers operations, in the order in which threads are read, into entries."""

    def __init__(self, serializer: SharingSerializer) -> None:
        self._serializer = serializer
        self._place: tuple[str, str] | None = None
        self._checkpoint = _NO_CHECKPOINT
        self._writes: dict[tuple[str, int], Write] = {}

    def add(self, operation: Operation) -> Entry | None:
        """Take an operation; returns the entry before, if this begins another one."""
        assert isinstance(operation, (Put, PutWrites))
        place = operation.checkpoint_ns, operation.checkpoint_id
        finished = self.end() if place != self._place else None
        self._place = place
        if isinstance(operation, Put):
            self._checkpoint = _described(operation, self._serializer)
        else:
            self._add_writes(operation)
        return finished

    def end(self) -> Entry | None:
        """The entry that was begun last, if there is one."""
        if self._place is None:
            return None
        ordered = sorted(self._writes.values(), key=lambda one: writes_sort_key(one.task_path, one.task_id, one.index))
        entry = replace(self._checkpoint, checkpoint_ns=self._place[0], checkpoint_id=self._place[1], writes=ordered)
        self._place, self._checkpoint, self._writes = None, _NO_CHECKPOINT, {}
        return entry

    def _add_writes(self, operation: PutWrites) -> None:
        """As a saver does it: what is there stays, unless all writes are of special channels."""
        replaces = all(channel in WRITES_IDX_MAP for channel, _ in operation.writes)
        for position, (channel, value) in enumerate(operation.writes):
            index = WRITES_IDX_MAP.get(channel, position)
            if replaces or (operation.task_id, index) not in self._writes:
                answers = _answers(value, self._serializer) if channel == RESUME else None
                mark = _mark_of(value, self._serializer)
                write = Write(operation.task_path, operation.task_id, index, channel, mark, answers)
                self._writes[operation.task_id, index] = write


_NO_CHECKPOINT = Entry("", "", None, ())


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


def _mark_of(value: Any, serializer: SharingSerializer) -> Mark:
    return blake2b(comparable(value, serializer), digest_size=MARK_BYTES).digest()


def _answers(value: Any, serializer: SharingSerializer) -> Sequence[Mark] | None:
    items = items_of(value, serializer) if type(value) is Serialized else None
    return None if items is None else tuple(_mark_of(item, serializer) for item in items)


def _described(put: Put, serializer: SharingSerializer) -> Entry:
    """The entry of a checkpoint, without writes so far."""
    metadata: dict[str, Any] = {**put.metadata}
    label = {key: metadata.pop(key) for key in (THREAD_STATUS, TOUCHED_AT) if key in metadata}
    marked = blake2b(digest_size=MARK_BYTES)
    described = {"parent": put.parent_checkpoint_id, "skeleton": put.skeleton, "metadata": metadata}
    marked.update(_canonical(described).encode())
    for channel in sorted(put.values):
        value = comparable(put.values[channel], serializer)
        marked.update(f"{channel!r} {len(value)} ".encode())
        marked.update(value)
    core = marked.digest()
    marked.update(_canonical(label).encode())
    return Entry("", "", marked.digest(), (), core, Label(label.get(THREAD_STATUS), label.get(TOUCHED_AT)))


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
