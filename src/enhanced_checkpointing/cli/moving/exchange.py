"""`checkpointing export` and `import`: threads as JSON lines."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from enhanced_checkpointing.cli.audit import note
from enhanced_checkpointing.cli.configuration import UsageError
from enhanced_checkpointing.cli.findings import ExitCode
from enhanced_checkpointing.cli.moving.journaled import Journaled, journaled_for, looked_again
from enhanced_checkpointing.cli.moving.progress import (
    Showing,
    as_object,
    following,
    show_journaled,
    show_outcomes,
    show_problems,
)
from enhanced_checkpointing.cli.named_databases import Naming, home, opened_for_rehearsal, opened_source, opened_target
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.threads.exchange import export_threads, import_threads
from enhanced_checkpointing.threads.migrate import Tally, count_threads
from enhanced_checkpointing.threads.moving import Orders

__all__ = ["run_export", "run_import"]

STREAM = "-"
"""Stands for standard output, or input, instead of a file."""

OWNER_ONLY = 0o600
"""Conversations are nobody else's business."""

PART_LENGTH = 60
"""Characters of a file's name that its unfinished one begins with."""

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that would end the process at once, with an unfinished file left."""


def run_export(source: str, file: str, thread_ids: Sequence[str], naming: Naming, showing: Showing) -> ExitCode:
    """Export, print what was exported, and tell whether that is all."""
    config, place = naming.config(source), naming.journal()
    before = journaled_for(home(config), place)

    def begins(part: Path) -> None:
        note(place.directory, home(config), "export begins", threads=thread_ids, file=str(part.absolute()))

    with _written(file, begins) as stream:
        tally = asyncio.run(_exported(config, stream, thread_ids, showing))
    where = "standard output" if file == STREAM else str(Path(file).absolute())
    note(place.directory, home(config), "export", threads=thread_ids, file=where, exported=tally.threads)
    journaled = looked_again(before, home(config), place)
    words = Words(home(config), file, "exported")
    _show(tally, showing, words, journaled, sys.stderr if file == STREAM else sys.stdout)
    return ExitCode.FINE if tally.complete and journaled.complete else ExitCode.WRONG


def run_import(file: str, target: str, naming: Naming, orders: Orders, showing: Showing) -> ExitCode:
    """Import, print what was imported, and tell whether that is all."""
    config = naming.config(target)
    with _read(file) as stream:
        tally = asyncio.run(_imported(config, stream, naming.concurrency, orders, showing))
    if not orders.rehearse:
        note(naming.journal().directory, home(config), "import", file=file, imported=tally.threads)
    _show(tally, showing, Words(file, home(config), "imported"), None, sys.stdout)
    return ExitCode.FINE if tally.complete else ExitCode.WRONG


async def _exported(
    config: CheckpointerConfig, stream: IO[bytes], thread_ids: Sequence[str], showing: Showing
) -> Tally:
    async with opened_source(config) as source:
        total = len(set(thread_ids)) or (None if showing.quiet else await count_threads(source))
        with following("exported", total, quiet=showing.quiet) as tell:
            return await export_threads(source, stream, thread_ids=thread_ids, tell=tell)


async def _imported(
    config: CheckpointerConfig, stream: IO[bytes], concurrency: int, orders: Orders, showing: Showing
) -> Tally:
    opening = opened_for_rehearsal(config) if orders.rehearse else opened_target(config)
    async with opening as target:
        with following("imported", None, quiet=showing.quiet) as tell:
            return await import_threads(stream, target, orders, concurrency=concurrency, tell=tell)


@contextmanager
def _written(file: str, begins: Callable[[Path], None]) -> Iterator[IO[bytes]]:
    """A stream to write to. A file gets its name when it is whole, so that no other one is taken for an export;
    `begins` hears of the one that is there until then, and is left by an export that is killed."""
    if file == STREAM:
        if sys.stdout is None:
            raise UsageError("Standard output is closed. Nothing was exported: name a file.")
        yield sys.stdout.buffer
        return
    path = Path(file)
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already. Nothing was exported: name another file, or take that one away.")
    part = path.with_name(f"{path.name[:PART_LENGTH]}.{secrets.token_hex(8)}.part")
    begins(part)
    with _ended_by_signals():
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            _name(part, path)
        finally:
            part.unlink(missing_ok=True)


def _name(part: Path, path: Path) -> None:
    """Give a file its name, unless there is one of that name by now."""
    try:
        try:
            os.link(part, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links: whoever makes the empty file first has the name
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY))
            part.replace(path)
    except FileExistsError:
        raise UsageError(
            f"{path} has come while this was at work, and stays as it is. Nothing was exported: name another file, or "
            "take that one away."
        ) from None


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let what ends a process by default end it as an error would, so that nothing half stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _read(file: str) -> Iterator[IO[bytes]]:
    if file == STREAM:
        yield sys.stdin.buffer
        return
    with open(file, "rb") as stream:
        yield stream


@dataclass(frozen=True, slots=True)
class Words:
    """What is said of an exchange: from where, to where, and what was done."""

    source: str
    target: str
    copied: str


def _show(tally: Tally, showing: Showing, words: Words, journaled: Journaled | None, stream: IO[str]) -> None:
    console = Console(highlight=False, file=stream)
    complete = tally.complete and (journaled is None or journaled.complete)
    if showing.as_json:
        shown = as_object(tally, journaled, source=words.source, target=words.target)
        print(json.dumps(shown, indent=2), file=stream)
    elif not (showing.quiet and complete):
        console.print(f"from {words.source}", markup=False, soft_wrap=True)
        console.print(f"to   {words.target}", markup=False, soft_wrap=True)
        show_outcomes(console, tally, copied=words.copied)
        show_problems(console, tally)
        if journaled is not None:
            show_journaled(console, journaled)
