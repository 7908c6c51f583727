"""Threads as JSON lines: written to a stream, and read from one into a database. `exchange_lines` says what a line is.

A thread is taken from the lines only when all of its lines are there and right. From then on it is moved as from a
database: compared with what the target has, and completed, refused or replaced.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import IO, Any

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.reading import CHUNK_BYTES, in_chunks
from enhanced_checkpointing.errors import CheckpointerError, InvalidIdError
from enhanced_checkpointing.identifiers import text_of
from enhanced_checkpointing.operations import Operation, Put
from enhanced_checkpointing.resilience.failures import Failure, FailureKind
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.threads.contents import Count
from enhanced_checkpointing.threads.exchange_lines import (
    FORMAT,
    DamagedLine,
    Reader,
    Whole,
    Writer,
    content_of,
    line_of,
    part,
    told_text,
)
from enhanced_checkpointing.threads.migrate import (
    CONCURRENCY,
    Orders,
    Outcome,
    Report,
    SideFailed,
    Source,
    Tally,
    Tell,
    attributed,
    failure_of,
    move_all,
    stopped,
    thread_of_backend,
    threads_of,
)

Lines = Iterator[tuple[int, bytes]]
"""Numbered from 1."""


class NoExport(CheckpointerError):
    """What should be imported does not begin like an export that this version can read; nothing was imported."""


async def export_threads(source: Backend, stream: IO[bytes], *, thread_ids: Sequence[str] = (), tell: Tell) -> Tally:
    """Write these threads of an open backend, or all of them; `tell` hears of each as it is done.

    Raises:
        MigrationStopped: the database does not answer any more; what was written is not all.
        OSError: the stream cannot be written.
    """
    tally, whole = Tally(), Whole()

    def write(content: Mapping[str, Any]) -> int:
        line = line_of(content)
        whole.add(line)
        return stream.write(line)

    header = {"kind": "export", "format": FORMAT, "source": source.database_id()}
    write(header | {"exported_at": datetime.now(UTC).isoformat(timespec="seconds")})
    with tally.timed():
        async with aclosing(_named(source, thread_ids) if thread_ids else threads_of(source)) as threads:
            async for thread in threads:
                assert isinstance(thread, Source)
                report = await _exported(thread, write)
                tally.add(report)
                tell(report)
    write({"kind": "end of export", "threads": tally.threads, "whole": whole.value()})
    stream.flush()
    return tally


async def import_threads(
    stream: IO[bytes],
    target: Backend,
    orders: Orders,
    *,
    concurrency: int = CONCURRENCY,
    tell: Tell = lambda _: None,
) -> Tally:
    """Bring every thread of an export into an open backend.

    Raises:
        NoExport: it is none, or one of a format that this version does not know.
        MigrationStopped: the database cannot be used, or does not answer any more.
    """
    lines = enumerate(stream, start=1)
    first = next(lines, (0, b""))[1]
    _check_first(first)
    sources = _threads(lines, Collector(target.serializer, first))
    return await move_all(sources, target, orders, concurrency=concurrency, tell=tell)


async def _named(backend: Backend, thread_ids: Sequence[str]) -> AsyncGenerator[Source | Report, None]:
    for thread_id in dict.fromkeys(thread_ids):
        yield thread_of_backend(backend, thread_id)


async def _exported(thread: Source, write: Callable[[Mapping[str, Any]], int]) -> Report:
    """Write the lines of a thread. One that cannot be read to its end has no last line, and is not imported."""
    writer, size = Writer(thread.thread_id, thread.serializer), 0
    try:
        async with aclosing(attributed("source", thread.classify, thread.read())) as chunks:
            async for chunk in chunks:
                size += sum(write(writer.content(operation)) for operation in chunk)
    except SideFailed as failed:
        if not failed.at_fault:
            raise stopped(failed) from failed
        return failure_of(thread.thread_id, failed)
    if not writer.checkpoints:
        return Report(thread.thread_id, Outcome.FAILED, reasons=("the source has no such thread",))
    size += write(writer.end())
    return Report(thread.thread_id, Outcome.COPIED, Count(writer.checkpoints, writer.writes), size)


def _check_first(line: bytes) -> None:
    try:
        content = content_of(line)
    except DamagedLine as error:
        raise NoExport(f"Line 1 is not that of an export: {error}. Nothing was imported.") from error
    if content.get("kind") != "export" or content.get("format") != FORMAT:
        raise NoExport(
            f"Line 1 says that this is {content.get('kind')!r} of format {content.get('format')!r}; this version reads "
            f"an 'export' of format {FORMAT}. Nothing was imported."
        )


async def _threads(lines: Lines, collector: Collector) -> AsyncGenerator[Source | Report, None]:
    try:
        for number, line in lines:
            for found in collector.add(number, line):
                yield found
        for report in collector.end():
            yield report
    finally:
        collector.close()


Found = Iterator[Source | Report]


class Collector:
    """Takes line after line behind the first one; a thread comes out with its last one, a damaged one as a report that
    names the line."""

    def __init__(self, serializer: SharingSerializer, first: bytes) -> None:
        self._serializer = serializer
        self._whole = Whole()
        self._whole.add(first)
        self._fine = True
        self._open: _Thread | None = None
        self._skipping = False
        self._threads = 0
        self._last_line = 1
        self._ended = False

    def add(self, number: int, line: bytes) -> Found:
        self._last_line = number
        if self._ended:
            yield self._failed(f"line {number}: there is something behind the end of the export")
            return
        try:
            content = content_of(line)
            if part(content, "kind", str) == "end of export":
                yield from self._end_of_export(number, content)
                return
            elif part(content, "line", int) == 1:
                yield from self._begin(number, content, line)
            elif not self._skipping:
                yield from self._go_on(content, line)
        except DamagedLine as error:
            yield self._failed(f"line {number}: {error}")
            self._skipping = True
        self._whole.add(line)

    def end(self) -> Iterator[Report]:
        """What is missing when there are no more lines."""
        if not self._ended:
            yield self._failed(f"the export ends too early, behind line {self._last_line}: it has no last line")

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _begin(self, number: int, content: Mapping[str, Any], line: bytes) -> Found:
        if self._open is not None:
            yield self._failed(f"line {number}: another thread begins before this one ends")
        self._threads += 1
        self._skipping = False
        self._open = _Thread(_id(content), self._serializer)
        yield from self._go_on(content, line)

    def _go_on(self, content: Mapping[str, Any], line: bytes) -> Found:
        thread = self._open
        name = part(content, "thread", str)
        if thread is None or name != thread.thread_id or content["line"] != thread.lines + 1:
            raise DamagedLine(f"a line is missing before line {content['line']} of thread {told_text(name)}")
        if thread.add(content, line):
            self._open = None
            yield thread.source()

    def _end_of_export(self, number: int, content: Mapping[str, Any]) -> Found:
        part(content, "threads", int)
        self._ended = True
        if self._open is not None:
            yield self._failed(f"line {number}: the export ends before this thread does")
        if content["threads"] != self._threads and not self._skipping:
            yield self._failed(f"line {number}: {content['threads']} threads were exported, here are {self._threads}")
        if self._fine and content.get("whole", self._whole.value()) != self._whole.value():
            yield self._failed(
                f"line {number}: it was not written behind these lines, as if they were of several exports: each "
                "thread is as it was in one of them, and others may be missing"
            )

    def _failed(self, reason: str) -> Report:
        """The report of the thread that is open now, which is given up."""
        self._fine = False
        thread_id = self._open.thread_id if self._open is not None else ""
        self.close()
        return Report(thread_id, Outcome.FAILED, reasons=(reason,))


def _id(content: Mapping[str, Any]) -> str:
    try:
        return text_of(part(content, "thread", str), "the thread's id")
    except InvalidIdError as error:
        raise DamagedLine(str(error)) from None


class _Thread:
    """The lines of one thread, on disk if they are many, so that they can be read again."""

    def __init__(self, thread_id: str, serializer: SharingSerializer) -> None:
        self.thread_id = thread_id
        self.lines = 0
        self._serializer = serializer
        self._reader = Reader(thread_id, serializer)
        self._checkpoints = 0
        self._calls = 0
        self._spool: IO[bytes] = tempfile.SpooledTemporaryFile(CHUNK_BYTES)  # noqa: SIM115  # see close

    def add(self, content: Mapping[str, Any], line: bytes) -> bool:
        """Take the next line; returns whether it is the last one.

        Raises:
            DamagedLine: it does not fit.
        """
        self.lines += 1
        if content["kind"] == "end of thread":
            counted = part(content, "checkpoints", int), part(content, "calls", int)
            if counted != (self._checkpoints, self._calls):
                raise DamagedLine(f"it counts {counted}, where there are {(self._checkpoints, self._calls)}")
            return True
        if isinstance(self._reader.operation(content), Put):
            self._checkpoints += 1
        else:
            self._calls += 1
        self._spool.write(line)
        return False

    def source(self) -> Source:
        return Source(
            self.thread_id,
            lambda: in_chunks(self._groups()),
            self._serializer,
            lambda error: Failure(FailureKind.DATA, error),
            reads_everything=True,
            release=self.close,
        )

    def close(self) -> None:
        self._spool.close()

    async def _groups(self) -> AsyncGenerator[Sequence[Operation], None]:
        self._spool.seek(0)
        reader = Reader(self.thread_id, self._serializer)
        group: list[Operation] = []
        for line in self._spool:
            operation = reader.operation(content_of(line))
            if isinstance(operation, Put) and group:
                yield group
                group = []
            group.append(operation)
        yield group
