"""The journal's directory and its disk: what can be seen of them, and what that means for the data."""

from __future__ import annotations

import secrets
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enhanced_checkpointing.audit import HEAD, LOG, AuditTrail
from enhanced_checkpointing.cli.doctor.checks import Answer, Checks, Finding, failed, fine, warning
from enhanced_checkpointing.cli.output import age, one_size, plural
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import listed
from enhanced_checkpointing.journal.disk import RealDisk, memory_filesystem, network_filesystem, reason
from enhanced_checkpointing.journal.format import SIGNED_FORMAT, Signer, format_of, read_header
from enhanced_checkpointing.journal.inspect import Owner, Survey, SurveyedLog, survey
from enhanced_checkpointing.journal.recovery import belongs
from enhanced_checkpointing.private_files import FOLDER_MODE, UntrustedFileError

SYNC_SECONDS, SYNCS = 0.3, 50
"""How long, and how often, the disk is measured at most."""

RECORD_BYTES = 4096
HEADER_BYTES = 64 * 1024
"""Of a file, in which its header stands; it names the files before it, some bytes each."""


@dataclass(frozen=True, slots=True)
class JournalFacts:
    """`folder` is the nearest directory that is there. `sync_seconds` is the median of a write that is synced, None
    where none worked; `error` says why the directory cannot be used, `survey_error` why what is in it cannot be read.
    """

    directory: Path
    folder: Path
    network: str | None
    memory: str | None
    free_bytes: int
    error: str = ""
    sync_seconds: float | None = None
    survey: Survey | None = None
    survey_error: str = ""
    untrusted: str = ""
    """Why the directory is another user's, or may be: nothing in it was looked at."""
    audit_error: str = ""
    """Why the audit trail in it cannot be written."""
    signed: tuple[str, ...] = ()
    """Its files that are signed, and of those the ones that are signed with another key than the given one."""
    other_key: tuple[str, ...] = ()


def ask_journal(directory: Path, *, measure: bool = True, signer: Signer | None = None) -> JournalFacts:
    """Look at a directory, which need not be there; with `measure`, write to it, too."""
    directory = directory.absolute()
    folder = next(path for path in (directory, *directory.parents) if path.exists())
    times, error = _measure(directory, folder) if measure else ([], "")
    surveyed, survey_error, untrusted = None, "", ""
    try:
        surveyed = survey(directory, signer=signer)
    except UntrustedFileError as refused:
        survey_error = reason(refused)
        untrusted = survey_error if refused.filename == str(directory) else ""
    except OSError as refused:
        survey_error = reason(refused)
    audit_error = ""
    try:
        AuditTrail(directory).check()
    except OSError as refused:
        audit_error = reason(refused)
    names = [name for log in surveyed.logs for name in log.files] if surveyed is not None else []
    signed = [name for name in names if format_of(_beginning(directory / name)) == SIGNED_FORMAT]
    return JournalFacts(
        directory=directory,
        folder=folder,
        network=network_filesystem(directory),
        memory=memory_filesystem(directory),
        free_bytes=shutil.disk_usage(folder).free,
        error=error,
        sync_seconds=statistics.median(times) if times else None,
        survey=surveyed,
        survey_error=survey_error,
        untrusted=untrusted,
        audit_error=audit_error,
        signed=tuple(signed),
        other_key=tuple(name for name in signed if signer is not None and _has_other_key(directory, name, signer)),
    )


def _beginning(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(HEADER_BYTES)
    except OSError:  # its process has drained it, and removed it
        return b""


def _has_other_key(directory: Path, name: str, signer: Signer) -> bool:
    """Whether the header of a signed file is whole, but not signed with this key."""
    data, (log, number, _) = _beginning(directory / name), name.split(".")
    return read_header(data, signer.at(log, int(number))) is None and (
        read_header(data, Signer(None).at(log, int(number))) is not None
    )


def _measure(directory: Path, folder: Path) -> tuple[list[float], str]:
    """The seconds of writes of a record that are synced one by one; and why that did not work, if it did not."""
    times: list[float] = []
    try:
        if folder == directory:
            _measure_in(directory, times)
            return times, ""
        trial = folder / f".checkpointing-{secrets.token_hex(4)}"  # as it would be made; no trace is left
        trial.mkdir(mode=FOLDER_MODE)
        try:
            _measure_in(trial, times)
        finally:
            trial.rmdir()
    except OSError as error:
        return times, reason(error)
    return times, ""


def _measure_in(folder: Path, times: list[float]) -> None:
    disk = RealDisk(folder)
    name = f".checkpointing-{secrets.token_hex(4)}"
    handle = disk.create(name)
    try:
        ends_at = time.perf_counter() + SYNC_SECONDS
        while len(times) < SYNCS and (begun := time.perf_counter()) < ends_at:
            disk.write(handle, len(times) * RECORD_BYTES, b"\1" * RECORD_BYTES)
            disk.sync(handle)
            times.append(time.perf_counter() - begun)
    finally:
        disk.close(handle)
        disk.remove(name)


LEAST_ROOM = 1024 * 1024
SLOW_SYNC = 0.05
"""Seconds of a sync above which writes of an outage become slow; disks of virtual machines take 1 to 10 ms."""

CLOCK_SLACK = 5.0

NO_START = (
    "In production, or where the journal was asked for by name, an application that starts now is refused its start; "
    "any other keeps the writes of an outage in memory, and loses them with the process."
)


@dataclass(frozen=True, slots=True)
class Around:
    """What the contents of a directory are judged by; `home` is the primary of this configuration, if it has a name."""

    config: CheckpointerConfig
    home: str | None
    now: float


checks: Checks[JournalFacts, CheckpointerConfig] = Checks()
contents: Checks[Survey, Around] = Checks()


def judge(facts: JournalFacts, config: CheckpointerConfig, home: str | None, now: float) -> list[Finding]:
    """All findings; `home` is the primary of this configuration, `now` the wall clock."""
    found = checks.judge(facts, config)
    return found if facts.survey is None else found + contents.judge(facts.survey, Around(config, home, now))


@checks("journal.directory", "Can the journal's directory be written, and trusted?")
def check_directory(facts: JournalFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    if facts.network is not None:
        yield failed(
            f"{facts.directory} is on a network file system ({facts.network}).",
            f"It is refused: locks may not keep other machines out there, and a sync may not be one. {NO_START}",
            "Set CHECKPOINT_JOURNAL_DIR to a directory on a local disk; in a container, on a volume of the node.",
        )
    elif facts.untrusted:
        yield failed(
            f"The directory cannot be trusted ({facts.untrusted}).",
            f"Another user could forge what is drained into the database. {NO_START}",
            "Do that, or set CHECKPOINT_JOURNAL_DIR to a directory of the application's user that no other may write.",
        )
    elif facts.error and facts.sync_seconds is None and not _is_full(facts):
        yield failed(
            f"{facts.directory} cannot be written ({facts.error}).",
            NO_START,
            "Let the application's user write it, or set CHECKPOINT_JOURNAL_DIR to a directory on a local disk that "
            "it may write.",
        )
    elif facts.memory is not None:
        yield warning(
            f"{facts.directory} is in memory ({facts.memory}).",
            "What is acknowledged in an outage survives the process, but not the machine or the container.",
            "Set CHECKPOINT_JOURNAL_DIR to a directory on a disk, in a container on a volume.",
        )
    else:
        made = "" if facts.folder == facts.directory else ", once the first start has made it"
        yield fine(f"{facts.directory} can be written{made}.")


@checks("journal.room", "Has the journal's disk room for a long outage?")
def check_room(facts: JournalFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    room = one_size(facts.free_bytes)
    if _is_full(facts):
        yield failed(
            f"The disk of {facts.directory} is full ({room} left).",
            "In an outage, writes are refused. What is in the journal can still be drained.",
            "Make room on it, or set CHECKPOINT_JOURNAL_DIR to a disk that has some.",
            free_bytes=facts.free_bytes,
        )
    elif facts.free_bytes < config.journal_max_bytes:
        most = one_size(config.journal_max_bytes)
        yield warning(
            f"The disk of {facts.directory} has {room} left; each process may journal {most}.",
            "In a long outage the disk is full before the journal is, and writes are refused from then on.",
            "Make room, or lower CHECKPOINT_JOURNAL_MAX_BYTES, so that its alarms come in time.",
            free_bytes=facts.free_bytes,
        )
    else:
        yield fine(f"The disk has {room} left.", free_bytes=facts.free_bytes)


@checks("journal.sync", "Is the journal's disk fast enough to sync each write?")
def check_sync(facts: JournalFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    if facts.sync_seconds is None:
        return
    rate, milliseconds = 1 / max(facts.sync_seconds, 1e-6), facts.sync_seconds * 1000
    details: dict[str, Any] = {"syncs_per_second": round(rate, 1), "milliseconds": round(milliseconds, 3)}
    what = f"The disk syncs {rate:,.0f} times a second ({milliseconds:.2f} ms each)"
    if facts.sync_seconds > SLOW_SYNC:
        yield warning(
            f"{what}, which is slow.",
            "Each write of an outage waits for a sync, many at a time for the same one.",
            "Put CHECKPOINT_JOURNAL_DIR on a faster disk, one with a write cache that survives a loss of power.",
            **details,
        )
    else:
        yield fine(f"{what}.", **details)


@contents("journal.owners", "Which running processes have a journal here?")
def check_owners(survey: Survey, around: Around) -> Iterator[Finding]:
    alive = [log for log in survey.logs if log.owner is Owner.ALIVE]
    if any(log.owner is Owner.UNKNOWN for log in survey.logs):
        who = f"process {listed(map(str, survey.adopting))}" if survey.adopting else "a process"
        yield warning(
            f"The directory is held by {who}, which took longer than it should to take over what is left in it.",
            "Until it is done, no other process takes anything over: what ended processes left is not drained.",
            "If that process hangs, end it: nothing is lost by that.",
            process_ids=list(survey.adopting),
        )
    elif alive:
        ids = sorted({process_id for log in alive for process_id in log.process_ids})
        who = f" ({listed(map(str, ids))})" if ids else ""
        held = f"{plural(len(alive), 'journal')} here {'is' if len(alive) == 1 else 'are'}"
        yield fine(f"{held} in use by running processes{who}.", process_ids=ids)


@contents("journal.backlog", "Does anything wait here that the database does not have?")
def check_backlog(survey: Survey, around: Around) -> Iterator[Finding]:
    waiting = [log for log in survey.logs if survey.drainable(log)]
    ours = [
        log for log in waiting if belongs(log.home, around.home, takes_over_all=around.config.journal_adopt == "all")
    ]
    for log in waiting:
        if log not in ours and log.owner is not Owner.ALIVE:
            yield failed(
                f"{plural(survey.drainable(log), 'operation')} of an ended process wait "
                f"for another database: {log.home or 'an earlier release, which did not say which'}.",
                "They were acknowledged, are nowhere else, and are not drained into the database of this "
                "configuration.",
                "Start an application, or `checkpointing journal drain`, with that database; or, if it has moved and "
                "is this one now, with CHECKPOINT_JOURNAL_ADOPT=all.",
                home=log.home,
                pending=survey.drainable(log),
                name="journal.foreign",
            )
    if alive := [log for log in waiting if log.owner is Owner.ALIVE]:
        yield warning(
            f"{_waits(survey, alive, around.now)} in the journals of running processes.",
            "They are acknowledged and not in the database yet. The processes drain them when it takes writes.",
            "If the database is well, look at `checkpointing journal status` again in a minute.",
            pending=sum(map(survey.drainable, alive)),
        )
    if dead := [log for log in ours if log.owner is not Owner.ALIVE]:
        yield warning(
            f"{_waits(survey, dead, around.now)} in the journals of ended processes.",
            "They are acknowledged and nowhere else. The next application that starts with this directory drains them, "
            "or one that runs, within seconds.",
            "Start the application, or run `checkpointing journal drain`. Do not delete the directory.",
            pending=sum(map(survey.drainable, dead)),
            name="journal.left",
        )
    if not waiting:
        besides = " but what is frozen" if survey.frozen_threads else ""
        yield fine(f"Nothing waits in it{besides}.", pending=0)


@contents("journal.dead_letters", "Did the database refuse anything permanently?")
def check_dead_letters(survey: Survey, around: Around) -> Iterator[Finding]:
    letters = [letter for log in survey.logs for letter in log.dead_letters]
    if letters:
        threads = sorted({letter.thread_id for letter in letters})
        yield failed(
            f"{plural(len(letters), 'operation was', 'operations were')} refused by the database permanently ("
            f"{letters[0].error}); {plural(len(threads), 'thread')}: {listed(threads)}.",
            "These threads stay on the journal: they go on, and nothing of them reaches the database.",
            "`checkpointing journal dead-letters` lists them. Fix the cause, then run "
            "`checkpointing journal retry --all`.",
            dead_letters=len(letters),
            threads=threads,
        )


@contents("journal.damage", "Is everything in the journal as it was written?")
def check_damage(survey: Survey, around: Around) -> Iterator[Finding]:
    damaged = [log for log in survey.logs if log.faults]
    if damaged:
        faults = [fault for log in damaged for fault in log.faults]
        threads = sorted({thread for log in damaged for thread in log.damaged_threads})
        who = f"{plural(len(threads), 'thread is', 'threads are')} frozen ({listed(threads)})"
        who = who if threads else "No thread is known to lack something"
        yield failed(
            f"The journal is damaged: {listed(faults, 2)}.",
            f"{who}: nothing more of what is frozen reaches the database until an operator decides. All others go on.",
            "`checkpointing journal quarantine` shows what is damaged and what can be done. Check the disk, too.",
            faults=faults,
            threads=threads,
        )


@contents("journal.strays", "Are there files here that are not the journal's?")
def check_strays(survey: Survey, around: Around) -> Iterator[Finding]:
    if survey.strays:
        yield warning(
            f"There are files in it that are not the journal's: {listed(survey.strays)}.",
            "They are ignored; they may be the journal's files under other names, which are never drained.",
            "Move them elsewhere, or give the journal a directory of its own.",
            files=list(survey.strays),
        )


@contents("journal.clock", "Was the clock set back since the journal was begun?")
def check_stamps(survey: Survey, around: Around) -> Iterator[Finding]:
    newest = max((log.begun_at for log in survey.logs), default=0.0)
    if newest > around.now + CLOCK_SLACK:
        yield warning(
            f"A file of the journal was begun {age(newest - around.now)} in the future: the clock has gone back since.",
            "The order of the journal is kept all the same, but new checkpoints may get ids older than those before.",
            "Set the clock, and keep it set (NTP, chrony).",
        )


@checks("journal.contents", "Can the files in the directory be read?")
def check_contents(facts: JournalFacts, config: CheckpointerConfig) -> Answer:
    if not facts.survey_error or facts.untrusted:
        return None
    return failed(
        f"What is in {facts.directory} cannot be read ({facts.survey_error}).",
        "What ended processes acknowledged may be in it, and would not be drained.",
        "Run this as the user that the application runs as; else give the files to that user.",
    )


@checks("journal.key", "Is CHECKPOINT_JOURNAL_KEY the key that the journal was signed with?")
def check_key(facts: JournalFacts, config: CheckpointerConfig) -> Answer:
    if config.journal_key is None and facts.signed:
        return failed(
            f"{plural(len(facts.signed), 'file')} of the journal is signed, and CHECKPOINT_JOURNAL_KEY is not set.",
            "What is signed is not read without its key: an application that starts now is refused its start.",
            "Set CHECKPOINT_JOURNAL_KEY to the key that the files were written with.",
            files=list(facts.signed),
        )
    if facts.other_key:
        return failed(
            f"{plural(len(facts.other_key), 'file')} of the journal is not signed with CHECKPOINT_JOURNAL_KEY.",
            "An application that starts now takes what is in it for damage: nothing of it reaches the database.",
            "Set CHECKPOINT_JOURNAL_KEY to the key that the files were written with. Nothing was changed.",
            files=list(facts.other_key),
        )
    return None


@checks("journal.audit", "Can the audit trail be written?")
def check_audit(facts: JournalFacts, config: CheckpointerConfig) -> Answer:
    if not facts.audit_error or facts.untrusted:
        return None
    return warning(
        f"The audit trail in {facts.directory} cannot be written ({facts.audit_error}).",
        "Deletions and erasures are made all the same, and leave no entry; health says degraded.",
        f"Repair {LOG} and {HEAD} there: both are regular files of the application's user, which no other may write.",
    )


def _is_full(facts: JournalFacts) -> bool:
    return facts.free_bytes < LEAST_ROOM or "No space left" in facts.error


def _waits(survey: Survey, logs: list[SurveyedLog], now: float) -> str:
    pending = sum(map(survey.drainable, logs))
    oldest = min(log.oldest_at for log in logs if log.oldest_at is not None)
    return f"{plural(pending, 'operation waits', 'operations wait')}, the oldest for {age(now - oldest)},"
