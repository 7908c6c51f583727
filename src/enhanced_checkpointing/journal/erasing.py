"""What an erasure does in the journal's directory besides this process's own journal. All of it may block."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from enhanced_checkpointing.journal.disk import QUARANTINE, RealDisk
from enhanced_checkpointing.journal.format import FileSigner, Signer, scan
from enhanced_checkpointing.journal.inspect import SurveyedLog, survey
from enhanced_checkpointing.journal.recovery import LOCK, logs_in
from enhanced_checkpointing.private_files import open_own, own_directory

ANY_SIGNATURE = FileSigner(Signer(None), b"")
"""Reads signed frames and others, whatever signed them."""


def journals_of_others(directory: Path, ours: Collection[str]) -> dict[str, list[str]]:
    """The files of each other running process's journal: it writes them anew when it has read the tombstone.

    Raises:
        OSError: the directory cannot be read.
    """
    if not directory.is_dir():
        return {}
    names = RealDisk(directory).names()
    return {
        identity: [name for name in names if name.startswith(identity) and name.endswith(".journal")]
        for identity in logs_in(names)
        if identity not in ours and f"{identity}{LOCK}" in names
    }


def unchanged(directory: Path, others: Mapping[str, Sequence[str]]) -> list[str]:
    """Those of `journals_of_others` of which a file is still there."""
    there = set(RealDisk(directory).names())
    return [identity for identity, files in others.items() if there & set(files)]


def holders_of(directory: Path, ours: Collection[str], thread_ids: Collection[str]) -> list[SurveyedLog]:
    """Journals that still hold one of the threads: of an earlier release, or of this database under another name.

    Raises:
        OSError: the directory or a file cannot be read.
    """
    found = []
    for log in survey(directory).logs:
        held = {thread_id for thread_id, _ in log.waiting} | {letter.thread_id for letter in log.dead_letters}
        if log.identity not in ours and held & set(thread_ids):
            found.append(log)
    return found


def erase_quarantined(directory: Path, thread_ids: Collection[str]) -> tuple[int, list[str]]:
    """Overwrite the records of threads in the copies of damaged files; returns how many, and the files of which a place
    cannot be read, so that it may be one of theirs. A signature counts for nothing here: what is forged goes, too.

    Raises:
        OSError: the folder or a file cannot be opened.
    """
    count, doubtful = 0, []
    with (
        suppress(FileNotFoundError),
        own_directory(directory) as above,
        own_directory(QUARANTINE, folder=above) as folder,
    ):
        for name in sorted(os.listdir(folder)):
            handle = open_own(name, os.O_RDWR, folder=folder)
            try:
                found = scan(os.pread(handle, os.fstat(handle).st_size, 0), ANY_SIGNATURE)
                gone = [frame for frame in found.frames if frame.draft.thread_id in thread_ids]
                for frame in gone:
                    os.pwrite(handle, bytes(frame.length), frame.offset)
                os.fsync(handle)
            finally:
                os.close(handle)
            count += len(gone)
            if any(one.thread_id is None or one.thread_id in thread_ids for one in found.damages) or found.torn:
                doubtful.append(f"{QUARANTINE}/{name}")
    return count, doubtful
