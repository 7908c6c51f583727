"""What can be seen of the journal's directory and its disk; a file that is written for that is removed again."""

from __future__ import annotations

import secrets
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from enhanced_checkpointing.audit import AuditTrail
from enhanced_checkpointing.journal.disk import RealDisk, memory_filesystem, network_filesystem, reason
from enhanced_checkpointing.journal.format import Signer
from enhanced_checkpointing.journal.inspect import Survey, survey
from enhanced_checkpointing.private_files import FOLDER_MODE, UntrustedFileError

__all__ = ["JournalFacts", "ask_journal"]

SYNC_SECONDS, SYNCS = 0.3, 50
"""How long, and how often, the disk is measured at most."""

RECORD_BYTES = 4096


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
    audit_error: str = ""
    """Why the audit trail in it cannot be written."""
    untrusted: str = ""
    """Why the directory is another user's, or may be: nothing in it was looked at."""


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
        audit_error=audit_error,
        untrusted=untrusted,
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
