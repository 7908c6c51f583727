"""The books that one process holds: the one that it writes, and those of ended processes that it took over."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import ExitStack, suppress
from typing import TypeVar

from enhanced_checkpointing.journal.adoption import LOCK, Adopted, books_in
from enhanced_checkpointing.journal.book import Book
from enhanced_checkpointing.journal.committer import Run
from enhanced_checkpointing.journal.disk import Disk
from enhanced_checkpointing.journal.estate import Estate
from enhanced_checkpointing.journal.frames import Signer
from enhanced_checkpointing.journal.inheritance import Inheritance
from enhanced_checkpointing.journal.worker import Worker
from enhanced_checkpointing.journal.workers import Workers

T = TypeVar("T")

TRIES = 8
"""How often a name is made up for a book; another process that starts just now may have taken it for a dead one's."""


class Shelf:
    """Owns the books, and the thread on which they are used: each method that waits runs there, behind what was asked
    before it. `run` may be another place for that."""

    def __init__(
        self,
        disk: Disk,
        estate: Estate,
        workers: Workers | None,
        *,
        home: str | None,
        run: Run | None,
        wall_clock: Callable[[], float],
        make_random: Callable[[], str],
        signer: Signer | None = None,
    ) -> None:
        self._signer = signer
        self.own: Book | None = None
        """The book of this process, once one was needed."""
        self.adopted: list[Book] = []
        """Books that are only drained."""
        self._disk = disk
        self._estate = estate
        self._workers = workers
        self._home = home
        self._injected_run = run
        self._wall_clock = wall_clock
        self._make_random = make_random
        self._worker: Worker | None = None

    @property
    def books(self) -> list[Book]:
        return [*self.adopted, *([self.own] if self.own is not None else [])]

    def open(self) -> None:
        """Have a thread to run on."""
        if self._injected_run is None:
            self._worker = Worker()

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

    async def inherit(self) -> Inheritance | None:
        """Take over what ended processes left; None while another process does."""
        return await self.run(self._inherit)

    async def check(self) -> None:
        """See that this process's book can be written, and begin it where there is none.

        Raises:
            OSError: it cannot.
        """
        await self.run(lambda: self._own_book().check())

    async def set_lost_aside(self) -> Book | None:
        """Put this process's book with those that are only drained, if its files were removed; another one is begun."""
        return await self.run(self._set_lost_aside)

    async def give_back_settled(self) -> None:
        """Close adopted books of which everything is done, so that a process that lives on holds nothing of them."""
        settled = [book for book in self.adopted if book.is_settled and not book.missing]
        self.adopted = [book for book in self.adopted if book not in settled]
        for book in settled:
            with suppress(OSError):  # nothing is in it: the next process removes it
                await self.run(book.close)

    async def close(self, seconds: float) -> BaseException | None:
        """Leave the books to the next process, and wait that long for it. Returns why that did not go as it should."""
        closing = asyncio.ensure_future(self.run(self._close_books))
        done, _ = await asyncio.wait({closing}, timeout=seconds)
        if self._worker is not None:
            self._worker.close()
        return closing.exception() if done else None

    def _inherit(self) -> Inheritance | None:
        """Runs where the books are used: what it takes over is given back by whoever closes them, come what may."""
        if self._workers is not None:
            with suppress(OSError):  # `check` says why
                self._own_book()
        inheritance = self._estate.inherit({book.identity for book in self.books}, self._settle)
        if inheritance is not None:
            self.adopted += [found.book for found in inheritance.books]
        return inheritance

    def _settle(self, alive: Set[str], books: Sequence[Adopted]) -> None:
        if self._workers is not None:
            threads = {record.draft.thread_id for found in books for record in found.records}
            threads.update(*(found.damaged_threads for found in books))
            self._workers.settle(self.own.identity if self.own is not None else None, alive, threads)

    def _set_lost_aside(self) -> Book | None:
        book = self.own
        if book is None or book.is_in_place():
            return None
        book.lose()
        self.own = None
        self.adopted.append(book)
        return book

    def _own_book(self) -> Book:
        """The book of this process; begun when it is first needed."""
        if self.own is None:
            self._disk.prepare()
            known = [int(identity[:16], 16) for identity in books_in(self._disk.names())]
            begun_at = max([int(self._wall_clock() * 1e6), *(stamp + 1 for stamp in known)])  # a clock may jump back
            for _ in range(TRIES):
                identity = f"{begun_at:016x}{self._make_random()}"
                if (lock := self._disk.lock(f"{identity}{LOCK}")) is not None:
                    self.own = Book(self._disk, identity, lock, self._wall_clock, self._home, self._signer)
                    return self.own
            raise OSError(errno.EAGAIN, "another process took the lock of every book that was begun")
        return self.own

    def _close_books(self) -> None:
        """Runs behind all that was asked of the books, also of what nobody waits for any more."""
        books = self.books
        self.adopted, self.own = [], None
        with ExitStack() as stack:
            for book in books:
                stack.callback(book.close)
            if self._workers is not None:
                stack.callback(self._workers.leave)  # first: another one must not think that it has to free our place
