"""A whole thread as an `InMemorySaver` has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.backends.reading import (
    Chunks,
    History,
    WriteRow,
    in_chunks,
    inherits_snapshot,
    writes_of,
)
from enhanced_checkpointing.backends.stored_values import inline, is_snapshot
from enhanced_checkpointing.operations import Operation, Put
from enhanced_checkpointing.serialization import Opaque, Serialized, SharingSerializer, argument_of, load_plain

Blob = Callable[[str, str, str, Any], Serialized | None]
"""The bytes that a channel of a thread's namespace has at a version, if there are any."""

Stored = tuple[tuple[str, bytes], tuple[str, bytes], str | None]
"""A checkpoint without its values, its metadata, and the id of its parent."""


async def read_thread(saver: InMemorySaver, blob: Blob, serializer: SharingSerializer, thread_id: str) -> Chunks:
    """The operations that make a thread again."""
    async for chunk in in_chunks(_groups(_Reading(thread_id, saver, blob, serializer))):
        yield chunk


async def _groups(reading: _Reading) -> AsyncGenerator[Sequence[Operation], None]:
    for checkpoint_ns, checkpoints in reading.namespaces():
        for checkpoint_id in sorted(checkpoints):
            put = reading.put(checkpoint_ns, checkpoint_id, checkpoints)
            yield [put, *reading.writes(checkpoint_ns, checkpoint_id)]
    for checkpoint_ns, checkpoint_id in reading.left_alone():
        yield reading.writes(checkpoint_ns, checkpoint_id)


class _Reading:
    """Makes operations of what a saver holds, whose dictionaries would make what is looked for and not there."""

    def __init__(self, thread_id: str, saver: InMemorySaver, blob: Blob, serializer: SharingSerializer) -> None:
        self._thread_id = thread_id
        self._saver = saver
        self._blob = blob
        self._serializer = serializer
        self._history = History(thread_id)

    def namespaces(self) -> list[tuple[str, Mapping[str, Stored]]]:
        return sorted((name, dict(found)) for name, found in (self._saver.storage.get(self._thread_id) or {}).items())

    def put(self, checkpoint_ns: str, checkpoint_id: str, checkpoints: Mapping[str, Stored]) -> Put:
        checkpoint, metadata, parent_id = checkpoints[checkpoint_id]
        skeleton = load_plain(Serialized(*checkpoint), self._serializer)
        parent = checkpoints.get(parent_id or "")
        parents = load_plain(Serialized(*parent[0]), self._serializer)["channel_versions"] if parent else None
        stored = self._values(checkpoint_ns, skeleton["channel_versions"])
        snapshots = {channel for channel, value in stored.items() if is_snapshot(value, self._serializer)}
        inherited = {
            channel for channel in snapshots if inherits_snapshot(channel, skeleton["channel_versions"], parents)
        }
        return self._history.put(
            checkpoint_ns,
            checkpoint_id,
            parent_id,
            skeleton,
            {channel: inline(value) for channel, value in stored.items() if channel not in inherited},
            _in_json(load_plain(Serialized(*metadata), self._serializer)),
            frozenset(snapshots - inherited),
        )

    def _values(self, checkpoint_ns: str, versions: Mapping[str, Any]) -> dict[str, Serialized]:
        found = {name: self._blob(self._thread_id, checkpoint_ns, name, version) for name, version in versions.items()}
        return {channel: value for channel, value in found.items() if value is not None}

    def writes(self, checkpoint_ns: str, checkpoint_id: str) -> Sequence[Operation]:
        stored = self._saver.writes.get((self._thread_id, checkpoint_ns, checkpoint_id)) or {}
        rows = [
            WriteRow(task_id, task_path, index, channel, Serialized(*value))
            for (task_id, index), (_, channel, value, task_path) in stored.items()
        ]
        return writes_of(self._thread_id, checkpoint_ns, checkpoint_id, rows)

    def left_alone(self) -> list[tuple[str, str]]:
        """Where there are writes, and no checkpoint that they belong to."""
        there = {(name, checkpoint_id) for name, found in self.namespaces() for checkpoint_id in found}
        written = {place[1:] for place in self._saver.writes if place[0] == self._thread_id}
        return sorted(written - there) if there else []


def _in_json(metadata: Any) -> Any:
    """Metadata as every other database keeps it: of an enum, its value."""
    if isinstance(metadata, dict):
        return {key: _in_json(part) for key, part in metadata.items()}
    if isinstance(metadata, list):
        return [_in_json(part) for part in metadata]
    return argument_of(metadata) if type(metadata) is Opaque else metadata
