"""The logs that one process holds, its own and those that it took over; the thread on which they are used, and how
frames get there: they gather while the disk is busy, and go out together, one write and sync for all.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol, TypeVar

from enhanced_checkpointing.journal.disk import Disk, refusal
from enhanced_checkpointing.journal.format import Draft, Kind, Signer
from enhanced_checkpointing.journal.log_file import NO_ROOM, ProcessLog
from enhanced_checkpointing.journal.recovery import LOCK, OrphanedLog, OrphanRecovery, Orphans, logs_in
from enhanced_checkpointing.journal.workers import Workers

T = TypeVar("T")

TRIES = 8
"""How often a name is made up for a log; another process that starts just now may have taken it for a dead one's."""


class ProcessLogs:
    """Owns the logs, and the thread on which they are used: each method that waits runs there, behind what was asked
    before it. `run` may be another place for that."""

    def __init__(
        self,
        disk: Disk,
        recovery: OrphanRecovery,
        workers: Workers | None,
        *,
        home: str | None,
        run: Run | None,
        wall_clock: Callable[[], float],
        make_random: Callable[[], str],
        signer: Signer | None = None,
    ) -> None:
        self._signer = signer
        self.own: ProcessLog | None = None
        """The log of this process, once one was needed."""
        self.taken_over: list[ProcessLog] = []
        """Logs that are only drained."""
        self._disk = disk
        self._recovery = recovery
        self._workers = workers
        self._home = home
        self._injected_run = run
        self._wall_clock = wall_clock
        self._make_random = make_random
        self._worker: JournalThread | None = None

    @property
    def logs(self) -> list[ProcessLog]:
        return [*self.taken_over, *([self.own] if self.own is not None else [])]

    def open(self) -> None:
        """Have a thread to run on."""
        if self._injected_run is None:
            self._worker = JournalThread()

    def run(self, work: Callable[[], T]) -> Awaitable[T]:
        if self._injected_run is not None:
            return self._injected_run(work)
        assert self._worker is not None
        return self._worker.run(work)

    async def prepare(self) -> None:
        """See that the directory is there.

        Raises:
            OSError: it cannot be used.
        """
        await self.run(self._disk.prepare)

    async def take_over(self) -> Orphans | None:
        """Take over what ended processes left; None while another process does."""
        return await self.run(self._take_over)

    async def check(self) -> None:
        """See that this process's log can be written, and begin it where there is none.

        Raises:
            OSError: it cannot.
        """
        await self.run(lambda: self._own_log().check())

    async def set_lost_aside(self) -> ProcessLog | None:
        """Put this process's log with those that are only drained, if its files were removed; another one is begun."""
        return await self.run(self._set_lost_aside)

    async def give_back_settled(self) -> None:
        """Close logs that were taken over and are done, so that a process that lives on holds nothing of them."""
        settled = [log for log in self.taken_over if log.is_settled and not log.missing]
        self.taken_over = [log for log in self.taken_over if log not in settled]
        for log in settled:
            with suppress(OSError):  # nothing is in it: the next process removes it
                await self.run(log.close)

    async def close(self, seconds: float) -> BaseException | None:
        """Leave the logs to the next process, and wait that long for it. Returns why that did not go as it should."""
        closing = asyncio.ensure_future(self.run(self._close_logs))
        done, _ = await asyncio.wait({closing}, timeout=seconds)
        if self._worker is not None:
            self._worker.close()
        return closing.exception() if done else None

    def _take_over(self) -> Orphans | None:
        """Runs where the logs are used: what it takes over is given back by whoever closes them, come what may."""
        if self._workers is not None:
            with suppress(OSError):  # `check` says why
                self._own_log()
        orphans = self._recovery.take_over({log.identity for log in self.logs}, self._settle)
        if orphans is not None:
            self.taken_over += [found.log for found in orphans.logs]
        return orphans

    def _settle(self, alive: Set[str], logs: Sequence[OrphanedLog]) -> None:
        if self._workers is not None:
            threads = {record.draft.thread_id for found in logs for record in found.records}
            threads.update(*(found.damaged_threads for found in logs))
            self._workers.settle(self.own.identity if self.own is not None else None, alive, threads)

    def _set_lost_aside(self) -> ProcessLog | None:
        log = self.own
        if log is None or log.is_in_place():
            return None
        log.lose()
        self.own = None
        self.taken_over.append(log)
        return log

    def _own_log(self) -> ProcessLog:
        """The log of this process; begun when it is first needed."""
        if self.own is None:
            self._disk.prepare()
            known = [int(identity[:16], 16) for identity in logs_in(self._disk.names())]
            begun_at = max([int(self._wall_clock() * 1e6), *(stamp + 1 for stamp in known)])  # a clock may jump back
            for _ in range(TRIES):
                identity = f"{begun_at:016x}{self._make_random()}"
                if (lock := self._disk.lock(f"{identity}{LOCK}")) is not None:
                    self.own = ProcessLog(self._disk, identity, lock, self._wall_clock, self._home, self._signer)
                    return self.own
            raise OSError(errno.EAGAIN, "another process took the lock of every log that was begun")
        return self.own

    def _close_logs(self) -> None:
        """Runs behind all that was asked of the logs, also of what nobody waits for any more."""
        logs = self.logs
        self.taken_over, self.own = [], None
        with ExitStack() as stack:
            for log in logs:
                stack.callback(log.close)
            if self._workers is not None:
                stack.callback(self._workers.leave)  # first: another one must not think that it has to free our place


class Run(Protocol):
    """Runs work that may block, one piece after another, somewhere else than on the event loop."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class _Request:
    """A frame, and what is to be done once it is stored, or is not. `ended` is done when it is durable."""

    log: ProcessLog
    draft: Draft
    stored: Callable[[int], None]
    failed: Callable[[], None]
    ended: asyncio.Future[None]


class Committer:
    """Sends frames to their logs in the order in which they came. `told` hears how each commit ended."""

    def __init__(self, run: Run, told: Callable[[OSError | None], None]) -> None:
        self._run = run
        self._told = told
        self._requests: list[_Request] = []
        self._flushing: asyncio.Task[None] | None = None

    def submit(
        self,
        log: ProcessLog,
        draft: Draft,
        *,
        stored: Callable[[int], None],
        failed: Callable[[], None] = lambda: None,
    ) -> asyncio.Future[None]:
        """Send a frame; `stored` gets its sequence in the log. The future fails with what a caller is to be told."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended.add_done_callback(_seen)
        self._requests.append(_Request(log, draft, stored, failed, ended))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(), name="journal")
        return ended

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way."""
        return self._flushing is None or self._flushing.done()

    async def settle(self, seconds: float) -> None:
        """Wait up to `seconds` for what is on its way."""
        if self._flushing is not None:
            await asyncio.wait({self._flushing}, timeout=seconds)

    async def _flush(self) -> None:
        """Send what has gathered, again and again, until nothing has."""
        while self._requests:
            requests, self._requests = self._requests, []
            for log in dict.fromkeys(request.log for request in requests):
                await self._store(log, [request for request in requests if request.log is log])

    async def _store(self, log: ProcessLog, requests: Sequence[_Request]) -> None:
        drafts = [request.draft for request in requests]
        records = [request for request in requests if request.draft.kind is Kind.RECORD]
        try:
            sequences = await self._run(lambda: log.append(drafts))
        except OSError as error:
            marks = [request for request in requests if request.draft.kind is not Kind.RECORD]
            if error.errno in NO_ROOM and marks and records:
                await self._store(log, marks)  # room was set aside for them
                requests = records
            self._told(error)
            _refuse(requests, refusal(error))
            return
        except Exception as error:  # noqa: BLE001  # it belongs to those who wait, who would wait for ever
            _refuse(requests, error)
            return
        if records:
            self._told(None)  # marks have room of their own: they do not tell whether there is any for records
        for request, sequence in zip(requests, sequences, strict=False):  # the log may have added marks of its own
            request.stored(sequence)
            if not request.ended.done():
                request.ended.set_result(None)


def _refuse(requests: Sequence[_Request], error: Exception) -> None:
    for request in requests:
        request.failed()
        if not request.ended.done():
            request.ended.set_exception(error)


def _seen(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()  # the caller may have gone


Job = Callable[[], None]


class JournalThread:
    """Runs one piece of work after another. Made on the event loop that waits for them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # A daemon: a process may end although its disk never answers.
        self._thread = threading.Thread(target=self._work, name="checkpoint journal", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """The result of `work`, which runs when all earlier work has ended."""
        future: asyncio.Future[T] = self._loop.create_future()

        def job() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001  # it belongs to whoever waits for the future
                self._tell(_fail, future, error)
            else:
                self._tell(_succeed, future, result)

        self._jobs.put(job)
        return future

    def close(self) -> None:
        """Take no more work; the thread ends when it has done what it was given."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _tell(self, tell: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(tell, *arguments)


def _succeed(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
