"""One thread's warm copy: what is known to be the newest and to be complete in it, and so what it may answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, DeltaChannelHistory
from langgraph.checkpoint.serde.base import SerializerProtocol

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.memory.backend import BlobKey
from enhanced_checkpointing.backends.selection import Selection
from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.identifiers import created_at
from enhanced_checkpointing.operations import Put, PutWrites, checkpoint_id_of, namespace_of, operations_of
from enhanced_checkpointing.serialization import Serialized, SharingSerializer
from enhanced_checkpointing.standby.provenance import Authorship
from enhanced_checkpointing.standby.store import MISSING, WarmStore, WriteThatStays
from enhanced_checkpointing.standby.subgraph_calls import SubgraphCall, call_of

NAME = 150
"""Bytes that the name of a namespace costs of which nothing is here but that it was empty."""


class WarmThread:
    """Knows, per namespace, the newest checkpoint, and whether everything is here or only some checkpoints."""

    def __init__(
        self,
        thread_id: str,
        serializer: SharingSerializer,
        write_that_stays: WriteThatStays = Backend.write_that_stays,
    ) -> None:
        self._serializer = serializer
        self._store = WarmStore(thread_id, serializer, write_that_stays)
        self.complete = False
        """The whole thread began, or was deleted, under the eyes of this process."""
        self._complete_namespaces: set[str] = set()
        self._heads: dict[str, str] = {}
        self.authorship = Authorship()
        self._read_by: SerializerProtocol | None = None
        """The serializer that made the values which were read of it; None: nothing of it was read."""

    @property
    def size(self) -> int:
        """Bytes, about."""
        return self._store.size + NAME * len(self._complete_namespaces)

    @property
    def is_outdated(self) -> bool:
        """Whether the allow-list was widened since something was read: what was plain data may be an object now."""
        return self._read_by is not None and self._read_by is not self._serializer.inner

    @property
    def is_blank(self) -> bool:
        """Whether no checkpoint and no write is here."""
        return self._store.is_blank

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
        if self._store.stored(checkpoint_ns):
            return
        if checkpoint_ns == "" and blank and self.is_blank:
            self.complete = True
        else:
            self._complete_namespaces.add(checkpoint_ns)

    def doubt(self) -> None:
        """What is here is right, and may be not all there is."""
        self.complete = False
        self._complete_namespaces.clear()

    def blob(self, key: BlobKey) -> Serialized | None:
        """The bytes of one version of a channel, if they are here."""
        return self._store.blob(key)

    def put(self, put: Put) -> None:
        """Take a checkpoint written by this process: it is the newest of its namespace from now on."""
        if put.checkpoint_id not in self._store.stored(
            put.checkpoint_ns
        ):  # else it may be another's, which was put again
            self.authorship.note_own(put)
        self._store.put(put)
        self._advance(put.checkpoint_ns, put.checkpoint_id)

    def note_refused(self, operation: Put | PutWrites) -> None:
        """What this process was about to write was not acknowledged."""
        if isinstance(operation, PutWrites):
            self.authorship.note_settled(operation)
        elif operation.checkpoint_id not in self._store.stored(operation.checkpoint_ns):
            self.authorship.note_refused(operation)

    def put_writes(self, operation: PutWrites) -> None:
        """Take the writes of one task of this process."""
        self._store.put_writes(operation)

    def annotate(self, changes: Mapping[str, Any]) -> None:
        """The metadata of the newest root checkpoint was changed."""
        self._store.annotate("", self._heads.get("", MISSING), changes)

    def trim(self) -> None:
        """Drop everything but the newest checkpoint of each namespace, with its values and writes."""
        self.doubt()
        self._heads = {name: head for name, head in self._heads.items() if head in self._store.stored(name)}
        self.authorship.keep(self._heads.values())
        self._store.trim(self._heads)

    def warm_history(self, checkpoint_ns: str, checkpoint_id: str, found: Mapping[str, DeltaChannelHistory]) -> None:
        """Take the history of delta channels that the primary gave for one checkpoint."""
        self._read_by = self._read_by or self._serializer.inner
        self._store.put_history(checkpoint_ns, checkpoint_id, found)

    def warm(self, found: CheckpointTuple, *, newest: bool, newer: Collection[str] = ()) -> None:
        """Take a checkpoint that was read from the primary; `newest` if it was asked for as the newest. In the
        namespaces `newer`, something was acknowledged since."""
        checkpoint_ns, checkpoint_id = namespace_of(found.config), found.checkpoint["id"]
        if newest:
            self._advance(checkpoint_ns, checkpoint_id)
        changed = self._store.changed_tasks(checkpoint_ns, found)
        stored = checkpoint_id in self._store.stored(checkpoint_ns)
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
        self._read_by = self._read_by or self._serializer.inner
        for operation in operations_of(found, self._serializer):
            if isinstance(operation, Put) and not stored:
                self._store.put(operation)
            elif isinstance(operation, PutWrites) and operation.task_id in changed:
                self._store.replace_writes(operation)

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
            stored, head = self._store.stored(checkpoint_ns), self._heads.get(checkpoint_ns)
            last = max(of_namespace)
            knows_older = head < last if head is not None else newest and self.is_complete(checkpoint_ns)
            if not of_namespace.keys() <= stored.keys() | self.authorship.own:
                self.doubt()
            if knows_older:
                self.warm(of_namespace[last], newest=True, newer=newer)
            if whole_of is not None and not stored.keys() <= of_namespace.keys():
                self.doubt()  # somebody has pruned it
        return whole_of is None or all(name in of_namespaces for name in self._heads if whole_of(name))

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
        found = self._store.get_tuple(config)
        if found is None and not self._is_nowhere(checkpoint_ns, str(checkpoint_id)):
            raise CheckpointUnavailableError(f"checkpoint {checkpoint_id} is not warm")
        return found

    def _is_nowhere(self, checkpoint_ns: str, checkpoint_id: str) -> bool:
        """Whether a checkpoint that is not here is none at all. All that is known began here; but where there is
        something, somebody else may have gone on from it, whose checkpoints have ids that tell their time."""
        if not self.is_complete(checkpoint_ns):
            return False
        return checkpoint_ns not in self._heads or created_at(checkpoint_id) is None

    def history(self, config: RunnableConfig, selection: Selection) -> Iterator[CheckpointTuple | None]:
        """Answer a listing of checkpoints, newest first; each is made when it is taken, with None for one that does not
        match.

        Raises:
            CheckpointUnavailableError: some of the checkpoints asked for may be in the primary only.
        """
        checkpoint_ns = config["configurable"].get("checkpoint_ns")
        of_all = self.complete if checkpoint_ns is None else self.is_complete(checkpoint_ns)
        if not (of_all or (checkpoint_ns is not None and self._is_new_call(config, checkpoint_ns))):
            raise CheckpointUnavailableError("its history is not all warm")
        return self._store.history(config, selection)

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
        return {channel: self._store.delta_history(checkpoint_ns, checkpoint_id, channel) for channel in channels}

    def _advance(self, checkpoint_ns: str, checkpoint_id: str) -> None:
        self._heads[checkpoint_ns] = max(checkpoint_id, self._heads.get(checkpoint_ns, ""))

    def _is_new_call(self, config: RunnableConfig, checkpoint_ns: str) -> bool:
        """Whether a namespace belongs to one call of a subgraph by a step that only this process has run.

        This process wrote the checkpoint of that step, or is making it right now; and nobody else has run anything of
        that step, or of one above it, as far as was read here.
        """
        if self._store.stored(checkpoint_ns) or checkpoint_ns in self._heads or (call := call_of(config)) is None:
            return False
        if self.authorship.ran_elsewhere(call.steps):
            return False
        is_ours = call.caller_id in self.authorship.own or (call.running and self._is_being_made(call))
        if is_ours:
            self._complete_namespaces.add(checkpoint_ns)  # what comes into it comes from here
        return is_ours

    def _is_being_made(self, call: SubgraphCall) -> bool:
        """Whether the step on which a graph of this process stands was made by that graph and not put yet: with
        `durability="async"` it is on its way, with "exit" it waits for the end.

        A graph that did not make it has read it here: newer ones or itself are warm then.
        """
        if not self.knows_head(call.caller_ns) or call.caller_id in self._store.stored(call.caller_ns):
            return False
        return call.caller_id > (self.head(call.caller_ns) or MISSING)
