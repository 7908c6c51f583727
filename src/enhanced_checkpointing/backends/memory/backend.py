"""Memory as the primary: for development and tests. It is never durable."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.backends.base import Backend, by_equality
from enhanced_checkpointing.backends.listing import HeadQuery, ThreadHead, checked_metadata, page_of, time_of, user_of
from enhanced_checkpointing.backends.pruning import (
    Held,
    Link,
    PruningPlan,
    leave_out,
    link_of,
    plan_pruning,
    plan_removal,
    prune_each,
    read_of,
    refuse_copy,
)
from enhanced_checkpointing.backends.reading import (
    Chunks,
    PutHistory,
    WriteRow,
    in_chunks,
    inherits_snapshot,
    writes_of,
)
from enhanced_checkpointing.backends.stored_values import inline, is_snapshot
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointCorruptionError
from enhanced_checkpointing.identifiers import USER_ID
from enhanced_checkpointing.journal.recovery import MEMORY
from enhanced_checkpointing.operations import Operation, Put, apply_shared
from enhanced_checkpointing.resilience.cooperative import collected
from enhanced_checkpointing.serialization import (
    MSGPACK,
    Opaque,
    Serialized,
    SharingSerializer,
    argument_of,
    dump_plain,
    load_plain,
)

NO_VALUE = ("empty", b"")
"""What an `InMemorySaver` keeps of a channel that has no value."""

Stored = tuple[tuple[str, bytes], tuple[str, bytes], str | None]
"""A checkpoint without its values, its metadata, and the id of its parent."""


class MaintainedMemorySaver(InMemorySaver):
    """Each method runs to its end before any other call."""

    def __init__(self, *, serde: SharingSerializer) -> None:
        super().__init__(serde=serde)
        self.unreadable: dict[str, str] = {}

    def heads(self, thread_ids: Collection[str] | None = None) -> Iterator[ThreadHead]:
        """These threads, or all; each is looked at when it is taken, so that many need not hold the event loop."""
        of_writes: dict[str, int] = {}
        for (thread_id, _, _), writes in self.writes.items():
            of_writes[thread_id] = of_writes.get(thread_id, 0) + sum(len(data) for *_, (_, data), _ in writes.values())
        for (thread_id, *_), (_, data) in self.blobs.items():
            of_writes[thread_id] = of_writes.get(thread_id, 0) + len(data)
        for thread_id in self.thread_ids() if thread_ids is None else thread_ids:
            if any((namespaces := dict(self.storage.get(thread_id, {}))).values()):
                yield self._head_or_why(thread_id, namespaces, of_writes.get(thread_id, 0))

    def thread_ids(self) -> list[str]:
        """All threads, in ascending order."""
        return sorted(thread_id for thread_id, namespaces in self.storage.items() if any(namespaces.values()))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        source, target = str(source_thread_id), str(target_thread_id)
        copied = self.storage.get(source, {})
        for namespace, checkpoints in self.storage.get(target, {}).items():
            if checkpoints.keys() - copied.get(namespace, {}).keys():
                raise refuse_copy(source, target)
        if source == target:
            return
        for namespace, checkpoints in copied.items():
            self.storage[target][namespace].update(checkpoints)
        for writes_key, writes in [*self.writes.items()]:
            if writes_key[0] == source:
                self.writes[target, *writes_key[1:]].update(writes)
        for blob_key, blob in [*self.blobs.items()]:
            if blob_key[0] == source:
                self.blobs[target, *blob_key[1:]] = blob

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        await prune_each(self, thread_ids, strategy)

    async def aprune_thread(self, thread_id: str, *, keep: int) -> int:
        """Keep the newest checkpoints of each namespace, and what these need; returns how many went."""
        return self._carry_out(thread_id, plan_pruning(self._links(thread_id), self._held_by(thread_id), keep))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        runs = {str(run_id) for run_id in run_ids}
        for thread_id in self.thread_ids():
            try:
                doomed = {
                    (namespace, checkpoint_id)
                    for namespace, checkpoints in self.storage[thread_id].items()
                    for checkpoint_id, stored in checkpoints.items()
                    if self._metadata(stored).get("run_id") in runs
                }
                if doomed:
                    self._carry_out(thread_id, plan_removal(self._links(thread_id), doomed, self._held_by(thread_id)))
            except CheckpointCorruptionError as error:
                leave_out(thread_id, error)

    def annotate(self, thread_id: str, changes: Mapping[str, Any]) -> bool:
        """Put these keys into the metadata of the newest root checkpoint; False if there is none."""
        of_root = self.storage.get(thread_id, {}).get("")
        if not of_root:
            return False
        checkpoint, _, parent_id = newest = of_root[max(of_root)]
        metadata = self._stored({**self._metadata(newest), **changes})
        of_root[max(of_root)] = checkpoint, metadata, parent_id
        return True

    def _head_or_why(
        self, thread_id: str, namespaces: Mapping[str, Mapping[str, Stored]], size_besides: int
    ) -> ThreadHead:
        try:
            head = self._head(thread_id, namespaces, size_besides)
        except CheckpointCorruptionError as error:
            newest = max(key for checkpoints in namespaces.values() for key in checkpoints)
            count = sum(map(len, namespaces.values()))
            self.unreadable[thread_id] = str(error)
            return ThreadHead(thread_id, newest, time_of(newest), {}, count, size_besides, unreadable=str(error))
        self.unreadable.pop(thread_id, None)
        return head

    def _head(self, thread_id: str, namespaces: Mapping[str, Mapping[str, Stored]], size_besides: int) -> ThreadHead:
        of_root = namespaces.get("") or {}
        everything = of_root or {key: one for checkpoints in namespaces.values() for key, one in checkpoints.items()}
        checkpoint_id = max(everything)
        checkpoint, *_ = newest = everything[checkpoint_id]
        when = time_of(checkpoint_id)
        if when is None:
            when = time_of(checkpoint_id, self._document("checkpoint", checkpoint).get("ts"))
        may_name = (one for one in sorted(of_root, reverse=True) if _may_name_a_user(of_root[one][1]))
        named = ((one, user_of(self._metadata(of_root[one]))) for one in may_name)
        named_by, user_id = next(((one, user) for one, user in named if user is not None), (None, None))
        sizes = (len(one[0][1]) + len(one[1][1]) for checkpoints in namespaces.values() for one in checkpoints.values())
        return ThreadHead(
            thread_id=thread_id,
            checkpoint_id=checkpoint_id,
            updated_at=when,
            metadata=self._metadata(newest),
            checkpoints=sum(map(len, namespaces.values())),
            size=sum(sizes) + size_besides,
            user_id=user_id,
            named_by=named_by,
        )

    def _metadata(self, stored: Stored) -> dict[str, Any]:
        return checked_metadata(self._document("metadata", stored[1]))

    def _document(self, what: str, stored: tuple[str, bytes]) -> Any:
        """Without making objects of the application: no graph asks for it."""
        serializer = self.serde
        assert isinstance(serializer, SharingSerializer)
        return read_of(what, lambda: load_plain(Serialized(*stored), serializer))

    def _stored(self, document: Mapping[str, Any]) -> tuple[str, bytes]:
        assert isinstance(self.serde, SharingSerializer)
        stored = dump_plain(dict(document), self.serde)
        return stored.tag, stored.data

    def _links(self, thread_id: str) -> dict[str, list[Link]]:
        return {
            namespace: [link_of(one, stored[2], self._metadata(stored)) for one, stored in checkpoints.items()]
            for namespace, checkpoints in self.storage.get(thread_id, {}).items()
            if checkpoints
        }

    def _held_by(self, thread_id: str) -> Any:
        def held_by(namespace: str, checkpoint_id: str, channels: frozenset[str]) -> Held:
            versions = self._versions(thread_id, namespace, checkpoint_id)
            known = channels & versions.keys()
            blobs = {one: self.blobs.get((thread_id, namespace, one, versions[one])) for one in known}
            valued = (one for one, blob in blobs.items() if blob is not None and blob[0] != NO_VALUE[0])
            return Held(known, frozenset(valued))

        return held_by

    def _versions(self, thread_id: str, namespace: str, checkpoint_id: str) -> dict[str, str | int | float]:
        stored = self.storage[thread_id][namespace][checkpoint_id]
        return read_of("checkpoint", lambda: dict(self._document("checkpoint", stored[0])["channel_versions"]))

    def _carry_out(self, thread_id: str, plan: PruningPlan) -> int:
        namespaces = self.storage.get(thread_id, {})
        for (namespace, checkpoint_id), parent_id in plan.parents.items():
            checkpoint, metadata, _ = namespaces[namespace][checkpoint_id]
            namespaces[namespace][checkpoint_id] = checkpoint, metadata, parent_id
        for namespace, dropped in plan.by_namespace().items():
            versions = {one for key in dropped for one in self._versions(thread_id, namespace, key).items()}
            for checkpoint_id in dropped:
                del namespaces[namespace][checkpoint_id]
                self.writes.pop((thread_id, namespace, checkpoint_id), None)
            for checkpoint_id in namespaces[namespace]:
                versions -= self._versions(thread_id, namespace, checkpoint_id).items()
            for channel, version in versions:
                self.blobs.pop((thread_id, namespace, channel, version), None)
        return len(plan.dropped)


def _may_name_a_user(metadata: tuple[str, bytes]) -> bool:
    """Whether it is worth while to read metadata for it: most of a thread's checkpoints name none."""
    return metadata[0] != MSGPACK or USER_ID.encode() in metadata[1]


def _in_json(metadata: Any) -> Any:
    """Metadata as every other database keeps it: of an enum, its value."""
    if isinstance(metadata, dict):
        return {key: _in_json(part) for key, part in metadata.items()}
    if isinstance(metadata, list):
        return [_in_json(part) for part in metadata]
    return argument_of(metadata) if type(metadata) is Opaque else metadata


BlobKey = tuple[str, str, str, str | int | float]
"""Thread, namespace, channel, version."""


def blob_of(saver: InMemorySaver, key: BlobKey) -> Serialized | None:
    """The bytes of one version of a channel, if a saver holds them."""
    stored = saver.blobs.get(key)
    return Serialized(*stored) if stored is not None and stored[0] != NO_VALUE[0] else None


class MemoryBackend(Backend):
    """LangGraph's `InMemorySaver`; everything is gone when the process ends."""

    name = "memory"
    db_system = "memory"
    reads_everything = True
    selection = staticmethod(by_equality)

    def __init__(self, config: CheckpointerConfig, serializer: SharingSerializer) -> None:
        super().__init__(config, serializer)
        self.saver = self._memory = MaintainedMemorySaver(serde=serializer)
        self.unreadable = self._memory.unreadable

    async def scrub(self) -> Sequence[str]:
        return []

    def database_id(self) -> str:
        return MEMORY

    def lost_types(self, operation: Operation) -> Collection[str]:
        return ()  # it takes bytes as they are

    async def apply(self, operation: Operation) -> None:
        await apply_shared(self.saver, operation)

    def read_thread(self, thread_id: str) -> Chunks:
        return in_chunks(self._operations_of(thread_id))

    async def _operations_of(self, thread_id: str) -> AsyncGenerator[Sequence[Operation], None]:
        history = PutHistory(thread_id)
        # Copies: the saver's dictionaries would make what is looked for and not there.
        stored = {name: dict(found) for name, found in (self._memory.storage.get(thread_id) or {}).items()}
        for namespace in sorted(stored):
            for checkpoint_id in sorted(stored[namespace]):
                put = self._put(history, thread_id, namespace, checkpoint_id, stored[namespace])
                yield [put, *self._writes(thread_id, namespace, checkpoint_id)]
        there = {(namespace, checkpoint_id) for namespace, found in stored.items() for checkpoint_id in found}
        written = {key[1:] for key in self._memory.writes if key[0] == thread_id}
        for namespace, checkpoint_id in sorted(written - there) if there else ():
            yield self._writes(thread_id, namespace, checkpoint_id)

    def _put(
        self,
        history: PutHistory,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str,
        checkpoints: Mapping[str, Stored],
    ) -> Put:
        checkpoint, metadata, parent_id = checkpoints[checkpoint_id]
        skeleton = load_plain(Serialized(*checkpoint), self.serializer)
        parent = checkpoints.get(parent_id or "")
        parents = load_plain(Serialized(*parent[0]), self.serializer)["channel_versions"] if parent else None
        versions = skeleton["channel_versions"]
        found = {name: self.blob(thread_id, checkpoint_ns, name, version) for name, version in versions.items()}
        snapshots = {channel for channel, value in found.items() if is_snapshot(value, self.serializer)}
        inherited = {channel for channel in snapshots if inherits_snapshot(channel, versions, parents)}
        values = {name: inline(value) for name, value in found.items() if value is not None and name not in inherited}
        described = _in_json(load_plain(Serialized(*metadata), self.serializer))
        own = frozenset(snapshots - inherited)
        return history.put(checkpoint_ns, checkpoint_id, parent_id, skeleton, values, described, own)

    def _writes(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> Sequence[Operation]:
        stored = self._memory.writes.get((thread_id, checkpoint_ns, checkpoint_id)) or {}
        rows = [
            WriteRow(task_id, task_path, index, channel, Serialized(*value))
            for (task_id, index), (_, channel, value, task_path) in stored.items()
        ]
        return writes_of(thread_id, checkpoint_ns, checkpoint_id, rows)

    async def thread_ids(self, after: str | None, limit: int) -> Sequence[str]:
        if not self._is_bare():
            return await super().thread_ids(after, limit)
        return [one for one in self._memory.thread_ids() if after is None or one > after][: max(0, limit)]

    async def heads(self, query: HeadQuery) -> Sequence[ThreadHead]:
        return page_of(await collected(self._memory.heads()), query) if self._is_bare() else await super().heads(query)

    async def describe(self, thread_ids: Sequence[str]) -> Sequence[ThreadHead]:
        if not self._is_bare():
            return await super().describe(thread_ids)
        return await collected(self._memory.heads(dict.fromkeys(thread_ids)))

    async def annotate(self, thread_id: str, changes: Mapping[str, Any]) -> bool:
        if not self._is_bare():
            return await super().annotate(thread_id, changes)
        return self._memory.annotate(thread_id, changes)

    def _is_bare(self) -> bool:
        """Whether no other saver, such as one that fails at will, stands in front of ours."""
        return self.saver is self._memory

    def never_waits(self) -> bool:
        return type(self) is MemoryBackend and self.saver is self._memory

    def blob(self, thread_id: str, checkpoint_ns: str, channel: str, version: str | int | float) -> Serialized | None:
        return blob_of(self._memory, (thread_id, checkpoint_ns, channel, version))
