"""From what is stored of a thread to the operations that make it again. Pure.

The order is that of the namespaces, and in each that of the checkpoints, both by their UTF-8 bytes, the same whatever
the database: two readings can be compared as they come. After each checkpoint come its pending writes. Writes whose
checkpoint is not there, because a process died before it stored that, come last. Without any checkpoint there is no
thread.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

from langgraph.checkpoint.base import WRITES_IDX_MAP, ChannelVersions, CheckpointMetadata

from enhanced_checkpointing.operations import Operation, Put, PutWrites, frozen_size
from enhanced_checkpointing.serialization import Serialized

CHUNK_BYTES = 4 * 1024 * 1024
"""What a reading holds at a time, unless one checkpoint alone is greater."""

Chunks = AsyncGenerator[Sequence[Operation], None]
"""The operations of a thread, a few at a time."""

Call = tuple[str, tuple[tuple[str, Serialized], ...]]
"""The path and the writes of one call of `put_writes`."""


class StoredMetadata(dict[str, Any]):
    """Metadata as it is stored: it is written as it is, with what a saver leaves out of what callers give it."""


@dataclass(frozen=True, slots=True)
class WriteRow:
    """One pending write as it is stored."""

    task_id: str
    task_path: str
    index: int
    channel: str
    value: Serialized


def inherits_snapshot(channel: str, versions: Mapping[str, Any], parents: Mapping[str, Any] | None) -> bool:
    """Whether the parent, with these versions, has the snapshot of a delta channel that a saver shows at a checkpoint.

    PostgreSQL and memory show a snapshot at all checkpoints with its version. LangGraph made it for the first of them.
    """
    return parents is not None and parents.get(channel) == versions[channel]


class PutHistory:
    """Makes the puts of one thread, given in order. A version counts as new where the checkpoint before it in its
    namespace did not have that very value, so that all of them together carry each value to a saver once."""

    def __init__(self, thread_id: str) -> None:
        self._thread_id = thread_id
        self._checkpoint_ns: str | None = None
        self._before: Mapping[str, tuple[Any, Any]] = {}

    def put(
        self,
        checkpoint_ns: str,
        checkpoint_id: str,
        parent_checkpoint_id: str | None,
        skeleton: Mapping[str, Any],
        values: Mapping[str, Any],
        metadata: Mapping[str, Any],
        snapshots: frozenset[str],
    ) -> Put:
        versions: ChannelVersions = skeleton.get("channel_versions") or {}
        if checkpoint_ns != self._checkpoint_ns:
            self._checkpoint_ns, self._before = checkpoint_ns, {}
        now = {channel: (versions[channel], value) for channel, value in values.items() if channel in versions}
        new = {channel: found[0] for channel, found in now.items() if self._before.get(channel) != found}
        self._before = now
        return Put(
            thread_id=self._thread_id,
            checkpoint_ns=checkpoint_ns,
            checkpoint_id=checkpoint_id,
            parent_checkpoint_id=parent_checkpoint_id or None,
            skeleton=skeleton,
            values=values,
            metadata=cast("CheckpointMetadata", StoredMetadata(metadata)),
            new_versions=new,
            snapshot_channels=snapshots,
        )


def writes_of(thread_id: str, checkpoint_ns: str, checkpoint_id: str, rows: Iterable[WriteRow]) -> list[PutWrites]:
    """The operations that leave these rows of one checkpoint."""
    found: list[PutWrites] = []
    for task_id, own in groupby(sorted(rows, key=_place), lambda row: row.task_id):
        special, ordinary = _divided(own)
        first, then = [*_special_calls(special)], [*_ordinary_calls(special, ordinary)]
        # Memory takes the path of a call for special writes too, PostgreSQL keeps that of the first.
        paths_differ = any(path != row.task_path for path, _ in then for row in special)
        for task_path, writes in (*first, *then, *(first if paths_differ else ())):
            found.append(PutWrites(thread_id, checkpoint_ns, checkpoint_id, writes, task_id, task_path))
    return found


def _place(row: WriteRow) -> tuple[str, int]:
    return row.task_id, row.index


def _divided(rows: Iterable[WriteRow]) -> tuple[list[WriteRow], list[WriteRow]]:
    """Those of special channels, and the others."""
    special: list[WriteRow] = []
    ordinary: list[WriteRow] = []
    for row in rows:
        (special if row.channel in WRITES_IDX_MAP else ordinary).append(row)
    return special, ordinary


def _special_calls(rows: Iterable[WriteRow]) -> Iterator[Call]:
    for task_path, own in groupby(rows, lambda row: row.task_path):
        yield task_path, tuple((row.channel, row.value) for row in own)


def _ordinary_calls(special: Sequence[WriteRow], rows: Iterable[WriteRow]) -> Iterator[Call]:
    """The calls that leave these rows of a task, each with its index.

    The index of a write is its position in the call, but for special channels, which have one of their own wherever
    they stand. So where a position is missing, something stands there that is stored already and thus left alone. A gap
    that no call could have left is closed: the order stays.
    """
    filler = (special[0].channel, special[0].value) if special else None
    listed: list[tuple[str, Serialized]] = []
    for task_path, own in groupby(rows, lambda row: row.task_path):
        for row in own:
            listed += [filler] * (row.index - len(listed)) if filler else []
            listed.append((row.channel, row.value))
        yield task_path, tuple(listed)


async def in_chunks(groups: AsyncGenerator[Sequence[Operation], None]) -> Chunks:
    """Gather what belongs to one checkpoint each into chunks of about `CHUNK_BYTES`."""
    chunk: list[Operation] = []
    size = 0
    async with aclosing(groups):
        async for group in groups:
            more = sum(map(frozen_size, group))
            if chunk and size + more > CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
            chunk += group
            size += more
    if chunk:
        yield chunk
