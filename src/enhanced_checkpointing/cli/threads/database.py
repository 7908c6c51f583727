"""What the commands of `checkpointing threads` share: the database, its checkpoints, and the journal beside it.

No manager is opened: nothing is taken over and nothing is drained, so that they work beside a running application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.listing import ThreadHead
from enhanced_checkpointing.cli.configuration import Options, reading, required
from enhanced_checkpointing.cli.database import Primary, imported_serializer, opened_primary
from enhanced_checkpointing.cli.journal import owner_of
from enhanced_checkpointing.cli.output import RefusedError, UsageError, plural
from enhanced_checkpointing.cli.threads.checkpoint import View, delta_channels, is_sealed, rebuilt, view_of
from enhanced_checkpointing.cli.values import PlainSerializer
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointerError, listed, quoted, redact
from enhanced_checkpointing.journal.disk import reason
from enhanced_checkpointing.journal.inspect import Owner, Survey, survey
from enhanced_checkpointing.journal.recovery import belongs
from enhanced_checkpointing.ownership import is_seen_by, ownership_of
from enhanced_checkpointing.resilience.failures import CallFailed, FailureKind

T = TypeVar("T")

READ_SECONDS = 60.0
DEADLINE = 10.0
"""Seconds after which a connection that does not come about, or a lock, is given up for this time."""
SEAL = "It is sealed: give the application's serializer with --serde module:name."


@dataclass(frozen=True, slots=True)
class Target:
    """Which database is meant; `serde` is `module:name` of the application's serializer; for `user`, the threads of
    other owners do not exist."""

    options: Options
    serde: str | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Configured:
    """The database of a command, the directory of the journal that its application is configured to have, and the user
    for whom the command is given, if that is enforced."""

    config: CheckpointerConfig
    journal_dir: Path
    user: str | None = None


def config_for(target: Target) -> Configured:
    """The configuration for a target, such that values are read without making objects of them.

    Raises:
        UsageError: the database is memory, or a file that is not there.
    """
    with reading(target.options) as read:
        config = required(read)
    if config.backend_name == "memory" or str(config.database_path) == ":memory:":
        raise UsageError(
            "The primary is memory, which only its own process can look into. Name the database: --database-url, "
            "--sqlite, or CHECKPOINT_ENVIRONMENT=production with DATABASE_URL."
        )
    if config.backend_name == "sqlite" and not Path(config.database_path).is_file():
        raise UsageError(f"There is no file {config.database_path}. Is it the right one? Nothing was made.")
    own = imported_serializer(target.serde) if target.serde else config.serde
    plain = config.with_overrides(serde=PlainSerializer(own), auto_setup=False, deadline=max(config.deadline, DEADLINE))
    user = target.user if config.thread_ownership == "enforce" else None
    return Configured(plain, config.journal_dir.absolute(), user)


class Store:
    """An open database, asked without a manager, for a user if there is one."""

    def __init__(self, primary: Primary, user: str | None = None) -> None:
        self._primary = primary
        self._user = user

    @property
    def home(self) -> str:
        return self._primary.backend.database_id()

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Threads that a listing has left out, and why."""
        return self._primary.backend.unreadable

    async def ask(self, what: str, question: Callable[[Backend], Awaitable[T]], seconds: float = READ_SECONDS) -> T:
        """The backend's answer.

        Raises:
            RefusedError: it says no, and why.
            UsageError: it does not answer.
        """
        backend = self._primary.backend
        try:
            return await self._primary.ask(what, lambda: question(backend), seconds)
        except CallFailed as failed:
            if isinstance(failed.error, CheckpointerError):
                raise RefusedError(str(failed.error)) from None
            text = " ".join(redact(failed.error).split()).rstrip(".") or type(failed.error).__name__
            fix = failed.failure.fix or "`checkpointing doctor` looks for the cause."
            if failed.kind is FailureKind.CORRUPTION:
                fix = f"What is stored is damaged; nothing was changed. {fix}"
            raise UsageError(f"{self.home} cannot be asked to {what}: {text}. {fix}") from None

    async def ask_saver(
        self,
        what: str,
        question: Callable[[BaseCheckpointSaver[Any]], Awaitable[T]],
        seconds: float = READ_SECONDS,
    ) -> T:
        """The answer of the backend's saver, with the errors of `ask`."""
        return await self.ask(what, lambda backend: backend.ask(question), seconds)

    async def hides(self, thread_id: str) -> bool:
        """Whether a thread is there, and is another user's."""
        found = await self.ask("describe threads", lambda backend: backend.describe([thread_id]))
        return any(not self.shows(head.metadata) for head in found)

    async def heads(self, thread_ids: Iterable[str], *, as_owner: bool = False) -> dict[str, ThreadHead]:
        """The heads of these threads, without those that have no checkpoint, or not for this user; `as_owner`: without
        those, too, that are only shared with the user."""
        wanted = [*dict.fromkeys(thread_ids)]
        found = await self.ask("describe threads", lambda backend: backend.describe(wanted))
        return {head.thread_id: head for head in found if self.shows(head.metadata, as_owner=as_owner)}

    def shows(self, metadata: Mapping[str, Any], *, as_owner: bool = False) -> bool:
        """Whether the user may see what has this metadata."""
        if self._user is None:
            return True
        ownership = ownership_of(metadata)
        return is_seen_by(metadata, self._user) and not (as_owner and ownership and ownership.owner != self._user)

    async def seen(self, thread_ids: Iterable[str], *, as_owner: bool = False) -> list[str]:
        """Those of these threads that this user may know about: for the application itself all, stored or not."""
        return [*thread_ids] if self._user is None else [*await self.heads(thread_ids, as_owner=as_owner)]

    async def page(
        self, thread_id: str, namespace: str | None, before: str | None, limit: int
    ) -> list[CheckpointTuple]:
        """The newest checkpoints of a namespace, or of all for None, whose ids come before `before`."""
        if not await self.seen([thread_id]):
            return []
        where = config_of(thread_id, namespace)
        end: RunnableConfig | None = {"configurable": {"checkpoint_id": before}} if before is not None else None

        async def fetch(saver: BaseCheckpointSaver[Any]) -> list[CheckpointTuple]:
            return [found async for found in saver.alist(where, before=end, limit=limit)]

        found = await self.ask_saver("list checkpoints", fetch)
        _see_that_it_is_readable(thread_id, found)
        return found

    async def get(self, thread_id: str, namespace: str, checkpoint_id: str | None = None) -> CheckpointTuple | None:
        """One checkpoint, the newest of the namespace if none is named; None if it is not there."""
        if not await self.seen([thread_id]):
            return None
        where = config_of(thread_id, namespace, checkpoint_id)

        async def fetch(saver: BaseCheckpointSaver[Any]) -> CheckpointTuple | None:
            return await saver.aget_tuple(where)

        found = await self.ask_saver("read a checkpoint", fetch)
        if found is not None:
            _see_that_it_is_readable(thread_id, [found])
        return found

    async def resolve(self, thread_id: str, namespace: str, wanted: str | None) -> CheckpointTuple:
        """The checkpoint with this id, or the only one whose id begins like this; the newest for None.

        Raises:
            RefusedError: there is none, or there are several.
        """
        exact = await self.get(thread_id, namespace, wanted)
        if exact is not None:
            return exact
        within = f" in the namespace {namespace!r}" if namespace else ""
        if wanted is None:
            raise RefusedError(f"Thread {quoted(thread_id)} has no checkpoint{within}.")
        alike = await self.page(thread_id, namespace, _behind(wanted), 2)
        alike = [found for found in alike if found.checkpoint["id"].startswith(wanted)]
        if len(alike) == 1:
            return alike[0]
        if alike:
            names = " and ".join(found.checkpoint["id"] for found in alike)
            raise RefusedError(
                f"Several checkpoints of thread {quoted(thread_id)} begin with {wanted!r}, such as {names}."
            )
        raise RefusedError(
            f"Thread {quoted(thread_id)} has no checkpoint{within} whose id begins with {wanted!r}. "
            f"`checkpointing threads history` lists them."
        )

    async def view(self, found: CheckpointTuple) -> View:
        """What a checkpoint shows, with its delta channels, which are stored as what was written to them."""
        channels = delta_channels(found)
        if not channels:
            return view_of(found)

        async def fetch(saver: BaseCheckpointSaver[Any]) -> dict[str, Any]:
            history = await saver.aget_delta_channel_history(config=found.config, channels=channels)
            return {
                name: rebuilt(told.get("seed"), [value for _, _, value in told["writes"]])
                for name, told in history.items()
            }

        return view_of(found, await self.ask_saver("read what was written", fetch))

    async def namespaces(self, thread_id: str, newest: Sequence[CheckpointTuple]) -> list[str]:
        """The namespaces of subgraphs among these checkpoints."""
        return sorted({str(found.config["configurable"].get("checkpoint_ns", "")) for found in newest} - {""})


@asynccontextmanager
async def opened_store(configured: Configured) -> AsyncIterator[Store]:
    """The database of a configuration, for as long as the block runs."""
    async with opened_primary(configured.config) as primary:
        yield Store(primary, configured.user)


def run_with(configured: Configured, work: Callable[[Store], Awaitable[T]]) -> T:
    """Do work with the database."""

    async def run() -> T:
        async with opened_store(configured) as store:
            return await work(store)

    return asyncio.run(run())


def config_of(thread_id: str, namespace: str | None, checkpoint_id: str | None = None) -> RunnableConfig:
    configurable: dict[str, Any] = {"thread_id": thread_id}
    if namespace is not None:
        configurable["checkpoint_ns"] = namespace
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def _see_that_it_is_readable(thread_id: str, found: Sequence[CheckpointTuple]) -> None:
    if any(map(is_sealed, found)):
        raise RefusedError(f"Thread {quoted(thread_id)} cannot be read. {SEAL}")
    if not all(isinstance(one.metadata, dict) for one in found):
        raise RefusedError(f"Thread {quoted(thread_id)} cannot be read: its metadata is no JSON object.")


def _behind(prefix: str) -> str:
    """What comes, in any order of texts, after every id of hexadecimal digits with this prefix."""
    return f"{prefix}zzzz"


@dataclass(frozen=True, slots=True)
class Holding:
    """What the journal has of one thread: operations that wait, dead letters, or damage that may be its loss."""

    thread_id: str
    directory: Path
    waiting: int = 0
    dead_letters: int = 0
    damaged: bool = False
    owners: tuple[str, ...] = ()
    alive: bool = False
    """Whether one of them is a process that runs."""
    home: str = ""
    """The database that it is for, as these processes call it; empty: as this command does."""

    @property
    def text(self) -> str:
        """What is held, as the beginning of a sentence's end."""
        parts = []
        if self.waiting:
            parts.append(f"{plural(self.waiting, 'operation')} that the database does not have yet")
        if self.dead_letters:
            parts.append(f"{plural(self.dead_letters, 'operation')} that the database refused")
        if self.damaged:
            parts.append("damage that may have cost it operations")
        home = f", for {self.home}" * bool(self.home)
        return f"The journal holds of thread {quoted(self.thread_id)}: {listed(parts)} ({listed(self.owners)}{home})."

    @property
    def way_out(self) -> str:
        """What to do, so that the database has all of the thread."""
        if self.home:
            return (
                "That may be this database under another name. If it is, name it so here, or have it drained with "
                f"CHECKPOINT_JOURNAL_ADOPT=all; if it is another one, drain that one. {self._cure}"
            )
        return self._cure

    @property
    def _cure(self) -> str:
        if self.damaged:
            return "See `checkpointing journal quarantine`."
        if self.dead_letters:
            return "See `checkpointing journal dead-letters`, fix the cause, and run `checkpointing journal retry ID`."
        if self.alive:
            return "The running process drains it when its database takes writes: wait, and try again."
        return "Run `checkpointing journal drain`, and try again."

    def as_json(self) -> dict[str, Any]:
        """The holding in plain JSON types."""
        return {
            "thread_id": self.thread_id,
            "directory": str(self.directory),
            "waiting": self.waiting,
            "dead_letters": self.dead_letters,
            "damaged": self.damaged,
            "owners": list(self.owners),
            "other_home": self.home or None,
        }


def holdings(directory: Path, home: str, thread_ids: Iterable[str]) -> list[Holding]:
    """What the journal in a directory, which need not be there, holds of these threads: for this database, and for
    others, each by itself.

    Raises:
        OSError: it cannot be read.
    """
    found = survey(directory)
    others = dict.fromkeys(log.home or "" for log in found.logs if not belongs(log.home, home, takes_over_all=False))
    every = (
        _holding(found, home, other, thread_id) for thread_id in dict.fromkeys(thread_ids) for other in ("", *others)
    )
    return [one for one in every if one.owners]


def _holding(found: Survey, home: str, other: str, thread_id: str) -> Holding:
    """Of the logs for this database, or of those for the `other` one."""
    waiting, letters, damaged, alive = 0, 0, False, False
    owners: list[str] = []
    for log in found.logs:
        if (log.home != other) if other else not belongs(log.home, home, takes_over_all=False):
            continue
        held = dict(log.waiting).get(thread_id, 0)
        refused = sum(letter.thread_id == thread_id for letter in log.dead_letters)
        is_damaged = thread_id in log.damaged_threads
        if held or refused or is_damaged:
            waiting, letters, damaged = waiting + held, letters + refused, damaged or is_damaged
            alive = alive or log.owner is not Owner.DEAD
            owners.append(owner_of(log))
    return Holding(thread_id, found.directory, waiting, letters, damaged, tuple(dict.fromkeys(owners)), alive, other)


def journal_notes(directory: Path, home: str, thread_ids: Iterable[str]) -> tuple[list[Holding], list[str]]:
    """What is held, and what is to be said of it beside what the database shows: that it is not all there is."""
    try:
        held = [one for one in holdings(directory, home, thread_ids) if not one.home]
    except OSError as error:
        return [], [f"The journal cannot be read ({reason(error)}), so there may be newer operations in it."]
    return held, [f"{one.text} What follows is without that. {one.way_out}" for one in held]
