"""Whose thread it is, and who else may use it: what metadata says, and what a write makes of it. Pure.

A config names the user for whom a call is made under keys that LangGraph copies neither into metadata nor into traces,
as they begin with two underscores. What is stored is written by us: an owner cannot be had by naming oneself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointMetadata

from enhanced_checkpointing.errors import CheckpointerError, CheckpointNotFoundError, quoted
from enhanced_checkpointing.identifiers import USER_ID, text_of

OWNER, SHARED_WITH = "enhanced_checkpointing_owner", "enhanced_checkpointing_shared_with"
"""The keys of a checkpoint's metadata: the owner's id as text, and a list of the ids that it is shared with."""

ASKED_BY, ASKED_TO_SHARE = "__enhanced_checkpointing_user", "__enhanced_checkpointing_shared_with"
"""The keys of a config's `configurable`, as `create_thread_config(user_id=…, shared_with=…)` puts them there."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whose a thread is, as its newest root checkpoint says; `exists=False`: there is no such thread.

    `names` is the bare `user_id` in the metadata of a thread without an owner, which protects nothing. `pending`: a
    write of this process that makes it so is on its way.
    """

    owner: str | None = None
    shared_with: frozenset[str] = frozenset()
    names: str | None = None
    exists: bool = True
    pending: bool = False

    def is_said_in(self, metadata: Mapping[str, Any]) -> bool:
        """Whether this is for certain what `ownership_of` would find, which takes ten times as long."""
        return (
            self.owner is not None
            and metadata.get(OWNER) == self.owner
            and not (self.shared_with or self.pending or SHARED_WITH in metadata)
        )

    def written_by(self, user: str, shared_with: Iterable[str] | None) -> Ownership:
        """Whose the thread is once this user, who may use it, has written to it.

        A new thread becomes the user's, and so does one of an earlier release that names the same user. What others
        than the owner say about sharing is left aside.
        """
        if self.owner is None and self.exists and self.names != user:
            return self
        if self.owner not in (None, user) or (self.owner == user and shared_with is None):
            return self
        shared = self.shared_with if shared_with is None else frozenset(shared_with) - {user}
        return Ownership(user, shared)

    def recorded_in(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata of a checkpoint, saying whose its thread is."""
        marked = {**metadata, OWNER: self.owner}
        if self.shared_with:
            marked[SHARED_WITH] = sorted(self.shared_with)
        elif SHARED_WITH in marked:
            del marked[SHARED_WITH]
        return marked


NO_THREAD = Ownership(exists=False)


def may_use(owner: str | None, shared_with: Iterable[str], user: str) -> bool:
    """Whether a user may read a thread and go on with it. One without an owner is everybody's."""
    return owner is None or user == owner or user in shared_with


def ownership_of(metadata: Mapping[str, Any]) -> Ownership | None:
    """Whose a checkpoint's thread is by its metadata; None: it has no owner. What is no id belongs to no user."""
    if (owner := metadata.get(OWNER)) is None:
        return None
    shared = metadata.get(SHARED_WITH)
    return Ownership(str(owner), frozenset(filter(_is_text, shared)) if isinstance(shared, list) else frozenset())


def is_seen_by(metadata: Mapping[str, Any], user: str) -> bool:
    """Whether a user may see a thread with this metadata at its newest checkpoint."""
    ownership = ownership_of(metadata)
    return ownership is None or may_use(ownership.owner, ownership.shared_with, user)


def not_found(thread_id: str) -> CheckpointNotFoundError:
    """What is said of a thread that is not there and of one that is another user's, word for word."""
    return CheckpointNotFoundError(f"There is no thread {quoted(thread_id)}. Nothing was read or changed.")


def asking(user_id: object, shared_with: Collection[object] | None) -> dict[str, Any]:
    """What a config's `configurable` says of the user for whom its calls are made.

    Raises:
        InvalidIdError: `text_of` refuses an id.
        CheckpointerError: `shared_with` is a text, or there is no user to share it.
    """
    if shared_with is None:
        return {} if user_id is None else {USER_ID: user_id, ASKED_BY: text_of(user_id, USER_ID)}
    if user_id is None or isinstance(shared_with, str):
        raise CheckpointerError(
            "shared_with takes a list of the ids of users, beside the user_id of the owner; nothing was stored. "
            "A thread without an owner is everybody's."
        )
    return {**asking(user_id, None), ASKED_TO_SHARE: [text_of(one, "shared_with") for one in shared_with]}


def without_ownership(
    config: RunnableConfig, metadata: CheckpointMetadata
) -> tuple[RunnableConfig, CheckpointMetadata]:
    """A put's config and metadata without what a caller says in them about owners: that is for us to say."""

    def left(said: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in said.items() if key not in (OWNER, SHARED_WITH)}

    given = {"configurable": left(config["configurable"]), "metadata": left(config.get("metadata") or {})}
    return cast("RunnableConfig", {**config, **given}), cast("CheckpointMetadata", left(metadata))


def user_in(config: RunnableConfig) -> str | None:
    """The user for whom a call is made; None: the application makes it for itself."""
    user = config.get("configurable", {}).get(ASKED_BY)
    return user if user is None or type(user) is str else str(user)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
