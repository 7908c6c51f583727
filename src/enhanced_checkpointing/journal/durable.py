"""The journal on disk: appending, marking, reading, and what its operator is told of while it is used."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

from enhanced_checkpointing.errors import (
    CheckpointCorruptionError,
    CheckpointerConfigurationError,
    CheckpointUnavailableError,
    quoted,
    redact,
)
from enhanced_checkpointing.journal import codec
from enhanced_checkpointing.journal.api import (
    Appending,
    BaseHead,
    JournalEntry,
    JournalRecord,
    JournalStatus,
    Taken,
    Undrained,
    entry_of,
)
from enhanced_checkpointing.journal.disk import FORBIDDEN, Disk, reason, refusal, unreadable, unusable
from enhanced_checkpointing.journal.format import (
    Draft,
    Kind,
    Signer,
    applied_record,
    dead_letter_record,
    frame_size,
    redirection_record,
)
from enhanced_checkpointing.journal.index import Index
from enhanced_checkpointing.journal.log_file import ProcessLog
from enhanced_checkpointing.journal.log_files import Committer, ProcessLogs, Run
from enhanced_checkpointing.journal.recovery import MEMORY, OrphanedRecord, OrphanRecovery, Orphans
from enhanced_checkpointing.journal.workers import Workers
from enhanced_checkpointing.observability.events import Notice, Telemetry
from enhanced_checkpointing.operations import DeleteThread, Operation
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.serialization import SharingSerializer

NO_ANSWER = "The disk of the journal did not answer in time. Nothing was stored."

LOOKS, LOOK_SECONDS = 5, 0.05
"""How often a start tries to take over while another process does, perhaps one of another home; seconds between."""

CLOSE_SECONDS = 2.0
"""How long a disk that does not answer is waited for at the end."""


class DurableJournal:
    """Keeps records in files of one directory, up to `capacity` bytes, for the primary that `home` tells.

    What ended processes left for another one is not taken over, unless it `takes_over_all`. Without a home all is.
    With a `signer` all that is written is signed, and what is not is damage.
    """

    durable = True

    def __init__(
        self,
        disk: Disk,
        *,
        capacity: int,
        serializer: SharingSerializer,
        telemetry: Telemetry,
        home: str | None = None,
        takes_over_all: bool = False,
        signer: Signer | None = None,
        run: Run | None = None,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        make_random: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._serializer = serializer
        self._telemetry = telemetry
        self._is_signed = signer is not None
        self._recovery = OrphanRecovery(
            disk, telemetry, wall_clock, home=home, takes_over_all=takes_over_all, signer=signer
        )
        self.workers = (
            Workers(disk, home, takes_over_all=takes_over_all, clock=clock, make_key=make_random)
            if home != MEMORY
            else None
        )
        self._logs = ProcessLogs(
            disk,
            self._recovery,
            self.workers,
            home=home,
            run=run,
            wall_clock=wall_clock,
            make_random=make_random,
            signer=signer,
        )
        self._index = Index(capacity)
        self._homes: dict[int, tuple[ProcessLog, int]] = {}
        """Of every entry: its log, and its sequence there."""
        self._erased: dict[ProcessLog, set[int]] = {}
        """Of every log the records that are forgotten and may be on the disk."""
        self._committer = Committer(self._logs.run, self._told)
        self._doubtful: list[tuple[ProcessLog, str, int]] = []
        """Records that were not stored, and may be found all the same: their logs, threads and bytes."""
        self._damages = 0
        self._alarms = Alarms(telemetry)
        self.holds = self._index.holds
        self.is_frozen = self._index.is_frozen
        self.is_damaged = self._index.is_damaged
        self.anything_waits = self._index.anything_waits
        self.waiting_threads = self._index.waiting_threads
        self.held_threads = self._index.held_threads
        self.entries = self._index.entries
        self.dead_letters = self._index.dead_letters
        self.redirected = self._index.redirected

    # Opening and closing

    async def open(self) -> None:
        """Take over what earlier processes left, and see that this one can write.

        A disk that takes no writes does not end the start, as what is on it is to be drained: `status` tells.

        Raises:
            CheckpointerConfigurationError: the directory cannot be used or read, or a file is of a newer format.
        """
        self._logs.open()
        try:
            await self._take_over_all()
            await self._logs.check()
        except OSError as error:
            if error.errno in FORBIDDEN:
                await self.close()
                raise CheckpointerConfigurationError(unusable(error)) from None
            self._told(error)
        except BaseException:
            await self.close()
            raise

    async def _take_over_all(self) -> None:
        try:
            await self._logs.prepare()
            orphans = await self._logs.take_over()
            for _ in range(LOOKS - 1):
                if orphans is not None:
                    break
                await asyncio.sleep(LOOK_SECONDS)
                orphans = await self._logs.take_over()
        except OSError as error:
            if error.errno in FORBIDDEN:
                raise
            raise CheckpointerConfigurationError(unreadable(error)) from None
        if orphans is not None:  # else `take_over` looks again
            threads = self._recovery.by_thread(orphans, self._index.next_sequence)
            for thread_id, records in threads.items():
                self._take(thread_id, records, orphans)
            self._have_taken_over(orphans)

    async def take_over(self, undrained: Undrained, taken: Taken) -> None:
        if self._committer.is_idle:  # else a mark for one of them may be on its way
            await self._logs.give_back_settled()
        try:
            orphans = await self._logs.take_over()
        except (OSError, CheckpointerConfigurationError) as error:
            self._recovery.tell_fault(error)
            return
        if orphans is None:
            return
        threads = self._recovery.by_thread(orphans, self._index.next_sequence)
        for thread_id, records in threads.items():
            await asyncio.sleep(0)  # there may be many
            await undrained(thread_id)
            was_held = self._index.holds(thread_id)
            self._take(thread_id, records, orphans)
            unknown = was_held or self._index.is_damaged(thread_id)
            taken(thread_id, None if unknown else self._operations_of(records))
        self._have_taken_over(orphans)

    def _have_taken_over(self, orphans: Orphans) -> None:
        self._damages += sum(len(found.faults) for found in orphans.logs)
        self._recovery.tell(orphans, self.workers.news() if self.workers is not None else ())

    async def close(self) -> None:
        """Let what is on its way arrive, and leave the files to the next process; they go if nothing is in them."""
        await self._committer.settle(CLOSE_SECONDS)
        if gone := sum(len(log.places) for log in self._logs.logs if log.is_lost):
            what = f"{gone} acknowledged operations are lost, as somebody has removed the files of the journal"
            self._telemetry.emit(Notice("ERROR", what))
        if (error := await self._logs.close(CLOSE_SECONDS)) is not None:
            self._telemetry.emit(Notice("WARNING", f"the journal was not closed cleanly ({redact(error)})"))

    def _take(self, thread_id: str, records: Sequence[tuple[int, OrphanedRecord]], orphans: Orphans) -> None:
        """Hold a thread for what was left of it. Its dead letters are tried again: what they met may be mended."""
        entries = []
        for sequence, each in records:
            draft = each.record.draft
            description = codec.describe(draft.body)
            entries.append(
                JournalEntry(
                    sequence=sequence,
                    thread_sequence=self._index.next_of(thread_id),
                    thread_id=thread_id,
                    name=description.name,
                    checkpoint_ns=description.checkpoint_ns,
                    checkpoint_id=description.checkpoint_id,
                    base_head=description.base_head,
                    journaled_at=draft.written_at,
                    size=each.record.size,
                )
            )
            self._homes[sequence] = (each.found.log, each.record.sequence)
        self._index.take_over(thread_id, entries)
        for _, each in records:
            if (target := each.found.log.redirected.get(thread_id)) is not None:
                self._index.redirect(thread_id, target)
        if any(thread_id in found.damaged_threads for found in orphans.logs):
            self._index.damage(thread_id)
        if self.workers is not None:
            self.workers.took_over(thread_id)
            self._tell_frozen(thread_id)

    def _operations_of(self, records: Sequence[tuple[int, OrphanedRecord]]) -> Sequence[Operation] | None:
        drafts = [each.record.draft for _, each in records]
        try:
            return [codec.decode(draft.thread_id, draft.body, self._serializer) for draft in drafts]
        except Exception:  # noqa: BLE001  # whatever a serializer raises; whoever drains it says so
            return None

    # Appending and marking

    def begin(self, operation: Operation, base_head: BaseHead) -> Appending | None:
        body = codec.encode(operation, base_head, self._serializer)
        size = frame_size(operation.thread_id, body, signed=self._is_signed)
        log = self._logs.own
        if log is None or not self._index.takes_at_once(operation.thread_id, size):
            return None
        self._claim(operation)
        return self._send(log, operation, base_head, body, self._index.reserve(operation.thread_id, size))

    async def append(self, operation: Operation, base_head: BaseHead, deadline: Deadline) -> JournalEntry:
        body = codec.encode(operation, base_head, self._serializer)
        size = frame_size(operation.thread_id, body, signed=self._is_signed)
        self._claim(operation)
        try:
            async with self._index.turn(deadline) as mine:
                if not mine:  # those in front wait for the disk
                    raise CheckpointUnavailableError(NO_ANSWER)
                log = await self._writable_log(deadline)
            thread_sequence = await self._index.begin(operation.thread_id, size, deadline)
        except BaseException:
            self._let_go(operation.thread_id)
            raise
        if self.workers is not None:
            self.workers.hold(operation.thread_id)  # another call of this thread may have let it go
        return await self._send(log, operation, base_head, body, thread_sequence).stored(deadline)

    def _claim(self, operation: Operation) -> None:
        """Tell the other workers that a thread is held, before anything of it is.

        Raises:
            CheckpointUnavailableError: one of them holds it, or may have gone on with it.
        """
        if self.workers is not None and not self._index.holds(operation.thread_id):
            self.workers.claim(operation.thread_id, grows=not isinstance(operation, DeleteThread))

    def _let_go(self, thread_id: str) -> None:
        """Tell the other workers of a thread that is not held any more, if that is so."""
        if self.workers is not None:
            if not self._index.holds(thread_id):
                self.workers.release(thread_id)
            else:
                self._tell_frozen(thread_id)

    def _tell_frozen(self, thread_id: str) -> None:
        if self.workers is not None and self._index.is_frozen(thread_id):
            self.workers.freeze(thread_id)

    def _send(
        self, log: ProcessLog, operation: Operation, base_head: BaseHead, body: bytes, thread_sequence: int
    ) -> Appending:
        draft = Draft(Kind.RECORD, operation.thread_id, body, self._recovery.now())
        size = frame_size(operation.thread_id, body, signed=self._is_signed)

        def add(sequence: int) -> None:
            entry = entry_of(
                operation,
                base_head,
                sequence=self._index.next_sequence(),
                thread_sequence=thread_sequence,
                journaled_at=draft.written_at,
                size=size,
            )
            self._homes[entry.sequence] = (log, sequence)
            self._index.add(entry)
            appending.entry = entry
            self._alarm()

        ended = self._committer.submit(
            log, draft, stored=add, failed=lambda: self._not_stored(log, operation.thread_id, size)
        )
        appending = Appending(operation, ended)
        return appending

    def _not_stored(self, log: ProcessLog, thread_id: str, size: int) -> None:
        """Give a record up. While the next process may find it all the same, its thread is held: it would come to the
        primary after what went there meanwhile."""
        self._doubtful.append((log, thread_id, size))
        self._settle_doubts()

    def _settle_doubts(self) -> None:
        doubtful, self._doubtful = self._doubtful, []
        for log, thread_id, size in doubtful:
            if log.in_doubt and not log.is_lost:
                self._doubtful.append((log, thread_id, size))
            else:
                self._index.give_up(thread_id, size)
                self._let_go(thread_id)

    async def _writable_log(self, deadline: Deadline) -> ProcessLog:
        """The log of this process, if its disk lets it begin one by now."""
        if self._logs.own is None:
            checking = asyncio.ensure_future(self.check())
            if not await deadline.wait_for(checking):
                checking.cancel()
                raise CheckpointUnavailableError(NO_ANSWER)
            checking.result()
        assert self._logs.own is not None
        return self._logs.own

    async def mark_applied(self, entries: Sequence[JournalEntry]) -> None:
        self._index.check_oldest(entries)
        # In their order, also where several logs take turns: a mark that fails leaves the records behind it.
        for log, run in groupby(entries, key=lambda entry: self._homes[entry.sequence][0]):
            those = list(run)
            sequences = [self._homes[entry.sequence][1] for entry in those]
            mark, forget = applied_record(sequences), partial(self._forget, those)
            await self._committer.submit(log, mark, stored=forget)

    async def dead_letter(self, entry: JournalEntry, error: str) -> None:
        self._index.check_oldest([entry])
        log, sequence = self._homes[entry.sequence]
        mark = dead_letter_record(sequence, error)

        def dead_letter(_: int) -> None:
            self._index.dead_letter(entry, error)
            self._tell_frozen(entry.thread_id)

        await self._committer.submit(log, mark, stored=dead_letter)

    async def redirect(self, thread_id: str, target: str) -> None:
        last, _ = self._homes[self._index.entries(thread_id)[-1].sequence]
        mark = redirection_record(thread_id, target)
        if (own := self._logs.own) is not None and own is not last:
            await self._committer.submit(own, mark, stored=lambda _: None)  # for what comes behind it
        await self._committer.submit(last, mark, stored=lambda _: self._index.redirect(thread_id, target))

    @property
    def identities(self) -> Collection[str]:
        return {log.identity for log in self._logs.logs}

    def forget(self, thread_id: str, is_gone: Callable[[JournalEntry], bool]) -> int:
        gone = self._index.erase(thread_id, is_gone)
        for entry in gone:
            log, sequence = self._homes.pop(entry.sequence)
            self._erased.setdefault(log, set()).add(sequence)
        self._let_go(thread_id)
        if not self._index.holds(thread_id):
            self._end_redirection(thread_id)
        self._alarm()
        return len(gone)

    async def rewrite(self) -> None:
        try:
            await self._logs.run(self._rewrite)
        except OSError as error:
            what = f"The files of the journal could not be written anew ({redact(error)})"
            raise CheckpointUnavailableError(f"{what}: what was forgotten may be in them. Try again.") from None

    def _rewrite(self) -> None:
        """Runs where the logs are used."""
        for log in self._logs.logs:
            log.rewrite(self._erased.get(log, ()))
            self._erased.pop(log, None)

    def _forget(self, entries: Sequence[JournalEntry], _: int) -> None:
        thread_id = entries[0].thread_id
        self._index.remove(entries)
        for entry in entries:
            del self._homes[entry.sequence]
        self._let_go(thread_id)
        if not self._index.holds(thread_id):
            self._end_redirection(thread_id)
        self._alarm()

    def _end_redirection(self, thread_id: str) -> None:
        """Nothing is left of a thread: what is journaled of it next goes into itself.

        Nobody waits for the marks: they are stored before anything that is appended later. A log without a record of
        the thread is not asked where it goes.
        """
        for log in self._logs.logs:
            if thread_id in log.redirected:
                self._committer.submit(log, redirection_record(thread_id, ""), stored=lambda _: None)

    # Reading and checking

    async def read(self, entries: Sequence[JournalEntry]) -> Sequence[JournalRecord]:
        homes = [self._homes[entry.sequence] for entry in entries]
        try:
            drafts = await self._logs.run(lambda: [log.read(sequence) for log, sequence in homes])
        except OSError as error:
            raise refusal(error) from None
        return [self._decoded(entry, draft) for entry, draft in zip(entries, drafts, strict=True)]

    def _decoded(self, entry: JournalEntry, draft: Draft | None) -> JournalRecord:
        why = "it is not what was written"
        try:
            if draft is not None:
                return JournalRecord(entry, codec.decode(entry.thread_id, draft.body, self._serializer))
        except Exception as error:  # noqa: BLE001  # whatever a serializer raises for bytes that it does not know
            why = f"the serializer cannot read it: {redact(error.__cause__ or error)}"
        self._damages += 1
        self._index.damage(entry.thread_id)
        self._tell_frozen(entry.thread_id)
        what = f"record {entry.sequence} of thread {quoted(entry.thread_id)} in the journal cannot be used: {why}"
        self._telemetry.emit(Notice("ERROR", f"{what}. The thread is frozen; nothing of it was dropped"))
        raise CheckpointCorruptionError(f"{what}. The thread is frozen; nothing of it was dropped.")

    async def check(self) -> None:
        try:
            if (lost := await self._logs.set_lost_aside()) is not None:
                self._alarms.tell_lost(len(lost.places))
            await self._logs.check()
        except OSError as error:
            self._told(error)
            raise refusal(error) from None
        self._told(None)

    def status(self) -> JournalStatus:
        return replace(self._index.status(self._damages, self._alarms.error), foreign=self._recovery.foreign)

    def _alarm(self) -> None:
        self._alarms.tell_fill(self._index.own_size, self._index.capacity)

    def _told(self, error: OSError | None) -> None:
        """How the newest write to the disk has ended."""
        self._settle_doubts()
        self._alarms.tell_disk(error)


LEVELS = (0.5, 0.8)
"""How full the journal is when it is told: the share of its capacity."""


class Alarms:
    """Tells each change once."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._level = 0
        self.error: str | None = None
        """Why the disk does not take what it is given; None: it does."""

    def tell_fill(self, size: int, capacity: int) -> None:
        """How many bytes of its capacity the journal holds of what this process accepted."""
        fill = size / capacity
        before, self._level = self._level, sum(fill >= level for level in LEVELS)
        if self._level > before:
            grade = "ERROR" if self._level == len(LEVELS) else "WARNING"
            what = f"the journal holds {size:,} of {capacity:,} bytes ({fill:.0%})"
            self._telemetry.emit(Notice(grade, f"{what}; when it is full, writes are refused"))

    def tell_disk(self, error: OSError | None) -> None:
        """How the newest write to the disk has ended."""
        before, self.error = self.error, reason(error) if error is not None else None
        if before is None and self.error is not None:
            what = f"the journal cannot be written ({self.error}): in an outage, writes would be refused"
            self._telemetry.emit(Notice("ERROR", what))
        elif before is not None and self.error is None:
            self._telemetry.emit(Notice("INFO", "the journal can be written again"))

    def tell_lost(self, operations: int) -> None:
        what = f"somebody has removed the files of the journal: {operations} operations that were acknowledged live "
        what += "only in this process until they are drained"
        self._telemetry.emit(Notice("ERROR", f"{what}. What is acknowledged from now on goes to new files"))
