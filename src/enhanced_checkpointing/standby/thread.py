"""One thread's warm copy: what is known to be the newest and to be complete in it, who wrote it, and which step called
a subgraph; and so what it may answer. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, DeltaChannelHistory
from langgraph.checkpoint.serde.base import SerializerProtocol

from enhanced_checkpointing.backends.base import Backend, Selection
from enhanced_checkpointing.backends.memory.backend import BlobKey
from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.identifiers import created_at
from enhanced_checkpointing.operations import Put, PutWrites, checkpoint_id_of, namespace_of, operations_of
from enhanced_checkpointing.serialization import Serialized, SharingSerializer
from enhanced_checkpointing.standby.store import MISSING, WarmStore, WriteThatStays

NAME = 150
"""Bytes that the name of a namespace costs of which nothing is here but that it was empty."""

TaskKey = tuple[str, str]
"""Checkpoint id, task id."""

RUNNING_TASK = "__pregel_task_id"
"""Where LangGraph names the task that runs right now in this process, in the config of what the task calls."""


class Authorship:
    """Tells the checkpoints of this process, and the steps that somebody else has run."""

    def __init__(self) -> None:
        self._written_here: set[str] = set()
        self._on_their_way: dict[TaskKey, int] = {}
        """Tasks for which this process is writing something that is not acknowledged yet: how many calls of each."""
        self._ran_elsewhere: set[str] = set()
        """Checkpoints on which somebody else has run a task."""

    @property
    def own(self) -> Collection[str]:
        """The checkpoints that this process has made."""
        return self._written_here

    def note_own(self, operation: Put | PutWrites) -> None:
        """This process is about to write this: what belongs to such a checkpoint cannot be anywhere else yet, and such
        writes are not somebody else's when they are read before they are acknowledged."""
        if isinstance(operation, Put):
            self._written_here.add(operation.checkpoint_id)
        else:
            key = operation.checkpoint_id, operation.task_id
            self._on_their_way[key] = self._on_their_way.get(key, 0) + 1

    def note_settled(self, operation: PutWrites) -> None:
        """Writes that this process has made are acknowledged now, or refused."""
        key = operation.checkpoint_id, operation.task_id
        left = self._on_their_way.pop(key, 0) - 1
        if left > 0:
            self._on_their_way[key] = left

    def note_refused(self, put: Put) -> None:
        """A checkpoint that this process has made was not acknowledged, and is not here."""
        self._written_here.discard(put.checkpoint_id)

    def note_others(self, checkpoint_id: str, task_ids: Collection[str]) -> bool:
        """Writes of these tasks were read that are not here. Whether any of them are somebody else's."""
        theirs = any((checkpoint_id, task_id) not in self._on_their_way for task_id in task_ids)
        if theirs:
            self.note_ran_elsewhere(checkpoint_id)
        return theirs

    def note_ran_elsewhere(self, checkpoint_id: str) -> None:
        """Somebody else has run a task of the step on a checkpoint."""
        self._ran_elsewhere.add(checkpoint_id)

    def ran_elsewhere(self, steps: Collection[str]) -> bool:
        """Whether it is known that somebody else has run a task of one of these steps."""
        return not self._ran_elsewhere.isdisjoint(steps)

    def keep(self, checkpoint_ids: Collection[str]) -> None:
        """Forget what this process has made but these."""
        self._written_here.intersection_update(checkpoint_ids)


@dataclass(frozen=True, slots=True)
class SubgraphCall:
    """One call of a subgraph, by a step of the graph in the namespace `caller_ns`: its checkpoint `caller_id`.

    `steps` are the checkpoints of that step and of those that called its graph. `running`: the calling task asks by
    itself.
    """

    caller_ns: str
    caller_id: str
    steps: frozenset[str]
    running: bool


def call_of(config: RunnableConfig) -> SubgraphCall | None:
    """The call that a namespace is for; None where it is not that of one call, or its step is not named."""
    configurable = config["configurable"]
    steps = configurable.get("checkpoint_map") or {}
    caller_ns, task_id = _caller(namespace_of(config))
    caller_id = steps.get(caller_ns)
    if task_id is None or caller_id is None:
        return None
    running = configurable.get(RUNNING_TASK) == task_id
    of_calls = {caller_id}
    above = caller_ns
    while task_id is not None:
        if above in steps:
            of_calls.add(steps[above])
        above, task_id = _caller(above)
    while caller_ns and steps.get(above := _caller(caller_ns)[0]) == caller_id:
        caller_ns = above  # a task of the functional API has its graph's step, under a namespace of its own
    return SubgraphCall(caller_ns, caller_id, frozenset(of_calls), running)


def _caller(checkpoint_ns: str) -> tuple[str, str | None]:
    """The namespace of the graph whose task called a subgraph, and the task's id; None where a namespace is not that of
    one call.

    LangGraph ends such a namespace in the name and the id of the task, with a colon between them, and from the task's
    second subgraph on in a number more: `planner:4ab3|search:9cd1|1`.
    """
    *above, call = checkpoint_ns.split("|")
    while call.isdigit() and above:
        call = above.pop()
    _, colon, task_id = call.rpartition(":")
    return "|".join(above), task_id if colon else None


class WarmThread:
    """Knows, per namespace, the newest checkpoint, and whether everything is here or only some checkpoints."""

    def __init__(
        self,
        thread_id: str,
        serializer: SharingSerializer,
        write_that_stays: WriteThatStays = Backend.write_that_stays,
    ) -> None:
        self._serializer = serializer
        self.store = WarmStore(thread_id, serializer, write_that_stays)
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
        return self.store.size + NAME * len(self._complete_namespaces)

    @property
    def is_outdated(self) -> bool:
        """Whether the allow-list was widened since something was read: what was plain data may be an object now."""
        return self._read_by is not None and self._read_by is not self._serializer.inner

    @property
    def is_blank(self) -> bool:
        """Whether no checkpoint and no write is here."""
        return self.store.is_blank

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
        if self.store.stored(checkpoint_ns):
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
        return self.store.blob(key)

    def put(self, put: Put) -> None:
        """Take a checkpoint written by this process: it is the newest of its namespace from now on."""
        if self.store.put(put):  # else it may be another's, which was put again
            self.authorship.note_own(put)
        self._heads[put.checkpoint_ns] = max(put.checkpoint_id, self._heads.get(put.checkpoint_ns, ""))

    def note_refused(self, operation: Put | PutWrites) -> None:
        """What this process was about to write was not acknowledged."""
        if isinstance(operation, PutWrites):
            self.authorship.note_settled(operation)
        elif operation.checkpoint_id not in self.store.stored(operation.checkpoint_ns):
            self.authorship.note_refused(operation)

    def put_writes(self, operation: PutWrites) -> bool:
        """Take the writes of one task of this process, and tell whether any may have replaced others."""
        self.authorship.note_settled(operation)
        return self.store.put_writes(operation)

    def annotate(self, changes: Mapping[str, Any]) -> None:
        """The metadata of the newest root checkpoint was changed."""
        self.store.annotate("", self._heads.get("", MISSING), changes)

    def trim(self) -> None:
        """Drop everything but the newest checkpoint of each namespace, with its values and writes."""
        self.doubt()
        self._heads = {name: head for name, head in self._heads.items() if head in self.store.stored(name)}
        self.authorship.keep(self._heads.values())
        self.store.trim(self._heads)

    def warm_history(self, checkpoint_ns: str, checkpoint_id: str, found: Mapping[str, DeltaChannelHistory]) -> None:
        """Take the history of delta channels that the primary gave for one checkpoint."""
        self._read_by = self._read_by or self._serializer.inner
        self.store.put_history(checkpoint_ns, checkpoint_id, found)

    def warm(self, found: CheckpointTuple, *, newest: bool, newer: Collection[str] = ()) -> None:
        """Take a checkpoint that was read from the primary; `newest` if it was asked for as the newest. In the
        namespaces `newer`, something was acknowledged since."""
        checkpoint_ns, checkpoint_id = namespace_of(found.config), found.checkpoint["id"]
        if newest:
            self._advance(checkpoint_ns, checkpoint_id)
        changed = self.store.changed_tasks(checkpoint_ns, found)
        stored = checkpoint_id in self.store.stored(checkpoint_ns)
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
                self.store.put(operation)
            elif isinstance(operation, PutWrites) and operation.task_id in changed:
                self.store.replace_writes(operation)

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
            stored, head = self.store.stored(checkpoint_ns), self._heads.get(checkpoint_ns)
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
        found = self.store.get_tuple(config)
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
        return self.store.history(config, selection)

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
        return {channel: self.store.delta_history(checkpoint_ns, checkpoint_id, channel) for channel in channels}

    def _advance(self, checkpoint_ns: str, checkpoint_id: str) -> None:
        self._heads[checkpoint_ns] = max(checkpoint_id, self._heads.get(checkpoint_ns, ""))

    def _is_new_call(self, config: RunnableConfig, checkpoint_ns: str) -> bool:
        """Whether a namespace belongs to one call of a subgraph by a step that only this process has run.

        This process wrote the checkpoint of that step, or is making it right now; and nobody else has run anything of
        that step, or of one above it, as far as was read here.
        """
        if self.store.stored(checkpoint_ns) or checkpoint_ns in self._heads or (call := call_of(config)) is None:
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
        if not self.knows_head(call.caller_ns) or call.caller_id in self.store.stored(call.caller_ns):
            return False
        return call.caller_id > (self.head(call.caller_ns) or MISSING)
