"""LangGraph's memory saver with what operators ask of threads: copying, pruning, deleting by run, and listing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing.backends.directory import ThreadHead, checked_metadata, time_of, user_of
from enhanced_checkpointing.backends.pruning import (
    DELETE,
    Held,
    Link,
    Plan,
    check_strategy,
    leave_out,
    link_of,
    plan_pruning,
    plan_removal,
    read_of,
    refuse_copy,
)
from enhanced_checkpointing.errors import CheckpointCorruptionError
from enhanced_checkpointing.identifiers import USER_ID
from enhanced_checkpointing.serialization import MSGPACK, Serialized, SharingSerializer, dump_plain, load_plain

EMPTY = "empty"
"""The tag that the saver gives to a channel that has no value."""

Stored = tuple[tuple[str, bytes], tuple[str, bytes], str | None]
"""Checkpoint, metadata, and the id of the parent."""


class MaintainedMemorySaver(InMemorySaver):
    """Each method is done before anybody else gets a turn."""

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
        check_strategy(thread_ids, strategy)
        for thread_id in map(str, thread_ids):
            if strategy == DELETE:
                self.delete_thread(thread_id)
            else:
                await self.aprune_thread(thread_id, keep=1)

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
            valued = (one for one, blob in blobs.items() if blob is not None and blob[0] != EMPTY)
            return Held(known, frozenset(valued))

        return held_by

    def _versions(self, thread_id: str, namespace: str, checkpoint_id: str) -> dict[str, str | int | float]:
        stored = self.storage[thread_id][namespace][checkpoint_id]
        return read_of("checkpoint", lambda: dict(self._document("checkpoint", stored[0])["channel_versions"]))

    def _carry_out(self, thread_id: str, plan: Plan) -> int:
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
