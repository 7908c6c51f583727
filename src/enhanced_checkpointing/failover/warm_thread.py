"""One thread's warm copy: an `InMemorySaver` of its own, and what is known to be complete in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointTuple, DeltaChannelHistory, PendingWrite
from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.backends.memory.backend import NO_VALUE, BlobKey, blob_of
from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.failover.authorship import Authorship
from enhanced_checkpointing.failover.subgraph_calls import SubgraphCall, call_of
from enhanced_checkpointing.identifiers import created_at
from enhanced_checkpointing.operations import Put, PutWrites, checkpoint_id_of, namespace_of, operations_of
from enhanced_checkpointing.serialization import Serialized, SharingSerializer

THREAD, CHECKPOINT = 2_700, 1_450
"""Bytes that a warm thread costs besides its checkpoints, and a checkpoint besides its values; measured with
`tracemalloc`, which a test repeats."""

WRITE = 100
"""Bytes that a pending write costs besides its value."""

NAME = 150
"""Bytes that the name of a namespace costs of which nothing is here but that it was empty."""

MISSING = ""
"""No checkpoint id and no version is empty."""

HistoryKey = tuple[str, str, str]
"""Namespace, checkpoint id, channel."""

READ_PATH = re.compile(r"~\d+")
"""The path of a task whose writes were read, as `operations_of` makes it: it tells nothing about the tasks of here."""


class WarmThread:
    """Knows, per namespace, the newest checkpoint, and whether everything is here or only some checkpoints.

    `size` is in bytes.
    """

    def __init__(self, thread_id: str, serializer: SharingSerializer) -> None:
        self._thread_id = thread_id
        self._serializer = serializer
        self._saver = InMemorySaver(serde=serializer)
        self.complete = False
        """The whole thread began, or was deleted, under the eyes of this process."""
        self._complete_namespaces: set[str] = set()
        self._heads: dict[str, str] = {}
        self.authorship = Authorship()
        self._histories: dict[HistoryKey, tuple[Serialized | None, tuple[tuple[str, Serialized], ...]]] = {}
        self.size = THREAD

    @property
    def is_blank(self) -> bool:
        """Whether no checkpoint and no write is here."""
        # A saver that is asked for a namespace makes room for it, so an empty namespace is not a checkpoint.
        stored = any(any(namespaces.values()) for namespaces in self._saver.storage.values())
        return not stored and not self._saver.writes

    def head(self, checkpoint_ns: str) -> str | None:
        """The newest checkpoint of a namespace, as far as this process knows it."""
        return self._heads.get(checkpoint_ns)

    def knows_head(self, checkpoint_ns: str) -> bool:
        """Whether `head` is an answer: the newest checkpoint, or for certain none."""
        return checkpoint_ns in self._heads or self.is_complete(checkpoint_ns)

    def is_complete(self, checkpoint_ns: str) -> bool:
        """Whether every checkpoint of a namespace is here."""
        return self.complete or checkpoint_ns in self._complete_namespaces

    def note_empty(self, checkpoint_ns: str, *, blank: bool = True) -> None:
        """The primary said that a namespace holds nothing; of the root namespace of a `blank` thread, that all do."""
        if self._saver.storage[self._thread_id].get(checkpoint_ns):
            return
        if checkpoint_ns == "" and blank and self.is_blank:
            self.complete = True
        else:
            self._know_all_of(checkpoint_ns)

    def _know_all_of(self, checkpoint_ns: str) -> None:
        if checkpoint_ns not in self._complete_namespaces:
            self._complete_namespaces.add(checkpoint_ns)
            self.size += NAME

    def doubt(self) -> None:
        """What is here is right, and may be not all there is."""
        self.complete = False
        self.size -= NAME * len(self._complete_namespaces)
        self._complete_namespaces.clear()

    def blob(self, key: BlobKey) -> Serialized | None:
        """The bytes of one version of a channel, if they are here."""
        return blob_of(self._saver, key)

    def put(self, put: Put) -> None:
        """Take a checkpoint written by this process: it is the newest of its namespace from now on."""
        if put.checkpoint_id not in self._stored(put.checkpoint_ns):  # else it may be another's, which was put again
            self.authorship.note_own(put)
        self._store(put)
        self._advance(put.checkpoint_ns, put.checkpoint_id)

    def note_refused(self, operation: Put | PutWrites) -> None:
        """What this process was about to write was not acknowledged."""
        if isinstance(operation, PutWrites):
            self.authorship.note_settled(operation)
        elif operation.checkpoint_id not in self._stored(operation.checkpoint_ns):
            self.authorship.note_refused(operation)

    def annotate(self, changes: Mapping[str, Any]) -> None:
        """The metadata of the newest root checkpoint was changed."""
        newest = self._heads.get("", MISSING)
        if newest in self._stored(""):
            skeleton, metadata, parent = self._stored("")[newest]
            changed = self._serializer.dumps_typed({**self._serializer.loads_typed(metadata), **changes})
            self._saver.storage[self._thread_id][""][newest] = skeleton, changed, parent
            self.size += len(changed[1]) - len(metadata[1])

    def put_writes(self, operation: PutWrites) -> None:
        """Take the writes of one task.

        As `InMemorySaver.put_writes` would, which wants a config; a test compares the two.
        """
        of_checkpoint = operation.thread_id, operation.checkpoint_ns, operation.checkpoint_id
        for position, (channel, value) in enumerate(operation.writes):
            stored, index = self._saver.writes[of_checkpoint], WRITES_IDX_MAP.get(channel, position)
            key = operation.task_id, index
            if index < 0 or key not in stored:
                as_bytes = self._serializer.dumps_typed(value)
                stored[key] = operation.task_id, channel, as_bytes, operation.task_path
                self.size += len(as_bytes[1]) + WRITE

    def warm(self, found: CheckpointTuple, *, newest: bool, newer: Collection[str] = ()) -> None:
        """Take a checkpoint that was read from the primary; `newest` if it was asked for as the newest. In the
        namespaces `newer`, something was acknowledged since."""
        checkpoint_ns, checkpoint_id = namespace_of(found.config), found.checkpoint["id"]
        if newest:
            self._advance(checkpoint_ns, checkpoint_id)
        changed = self._changed_tasks(checkpoint_ns, found)
        stored = checkpoint_id in self._stored(checkpoint_ns)
        if stored and not changed:
            return  # the common case: this process wrote it, and nothing has to be serialized again
        theirs = self.authorship.note_others(checkpoint_id, changed)
        is_theirs = not (stored or checkpoint_id in self.authorship.own)
        if theirs or is_theirs:
            self.doubt()  # somebody else wrote it, and may have written more that was never read
            if is_theirs and found.parent_config is not None:
                self.authorship.note_ran_elsewhere(str(checkpoint_id_of(found.parent_config)))
            if theirs or newest:
                self._doubt_subgraphs_of(checkpoint_ns, spared=newer)
        for operation in operations_of(found, self._serializer):
            if isinstance(operation, Put) and not stored:
                self._store(operation)
            elif isinstance(operation, PutWrites) and operation.task_id in changed:
                self._forget_writes(operation)
                self.put_writes(operation)

    def _doubt_subgraphs_of(self, checkpoint_ns: str, *, spared: Collection[str]) -> None:
        """Somebody else has gone on with a graph: what is the newest of the subgraphs that it calls must be read."""
        above = f"{checkpoint_ns}|" if checkpoint_ns else ""
        for name in [name for name in self._heads if name.startswith(above) and name not in (checkpoint_ns, *spared)]:
            del self._heads[name]

    def compare(
        self,
        listed: Sequence[CheckpointTuple],
        *,
        newest: bool,
        newer: Collection[str] = (),
        whole_of: Callable[[str], bool] | None,
    ) -> bool:
        """Take what the primary listed: `newest`, if its newest ones are in it; `whole_of` tells of which namespaces
        it is all there is. In the namespaces `newer`, something was acknowledged since it was asked for.

        Only what was not known of is kept: that there is something newer, or more, than is here. False: the primary
        has nothing more of a namespace of which something is here.
        """
        of_namespaces: dict[str, dict[str, CheckpointTuple]] = {}
        for found in listed:
            of_namespaces.setdefault(namespace_of(found.config), {})[found.checkpoint["id"]] = found
        for checkpoint_ns, of_namespace in of_namespaces.items():
            stored, head = self._stored(checkpoint_ns), self._heads.get(checkpoint_ns)
            last = max(of_namespace)
            knows_older = head < last if head is not None else newest and self.is_complete(checkpoint_ns)
            if not of_namespace.keys() <= stored.keys() | self.authorship.own:
                self.doubt()
            if knows_older:
                self.warm(of_namespace[last], newest=True, newer=newer)
            if whole_of is not None and not stored.keys() <= of_namespace.keys():
                self.doubt()  # somebody has pruned it
        return whole_of is None or all(name in of_namespaces for name in self._heads if whole_of(name))

    def trim(self) -> None:
        """Drop everything but the newest checkpoint of each namespace, with its values and writes."""
        whole, self._saver = self._saver, InMemorySaver(serde=self._serializer)
        heads = {
            name: head for name, head in self._heads.items() if head in whole.storage[self._thread_id].get(name, {})
        }
        self.doubt()
        self._heads = heads
        self.authorship.keep(heads.values())
        kept = set(heads.items())
        self._histories = {key: history for key, history in self._histories.items() if key[:2] in kept}
        self.size = THREAD + sum(_size_of_history(*history) for history in self._histories.values())
        for checkpoint_ns, head in heads.items():
            stored = whole.storage[self._thread_id][checkpoint_ns][head]
            self._saver.storage[self._thread_id][checkpoint_ns][head] = stored
            self.size += CHECKPOINT + len(stored[0][1]) + len(stored[1][1])
            for channel, version in self._serializer.loads_typed(stored[0])["channel_versions"].items():
                key = self._thread_id, checkpoint_ns, channel, version
                if key in whole.blobs:
                    self._saver.blobs[key] = whole.blobs[key]
                    self.size += len(whole.blobs[key][1])
            of_head = self._thread_id, checkpoint_ns, head
            if of_head in whole.writes:
                self._saver.writes[of_head] = whole.writes[of_head]
                self.size += sum(len(value[1]) + WRITE for _, _, value, _ in whole.writes[of_head].values())

    def _changed_tasks(self, checkpoint_ns: str, found: CheckpointTuple) -> set[str]:
        """The tasks of which the primary has other writes than are here."""
        here = self._writes(checkpoint_ns, found.checkpoint["id"])
        known = Counter((task_id, channel) for task_id, channel, _, _ in here)
        read = Counter((task_id, channel) for task_id, channel, _ in found.pending_writes or ())
        changed = {task_id for task_id, _ in read - known}
        # Of these a task has one each, and a later one takes its place: what it asks, was answered, and failed with.
        replaceable = {(task_id, channel): value for task_id, channel, value, _ in here if channel in WRITES_IDX_MAP}
        for task_id, channel, value in (found.pending_writes or ()) if replaceable else ():
            own = replaceable.get((task_id, channel))
            if own is not None and not self._is_same(own, value):
                changed.add(task_id)
        return changed

    def _is_same(self, own: tuple[str, bytes], value: Any) -> bool:
        mine = self._serializer.loads_typed(own)
        if self._serializer.dumps_typed(mine) == self._serializer.dumps_typed(value):
            return True
        try:  # bytes may differ each time that they are made, as those of a cipher do
            return bool(mine == value)
        except Exception:  # noqa: BLE001  # whatever a value raises that is no truth, such as an array
            return False

    def warm_history(self, checkpoint_ns: str, checkpoint_id: str, found: Mapping[str, DeltaChannelHistory]) -> None:
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
        """Answer a read.

        Raises:
            CheckpointUnavailableError: only the primary knows.
        """
        checkpoint_ns, checkpoint_id = namespace_of(config), checkpoint_id_of(config)
        if checkpoint_id is None and checkpoint_ns not in self._heads:
            if self.is_complete(checkpoint_ns) or self._is_new_call(config, checkpoint_ns):
                return None
            raise CheckpointUnavailableError(f"no checkpoint of namespace {checkpoint_ns!r} is warm")
        found = self._saver.get_tuple(config)
        if found is None and not self._is_nowhere(checkpoint_ns, str(checkpoint_id)):
            raise CheckpointUnavailableError(f"checkpoint {checkpoint_id} is not warm")
        return found

    def _is_nowhere(self, checkpoint_ns: str, checkpoint_id: str) -> bool:
        """Whether a checkpoint that is not here is none at all. All that is known began here; but where there is
        something, somebody else may have gone on from it, whose checkpoints have ids that tell their time."""
        if not self.is_complete(checkpoint_ns):
            return False
        return checkpoint_ns not in self._heads or created_at(checkpoint_id) is None

    def history(
        self,
        config: RunnableConfig,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> list[CheckpointTuple]:
        """Answer a listing of checkpoints, newest first.

        Raises:
            CheckpointUnavailableError: some of the checkpoints asked for may be in the primary only.
        """
        checkpoint_ns = config["configurable"].get("checkpoint_ns")
        of_all = self.complete if checkpoint_ns is None else self.is_complete(checkpoint_ns)
        if not (of_all or (checkpoint_ns is not None and self._is_new_call(config, checkpoint_ns))):
            raise CheckpointUnavailableError("its history is not all warm")
        if any(isinstance(value, (dict, list)) for value in (filter or {}).values()):
            raise CheckpointUnavailableError("only the primary can match nested metadata")
        if checkpoint_ns is not None:
            return list(self._saver.list(config, filter=filter, before=before, limit=limit))
        found = sorted(
            self._saver.list(config, filter=filter, before=before),
            key=lambda item: item.checkpoint["id"],
            reverse=True,
        )
        return found if limit is None else found[:limit]

    def delta_history(self, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, DeltaChannelHistory]:
        """The history of delta channels.

        Raises:
            CheckpointUnavailableError: the chain of one of them leaves what is warm before a value or a true root.
        """
        checkpoint_ns = namespace_of(config)
        checkpoint_id = checkpoint_id_of(config) or self._heads.get(checkpoint_ns)
        if checkpoint_id is None:
            if not self.is_complete(checkpoint_ns):
                raise CheckpointUnavailableError("the newest checkpoint is not warm")
            return {channel: DeltaChannelHistory(writes=[]) for channel in channels}
        return {channel: self._delta_history(checkpoint_ns, checkpoint_id, channel) for channel in channels}

    def _delta_history(self, checkpoint_ns: str, checkpoint_id: str, channel: str) -> DeltaChannelHistory:
        """Walk up the parents, collecting writes, to the first stored value, a history that was read, or the root."""
        stored = self._stored(checkpoint_ns)
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
            versions = self._serializer.loads_typed(stored[parent][0])["channel_versions"]
            key = (self._thread_id, checkpoint_ns, channel, versions.get(channel, MISSING))
            if (value := self.blob(key)) is not None:
                return self._as_history(value, newest_first[::-1])
            current = parent

    def _as_history(self, seed: Serialized | None, writes: list[PendingWrite]) -> DeltaChannelHistory:
        if seed is None:
            return DeltaChannelHistory(writes=writes)
        return DeltaChannelHistory(writes=writes, seed=self._serializer.thaw(seed))

    def _store(self, put: Put) -> None:
        """Store a checkpoint with the value of every channel that is not here in that version already.

        As `InMemorySaver.put` would, which looks through the metadata once more; a test compares the two.
        """
        blobs, as_bytes = self._saver.blobs, self._serializer.dumps_typed
        size = CHECKPOINT
        for channel, version in put.skeleton["channel_versions"].items():
            key = put.thread_id, put.checkpoint_ns, channel, version
            if key not in blobs and (channel in put.values or channel in put.new_versions):
                blobs[key] = as_bytes(put.values[channel]) if channel in put.values else NO_VALUE
                size += len(blobs[key][1])
        stored = as_bytes(put.skeleton), as_bytes(put.metadata), put.parent_checkpoint_id
        self._saver.storage[put.thread_id][put.checkpoint_ns][put.checkpoint_id] = stored
        self.size += size + len(stored[0][1]) + len(stored[1][1])

    def _advance(self, checkpoint_ns: str, checkpoint_id: str) -> None:
        self._heads[checkpoint_ns] = max(checkpoint_id, self._heads.get(checkpoint_ns, ""))

    def _forget_writes(self, operation: PutWrites) -> None:
        """Drop the writes of one task, of which the primary has more."""
        writes = self._saver.writes.get((self._thread_id, operation.checkpoint_ns, operation.checkpoint_id), {})
        for key in [key for key in writes if key[0] == operation.task_id]:
            del writes[key]

    def _stored(self, checkpoint_ns: str) -> Mapping[str, tuple[tuple[str, bytes], tuple[str, bytes], str | None]]:
        return self._saver.storage[self._thread_id].get(checkpoint_ns, {})

    def _writes(self, checkpoint_ns: str, checkpoint_id: str) -> Sequence[tuple[str, str, tuple[str, bytes], str]]:
        return self._saver._ordered_writes(self._thread_id, checkpoint_ns, checkpoint_id)

    def _is_new_call(self, config: RunnableConfig, checkpoint_ns: str) -> bool:
        """Whether a namespace belongs to one call of a subgraph by a step that only this process has run.

        This process wrote the checkpoint of that step, or is making it right now; and nobody else has run anything of
        that step, or of one above it, as far as was read here.
        """
        if self._stored(checkpoint_ns) or checkpoint_ns in self._heads or (call := call_of(config)) is None:
            return False
        if self.authorship.ran_elsewhere(call.steps):
            return False
        is_ours = call.caller_id in self.authorship.own or (call.running and self._is_being_made(call))
        if is_ours:
            self._know_all_of(checkpoint_ns)  # what comes into it comes from here
        return is_ours

    def _is_being_made(self, call: SubgraphCall) -> bool:
        """Whether the step on which a graph of this process stands was made by that graph and not put yet: with
        `durability="async"` it is on its way, with "exit" it waits for the end.

        A graph that did not make it has read it here: newer ones or itself are warm then.
        """
        if not self.knows_head(call.caller_ns) or call.caller_id in self._stored(call.caller_ns):
            return False
        return call.caller_id > (self.head(call.caller_ns) or MISSING)

    def _freeze(self, value: Any) -> Serialized:
        return Serialized(*self._serializer.dumps_typed(value))


def _size_of_history(seed: Serialized | None, writes: Sequence[tuple[str, Serialized]]) -> int:
    return CHECKPOINT + sum(len(value.data) for _, value in writes) + (len(seed.data) if seed is not None else 0)
