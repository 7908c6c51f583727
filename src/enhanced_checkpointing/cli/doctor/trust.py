"""Whom the application trusts with what it stores: the network, the bytes in the database, and its readers."""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_TYPES

from enhanced_checkpointing.audit import AuditTrail
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.listing import HeadQuery
from enhanced_checkpointing.cli.database import Primary
from enhanced_checkpointing.cli.output import Finding, fine, plural, skipped, warning
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import listed, redact
from enhanced_checkpointing.operations import Put, PutWrites
from enhanced_checkpointing.resilience.failures import CallFailed
from enhanced_checkpointing.serialization import Serialized, types_in

SAMPLED = 20
"""Threads, the newest ones."""
FILES_NAMED = 10
TRUE = ("1", "true", "yes", "on")


def check_transport(config: CheckpointerConfig) -> Iterator[Finding]:
    """Whether others on the way to PostgreSQL can read or change what passes."""
    from psycopg import pq
    from psycopg.conninfo import conninfo_to_dict

    assert config.connection_string is not None
    given = {key: str(value) for key, value in conninfo_to_dict(config.connection_string.get_secret_value()).items()}
    defaults = {option.keyword.decode(): (option.val or b"").decode() for option in pq.Conninfo.get_defaults()}
    hosts = (given.get("hostaddr") or given.get("host") or defaults.get("host") or "").split(",")
    far = [host for host in hosts if not _is_near(host)]
    mode = given.get("sslmode") or defaults.get("sslmode") or "prefer"
    if not far:
        return
    if mode in ("disable", "allow", "prefer"):
        yield warning(
            "database.tls",
            f"sslmode is {mode}, and {listed(far)} is not this machine: the connection may be in plain text.",
            "Whoever is on the way can read every conversation and the password, and change what is read.",
            "Add sslmode=verify-full&sslrootcert=… to DATABASE_URL; sslrootcert=system takes the machine's list.",
            sslmode=mode,
        )
    else:
        unproven = "" if mode == "verify-full" else ", but that is not proof of whose server it is: verify-full is"
        yield fine("database.tls", f"The connection to {listed(far)} must be encrypted{unproven}.", sslmode=mode)


def check_files(config: CheckpointerConfig) -> Iterator[Finding]:
    """Whether other users of this machine can read what is stored, or put files of their own beside it."""
    journal = config.journal_dir.absolute()
    stored = [*_files_in(journal), *_files_in(journal / "quarantine"), *_exports(journal)]
    folders, of_sqlite = [journal.parent], None
    if config.backend_name == "sqlite" and str(config.database_path) != ":memory:":
        path = Path(config.database_path).expanduser().absolute()
        stored += (Path(f"{path}{end}") for end in ("", "-wal", "-shm", "-journal"))
        folders.append(of_sqlite := path.parent)
    found = {path: told for path in stored if (told := _stat(path)) is not None and stat.S_ISREG(told.st_mode)}
    if open_files := [str(path) for path, told in found.items() if _others_may(told, stat.S_IROTH, path.parent)]:
        yield warning(
            "files.readers",
            f"Other users of this machine can read {plural(len(open_files), 'file')}: {listed(open_files)}.",
            "They hold what people said to agents. New files are private; these were made by an older release or "
            "opened up since.",
            f"chmod go= {' '.join(open_files[:FILES_NAMED])}",
            files=open_files[:FILES_NAMED],
        )
    else:
        yield fine("files.readers", f"No other user can read any of {plural(len(found), 'file')}.", files=[])
    if loose := [
        str(path) for path in dict.fromkeys((*folders, *_above(folders))) if _is_loose(path, path == of_sqlite)
    ]:
        yield warning(
            "files.folders",
            f"Other users of this machine can write {listed(loose)}, where the database or the journal is.",
            "They can put files of theirs in the place of ours, or beside them where SQLite looks for its log.",
            f"chmod go-w {' '.join(loose[:FILES_NAMED])}, or keep the files in a folder of the application's own.",
            folders=loose[:FILES_NAMED],
        )
    else:
        yield fine("files.folders", "No other user can write the folders of the database and the journal.", folders=[])


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # it is not there, or other findings say why it cannot be read
        return []


def _exports(journal: Path) -> list[Path]:
    """The files that were exported, as the audit trail tells."""
    try:
        told = [one.get("file") for one in AuditTrail(journal).entries() if one.get("action") == "export"]
    except OSError:
        return []
    return [Path(file) for file in told if isinstance(file, str) and file.startswith("/")]


def _above(folders: Iterable[Path]) -> Iterator[Path]:
    return (above for folder in folders for above in folder.parents)


def _is_loose(folder: Path, holds_files: bool) -> bool:
    """Whether others can replace what is in a folder; with the sticky bit they cannot, but can still add to it."""
    found = _stat(folder)
    if found is None or (found.st_mode & stat.S_ISVTX and not holds_files):
        return False
    return _others_may(found, stat.S_IWOTH, folder)


def _others_may(found: os.stat_result, right: int, folder: Path) -> bool:
    """Whether other users have a right; a group that its folder shares with this process, as fsGroup does, is ours."""
    shared = _stat(folder)
    ours = shared is not None and shared.st_mode & stat.S_ISGID and found.st_gid in (os.getegid(), *os.getgroups())
    return bool(found.st_mode & (right if ours else right | right << 3))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _is_near(host: str) -> bool:
    if not host or host.startswith(("/", "@")) or host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Sample:
    """What the newest threads are made of: so many were looked at, with objects of these types; whether any value is
    sealed; and those whose metadata cannot be read."""

    threads: int
    types: frozenset[tuple[str, str]]
    sealed: bool
    unreadable: tuple[str, ...]


async def sample_of(backend: Backend) -> Sample:
    """Look at the newest checkpoints of some threads, as bytes: no object is made."""
    types: set[tuple[str, str]] = set()
    sealed = False
    heads = await backend.heads(HeadQuery(SAMPLED))
    for head in heads:
        async for chunk in backend.read_thread(head.thread_id):
            for operation in chunk:
                if isinstance(operation, Put):
                    found: Sequence[Any] = [*operation.values.values()]
                else:
                    found = [value for _, value in operation.writes] if isinstance(operation, PutWrites) else []
                for value in found:
                    if isinstance(value, Serialized):
                        sealed = sealed or "+" in value.tag
                        with suppress(Exception):  # a key that this command has not, or damage
                            types |= types_in(value, backend.serializer)
            break  # the first part of a thread is enough
    return Sample(len(heads), frozenset(types), sealed, tuple(backend.unreadable))


def judge_sample(sample: Sample, config: CheckpointerConfig) -> Iterator[Finding]:
    if sample.unreadable:
        yield warning(
            "database.metadata",
            f"The metadata of {plural(len(sample.unreadable), 'thread')} cannot be read: {listed(sample.unreadable)}.",
            "Listings and retention leave them out. All others are listed.",
            "Mend the metadata of their newest checkpoint, or delete them: checkpointing threads delete.",
            threads=len(sample.unreadable),
        )
    strict = os.environ.get("LANGGRAPH_STRICT_MSGPACK", "").strip().lower() in TRUE
    blocked = sorted(f"{module}.{name}" for module, name in sample.types - SAFE_MSGPACK_TYPES)
    if config.environment == "production" and not strict:
        would = (
            f"In {plural(sample.threads, 'thread')} that were sampled it would block {listed(blocked, 10)}, unless the "
            "graph's own channels declare them: give the others to JsonPlusSerializer(allowed_msgpack_modules=[…])."
            if blocked
            else f"In {plural(sample.threads, 'thread')} that were sampled it would block nothing."
        )
        yield warning(
            "settings.strict_msgpack",
            "LANGGRAPH_STRICT_MSGPACK is not set: when the application reads a checkpoint, LangGraph makes objects of "
            "whatever types the stored bytes name.",
            "Whoever can write rows of the database can have code run in the application.",
            f"Set LANGGRAPH_STRICT_MSGPACK=true for the application. {would}",
            would_block=blocked,
        )
    if sample.sealed or os.environ.get("LANGGRAPH_AES_KEY"):
        where = "plain channels (texts, numbers, true, false, null), " if config.backend_name == "postgres" else ""
        yield warning(
            "database.encryption",
            f"Values are encrypted, but not all that is stored is: {where}metadata, and the ids of threads, users and "
            "checkpoints stand in the tables as they are.",
            "Whoever reads the database or a backup of it reads those.",
            "Keep secrets in channels that are objects, and let database and backups be encrypted as a whole. "
            "See docs/security.md.",
        )


async def sampled_threads(primary: Primary, config: CheckpointerConfig, timeout: float) -> Sequence[Finding]:
    """What some stored threads tell; where they cannot be read, other findings say why."""
    try:
        return [*judge_sample(await primary.ask("sample", lambda: sample_of(primary.backend), timeout), config)]
    except CallFailed as error:
        return [skipped("database.sample", f"No stored thread could be looked at: {redact(error.error)}")]
