"""The saver's door: what is another user's thread does not exist for the user whom a config names.

Whose a thread is stands in its newest root checkpoint, which LangGraph reads before it writes: that read is the check,
and costs nothing. Only a call that comes without one, and names a user, asks for it, once a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)

from enhanced_checkpointing.backends.listing import user_of
from enhanced_checkpointing.errors import CheckpointerError, CheckpointNotFoundError, CheckpointUnavailableError, quoted
from enhanced_checkpointing.identifiers import USER_ID
from enhanced_checkpointing.operations import asks_for_thread, checkpoint_id_of, namespace_of, thread_of
from enhanced_checkpointing.ownership import (
    ASKED_TO_SHARE,
    NO_THREAD,
    OWNER,
    Ownership,
    asking,
    is_seen_by,
    may_use,
    not_found,
    ownership_of,
    user_in,
)
from enhanced_checkpointing.saver.read_path import Engine
from enhanced_checkpointing.serialization import without_objects
from enhanced_checkpointing.tombstones import Tombstones

CHECKPOINT_MAP = "checkpoint_map"
"""LangGraph's key in `configurable`: the checkpoint that each graph around a subgraph is at, by namespace."""

GLANCE_SECONDS = 0.02
"""Between two looks for a checkpoint that is on its way."""

MOST = 100_000
"""Threads whose owner is remembered; those that were learned of the longest ago are forgotten first."""


class OwnerCheck:
    """Stands before the engine for all that LangGraph asks, and tells of one thread whether a user may use it.

    All methods run on the manager's event loop. Without `enforced` owners are recorded, and nothing is refused.
    """

    def __init__(self, engine: Engine, *, enforced: bool, tombstones: Tombstones | None = None) -> None:
        self._engine = engine
        self._enforced = enforced
        self._tombstones = tombstones
        self.known: dict[str, Ownership] = {}
        """By thread: what its newest root checkpoint says, of those about which anything was asked or found."""
        self.without_owner: dict[str, None] = {}
        """Threads that are known to have no owner, to which a call that names no user may write without a look."""
        self._former: dict[str, Ownership] = {}
        """By thread: whose it was, of those that were deleted or may have changed, as turns of it may be under way;
        `NO_THREAD`: several users' in turn."""
        self.changes = 0
        """How often anything was forgotten: what was read before that is no longer sure."""
        self.erased = tombstones.erased if tombstones is not None else {}

    # What LangGraph asks for

    async def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        before, changes = self.known.get(thread_of(config)), self.changes
        found = await self._engine.get_tuple(config)
        is_said = found is not None and before is not None and before.is_said_in(found.metadata)
        if is_said and before is not None and user_in(config) == before.owner:
            return found  # nearly always, where there is an owner
        if before is None and changes == self.changes and (found is None or OWNER not in found.metadata):
            self.note_without_owner(config)
        return await self.judged(config, found, before)

    def note_without_owner(self, config: RunnableConfig) -> None:
        """A read found no owner: the newest root checkpoint decides; an old one tells nothing of the thread of today,
        and a fork of it may begin."""
        thread_id = thread_of(config)
        if not asks_for_thread(config):
            if namespace_of(config) == "":
                self.without_owner.pop(thread_id, None)
        elif thread_id not in self.known and not self._had_owner(thread_id):
            self.without_owner[thread_id] = None
            _bound(self.without_owner)

    async def judged(
        self, config: RunnableConfig, found: CheckpointTuple | None, before: Ownership | None
    ) -> CheckpointTuple | None:
        """What was read, if the user whom the config names may see it; `before`: what was known when it was asked for.

        Raises:
            CheckpointNotFoundError: the user may not.
        """
        thread_id, user = thread_of(config), user_in(config)
        own = ownership_of(found.metadata) if found is not None else None
        if user is None and own is None and before is None:
            return found
        if asks_for_thread(config):
            ownership = self._learn(thread_id, found, own, before)
        elif user is not None:
            ownership = await self._look_for(user, thread_id)
        else:
            if own is not None and (before is None or before.owner != own.owner):
                await self._look_for_fork(thread_id, own)
            return found
        if user is not None:
            self._admit(thread_id, ownership, user)
            if not self._belongs(own, ownership, user):
                raise self._not_there(thread_id)
        return found

    async def list(
        self,
        config: RunnableConfig,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Sequence[CheckpointTuple]:
        thread_id, user = thread_of(config), user_in(config)
        if user is None:
            return await self._engine.list(config, filter, before, limit)
        ownership = await self._look_for(user, thread_id)
        self._admit(thread_id, ownership, user)
        listed = await self._engine.list(config, filter, before, limit)
        return [found for found in listed if self._belongs(ownership_of(found.metadata), ownership, user)]

    def is_shown(self, metadata: Mapping[str, Any], user: str | None) -> bool:
        """Whether a user may see what has this metadata."""
        return user is None or not self._enforced or is_seen_by(metadata, user)

    async def shown(self, listed: Sequence[CheckpointTuple], user: str | None) -> Sequence[CheckpointTuple]:
        """What a user may see of checkpoints of many threads: the newest root checkpoint of each thread decides."""
        if user is None or not self._enforced:
            return listed
        owners = {thread_id: await self._look(thread_id) for thread_id in {thread_of(found.config) for found in listed}}
        return [
            found
            for found in listed
            if may_use((ownership := owners[thread_of(found.config)]).owner, ownership.shared_with, user)
            and self._belongs(ownership_of(found.metadata), ownership, user)
        ]

    async def delta_history(self, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, DeltaChannelHistory]:
        if (user := user_in(config)) is not None:
            thread_id = thread_of(config)
            self._admit(thread_id, await self._look_for(user, thread_id), user)
        return await self._engine.delta_history(config, channels)

    async def put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, versions: ChannelVersions
    ) -> RunnableConfig:
        thread_id, user = thread_of(config), user_in(config)
        if self.erased:
            self._refuse_erased(thread_id, checkpoint["id"], checkpoint_id_of(config))
        becomes = ownership = self.known.get(thread_id)
        if user is None and (ownership is None or ownership.owner is None or thread_id in self._former):
            becomes = await self._owner_of_turn(config)
        shares = config["configurable"].get(ASKED_TO_SHARE)
        if user is not None and not (ownership is not None and user == ownership.owner and shares is None):
            ownership = ownership or await self._look(thread_id)
            self._admit(thread_id, ownership, user)
            becomes = ownership.written_by(user, shares)
            if becomes is not ownership:
                asking(user, shares)  # what is stored as an owner is an id, however the config was made
        if becomes is None or becomes.owner is None:
            stored = await self._engine.writes.put(config, checkpoint, metadata, versions)
            if ownership is None and namespace_of(config) == "" and checkpoint_id_of(config) is None:
                self.note_without_owner(config)  # its newest root checkpoint says so
            return stored
        marked = self._marked(config, metadata, becomes)
        if becomes is self.known.get(thread_id):
            return await self._engine.writes.put(config, checkpoint, marked, versions)
        self.without_owner.pop(thread_id, None)
        pending = self.known[thread_id] = replace(becomes, pending=True)  # known before it is stored: others ask now
        try:
            return await self._engine.writes.put(config, checkpoint, marked, versions)
        finally:  # where it was not stored, the next read corrects it
            if self.known.get(thread_id) is pending:
                self.known[thread_id] = becomes

    async def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> None:
        thread_id, user = thread_of(config), user_in(config)
        if self.erased:
            self._refuse_erased(thread_id, checkpoint_id_of(config))
        if user is not None and ((known := self.known.get(thread_id)) is None or user != known.owner):
            self._admit(thread_id, known or await self._look(thread_id), user)
        await self._engine.writes.put_writes(config, writes, task_id, task_path)

    async def delete_thread(self, thread_id: str) -> None:
        try:
            await self._engine.writes.delete_thread(thread_id)
        finally:
            self._forget(thread_id)

    # What the methods ask for

    async def require(self, thread_id: str, user: str | None, *, as_owner: bool = False, new: bool = False) -> None:
        """See that a thread is there for a user, or `as_owner`: that it belongs to none other; `new`: it may be new.

        Nothing is seen to for the application itself, which is no user.

        Raises:
            CheckpointNotFoundError: it is not there, or is another's.
            CheckpointUnavailableError: in an outage, when the owner is not known, or is not to be told from that.
        """
        if user is None or not self._enforced:
            return
        ownership = await self._look(thread_id)
        if not (ownership.exists or new) or (as_owner and ownership.owner not in (None, user)):
            raise self._not_there(thread_id)
        self._admit(thread_id, ownership, user)

    def forget(self, thread_ids: Sequence[str] | None) -> None:
        """These threads, or for None any, may have become another's behind the back of this."""
        for thread_id in list(self.known) if thread_ids is None else thread_ids:
            had_none = thread_ids is not None and thread_id in self.without_owner
            self._forget(thread_id, Ownership() if had_none else None)

    def _forget(self, thread_id: str, without_owner: Ownership | None = None) -> None:
        """Whose it is must be looked for. Whose it was is kept, for turns under way, unless that was erased."""
        self.changes += 1
        if without_owner is not None:
            del self.without_owner[thread_id]
        before, former = self.known.pop(thread_id, without_owner), self._former.get(thread_id)
        if self._tombstones is not None and self._tombstones.erased_at(thread_id) is not None:
            self._former.pop(thread_id, None)
        elif before is not None and before.exists and (former is None or before.owner is not None):
            several = former is not None and former.owner != before.owner
            self._former[thread_id] = NO_THREAD if several else before
            _bound(self._former)

    # What is known

    async def _look(self, thread_id: str) -> Ownership:
        before = self.known.get(thread_id)
        with without_objects():
            found = await self._engine.get_tuple({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}})
        return self._learn(thread_id, found, ownership_of(found.metadata) if found is not None else None, before)

    async def _owner_of_turn(self, config: RunnableConfig) -> Ownership:
        """Whose a checkpoint is to be that is put in the name of no user: by the application, or in a fork.

        A turn that began before its thread was deleted keeps its owner, and does not get into what is another's by now.

        Raises:
            CheckpointNotFoundError: the thread was deleted, and is another's by now or was several users' in turn.
            CheckpointUnavailableError: in an outage, of a thread that was several users' in turn.
        """
        thread_id, former = thread_of(config), self._former.get(thread_of(config))
        ownership, begins = self.known.get(thread_id), namespace_of(config) == "" and checkpoint_id_of(config) is None
        if ownership is None and (thread_id in self.without_owner or (begins and former is None)):
            return Ownership()  # what begins a thread is no fork, and does not wait for a read of its own
        if ownership is None or (ownership.owner is None and not ownership.pending):
            try:
                ownership = await self._look(thread_id)
            except CheckpointUnavailableError:
                if former is not None and not former.exists:
                    raise
                return former or Ownership()  # a fork was read: what is unknown is written to without a read
        may_be_others = former is not None and not (former.exists and former.owner in (None, ownership.owner))
        if former is not None and may_be_others and not begins:
            if ownership.exists:
                await self._require_parent(config, ownership)
            elif former.exists:
                return former
            else:
                raise self._too_late(thread_id)
        if ownership.owner is None and not may_be_others:
            self.known.pop(thread_id, None)
            self.note_without_owner({"configurable": {"thread_id": thread_id}})
        return ownership

    def _had_owner(self, thread_id: str) -> bool:
        """Whether it had one, or several, before it was deleted or may have changed."""
        former = self._former.get(thread_id)
        return former is not None and (former.owner is not None or not former.exists)

    async def _require_parent(self, config: RunnableConfig, ownership: Ownership) -> None:
        """See that a turn began in what the thread is today, which has had another owner."""
        root = (config["configurable"].get(CHECKPOINT_MAP) or {}).get("")
        if root is None and namespace_of(config) == "":
            root = checkpoint_id_of(config)
        thread_id, found, deadline = thread_of(config), None, self._engine.core.deadline()
        while root is not None and found is None and deadline.remaining() > 0:
            with without_objects():
                at = {"thread_id": thread_id, "checkpoint_ns": "", "checkpoint_id": root}
                found = await self._engine.get_tuple({"configurable": at})
            if namespace_of(config) == "":
                break
            await asyncio.sleep(GLANCE_SECONDS)  # a subgraph may be faster than the write of what it belongs to
        own = ownership_of(found.metadata) if found is not None else None
        if found is None or (own is not None and own.owner != ownership.owner):
            raise self._too_late(thread_id)

    def _too_late(self, thread_id: str) -> CheckpointNotFoundError:
        return CheckpointNotFoundError(
            f"Thread {quoted(thread_id)} was deleted while this turn was under way, and the turn names no user; "
            "nothing more of it is stored, as others could read it. Begin a new turn."
        )

    async def _look_for(self, user: str, thread_id: str) -> Ownership:
        """Whose it is, for a user who reads past the newest checkpoint: who is no owner may not be let in any more."""
        known = self.known.get(thread_id)
        if known is not None and (known.owner == user or not self._enforced):
            return known
        try:
            return await self._look(thread_id)
        except CheckpointUnavailableError:
            if known is None:
                raise
            return known

    async def _look_for_fork(self, thread_id: str, own: Ownership) -> None:
        """A fork begins with a read of an old checkpoint, in the name of no user; it has the owner of today."""
        try:
            await self._look(thread_id)
        except CheckpointUnavailableError:  # the newest one is not warm
            self.known.setdefault(thread_id, own)

    def _learn(
        self, thread_id: str, found: CheckpointTuple | None, own: Ownership | None, before: Ownership | None
    ) -> Ownership:
        """Take what the newest root checkpoint says, unless something was made of the thread since it was asked for."""
        known = self.known.get(thread_id)
        if known is not None and (known.pending or known is not before):
            return known
        told = NO_THREAD if found is None else own or Ownership(names=user_of(found.metadata))
        if told.owner is not None:
            self.without_owner.pop(thread_id, None)
            if self._former and self._former.get(thread_id, NO_THREAD).owner == told.owner:
                del self._former[thread_id]
        if told != known:
            self.known[thread_id] = told
            if len(self.known) > MOST:
                self._forget(next(iter(self.known)))
        return told

    def _refuse_erased(self, thread_id: str, *checkpoint_ids: str | None) -> None:
        """A turn that began before its thread was erased holds what must not come back."""
        if self._tombstones is not None and self._tombstones.forbids(thread_id, *checkpoint_ids):
            raise CheckpointNotFoundError(
                f"Thread {quoted(thread_id)} was erased while this turn was under way; nothing of it is stored "
                "any more. Begin a new turn."
            )

    def _admit(self, thread_id: str, ownership: Ownership, user: str) -> None:
        if user == ownership.owner or not self._enforced:
            return
        if not may_use(ownership.owner, ownership.shared_with, user):
            raise self._not_there(thread_id)

    def _not_there(self, thread_id: str) -> CheckpointerError:
        """What is said to a user of another's thread, and of one that is not there: the same, in an outage too."""
        return self._engine.answer_of_unknown(thread_id) or not_found(thread_id)

    def _belongs(self, own: Ownership | None, ownership: Ownership, user: str) -> bool:
        """Whether a checkpoint is the user's or the owner's of today: an id that was free may have had two owners."""
        return not self._enforced or own is None or own.owner in (ownership.owner, user)

    def _marked(self, config: RunnableConfig, metadata: CheckpointMetadata, ownership: Ownership) -> CheckpointMetadata:
        """In an owner's listing a thread stays, no matter who has written last: in a fork LangGraph names no user."""
        marked = ownership.recorded_in(metadata)
        if self._enforced and _named_user(config, metadata) != ownership.owner:
            marked[USER_ID] = ownership.owner
        return cast("CheckpointMetadata", marked)


def _named_user(config: RunnableConfig, metadata: Mapping[str, Any]) -> str | None:
    """The user that LangGraph's rules would name in a checkpoint's metadata."""
    for one in (metadata, config.get("metadata") or {}, config["configurable"]):
        if USER_ID in one:
            return user_of(one)
    return None


def _bound(threads: dict[str, Any]) -> None:
    if len(threads) > MOST:
        del threads[next(iter(threads))]
