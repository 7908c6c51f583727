"""What is stored of one warm thread: checkpoints, values, writes and histories, and how many bytes they take."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_checkpoint_id,
)
from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.backends.base import Selection
from enhanced_checkpointing.backends.memory.backend import NO_VALUE, BlobKey, blob_of
from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.operations import Put, PutWrites, StoredWrite
from enhanced_checkpointing.serialization import Serialized, SharingSerializer, dump_described, is_same, load_plain

THREAD, CHECKPOINT = 2_700, 1_450
"""Bytes that a warm thread costs besides its checkpoints, and a checkpoint besides its values; measured with
`tracemalloc`, which a test repeats."""

WRITE = 100
"""Bytes that a pending write costs besides its value."""

MISSING = ""
"""No checkpoint id and no version is empty."""

HistoryKey = tuple[str, str, str]
"""Namespace, checkpoint id, channel."""

READ_PATH = re.compile(r"~\d+")
"""The path of a task whose writes were read, as `operations_of` makes it: it tells nothing about the tasks of here."""


class WriteThatStays(Protocol):
    """See `Backend.write_that_stays`."""

    def __call__(self, before: StoredWrite, after: StoredWrite, *, special: bool) -> StoredWrite: ...


class WarmStore:
    """An `InMemorySaver` of one thread's own, with the histories of delta channels. `size` is in bytes."""

    def __init__(self, thread_id: str, serializer: SharingSerializer, write_that_stays: WriteThatStays) -> None:
        self._thread_id = thread_id
        self._serializer = serializer
        self._write_that_stays = write_that_stays
        self._saver = InMemorySaver(serde=serializer)
        self._histories: dict[HistoryKey, tuple[Serialized | None, tuple[tuple[str, Serialized], ...]]] = {}
        self.size = THREAD

    @property
    def is_blank(self) -> bool:
        """Whether no checkpoint and no write is here."""
        # A saver that is asked for a namespace makes room for it, so an empty namespace is not a checkpoint.
        stored = any(any(namespaces.values()) for namespaces in self._saver.storage.values())
        return not stored and not self._saver.writes

    def stored(self, checkpoint_ns: str) -> Mapping[str, tuple[tuple[str, bytes], tuple[str, bytes], str | None]]:
        """The checkpoints of a namespace: each its skeleton, its metadata, and its parent's id."""
        return self._saver.storage[self._thread_id].get(checkpoint_ns, {})

    def blob(self, key: BlobKey) -> Serialized | None:
        """The bytes of one version of a channel, if they are here."""
        return blob_of(self._saver, key)

    def put(self, put: Put) -> bool:
        """Store a checkpoint with the value of every channel that is not here in that version already; tell whether
        the checkpoint was not here before.

        As `InMemorySaver.put` would, which looks through the metadata once more; a test compares the two.
        """
        blobs = self._saver.blobs
        size = CHECKPOINT
        for channel, version in put.skeleton["channel_versions"].items():
            key = put.thread_id, put.checkpoint_ns, channel, version
            if key not in blobs and (channel in put.values or channel in put.new_versions):
                value = put.values.get(channel, NO_VALUE)
                if value is not NO_VALUE:
                    value = (value.tag, value.data) if type(value) is Serialized else self._described(value)
                blobs[key] = value
                size += len(value[1])
        skeleton = dump_described(put.skeleton, self._serializer)
        metadata = dump_described(put.metadata, self._serializer)
        of_namespace = self._saver.storage[put.thread_id][put.checkpoint_ns]
        if (before := of_namespace.get(put.checkpoint_id)) is not None:
            size -= CHECKPOINT + len(before[0][1]) + len(before[1][1])
        of_namespace[put.checkpoint_id] = skeleton, metadata, put.parent_checkpoint_id
        self.size += size + len(skeleton[1]) + len(metadata[1])
        return before is None

    def put_writes(self, operation: PutWrites) -> bool:
        """Take the writes of one task, and keep those that the primary would keep; tell whether there are special
        ones, such as of errors, which replace others."""
        of_checkpoint = operation.thread_id, operation.checkpoint_ns, operation.checkpoint_id
        count = 0
        for channel, _ in operation.writes:  # a generator takes as long as all the rest
            count += channel in WRITES_IDX_MAP
        special = count == len(operation.writes)
        for position, (channel, value) in enumerate(operation.writes):
            stored, key = self._saver.writes[of_checkpoint], (operation.task_id, WRITES_IDX_MAP.get(channel, position))
            write = operation.task_id, channel, self._serializer.dumps_typed(value), operation.task_path
            if (before := stored.get(key)) is not None:
                write = self._write_that_stays(before, write, special=special)
                self.size -= _size_of_write(before)
            stored[key] = write
            self.size += _size_of_write(write)
        return count > 0

    def replace_writes(self, operation: PutWrites) -> None:
        """Take the writes of one task instead of those that are here."""
        writes = self._saver.writes.get((self._thread_id, operation.checkpoint_ns, operation.checkpoint_id), {})
        for key in [key for key in writes if key[0] == operation.task_id]:
            self.size -= _size_of_write(writes.pop(key))
        self.put_writes(operation)

    def annotate(self, checkpoint_ns: str, checkpoint_id: str, changes: Mapping[str, Any]) -> None:
        """Change the metadata of a checkpoint, if it is here."""
        if checkpoint_id in self.stored(checkpoint_ns):
            skeleton, metadata, parent = self.stored(checkpoint_ns)[checkpoint_id]
            changed = self._described({**load_plain(Serialized(*metadata), self._serializer), **changes})
            self._saver.storage[self._thread_id][checkpoint_ns][checkpoint_id] = skeleton, changed, parent
            self.size += len(changed[1]) - len(metadata[1])

    def changed_tasks(self, checkpoint_ns: str, found: CheckpointTuple) -> set[str]:
        """The tasks of which the primary has other writes than are here."""
        here = self._writes(checkpoint_ns, found.checkpoint["id"])
        known = Counter((task_id, channel) for task_id, channel, _, _ in here)
        read = Counter((task_id, channel) for task_id, channel, _ in found.pending_writes or ())
        changed = {task_id for task_id, _ in read - known}
        # Of these a task has one each, and a later one takes its place: what it asks, was answered, and failed with.
        replaceable = {(task_id, channel): value for task_id, channel, value, _ in here if channel in WRITES_IDX_MAP}
        for task_id, channel, value in (found.pending_writes or ()) if replaceable else ():
            own = replaceable.get((task_id, channel))
            if own is not None and not is_same(Serialized(*own), value, self._serializer):
                changed.add(task_id)
        return changed

    def put_history(self, checkpoint_ns: str, checkpoint_id: str, found: Mapping[str, DeltaChannelHistory]) -> None:
        """Take the history of delta channels that the primary gave for one checkpoint."""
        for channel, history in found.items():
            key = (checkpoint_ns, checkpoint_id, channel)
            if key in self._histories:
                continue
            seed = self._freeze(history["seed"]) if "seed" in history else None
            writes = tuple((task_id, self._freeze(value)) for task_id, _, value in history["writes"])
            self._histories[key] = (seed, writes)
            self.size += _size_of_history(seed, writes)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._saver.get_tuple(config)

    def history(self, config: RunnableConfig, selection: Selection) -> Iterator[CheckpointTuple | None]:
        """What is here, newest first; of all namespaces, if the config names none. Each is made when it is taken, with
        None for one that does not match, so that a long history need not hold the event loop."""
        configurable = config["configurable"]
        asked, named = configurable.get("checkpoint_ns"), get_checkpoint_id(config)
        keys = [
            (checkpoint_id, checkpoint_ns)
            for checkpoint_ns, of_namespace in self._saver.storage[self._thread_id].items()
            if asked is None or checkpoint_ns == asked
            for checkpoint_id in of_namespace
            if (not named or checkpoint_id == named) and selection.below(checkpoint_id)
        ]
        return self._found(sorted(keys, reverse=True), selection)

    def _found(self, keys: Sequence[tuple[str, str]], selection: Selection) -> Iterator[CheckpointTuple | None]:
        saver = self._saver  # as it is now: a thread that is trimmed meanwhile gets another one
        left = len(keys) if selection.limit is None else selection.limit
        for checkpoint_id, checkpoint_ns in keys:
            if left <= 0:
                return
            place = {"thread_id": self._thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}
            found = saver.get_tuple({"configurable": place})
            if found is None or not selection.matches(found.metadata):
                yield None
                continue
            left -= 1
            yield found

    def delta_history(self, checkpoint_ns: str, checkpoint_id: str, channel: str) -> DeltaChannelHistory:
        """Walk up the parents, collecting writes, to the first stored value, a history that was read, or the root.

        Raises:
            CheckpointUnavailableError: the chain leaves what is here before that, or its order is not known.
        """
        stored = self.stored(checkpoint_ns)
        newest_first: list[PendingWrite] = []
        current = checkpoint_id
        while True:
            known = self._histories.get((checkpoint_ns, current, channel))
            if known is not None:
                seed, older = known
                writes = [(task_id, channel, self._serializer.thaw(value)) for task_id, value in older]
                return self._as_history(seed, writes + newest_first[::-1])
            parent = stored[current][2] if current in stored else MISSING
            if parent is None:
                return self._as_history(None, newest_first[::-1])
            if parent not in stored:
                raise CheckpointUnavailableError(f"the history of channel {channel!r} leaves what is warm")
            of_step = [write for write in self._writes(checkpoint_ns, parent) if write[1] == channel]
            if len({READ_PATH.fullmatch(path) is None for _, _, _, path in of_step}) > 1:
                raise CheckpointUnavailableError(f"in which order channel {channel!r} was written is not warm")
            newest_first += (
                (task_id, channel, self._serializer.loads_typed(value)) for task_id, _, value, _ in reversed(of_step)
            )
            versions = load_plain(Serialized(*stored[parent][0]), self._serializer)["channel_versions"]
            key = (self._thread_id, checkpoint_ns, channel, versions.get(channel, MISSING))
            if (value := self.blob(key)) is not None:
                return self._as_history(value, newest_first[::-1])
            current = parent

    def _as_history(self, seed: Serialized | None, writes: list[PendingWrite]) -> DeltaChannelHistory:
        if seed is None:
            return DeltaChannelHistory(writes=writes)
        return DeltaChannelHistory(writes=writes, seed=self._serializer.thaw(seed))

    def trim(self, heads: Mapping[str, str]) -> None:
        """Drop everything but these checkpoints, one of each namespace, with their values, writes and histories."""
        whole, self._saver = self._saver, InMemorySaver(serde=self._serializer)
        kept = set(heads.items())
        self._histories = {key: history for key, history in self._histories.items() if key[:2] in kept}
        self.size = THREAD + sum(_size_of_history(*history) for history in self._histories.values())
        for checkpoint_ns, head in heads.items():
            stored = whole.storage[self._thread_id][checkpoint_ns][head]
            self._saver.storage[self._thread_id][checkpoint_ns][head] = stored
            self.size += CHECKPOINT + len(stored[0][1]) + len(stored[1][1])
            skeleton = load_plain(Serialized(*stored[0]), self._serializer)
            for channel, version in skeleton["channel_versions"].items():
                key = self._thread_id, checkpoint_ns, channel, version
                if key in whole.blobs:
                    self._saver.blobs[key] = whole.blobs[key]
                    self.size += len(whole.blobs[key][1])
            of_head = self._thread_id, checkpoint_ns, head
            if of_head in whole.writes:
                self._saver.writes[of_head] = whole.writes[of_head]
                self.size += sum(_size_of_write(write) for write in whole.writes[of_head].values())

    def _writes(self, checkpoint_ns: str, checkpoint_id: str) -> Sequence[tuple[str, str, tuple[str, bytes], str]]:
        return self._saver._ordered_writes(self._thread_id, checkpoint_ns, checkpoint_id)

    def _described(self, value: Any) -> tuple[str, bytes]:
        return dump_described(value, self._serializer)

    def _freeze(self, value: Any) -> Serialized:
        return Serialized(*self._serializer.dumps_typed(value))


def _size_of_write(write: tuple[str, str, tuple[str, bytes], str]) -> int:
    return WRITE + len(write[2][1])


def _size_of_history(seed: Serialized | None, writes: Sequence[tuple[str, Serialized]]) -> int:
    return CHECKPOINT + sum(len(value.data) for _, value in writes) + (len(seed.data) if seed is not None else 0)
