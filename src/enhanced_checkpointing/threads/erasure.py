"""Erasing what is stored of a thread, or of a user: in every place that this process reaches, and what remains told.

A tombstone comes first. From then on no process that has read it stores what was made of the thread before; so that an
erasure that is stopped anywhere is finished by asking for it again. Each place erases for itself and says what remains.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from enhanced_checkpointing.audit import AuditTrail, Notes, hidden
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.listing import ThreadHead, user_of
from enhanced_checkpointing.errors import CheckpointerError, CheckpointUnavailableError, redact
from enhanced_checkpointing.identifiers import USER_ID, text_of
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.journal.erasing import erase_quarantined, holders_of, journals_of_others, unchanged
from enhanced_checkpointing.ownership import ownership_of
from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.saver.maintenance import Maintenance
from enhanced_checkpointing.saver.owner_check import OwnerCheck
from enhanced_checkpointing.saver.read_path import Engine
from enhanced_checkpointing.standby.cache import Standby
from enhanced_checkpointing.threads.erased import ErasedThreads

PAGE = 500
"""Threads that are looked at in one go."""

CLEAN_PATIENCE = 720
"""How many ordinary deadlines cleaning the database's files may take: a large SQLite file is written anew."""

GLANCE_SECONDS = 0.1

EXPORTS_NAMED = 20

ALWAYS = (
    "backups, replicas and copies of the database and of its disks, which nothing here reaches",
    "the warm copies and journals of applications on other machines: restart those that used the thread",
)


@dataclass(frozen=True, slots=True)
class ErasureReceipt:
    """What was erased, where and when. Plain values; `as_json` has the same for scripts."""

    at: str
    """ISO 8601."""
    database: str
    user_id: str | None
    thread_ids: tuple[str, ...]
    """Those that were asked for, and the siblings that a quarantined branch made of them."""
    counts: dict[str, int] = field(default_factory=dict)
    """For each place, how much of what was in it."""
    pending: tuple[str, ...] = ()
    """What is not erased yet, and when it will be. Ask for the erasure again to see whether it is."""
    remains: tuple[str, ...] = ()
    """What this cannot reach, and why."""
    exports: tuple[str, ...] = ()
    """Files that were exported and may hold something of it, as the audit trail tells."""
    dry_run: bool = False

    @property
    def complete(self) -> bool:
        """Whether all is erased that can be reached from here."""
        return not self.pending

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"status": "complete" if self.complete else "pending", **asdict(self)}


@dataclass(slots=True)
class _UnderWay:
    thread_ids: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    pending: list[str] = field(default_factory=list)
    remains: list[str] = field(default_factory=list)


class Erasure:
    """Erases, on the manager's loop. `apart` stands between a thread's id and the rest of that of its branch; other
    processes have `patience` seconds to look at what was erased."""

    def __init__(
        self,
        maintenance: Maintenance,
        engine: Engine,
        owners: OwnerCheck,
        standby: Standby,
        journal: Journal | None,
        erased: ErasedThreads,
        note: Notes,
        *,
        database: str,
        apart: str,
        seconds: float,
        patience: float,
    ) -> None:
        self._maintenance = maintenance
        self._engine = engine
        self._owners = owners
        self._standby = standby
        self._journal = journal
        self._erased = erased
        self._note = note
        self._database = database
        self._apart = apart
        self._seconds = seconds
        self._patience = patience
        self._directory = erased.tombstones.directory

    async def erase(self, thread_id: str | None, user_id: str | None, *, dry_run: bool = False) -> ErasureReceipt:
        """Erase one thread, or all of a user; of a user who is not its owner, none."""
        if thread_id is None and user_id is None:
            raise CheckpointerError("Name a thread or a user; nothing was erased.")
        user = None if user_id is None else text_of(user_id, USER_ID)
        at, done = time.time(), _UnderWay()
        if thread_id is not None:
            thread_id = text_of(thread_id, "thread_id")
            await self._owners.require(thread_id, user, as_owner=True)
        await self._find(done, thread_id, user)
        if not dry_run:
            at = time.time()
            others = await self._other_journals()
            await self._set_tombstones(done, at)
            done.counts["journal records"] += await self._erased.forget(done.thread_ids, rewrite=True)
            if self._erased.behind:
                done.pending.append("the journal of this process: its disk takes no writes; it is tried again")
            await self._wait_for(others, done)
            await self._delete(done)
            await self._quarantined(done)
            await self._note(
                "erase",
                threads=[hidden(one) for one in done.thread_ids],
                user=hidden(user) if user is not None else None,
                counts=dict(done.counts),
                pending=len(done.pending),
            )
        return ErasureReceipt(
            at=datetime.fromtimestamp(at, UTC).isoformat(),
            database=self._database,
            user_id=user,
            thread_ids=tuple(done.thread_ids),
            counts=dict(done.counts),
            pending=tuple(done.pending),
            remains=(*done.remains, *ALWAYS),
            exports=tuple(await self._blocking(lambda: self._exports(done.thread_ids))),
            dry_run=dry_run,
        )

    async def _find(self, done: _UnderWay, thread_id: str | None, user: str | None) -> None:
        """Which threads are meant. What only a journal holds is known by the warm copy, if at all."""
        found: dict[str, None] = {} if thread_id is None else {thread_id: None}
        held = self._journal.held_threads() if self._journal is not None else ()
        for one in held:
            if thread_id is None and user is not None and self._is_of(self._warm_metadata(one), user):
                found[one] = None
        if self._journal is not None:
            found |= {target: None for one in [*found] if (target := self._journal.redirected(one)) is not None}
        others = 0
        try:
            async for page in self._pages():
                wanted = [one for one in page if thread_id is None or one.partition(self._apart)[0] == thread_id]
                for head in await self._ask(lambda one: one.describe(wanted)) if wanted else ():  # noqa: B023
                    if self._is_meant(head, thread_id, user):
                        found[head.thread_id] = None
                        done.counts["checkpoints in the database"] += head.checkpoints
                    elif thread_id is not None or user_of(head.metadata) == user:
                        others += 1
        except CheckpointUnavailableError:
            if thread_id is None:
                raise
            done.pending.append("branches of an outage beside the thread: only the database knows them; erase again")
        if others:
            named = "name this user" if thread_id is None else "are named as branches of this thread"
            done.remains.append(f"{others} threads that belong to other owners and {named}")
        done.thread_ids = [*found]

    def _is_meant(self, head: ThreadHead, thread_id: str | None, user: str | None) -> bool:
        """Anybody may have named a thread as the branches of another are named: for a user, only what no other owns."""
        if thread_id is None:
            return user is not None and self._is_of(head.metadata, user, head)
        own = ownership_of(head.metadata)
        return head.thread_id == thread_id or user is None or own is None or own.owner == user

    def _is_of(self, metadata: Any, user: str, head: ThreadHead | None = None) -> bool:
        """A user's threads are those that the user owns, and those without an owner that name the user."""
        own = ownership_of(metadata)
        return own.owner == user if own is not None else (head.user_id if head else user_of(metadata)) == user

    def _warm_metadata(self, thread_id: str) -> Any:
        try:
            found = self._standby.get_tuple({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}})
        except CheckpointUnavailableError:
            return {}
        return found.metadata if found is not None else {}

    async def _pages(self) -> AsyncIterator[Sequence[str]]:
        after: str | None = None
        while page := await self._ask(lambda one: one.thread_ids(after, PAGE)):  # noqa: B023
            yield page
            after = page[-1]

    async def _ask(self, question: Callable[[Backend], Awaitable[Any]], patience: int = 12) -> Any:
        return await self._maintenance.ask("erase", [], question, frozen=False, patience=patience)

    async def _set_tombstones(self, done: _UnderWay, at: float) -> None:
        tombstones = self._erased.tombstones
        tombstones.set(done.thread_ids, at)
        try:
            await self._blocking(lambda: tombstones.add(done.thread_ids, at))
        except OSError as error:
            done.pending.append(
                f"what other processes of this machine hold: they could not be told ({redact(error)}); erase again"
            )

    async def _delete(self, done: _UnderWay) -> None:
        """In the database; last, as until then another process may have brought something to it."""
        waiting = []
        for thread_id in done.thread_ids:
            self._standby.forget(thread_id)  # what it knew would spare what others have written since
            try:
                await self._owners.delete_thread(thread_id)
            except CheckpointUnavailableError as error:  # another process holds it, or there is no journal
                done.pending.append(f"a thread in the database ({redact(error)}); erase again")
                continue
            done.counts["journal records"] += await self._erased.forget([thread_id], rewrite=False)
            if self._journal is not None and self._journal.holds(thread_id):
                await self._engine.drain_first(thread_id, Deadline(time.monotonic, self._seconds))
                if self._journal.holds(thread_id):
                    waiting.append(thread_id)
        if waiting:
            done.pending.append(f"{len(waiting)} threads in the database: the journal deletes them when it is back")
        try:
            done.remains += await self._ask(lambda one: one.scrub(), CLEAN_PATIENCE)
        except CheckpointUnavailableError:
            done.pending.append("the files of the database, which keep what was deleted: erase again when it is back")

    # Other places in the journal's directory

    async def _blocking(self, work: Callable[[], Any]) -> Any:
        return await in_thread_of_its_own(work, "erase") if self._directory is not None else work()

    async def _other_journals(self) -> dict[str, list[str]]:
        directory = self._directory
        if directory is None:
            return {}
        return await in_thread_of_its_own(lambda: journals_of_others(directory, self._identities), "erase")

    async def _wait_for(self, others: dict[str, list[str]], done: _UnderWay) -> None:
        """Give the other processes time to look, and tell of those that have not, and of what journals still hold."""
        directory = self._directory
        if directory is None:
            return
        until = time.monotonic() + self._patience
        left = await self._blocking(lambda: unchanged(directory, others)) if others else []
        while left and time.monotonic() < until:
            await asyncio.sleep(GLANCE_SECONDS)
            left = await self._blocking(lambda: unchanged(directory, others))
        if left:
            done.pending.append(
                f"{len(left)} journals of other processes ({', '.join(left[:5])}): one that runs this release erases "
                "when it next looks; one that has ended, or is for another database, when it is drained"
            )
        try:
            holders = await self._blocking(lambda: holders_of(directory, self._identities, done.thread_ids))
        except OSError as error:
            done.pending.append(f"the journals of other processes cannot be read ({redact(error)})")
            return
        done.pending += [
            f"the journal {book.identity}, for {book.home}, holds threads of these names: where that is this "
            "database under another name, erase them there, too"
            for book in holders
        ]

    @property
    def _identities(self) -> Collection[str]:
        return self._journal.identities if self._journal is not None else ()

    async def _quarantined(self, done: _UnderWay) -> None:
        directory = self._directory
        if directory is None:
            return
        try:
            count, doubtful = await self._blocking(lambda: erase_quarantined(directory, set(done.thread_ids)))
        except OSError as error:
            done.pending.append(f"the copies of damaged files in quarantine cannot be opened ({redact(error)})")
            return
        done.counts["quarantined records"] += count
        if doubtful:
            done.remains.append(f"damaged places of {', '.join(doubtful)}, which no one can read: remove those files")
        if self._journal is not None and self._journal.status().damages:
            done.remains.append(f"damaged files of the journal in {directory}: see `checkpointing journal quarantine`")

    def _exports(self, thread_ids: Sequence[str]) -> list[str]:
        if self._directory is None:
            return []
        try:
            entries = [*AuditTrail(self._directory).entries()]
        except OSError:
            return []
        files = {
            str(entry.get("file")): None
            for entry in entries
            if entry.get("database") == self._database
            and (
                entry.get("action") == "export"
                or (entry.get("action") == "export begins" and Path(str(entry.get("file"))).exists())
            )
            and (
                entry.get("threads") != len(told := entry.get("thread_ids") or ())
                or not told
                or {*told} & {*thread_ids}
            )
        }
        return [*files][-EXPORTS_NAMED:]
