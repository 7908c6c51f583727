"""What a caller is told when the journal cannot take something: what it means for the data, and what to do."""

from __future__ import annotations

import errno

from enhanced_checkpointing.errors import CheckpointUnavailableError, JournalFullError, redact
from enhanced_checkpointing.private_files import UntrustedFileError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a directory that waiting does not mend."""


def refusal(error: OSError) -> JournalFullError | CheckpointUnavailableError:
    """The error of a write that the journal's disk did not take."""
    fate = (
        "so this write was not accepted: it is neither in the primary nor in the journal. Nothing older was dropped, "
        "and what is there goes on being drained."
    )
    if error.errno in FULL:
        return JournalFullError(
            f"The disk of the journal is full ({reason(error)}), {fate} Make room where CHECKPOINT_JOURNAL_DIR is, or "
            "bring the primary back."
        )
    return CheckpointUnavailableError(
        f"The journal cannot be written ({reason(error)}), {fate} Look at the disk of CHECKPOINT_JOURNAL_DIR, or bring "
        "the primary back."
    )


def unusable(error: OSError) -> str:
    """Why a start with this directory is refused."""
    if isinstance(error, UntrustedFileError):
        return (
            f"The journal's directory cannot be trusted ({reason(error)}), so nothing in it was read or changed. Do "
            "that, or set CHECKPOINT_JOURNAL_DIR to a directory that is this process's user's and that no other user "
            "may write."
        )
    return (
        f"The journal's directory cannot be used ({reason(error)}), so what is acknowledged in an outage could not "
        "survive this process. Nothing was stored. Set CHECKPOINT_JOURNAL_DIR to a directory on a local disk that this "
        "process may write, or accept that with CHECKPOINT_JOURNAL=memory."
    )


def unreadable(error: OSError) -> str:
    """Why a start is refused that could not see what earlier processes acknowledged."""
    return (
        f"The journal cannot be read ({reason(error)}), and may hold what an earlier process acknowledged. Nothing in "
        "it was changed. Mend the disk of CHECKPOINT_JOURNAL_DIR; or set it to another directory, which leaves what is "
        "in this one behind."
    )


def reason(error: OSError) -> str:
    """What the system says, with the name of the file."""
    if isinstance(error, UntrustedFileError):
        return redact(f"{error.filename}: {error.strerror}")
    return redact(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
