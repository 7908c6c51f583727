"""The audit trail: who deleted, erased, imported or exported what, and when, in one append-only log of JSON lines.

Each line names the hash of the line before it, so that a changed or missing line is found. Beside the log is a small
file with the number and hash of the newest line, by which a log that was cut at its end is found. Whoever can write
both files can forge both: keep the hash that `checkpointing audit verify` prints elsewhere, and give it back to it.

Both names begin with a dot, so that every release leaves them alone in the journal's directory.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import redact
from enhanced_checkpointing.observability.events import Notice, Telemetry
from enhanced_checkpointing.private_files import (
    append_durably,
    appending,
    make_private_folder,
    open_or_create,
    open_own,
    own_directory,
)
from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own

LOG, HEAD = ".audit.jsonl", ".audit.head"

FIRST = "0" * 64
"""Stands for the hash of the line before the first."""

NAMED = 1000
"""Threads that an entry names at most; all are counted."""

MOST = 512 * 1024
"""Bytes that the names in one list of an entry take at most: ids may have 4 KiB each, and thrice as much in JSON."""

TAIL = 2 * 1024 * 1024
"""Bytes from the end in which the newest line is looked for: more than any takes."""


LAST_SECOND = 253_402_300_800
"""Seconds of the wall clock at the end of the year 9999, above which no date is written."""

UNREADABLE = (ValueError, RecursionError, OverflowError, MemoryError, AttributeError, KeyError, TypeError)
"""What reading a line raises that is no entry: anything may have been written there."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look at the log found: `fault` says what is wrong with its first broken line, `line` which that is."""

    entries: int
    newest: str = FIRST
    line: int | None = None
    fault: str | None = None


def named(names: Sequence[str]) -> list[str]:
    """As many of the names, from the first, as an entry has room for."""
    kept, room = list(names[:NAMED]), MOST
    for place, name in enumerate(kept):
        room -= len(json.dumps(name))
        if room < 0:
            return kept[:place]
    return kept


def hidden(name: str) -> str:
    """An id as an erasure notes it: a reader who knows the id finds it again; no other learns it."""
    return f"sha256:{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()}"


class AuditTrail:
    """The log of one directory, for a database that is told by its `home`. Everything raises `OSError`, whatever stands
    in the two files."""

    def __init__(self, directory: Path, database: str = "", wall_clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._database = database
        self._wall_clock = wall_clock

    def note(self, action: str, *, threads: Sequence[str] = (), count: int | None = None, **facts: Any) -> None:
        """Append an entry; it is durable when this returns. `count`: how many threads, where not all are named."""
        make_private_folder(self._directory)
        with own_directory(self._directory) as folder, appending(LOG, folder=folder) as handle:
            number, previous, end = _newest(handle)
            if end != os.fstat(handle).st_size:
                os.ftruncate(handle, end)  # of a process that died while it wrote, and was told nothing
            entry = {
                "number": number + 1,
                "at": round(self._wall_clock(), 3),
                "action": action,
                "database": self._database,
                "actor": _actor(),
                "threads": len(threads) if count is None else count,
                "thread_ids": named(threads),
                **facts,
                "previous": previous,
            }
            hashed = _hash_of(entry)
            append_durably(handle, _line_of({**entry, "hash": hashed}))
            _write_head(folder, number + 1, hashed)

    def check(self) -> None:
        """See that an entry could be appended, and append none."""
        try:
            with own_directory(self._directory) as folder:
                for name in (LOG, HEAD):
                    with suppress(FileNotFoundError):
                        handle = open_own(name, os.O_RDWR, folder=folder)
                        try:
                            if name == LOG:
                                _newest(handle)
                        finally:
                            os.close(handle)
        except FileNotFoundError:  # the directory is made with the first entry
            return

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries that can be read, oldest first."""
        for line in self._lines():
            try:
                entry = json.loads(line)
            except UNREADABLE:
                continue  # `verify` names the line
            if _is_entry(entry):
                yield entry

    def verify(self, known: str | None = None) -> Verdict:
        """Look at the whole chain; `known` is the hash of an entry that must be in it."""
        previous, number, hashes = FIRST, 0, [FIRST]
        for number, line in enumerate(self._lines(), 1):
            fault, found = _read(line, number, previous)
            if fault is not None:
                return Verdict(number - 1, previous, number, fault)
            previous = found
            hashes.append(previous)
        head = self._head()
        if (number and head is None) or (head is not None and head[0] < 1):
            return Verdict(number, previous, number, f"{HEAD} is missing or damaged, so that a cut cannot be told")
        if head is not None and (head[0] > number or (head[0] > 0 and head[1] != hashes[head[0]])):
            fault = f"entry {head[0]} was written and is not there: the log was cut at its end, or made anew"
            return Verdict(number, previous, number + 1, fault)
        if known is not None and known not in hashes:
            return Verdict(number, previous, number, "no entry has the hash that was given: the log was made anew")
        return Verdict(number, previous)

    def _lines(self) -> Iterator[bytes]:
        try:
            with own_directory(self._directory) as folder:
                handle = open_own(LOG, os.O_RDONLY, folder=folder)
        except FileNotFoundError:
            return
        with open(handle, "rb") as log:
            yield from log

    def _head(self) -> tuple[int, str] | None:
        try:
            with own_directory(self._directory) as folder, open(open_own(HEAD, os.O_RDONLY, folder=folder)) as head:
                told = json.loads(head.read(1024))
                return _number_in(told), str(told["hash"])
        except (FileNotFoundError, *UNREADABLE):
            return None  # `verify` says that it is missing or damaged


class Notes:
    """Notes what is done with a configuration, in its journal's directory: where that is missing and no durable journal
    makes it, and for a primary in memory, nothing is noted. Without a configuration nothing is."""

    def __init__(
        self, config: CheckpointerConfig | None = None, database: str = "", telemetry: Telemetry | None = None
    ):
        self._trail: AuditTrail | None = None
        if config is not None and sys.platform != "win32" and config.backend_name != "memory":
            directory = config.journal_dir.absolute()
            if config.journal == "durable" or directory.is_dir():
                self._trail = AuditTrail(directory, database)
        self._telemetry = telemetry
        self.error: str | None = None
        """Why the newest note, or look, found that the trail cannot be written."""

    async def __call__(self, action: str, *, threads: Sequence[str] = (), **facts: Any) -> None:
        """Note what was done. What keeps it from being noted is told, and undoes nothing."""
        trail = self._trail
        if trail is None or await self._try(lambda: trail.note(action, threads=threads, **facts)):
            return
        if self._telemetry is not None:
            what = f"{action} of {len(threads)} threads was done, and is not in the audit trail ({self.error})"
            self._telemetry.emit(Notice("ERROR", what))

    async def look(self) -> None:
        """See whether the trail could be written now."""
        if self._trail is not None:
            await self._try(self._trail.check)

    async def _try(self, work: Callable[[], None]) -> bool:
        try:
            await in_thread_of_its_own(work, name="audit")
        except Exception as error:  # noqa: BLE001  # whatever it is: what was done is done
            self.error = redact(error)
        else:
            self.error = None
        return self.error is None


def _actor() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = str(os.geteuid())
    return {"process": os.getpid(), "host": socket.gethostname(), "user": user}


def _hash_of(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _line_of(entry: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(entry)}\n".encode()


def _is_entry(entry: Any) -> bool:
    """Whether it has what every entry has, each of its kind."""
    if not isinstance(entry, dict) or not isinstance(at := entry.get("at"), (int, float)):
        return False
    kinds = (("number", int), ("threads", int), ("thread_ids", list), ("actor", dict))
    return 0 <= at < LAST_SECOND and all(isinstance(entry.get(name), kind) for name, kind in kinds)


def _number_in(told: Any) -> int:
    number = told["number"]
    if type(number) is not int:
        raise TypeError("the number of an entry is a whole one")
    return number


def _read(line: bytes, number: int, previous: str) -> tuple[str | None, str]:
    """What is wrong with a line, or None, and its hash."""
    hashed = ""
    try:
        entry = json.loads(line)
        hashed = str(entry.pop("hash"))
        if not line.endswith(b"\n"):
            return "it was not written to its end", hashed
        if hashed != _hash_of(entry) or line != _line_of({**entry, "hash": hashed}):
            return "it is not what was written", hashed
        if entry["previous"] != previous or entry["number"] != number:
            return "it does not follow from the one before it", hashed
    except UNREADABLE:
        return "it is no entry", hashed
    return None, hashed


def _newest(handle: int) -> tuple[int, str, int]:
    """The number and hash of the newest whole line, and where it ends."""
    size = os.fstat(handle).st_size
    start = max(0, size - TAIL)
    data = os.pread(handle, size - start, start)
    end = data.rfind(b"\n") + 1
    if not end:
        if start:
            raise OSError(errno.EFBIG, "its last line takes more than any entry: look at it, and cut it away", LOG)
        return 0, FIRST, start
    line = data[data.rfind(b"\n", 0, end - 1) + 1 : end]
    try:
        entry = json.loads(line)
        return _number_in(entry), str(entry["hash"]), start + end
    except UNREADABLE:
        return 0, FIRST, start + end  # `verify` finds the break; what happens is noted all the same


def _write_head(folder: int, number: int, hashed: str) -> None:
    handle = open_or_create(HEAD, folder=folder)
    try:
        os.pwrite(handle, f"{json.dumps({'number': number, 'hash': hashed}):<127}\n".encode(), 0)
        os.fsync(handle)
    finally:
        os.close(handle)
