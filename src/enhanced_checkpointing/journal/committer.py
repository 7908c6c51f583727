"""Frames on their way to the disk: they gather while it is busy, and go out together, one write and sync for all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from enhanced_checkpointing.journal.book import NO_ROOM, Book
from enhanced_checkpointing.journal.frames import Draft, Kind
from enhanced_checkpointing.journal.refusals import refusal

T = TypeVar("T")


class Run(Protocol):
    """Runs work that may block, one piece after another, somewhere else than on the event loop."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class _Request:
    """A frame, and what is to be done once it is stored, or is not. `ended` is done when it is durable."""

    book: Book
    draft: Draft
    stored: Callable[[int], None]
    failed: Callable[[], None]
    ended: asyncio.Future[None]


class Committer:
    """Sends frames to their books in the order in which they came. `told` hears how each commit ended."""

    def __init__(self, run: Run, told: Callable[[OSError | None], None]) -> None:
        self._run = run
        self._told = told
        self._requests: list[_Request] = []
        self._flushing: asyncio.Task[None] | None = None

    def submit(
        self,
        book: Book,
        draft: Draft,
        *,
        stored: Callable[[int], None],
        failed: Callable[[], None] = lambda: None,
    ) -> asyncio.Future[None]:
        """Send a frame; `stored` gets its sequence in the book. The future fails with what a caller is to be told."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended.add_done_callback(_seen)
        self._requests.append(_Request(book, draft, stored, failed, ended))
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
            for book in dict.fromkeys(request.book for request in requests):
                await self._store(book, [request for request in requests if request.book is book])

    async def _store(self, book: Book, requests: Sequence[_Request]) -> None:
        drafts = [request.draft for request in requests]
        records = [request for request in requests if request.draft.kind is Kind.RECORD]
        try:
            sequences = await self._run(lambda: book.append(drafts))
        except OSError as error:
            marks = [request for request in requests if request.draft.kind is not Kind.RECORD]
            if error.errno in NO_ROOM and marks and records:
                await self._store(book, marks)  # room was set aside for them
                requests = records
            self._told(error)
            _refuse(requests, refusal(error))
            return
        except Exception as error:  # noqa: BLE001  # it belongs to those who wait, who would wait for ever
            _refuse(requests, error)
            return
        if records:
            self._told(None)  # marks have room of their own: they do not tell whether there is any for records
        for request, sequence in zip(requests, sequences, strict=False):  # the book may have added marks of its own
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
