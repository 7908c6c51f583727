"""Threads as JSON lines: written to a stream, and read from one into a database. `exchange_lines` says what a line is.

A thread is taken from the lines only when all of its lines are there and right. From then on it is moved as from a
database: compared with what the target has, and completed, refused or replaced.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import IO, Any

from enhanced_checkpointing.backends.contract import Backend
from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.threads.contents import Count
from enhanced_checkpointing.threads.exchange_collector import Collector
from enhanced_checkpointing.threads.exchange_lines import FORMAT, DamagedLine, Whole, Writer, content_of, line_of
from enhanced_checkpointing.threads.migrate import (
    CONCURRENCY,
    Tally,
    Tell,
    failure_of,
    move_all,
    stopped,
    thread_of_backend,
    threads_of,
)
from enhanced_checkpointing.threads.moving import Orders, Outcome, Report, SideFailed, Source, attributed

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

    header = {"kind": "export", "format": FORMAT, "source": source.home()}
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
    """Write the lines of a thread. One that cannot be read to its end has no last line: nobody will import it."""
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
