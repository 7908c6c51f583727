"""Who else can read or change what is stored: on the network, on this machine, and by what the stored bytes name."""

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
from enhanced_checkpointing.cli.doctor.checks import Answer, Checks, Finding, failed, fine, skipped, warning
from enhanced_checkpointing.cli.output import plural
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointCorruptionError, listed, redact
from enhanced_checkpointing.operations import Operation, Put, PutWrites
from enhanced_checkpointing.resilience.failures import CallFailed
from enhanced_checkpointing.serialization import Serialized, types_in

SAMPLED = 20
"""Threads, the newest ones."""
FILES_NAMED = 10
TRUE = ("1", "true", "yes", "on")


transport_checks: Checks[CheckpointerConfig, None] = Checks()


@transport_checks("database.tls", "Can others on the way to PostgreSQL read or change what passes?")
def check_transport(config: CheckpointerConfig, _: None) -> Answer:
    from psycopg import pq  # here, as the other checks work where it cannot be imported
    from psycopg.conninfo import conninfo_to_dict

    assert config.connection_string is not None
    given = {key: str(value) for key, value in conninfo_to_dict(config.connection_string.get_secret_value()).items()}
    defaults = {option.keyword.decode(): (option.val or b"").decode() for option in pq.Conninfo.get_defaults()}
    hosts = (given.get("hostaddr") or given.get("host") or defaults.get("host") or "").split(",")
    far = [host for host in hosts if not _is_near(host)]
    mode = given.get("sslmode") or defaults.get("sslmode") or "prefer"
    if not far:
        return None
    if mode in ("disable", "allow", "prefer"):
        return warning(
            f"sslmode is {mode}, and {listed(far)} is not this machine: the connection may be in plain text.",
            "Anyone on the way can read every conversation and the password, and change what is read.",
            "Add sslmode=verify-full&sslrootcert=… to DATABASE_URL; sslrootcert=system takes the machine's list.",
            sslmode=mode,
        )
    unproven = "" if mode == "verify-full" else ", but that is not proof of whose server it is: verify-full is"
    return fine(f"The connection to {listed(far)} must be encrypted{unproven}.", sslmode=mode)


@dataclass(frozen=True, slots=True)
class StoredFiles:
    """Our files on this machine: how many there are, those that other users can read, and the folders of ours, or above
    them, that other users can write."""

    count: int
    readable: list[str]
    loose: list[str]


def ask_files(config: CheckpointerConfig) -> StoredFiles:
    """Look at the files of the database, the journal and its exports."""
    journal = config.journal_dir.absolute()
    stored = [*_files_in(journal), *_files_in(journal / "quarantine"), *_exports(journal)]
    folders, of_sqlite = [journal.parent], None
    if config.backend_name == "sqlite" and str(config.database_path) != ":memory:":
        path = Path(config.database_path).expanduser().absolute()
        stored += (Path(f"{path}{end}") for end in ("", "-wal", "-shm", "-journal"))
        folders.append(of_sqlite := path.parent)
    found = {path: told for path in stored if (told := _stat(path)) is not None and stat.S_ISREG(told.st_mode)}
    readable = [str(path) for path, told in found.items() if _others_may(told, stat.S_IROTH, path.parent)]
    every = dict.fromkeys((*folders, *(above for folder in folders for above in folder.parents)))
    return StoredFiles(len(found), readable, [str(path) for path in every if _is_loose(path, path == of_sqlite)])


files_checks: Checks[StoredFiles, CheckpointerConfig] = Checks()


@files_checks("files.readers", "Can other users of this machine read what is stored?")
def check_readers(found: StoredFiles, config: CheckpointerConfig) -> Answer:
    if not found.readable:
        return fine(f"Other users can read none of the stored files ({found.count}).", files=[])
    named = found.readable[:FILES_NAMED]
    return warning(
        f"Other users of this machine can read {plural(len(found.readable), 'file')}: {listed(found.readable)}.",
        "They hold what people said to agents. New files are private; these were made by an older release or opened up "
        "since.",
        f"chmod go= {' '.join(named)}",
        files=named,
    )


@files_checks("files.folders", "Can other users of this machine put files beside, or in place of, ours?")
def check_folders(found: StoredFiles, config: CheckpointerConfig) -> Answer:
    if not found.loose:
        return fine("No other user can write the folders of the database and the journal.", folders=[])
    named = found.loose[:FILES_NAMED]
    return warning(
        f"Other users of this machine can write {listed(found.loose)}, where the database or the journal is.",
        "They can put files of theirs in the place of ours, or beside them where SQLite looks for its log.",
        f"chmod go-w {' '.join(named)}, or keep the files in a folder of the application's own.",
        folders=named,
    )


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
    """The newest threads, as bytes: how many there are, the types of their objects, whether any value is encrypted,
    those whose metadata cannot be read, and those with a value that the key of the serializer does not decrypt."""

    threads: int
    types: frozenset[tuple[str, str]]
    sealed: bool
    unreadable: tuple[str, ...]
    closed: tuple[str, ...] = ()


async def sample_of(backend: Backend) -> Sample:
    """Look at the newest checkpoints of some threads: no object is made."""
    types: set[tuple[str, str]] = set()
    sealed, closed = False, dict[str, None]()
    heads = await backend.heads(HeadQuery(SAMPLED))
    for head in heads:
        try:
            async for chunk in backend.read_thread(head.thread_id):
                for value in (value for operation in chunk for value in _values_of(operation)):
                    sealed = sealed or "+" in value.tag
                    with suppress(ValueError):  # damage, which the application's read tells of
                        types |= types_in(value, backend.serializer)
                break  # the first part of a thread is enough
        except CheckpointCorruptionError:
            closed[head.thread_id] = None
    return Sample(len(heads), frozenset(types), sealed, tuple(backend.unreadable), tuple(closed))


def _values_of(operation: Operation) -> Iterator[Serialized]:
    found: Iterable[Any] = ()
    if isinstance(operation, Put):
        found = operation.values.values()
    elif isinstance(operation, PutWrites):
        found = (value for _, value in operation.writes)
    return (value for value in found if isinstance(value, Serialized))


sample_checks: Checks[Sample, CheckpointerConfig] = Checks()


@sample_checks("database.metadata", "Can the metadata of stored threads be read?")
def check_metadata(sample: Sample, config: CheckpointerConfig) -> Answer:
    if not sample.unreadable:
        return None
    return warning(
        f"The metadata of {plural(len(sample.unreadable), 'thread')} cannot be read: {listed(sample.unreadable)}.",
        "Listings and retention leave them out. All others are listed.",
        "Correct the metadata of their newest checkpoint, or delete them: checkpointing threads delete.",
        threads=len(sample.unreadable),
    )


@sample_checks("database.key", "Does the serializer's key decrypt what is stored?")
def check_key(sample: Sample, config: CheckpointerConfig) -> Answer:
    if not sample.closed:
        return None
    return failed(
        f"{plural(len(sample.closed), 'thread')} of {sample.threads} cannot be decrypted with this key: "
        f"{listed(sample.closed)}.",
        "An application with this key gets CheckpointCorruptionError for them. Nothing was changed.",
        "Give the key that they were stored with: LANGGRAPH_AES_KEY, or the serializer that --serde names.",
        threads=list(sample.closed),
    )


@sample_checks("settings.strict_msgpack", "Can stored bytes make the application run code?")
def check_strict(sample: Sample, config: CheckpointerConfig) -> Answer:
    strict = os.environ.get("LANGGRAPH_STRICT_MSGPACK", "").strip().lower() in TRUE
    if config.environment != "production" or strict:
        return None
    blocked = sorted(f"{module}.{name}" for module, name in sample.types - SAFE_MSGPACK_TYPES)
    would = f"In {plural(sample.threads, 'thread')} that were sampled it would block "
    would += (
        f"{listed(blocked, 10)}, unless the graph's own channels declare them: give the others to "
        "JsonPlusSerializer(allowed_msgpack_modules=[…])."
        if blocked
        else "nothing."
    )
    return warning(
        "LANGGRAPH_STRICT_MSGPACK is not set: when the application reads a checkpoint, LangGraph makes objects of any "
        "types that the stored bytes name.",
        "Anyone who can write rows of the database can have code run in the application.",
        f"Set LANGGRAPH_STRICT_MSGPACK=true for the application. {would}",
        would_block=blocked,
    )


@sample_checks("database.encryption", "What does encryption leave readable?")
def check_encryption(sample: Sample, config: CheckpointerConfig) -> Answer:
    if not sample.sealed and not os.environ.get("LANGGRAPH_AES_KEY"):
        return None
    where = "plain channels (texts, numbers, true, false, null), " if config.backend_name == "postgres" else ""
    return warning(
        f"Values are encrypted, but not all that is stored is: {where}metadata, and the ids of threads, users and "
        "checkpoints stand in the tables as they are.",
        "Anyone who reads the database or a backup of it reads those.",
        "Keep secrets in channels that are objects, and let database and backups be encrypted as a whole. "
        "See docs/security.md. `checkpointing doctor --serde MODULE:NAME` checks the key.",
    )


async def sampled_threads(primary: Primary, config: CheckpointerConfig, timeout: float) -> Sequence[Finding]:
    """What some stored threads tell; where they cannot be read, other findings say why."""
    try:
        sample = await primary.ask("sample", lambda: sample_of(primary.backend), timeout)
    except CallFailed as error:
        hint = "" if config.serde is not None else " --serde MODULE:NAME names the application's serializer."
        return [skipped(f"Stored threads could not be checked: {redact(error.error)}{hint}", name="database.sample")]
    return sample_checks.judge(sample, config)
